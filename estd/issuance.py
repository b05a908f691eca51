"""From an authorised request to a certificate in two phases, so that what was checked is what is signed.

`Issuer.prepare` composes the TBSCertificate (RFC 5280 §4.1) from parts encoded once for the CA and the profile and
the few that differ; `Issuer.complete` puts the signature to it. Serial and time are arguments: pure. The tests hold it
to cryptography's CertificateBuilder byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, NewType

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from estd import der
from estd.errors import Reason, Unavailable
from estd.labels import Profile

Tbs = NewType("Tbs", bytes)
CertificateDer = NewType("CertificateDer", bytes)

SERIAL_BYTES = 16
_SERIAL_TIME_BYTES = 6
_ALGORITHMS = {
    "sha256": der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.4.3.2")),
    "sha384": der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.4.3.3")),
    "rsa": der.tlv(der.SEQUENCE, der.oid("1.2.840.113549.1.1.11") + der.NULL),
}
_CRITICAL = b"\x01\x01\xff"
_SAN = der.oid("2.5.29.17")
_NO_NAME = der.tlv(der.SEQUENCE, b"")
_KEY_IDENTIFIER_BYTES = 20
_YEAR_2050 = 2524608000


def serials(count: int, now_ms: int) -> list[bytes]:
    """`count` serial numbers: 48 bits of milliseconds, which keep the ledger's index local, then 80 random bits.

    16 octets, positive: the first bit stays 0 until the year 6429 (R50: ≤ 20 octets, ≥ 72 random bits).
    """
    prefix = now_ms.to_bytes(_SERIAL_TIME_BYTES, "big")
    size = SERIAL_BYTES - _SERIAL_TIME_BYTES
    noise = os.urandom(size * count)
    return [prefix + noise[at : at + size] for at in range(0, len(noise), size)]


def serial_floor(when_ms: int) -> bytes:
    """The smallest serial number given at that time: where a search in the ledger by time begins."""
    return max(0, when_ms).to_bytes(_SERIAL_TIME_BYTES, "big") + bytes(SERIAL_BYTES - _SERIAL_TIME_BYTES)


@lru_cache(maxsize=4096)
def time_der(seconds: int) -> bytes:
    """A Time: UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5)."""
    when = time.gmtime(seconds)
    if seconds < _YEAR_2050:
        return der.tlv(der.UTC_TIME, time.strftime("%y%m%d%H%M%SZ", when).encode())
    return der.tlv(der.GENERALIZED_TIME, time.strftime("%Y%m%d%H%M%SZ", when).encode())


@lru_cache(maxsize=256)
def _validity(not_before: int, not_after: int) -> bytes:
    """A Validity: the same for all that one profile issues in a second."""
    return der.tlv(der.SEQUENCE, time_der(not_before) + time_der(not_after))


def key_identifier(key_bits: bytes) -> bytes:
    """160 bits of SHA-256 over the key's bits (RFC 7093 §2, method 1)."""
    return hashlib.sha256(key_bits).digest()[:_KEY_IDENTIFIER_BYTES]


class Prepared(NamedTuple):
    """A TBSCertificate that waits for its signature."""

    serial: bytes
    not_before: int
    not_after: int
    """Seconds since 1970; both are inside the validity."""
    tbs: Tbs


@dataclass(frozen=True, slots=True, kw_only=True)
class CaCertificate:
    """The issuing CA as its certificate states it."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """The issuing CA first, then up to the root: what cacerts answers (R18)."""
    public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey

    @classmethod
    def of(cls, certificate: x509.Certificate, above: Sequence[x509.Certificate]) -> CaCertificate:
        """Raises ValueError where the CA's key is none that estd signs with."""
        key = certificate.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1"):
            return cls(certificate=certificate, chain=(certificate, *above), public_key=key)
        if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
            return cls(certificate=certificate, chain=(certificate, *above), public_key=key)
        raise ValueError("a CA's key must be EC P-256, EC P-384 or RSA of 2048 bits or more")

    @property
    def hash_algorithm(self) -> hashes.HashAlgorithm:
        key = self.public_key
        return hashes.SHA384() if key.key_size == 384 else hashes.SHA256()

    @property
    def key_id(self) -> bytes:
        """The CA's SubjectKeyIdentifier, which its certificates carry as AuthorityKeyIdentifier."""
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.SubjectKeyIdentifier.from_public_key(self.public_key).digest
        return found.value.digest

    def fingerprints(self) -> list[str]:
        """SHA-256 of the chain's certificates, in its order."""
        return [one.fingerprint(hashes.SHA256()).hex() for one in self.chain]

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raises InvalidSignature unless this CA's key made `signature` over `data`."""
        if isinstance(self.public_key, ec.EllipticCurvePublicKey):
            self.public_key.verify(signature, data, ec.ECDSA(self.hash_algorithm))
        else:
            self.public_key.verify(signature, data, padding.PKCS1v15(), self.hash_algorithm)


