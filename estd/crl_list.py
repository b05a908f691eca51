"""A CertificateList (RFC 5280 §5) in two phases, as a certificate is made: composed from parts, then signed.

Version 2 with AuthorityKeyIdentifier and CRLNumber; each entry has its reason, but for `unspecified`, which RFC 5280
§5.3.1 wants left out. Entries are encoded once, when their revocation is read: a hundred thousand of them are joined
in milliseconds. Pure; the tests hold it to cryptography's CertificateRevocationListBuilder byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509

from estd import der
from estd.issuance import CaCertificate, extension, signature_algorithm, time_der

_VERSION_2 = der.uint(1)
_REASON = der.oid("2.5.29.21")
_ENUMERATED = 0x0A
_NUMBER = der.oid("2.5.29.20")


def entry(serial: bytes, revoked_at: int, reason: int) -> bytes:
    """One of revokedCertificates: a serial number, when in seconds since 1970, a CRLReason."""
    parts = der.uint(int.from_bytes(serial, "big")) + time_der(revoked_at)
    if reason:
        value = der.tlv(der.OCTET_STRING, der.tlv(_ENUMERATED, bytes((reason,))))
        parts += der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, _REASON + value))
    return der.tlv(der.SEQUENCE, parts)


def issuer_of(certificate_der: bytes) -> bytes:
    """The Name of the issuer of a certificate of ours, DER."""
    tbs = der.content_start(certificate_der, 0)
    version = der.content_start(certificate_der, tbs)
    serial = der.element_end(certificate_der, version)
    algorithm = der.element_end(certificate_der, serial)
    issuer = der.element_end(certificate_der, algorithm)
    return certificate_der[issuer : der.element_end(certificate_der, issuer)]


class ListTemplate:
    """Everything in a CRL that its CA fixes."""

    def __init__(self, ca: CaCertificate) -> None:
        self.issuer = ca.certificate.subject.public_bytes()
        self._algorithm = signature_algorithm(ca)
        self._authority = der.tlv(der.SEQUENCE, extension(x509.AuthorityKeyIdentifier(ca.key_id, None, None)))

    def prepare(self, *, number: int, this_update: int, next_update: int, entries: Iterable[bytes]) -> bytes:
        """The TBSCertList. Without entries, revokedCertificates is absent (RFC 5280 §5.1.2.6)."""
        listed = b"".join(entries)
        crl_number = der.tlv(der.SEQUENCE, _NUMBER + der.tlv(der.OCTET_STRING, der.uint(number)))
        return der.tlv(
            der.SEQUENCE,
            b"".join(
                (
                    _VERSION_2,
                    self._algorithm,
                    self.issuer,
                    time_der(this_update),
                    time_der(next_update),
                    der.tlv(der.SEQUENCE, listed) if listed else b"",
                    der.tlv(der.EXPLICIT_0, der.tlv(der.SEQUENCE, self._authority + crl_number)),
                )
            ),
        )

    def complete(self, tbs: bytes, signature: bytes) -> bytes:
        """The CertificateList: the TBSCertList with a signature that was verified."""
        return der.tlv(der.SEQUENCE, tbs + self._algorithm + der.tlv(der.BIT_STRING, b"\0" + signature))
