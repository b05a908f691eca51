"""The devices of the fleet: IDevIDs of the demo's manufacturer, and the certificates a renewal starts from."""

from __future__ import annotations

import base64
import datetime
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bench.csrs import new_key

_LIFETIME = datetime.timedelta(days=3652)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manufacturer:
    """The CA that gave the devices their IDevIDs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def load_manufacturer(demo: Path) -> Manufacturer:
    """The manufacturer that `estd init --demo` made; ValueError when the files are not such a one's."""
    key = serialization.load_pem_private_key((demo / "manufacturer.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{demo / 'manufacturer.key'} is not an EC key")
    certificate = x509.load_pem_x509_certificate((demo / "manufacturer.pem").read_bytes())
    return Manufacturer(certificate=certificate, key=key)


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        identifier = x509.SubjectKeyIdentifier.from_public_key(_public_key(issuer))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the certificate's key is not an EC key")
    return key


def _issue_idevid(manufacturer: Manufacturer, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    serial = secrets.token_hex(8)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"idevid-{serial}"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, serial.upper()),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(manufacturer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_key_identifier(manufacturer.certificate), critical=False)
        .sign(manufacturer.key, hashes.SHA256())
    )


def _write_credential(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Path:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def write_idevids(directory: Path, manufacturer: Manufacturer, count: int) -> tuple[Path, ...]:
    """One PEM file per device, key and certificate, because that is what `SSLContext.load_cert_chain` takes."""
    paths = []
    for number in range(count):
        key = new_key()
        path = directory / f"idevid-{number:05d}.pem"
        paths.append(_write_credential(path, key, _issue_idevid(manufacturer, key)))
    return tuple(paths)


def basic_authorization(demo: Path) -> str:
    """The Authorization header of the user that `estd init --demo` made."""
    return f"Basic {base64.b64encode((demo / 'basic').read_bytes().strip()).decode()}"


def issued_certificate(answer: bytes, key: ec.EllipticCurvePublicKey) -> x509.Certificate | None:
    """The certificate for this key in an answer's base64 body, or None; ValueError when it is no PKCS#7 at all."""
    certificates = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))
    return next((found for found in certificates if found.public_key() == key), None)


def is_answer_to(csr: bytes, answer: bytes) -> bool:
    """Whether an answer's certificate has the key the CSR asked for; both in base64."""
    key = x509.load_der_x509_csr(base64.b64decode(csr)).public_key()
    try:
        return isinstance(key, ec.EllipticCurvePublicKey) and issued_certificate(answer, key) is not None
    except ValueError:
        return False


def write_issued(
    directory: Path, keys: Sequence[ec.EllipticCurvePrivateKey], answers: Iterable[bytes]
) -> tuple[tuple[Path, ...], tuple[bytes, ...]]:
    """PEM files and DER certificates of the devices that got one: answers come in any order, the key tells whose."""
    by_key = {key.public_key().public_numbers(): key for key in keys}
    paths: list[Path] = []
    certificates: list[bytes] = []
    for answer in answers:
        for certificate in pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer)):
            key = by_key.get(_public_key(certificate).public_numbers())
            if key is not None:
                path = directory / f"issued-{len(paths):05d}.pem"
                paths.append(_write_credential(path, key, certificate))
                certificates.append(certificate.public_bytes(serialization.Encoding.DER))
    return tuple(paths), tuple(certificates)
