"""Which certificates of foreign trust anchors are revoked, from CRL files that an operator keeps up to date.

A rule that names CRLs fails closed: when one of them is missing, badly signed or past its nextUpdate, nobody gets in
by that rule until a good one is there. Files are looked at again when their time stamp changes, once a second at most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from estd.errors import Forbidden, Reason, Unavailable

_LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crl:
    issuer: x509.Name
    next_update: float
    serials: frozenset[int]


class CrlFiles:
    """The CRLs of one rule. `check` is the question, asked for each request."""

    def __init__(self, paths: Sequence[Path], signers: Sequence[x509.Certificate]) -> None:
        self._paths = paths
        self._signers = signers
        self._crls: list[_Crl] = []
        self._stamps: list[object] = []
        self._problem = ""
        self._look_again = 0.0

    def check(self, path: Sequence[x509.Certificate], now: float) -> None:
        """A 403 where a certificate in `path` (the client's first, anchors left out) is revoked, a 503 where its
        status cannot be known."""
        for certificate in path:
            covering = self.check_issuer(certificate.issuer, now)
            if any(certificate.serial_number in crl.serials for crl in covering):
                raise Forbidden(Reason.REVOKED, "The client certificate is revoked by its issuer's CRL.")

    def check_issuer(self, issuer: x509.Name, now: float) -> list[_Crl]:
        """The CRLs of one issuer, none where the rule names none at all. A 503 where none of them is current."""
        if not self._paths:
            return []
        self._refresh()
        if self._problem:
            raise Unavailable(Reason.CRL_STALE, f"The client certificate's revocation is not known: {self._problem}.")
        covering = [crl for crl in self._crls if crl.issuer == issuer]
        if not any(now <= crl.next_update for crl in covering):
            raise Unavailable(
                Reason.CRL_STALE, "The client certificate's revocation is not known: no current CRL of its issuer."
            )
        return covering

    def _refresh(self) -> None:
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_AGAIN_SECONDS
        try:
            stamps: list[object] = [(s.st_mtime_ns, s.st_size, s.st_ino) for s in map(Path.stat, self._paths)]
            if stamps == self._stamps and not self._problem:
                return
            self._crls = [self._load(path) for path in self._paths]
            self._stamps = stamps
            self._problem = ""
        except (OSError, ValueError, x509.InvalidVersion) as error:
            self._problem = f"a CRL file cannot be used ({error})"

    def _load(self, path: Path) -> _Crl:
        data = path.read_bytes()
        crl = x509.load_pem_x509_crl(data) if data.startswith(b"-----") else x509.load_der_x509_crl(data)
        if not any(_signed(crl, signer) for signer in self._signers):
            raise ValueError(f"{path.name} is not signed by one of the rule's anchors")
        if crl.next_update_utc is None:
            raise ValueError(f"{path.name} has no nextUpdate")
        return _Crl(
            issuer=crl.issuer,
            next_update=crl.next_update_utc.timestamp(),
            serials=frozenset(entry.serial_number for entry in crl),
        )


def _signed(crl: x509.CertificateRevocationList, signer: x509.Certificate) -> bool:
    if signer.subject != crl.issuer:
        return False
    try:
        return crl.is_signature_valid(signer.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return False