def signature_algorithm(ca: CaCertificate) -> bytes:
    """The AlgorithmIdentifier of the CA's signatures, DER."""
    return _ALGORITHMS["rsa" if isinstance(ca.public_key, rsa.RSAPublicKey) else ca.hash_algorithm.name]


class Issuer:
    """Everything in a certificate that one CA and one profile fix, encoded once. With `crl_url`, certificates of a
    profile that wants it name their CRL's distribution point."""

    def __init__(self, ca: CaCertificate, profile: Profile, crl_url: str = "") -> None:
        self._algorithm = signature_algorithm(ca)
        self._version = der.tlv(der.EXPLICIT_0, der.uint(2))
        self._issuer = ca.certificate.subject.public_bytes()
        fixed = b"".join(
            der.tlv(der.SEQUENCE, one)
            for one in (
                extension(x509.BasicConstraints(ca=False, path_length=None), critical=True),
                extension(key_usage(profile.key_usage), critical=True),
                *(
                    (extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(o) for o in profile.extended_key_usage])),)
                    if profile.extended_key_usage
                    else ()
                ),
                extension(x509.AuthorityKeyIdentifier(ca.key_id, None, None)),
                *((extension(_distribution_point(crl_url)),) if crl_url and profile.crl_distribution_point else ()),
                extension(x509.SubjectKeyIdentifier(bytes(_KEY_IDENTIFIER_BYTES))),
            )
        )
        self._up_to_key_identifier = fixed[:-_KEY_IDENTIFIER_BYTES]
        self._validity_seconds = profile.validity_seconds
        self._backdate_seconds = profile.backdate_seconds
        self._ca_from = int(ca.certificate.not_valid_before_utc.timestamp())
        self._ca_until = int(ca.certificate.not_valid_after_utc.timestamp())

    def prepare(
        self,
        *,
        serial: bytes,
        now: int,
        subject_der: bytes,
        san_der: bytes,
        spki_der: bytes,
        key_bits: bytes,
    ) -> Prepared:
        """The TBSCertificate for names and a key that were authorised: a Name, and GeneralNames or nothing. A 503 where
        the CA itself has expired.

        The validity's last second counts (RFC 5280 §4.1.2.5), so 90 days end a second before their 91st begins; it
        never reaches past the CA's.
        """
        if now > self._ca_until:
            raise Unavailable(Reason.TOKEN_AWAY, "The CA's certificate has expired; nothing can be issued under it.")
        not_before = max(now - self._backdate_seconds, self._ca_from)
        not_after = min(now + self._validity_seconds - 1, self._ca_until)
        extensions = self._up_to_key_identifier + key_identifier(key_bits)
        if san_der:
            critical = _CRITICAL if subject_der == _NO_NAME else b""
            extensions += der.tlv(der.SEQUENCE, _SAN + critical + der.tlv(der.OCTET_STRING, san_der))
        tbs = der.tlv(
            der.SEQUENCE,
            b"".join(
                (
                    self._version,
                    der.tlv(der.INTEGER, serial),
                    self._algorithm,
                    self._issuer,
                    _validity(not_before, not_after),
                    subject_der,
                    spki_der,
                    der.tlv(der.EXPLICIT_3, der.tlv(der.SEQUENCE, extensions)),
                )
            ),
        )
        return Prepared(serial=serial, not_before=not_before, not_after=not_after, tbs=Tbs(tbs))

    def complete(self, prepared: Prepared, signature: bytes) -> CertificateDer:
        """The certificate: the TBSCertificate with a signature that was verified."""
        bits = der.tlv(der.BIT_STRING, b"\0" + signature)
        return CertificateDer(der.tlv(der.SEQUENCE, prepared.tbs + self._algorithm + bits))


def extension(value: x509.ExtensionType, *, critical: bool = False) -> bytes:
    """The content of an Extension: OID, the critical flag where it is true, the value in an OCTET STRING."""
    flag = _CRITICAL if critical else b""
    return der.oid(value.oid.dotted_string) + flag + der.tlv(der.OCTET_STRING, value.public_bytes())


def _distribution_point(url: str) -> x509.CRLDistributionPoints:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point])


def key_usage(words: Sequence[str]) -> x509.KeyUsage:
    """The extension with these bits (labels.KEY_USAGES)."""
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in words for name in names})
