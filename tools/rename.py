"""A request to renew a certificate under another subject, by the attribute ChangeSubjectName (RFC 6402 §2.8), which
openssl cannot write. It has the certificate's key and names, as a re-enrolment must, and is printed in base64.

    python tools/rename.py pump.pem pump.key CN=pump-9
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from estd import der, device_keys

_EXTENSION_REQUEST = der.oid("1.2.840.113549.1.9.14")
_CHANGE_SUBJECT_NAME = der.oid("1.3.6.1.5.5.7.7.36")
_SUBJECT_ALT_NAME = der.oid("2.5.29.17")
_ATTRIBUTES = 0xA0


def attribute(oid: bytes, value: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, oid + der.tlv(der.SET, value))


def request(current: x509.Certificate, key: ec.EllipticCurvePrivateKey, subject: x509.Name) -> bytes:
    """The PKCS#10 request, DER."""
    attributes = [attribute(_CHANGE_SUBJECT_NAME, der.tlv(der.SEQUENCE, subject.public_bytes()))]
    for extension in current.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names = _SUBJECT_ALT_NAME + der.tlv(der.OCTET_STRING, extension.value.public_bytes())
            attributes.append(attribute(_EXTENSION_REQUEST, der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, names))))
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    asked = der.tlv(_ATTRIBUTES, b"".join(sorted(attributes)))
    tbs = der.tlv(der.SEQUENCE, der.uint(0) + current.subject.public_bytes() + public + asked)
    algorithm = der.tlv(der.SEQUENCE, der.oid(device_keys.signature_algorithm(key)))
    return der.tlv(der.SEQUENCE, tbs + algorithm + der.tlv(der.BIT_STRING, b"\0" + device_keys.sign(key, tbs)))


if __name__ == "__main__":
    certificate = x509.load_pem_x509_certificate(Path(sys.argv[1]).read_bytes())
    private = load_pem_private_key(Path(sys.argv[2]).read_bytes(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        sys.exit("This example signs with EC keys alone.")
    made = request(certificate, private, x509.Name.from_rfc4514_string(sys.argv[3]))
    print(base64.encodebytes(made).decode(), end="")
