"""Which certificates are registration authorities': a label's file of them, looked at again when it changes.

A listed certificate must be of the label's own CA and say both id-kp-cmcRA and clientAuth; a file with anything else in
it lets nobody in. The server's own certificate has no clientAuth, so that a leaked edge key enrols nothing (R16).
"""

from __future__ import annotations

import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
_LOOK_AGAIN_SECONDS = 1.0


def is_registrar(certificate: x509.Certificate) -> bool:
    """Whether the certificate is one for registration authorities, by its extended key usages."""
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = [one.value for one in certificate.extensions if isinstance(one.value, x509.BasicConstraints)]
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return CMC_RA in uses and ExtendedKeyUsageOID.CLIENT_AUTH in uses and not any(one.ca for one in constraints)


def read(path: Path, issuer: x509.Name) -> frozenset[bytes]:
    """The certificates (DER) of a PEM file, which may be empty. Raises OSError or ValueError."""
    data = path.read_bytes()
    found = x509.load_pem_x509_certificates(data) if data.strip() else []
    for one in found:
        shown = one.subject.rfc4514_string()[:200]
        if one.issuer != issuer:
            raise ValueError(f"{path.name}: {shown!r} was not issued by this label's CA, as a registration authority's "
                             "certificate must be")  # fmt: skip
        if not is_registrar(one):
            raise ValueError(f"{path.name}: {shown!r} is not for a registration authority: its extendedKeyUsage must "
                             "have clientAuth and cmcRA")  # fmt: skip
    return frozenset(one.public_bytes(Encoding.DER) for one in found)


class RaFile:
    """The registration authorities of one rule; changes are seen within a second."""

    def __init__(self, path: Path, issuer: x509.Name) -> None:
        """Raises OSError or ValueError where the file cannot be used."""
        self._path = path
        self._issuer = issuer
        self._listed = read(path, issuer)
        self._stamp: object = None
        self._look_again = 0.0

    def lists(self, certificate_der: bytes) -> bool:
        """Whether this very certificate is listed; none is while the file cannot be used."""
        if time.monotonic() >= self._look_again:
            self._refresh()
        return certificate_der in self._listed

    def _refresh(self) -> None:
        self._look_again = time.monotonic() + _LOOK_AGAIN_SECONDS
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._stamp:
                self._listed = read(self._path, self._issuer)
                self._stamp = stamp
        except (OSError, ValueError, x509.InvalidVersion):
            self._listed = frozenset()  # `estd check` says what is wrong with it
            self._stamp = None
