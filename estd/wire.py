"""The bodies of RFC 7030 and 8951: base64 of DER both ways, in the forms that the clients in the field accept.

Requests may be wrapped, padded with white space and lie about their Content-Transfer-Encoding, which is never read
(RFC 8951 §3.1). Answers follow the one form that every client tried accepts: see `enrolled` and `cacerts`.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

from estd import der
from estd.errors import BadRequest, Reason, UnsupportedMediaType

CERTS_ONLY_TYPE = "application/pkcs7-mime; smime-type=certs-only"
CRLS_ONLY_TYPE = "application/pkcs7-mime; smime-type=crls-only"
CSRATTRS_TYPE = "application/csrattrs"
_BOUNDARY = "estd-key-and-certificate"
"""No base64 has a hyphen, so it is in no part."""
KEY_AND_CERTIFICATE_TYPE = f"multipart/mixed; boundary={_BOUNDARY}"
PKCS10_TYPES = frozenset({"application/pkcs10", "application/x-pkcs10"})
PEM_TYPES = frozenset({"application/x-pem-file", "application/pem-certificate-request"})

LINE_MAX = 1022
"""Characters that libest reads in one line of an answer; a longer one fails there."""
WRAP = 64
_LINE_BYTES = WRAP // 4 * 3

_PEM = re.compile(
    rb"\s*-----BEGIN (NEW )?CERTIFICATE REQUEST-----\r?\n(?P<body>[A-Za-z0-9+/=\s]*)"
    rb"-----END (NEW )?CERTIFICATE REQUEST-----\s*"
)
_SIGNED_DATA = der.oid("1.2.840.113549.1.7.2")
_DATA = der.tlv(der.SEQUENCE, der.oid("1.2.840.113549.1.7.1"))
_BEFORE_CERTIFICATES = der.uint(1) + der.tlv(der.SET, b"") + _DATA
_AFTER_CERTIFICATES = der.tlv(der.SET, b"")
_CRLS = 0xA1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkcs10:
    """A CertificationRequest as it came."""

    csr_der: bytes
    wrapped: bool
    """Its base64 came on several lines, so a long answer will be wrapped too."""


def check_media_type(content_type: str, *, pem: bool) -> None:
    """A 415 unless the body calls itself PKCS#10 (or PEM, where the label allows it). No type at all is let pass."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in PKCS10_TYPES or not kind or (pem and kind in PEM_TYPES):
        return
    raise UnsupportedMediaType(
        Reason.MEDIA_TYPE, f"The body is called {kind[:80]!a}; this operation takes application/pkcs10."
    )


def read_pkcs10(body: bytes, *, pem: bool) -> Pkcs10:
    """The DER inside a request's body. A 400 where it is not base64, or PEM where the label does not allow it."""
    text = body.strip()
    if not text:
        raise BadRequest(Reason.NOT_BASE64, "The body is empty; it must be the base64 of a PKCS#10 request.")
    if text.startswith(b"-----BEGIN"):
        if not pem:
            raise BadRequest(
                Reason.PEM, "The body is PEM; send the base64 of the DER alone, without the BEGIN and END lines."
            )
        found = _PEM.fullmatch(text)
        if not found:
            raise BadRequest(Reason.NOT_BASE64, "The body is not one PEM CERTIFICATE REQUEST.")
        text = found["body"].strip()
        if not text:
            raise BadRequest(Reason.NOT_BASE64, "The PEM holds nothing between its BEGIN and END lines.")
    if len(text) > 1 and text[0] == der.SEQUENCE and text[1] >= 0x80:
        raise BadRequest(Reason.NOT_BASE64, "The body is bare DER; RFC 8951 has it in base64.")
    try:
        csr_der = binascii.a2b_base64(text.translate(None, b"\r\n \t"), strict_mode=True)
    except binascii.Error as error:
        raise BadRequest(Reason.NOT_BASE64, f"The body is not base64: {error}.") from None
    return Pkcs10(csr_der=csr_der, wrapped=b"\n" in text)


def certs_only(certificates: Iterable[bytes]) -> bytes:
    """A certs-only CMS SignedData (RFC 5272 §4.1) around the certificates, each DER: a set, which DER sorts."""
    signed = _BEFORE_CERTIFICATES + der.tlv(der.EXPLICIT_0, b"".join(sorted(certificates))) + _AFTER_CERTIFICATES
    return der.tlv(der.SEQUENCE, _SIGNED_DATA + der.tlv(der.EXPLICIT_0, der.tlv(der.SEQUENCE, signed)))


def key_and_certificate(private_key: bytes, certificate_der: bytes) -> bytes:
    """The body of serverkeygen's answer (RFC 7030 §4.4.2): PKCS#8, DER, then what an enrolment answers; MIME's lines
    end with CR LF and have 76 characters at most."""
    parts = (("application/pkcs8", private_key), (CERTS_ONLY_TYPE, certs_only((certificate_der,))))
    body = b"".join(
        f"--{_BOUNDARY}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode()
        + _wrap(binascii.b2a_base64(content, newline=False)).replace(b"\n", b"\r\n")
        for kind, content in parts
    )
    return body + f"--{_BOUNDARY}--\r\n".encode()


def _wrap(line: bytes) -> bytes:
    return b"".join(line[at : at + WRAP] + b"\n" for at in range(0, len(line), WRAP))


def enrolled(certificate_der: bytes, *, wrapped: bool) -> bytes:
    """The body of an enrolment's answer: the issued certificate alone (RFC 7030 §4.2.3).

    One line and a newline, which every client takes while it is short. A longer one takes the form of its request:
    strongSwan sends one line and fails on a wrapped answer, libest wraps and fails on a long line.
    """
    line = binascii.b2a_base64(certs_only((certificate_der,)))
    return _wrap(line[:-1]) if wrapped and len(line) - 1 > LINE_MAX else line


def cacerts(certificates: Iterable[bytes], *, one_line: bool) -> bytes:
    """The body of cacerts: there is no request to mirror, so a long one is wrapped unless the label says otherwise."""
    return _unasked(certs_only(certificates), one_line)


def csrattrs(csr_attrs: bytes, *, one_line: bool) -> bytes:
    """The body of csrattrs, in the form of cacerts."""
    return _unasked(csr_attrs, one_line)


def _unasked(content: bytes, one_line: bool) -> bytes:
    line = binascii.b2a_base64(content)
    return line if one_line or len(line) - 1 <= LINE_MAX else _wrap(line[:-1])


def crls(crl_ders: Iterable[bytes]) -> bytes:
    """The body of /crls (RFC 8295 §4.2): a crls-only CMS SignedData around the CRLs, in the order of their octets (they
    are a SET), wrapped, since they may be long; line by line, so that other threads get their turn."""
    signed = _BEFORE_CERTIFICATES + der.tlv(_CRLS, b"".join(crl_ders)) + _AFTER_CERTIFICATES
    message = der.tlv(der.SEQUENCE, _SIGNED_DATA + der.tlv(der.EXPLICIT_0, der.tlv(der.SEQUENCE, signed)))
    return b"".join(binascii.b2a_base64(message[at : at + _LINE_BYTES]) for at in range(0, len(message), _LINE_BYTES))
