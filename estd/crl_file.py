"""The file that holds a CA's CRL: written whole or not at all, and believed only when it is the CA's.

The issuer that made a CRL writes it here; edges, the command line and whatever web server publishes it read it. A
reader never sees half of one: it is written beside its place and moved there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from estd import der, durable, wire
from estd.errors import Reason, Unavailable
from estd.issuance import CaCertificate, signature_algorithm
from estd.side_thread import SideThread

_LOOK_AGAIN_SECONDS = 1.0
_WAITING_MAX = 256
"""Requests per CA that may wait until a CRL is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A CRL that its CA signed."""

    der: bytes
    number: int
    this_update: datetime
    next_update: datetime
    entries: int


def write(path: Path, crl_der: bytes) -> None:
    """Replace the CRL; the first one is for everybody to read. Raises OSError, and the old one stays."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    durable.write(path, crl_der, mode=0o644)


def read(path: Path, ca: CaCertificate) -> Published:
    """The CRL in the file. Raises OSError, or ValueError where it is not one that this CA signed."""
    data = path.read_bytes()
    try:
        crl = x509.load_der_x509_crl(data)
        signed = crl.issuer == ca.certificate.subject and _is_signed(data, crl.signature, ca)
        if not signed or crl.next_update_utc is None:
            raise ValueError("its CA did not sign it")
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (
        ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.ExtensionNotFound,
        x509.DuplicateExtension,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is not a CRL of {ca.certificate.subject.rfc4514_string()!r}: {error}") from None
    return Published(
        der=data,
        number=number,
        this_update=crl.last_update_utc,
        next_update=crl.next_update_utc,
        entries=len(crl),
    )


def _is_signed(crl_der: bytes, signature: bytes, ca: CaCertificate) -> bool:
    """Over the TBSCertList as it stands there; `is_signature_valid` would encode it anew, at ten times the cost."""
    start = der.content_start(crl_der, 0)
    end = der.element_end(crl_der, start)
    if crl_der[end : der.element_end(crl_der, end)] != signature_algorithm(ca):
        return False
    try:
        ca.verify(signature, crl_der[start:end])
    except InvalidSignature:
        return False
    return True


class CrlBody:
    """What an edge answers at /crls: a CA's CRLs, looked at again once a second at most. In a rollover there are two
    keys that sign them, and right after the change the CA's file has the old one's yet.

    What is there when an edge starts is read then: one of a generation that retires could not read what the next one's
    key signs. Afterwards a CRL, which may be long, is read and wrapped in a thread, which alone touches what was found;
    whoever asks meanwhile gets what was there before.
    """

    def __init__(self, files: Sequence[Path], cas: Sequence[CaCertificate]) -> None:
        self._files = files
        self._cas = cas
        self._thread = SideThread("crl", _WAITING_MAX, "Too many wait for the CRL to be read; ask again later.")
        self._stamps: list[object] = []
        self._found: dict[Path, bytes] = {}
        self._body = b""
        self._look_again = 0.0
        self._look()

    async def get(self) -> bytes:
        """A 503 while there is none. One that cannot be believed leaves the one before it in its place."""
        if not self._body or time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + _LOOK_AGAIN_SECONDS
            await self._thread.run(self._look)
        if not self._body:
            raise Unavailable(Reason.CRL_STALE, "The CA has not made its CRL yet.")
        return self._body

    def _look(self) -> None:
        stamps = [_stamp(path) for path in self._files]
        if stamps == self._stamps:
            return
        for index, path in enumerate(self._files):
            try:
                self._found[path] = self._read(path) or self._found.get(path, b"")
            except OSError:
                stamps[index] = None  # as of one that is not there: one that is, is read at the next look
        found = {one for one in self._found.values() if one}
        self._body = wire.crls(sorted(found)) if found else b""
        self._stamps = stamps

    def _read(self, path: Path) -> bytes:
        """The CRL; nothing where none of the CAs signed it. Raises OSError."""
        for ca in self._cas:
            with suppress(ValueError):
                return read(path, ca).der
        return b""


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
