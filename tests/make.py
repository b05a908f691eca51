"""Keys, requests and certificates for the tests: each builder has its defaults in one place, so that a test states only
its difference."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID

from estd import der

P256 = ec.SECP256R1()
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(P256)


def name(common_name: str | None = "device-1", **more: str) -> x509.Name:
    parts = [x509.NameAttribute(getattr(NameOID, word), value) for word, value in more.items()]
    if common_name is not None:
        parts.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(parts)


def csr(
    signer: Any = None,
    *,
    subject: x509.Name | None = None,
    san: Sequence[x509.GeneralName] = (),
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    challenge_password: bytes | None = None,
    attributes: Sequence[tuple[str, bytes]] = (),
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    """A PKCS#10 request, DER: by default P-256 and CN=device-1; `attributes` are OIDs with strings."""
    signer = signer or key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject if subject is not None else name())
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    if challenge_password is not None:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, challenge_password)
    for oid, text in attributes:
        builder = builder.add_attribute(x509.ObjectIdentifier(oid), text)
    if algorithm is None and isinstance(signer, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        algorithm = hashes.SHA256()
    return builder.sign(signer, algorithm).public_bytes(Encoding.DER)


def body(csr_der: bytes) -> bytes:
    """The request's body in its plainest form."""
    return base64.b64encode(csr_der) + b"\n"


@dataclass(frozen=True)
class Identity:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, folder: Path, stem: str, *above: Identity) -> tuple[Path, Path]:
        """The certificate (and what is above it) and the key, as PEM files."""
        certificate, key_file = folder / f"{stem}.pem", folder / f"{stem}.key"
        certificate.write_bytes(self.pem + b"".join(one.pem for one in above))
        key_file.write_bytes(self.key_pem)
        return certificate, key_file


def certificate(
    issuer: Identity | None = None,
    *,
    subject: x509.Name | None = None,
    ca: bool = False,
    basic_constraints: bool = True,
    usage: str | None = "digital_signature",
    extended: Sequence[x509.ObjectIdentifier] = (),
    san: Sequence[x509.GeneralName] = (),
    starts: timedelta = timedelta(hours=-1),
    ends: timedelta = timedelta(days=30),
    own_key: ec.EllipticCurvePrivateKey | None = None,
) -> Identity:
    """A certificate under `issuer`, or self-signed: by default a client's as a factory gives it."""
    own_key = own_key or key()
    now = datetime.now(UTC).replace(microsecond=0)
    subject = subject if subject is not None else name("test ca" if ca else "client-1")
    signer = issuer.key if issuer else own_key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(own_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own_key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if basic_constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if ca:
        usage = "key_cert_sign"
    if usage:
        words = (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        )  # fmt: skip
        bits = {word: word == usage or (ca and word == "crl_sign") for word in words}
        builder = builder.add_extension(x509.KeyUsage(**bits), critical=True)
    if extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(extended)), critical=False)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    return Identity(builder.sign(signer, hashes.SHA256()), own_key)


def with_an_extension_twice(encoded_der: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """A certificate or CRL whose first extension is there twice, signed anew: RFC 5280 §4.2 forbids it."""
    start = der.content_start(encoded_der, 0)
    end, parts = der.element_end(encoded_der, start), []
    at = der.content_start(encoded_der, start)
    while at < end:
        parts.append(encoded_der[at : der.element_end(encoded_der, at)])
        at += len(parts[-1])
    last = parts.pop()
    extensions = last[der.content_start(last, der.content_start(last, 0)) :]
    twice = der.tlv(der.SEQUENCE, extensions[: der.element_end(extensions, 0)] + extensions)
    tbs = der.tlv(der.SEQUENCE, b"".join(parts) + der.tlv(last[0], twice))
    algorithm = encoded_der[end : der.element_end(encoded_der, end)]
    return der.tlv(der.SEQUENCE, tbs + algorithm + der.tlv(der.BIT_STRING, b"\0" + sign(tbs)))


def of_version_8(encoded_der: bytes) -> bytes:
    """A certificate or CRL of a version that there is not, its signature broken; OpenSSL takes such certificates."""
    for version in (b"\xa0\x03\x02\x01\x02", b"\x02\x01\x01"):
        if version in encoded_der[:16]:
            return encoded_der.replace(version, version[:-1] + b"\x07", 1)
    raise AssertionError("no version where it belongs")


def as_pem(certificate_der: bytes) -> bytes:
    """PEM of what cryptography may not read."""
    lines = base64.encodebytes(certificate_der)
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"


def crl(issuer: Identity, revoked: Sequence[Identity] = (), *, ends: timedelta = timedelta(days=30)) -> bytes:
    """A CRL of `issuer`, PEM."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, now - timedelta(days=1), now + ends)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder(one.certificate.serial_number, now - timedelta(hours=1)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)
