"""A renewed certificate's end: revoked as superseded once its successor was seen in a TLS handshake, not before.

A device that lost the answer to its renewal still has the old certificate and nothing else; whoever revoked that at
the renewal would lock it out. So the successor has to show itself first: with an enrolment's evidence, or once for a
connection that asks for something else (`Edge` tells). Only profiles that say `supersede = "when-seen"` cost anything.

What was seen waits in memory until the issuer has finished its batch; what a crash loses is seen again.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from estd import metrics
from estd.errors import EstError
from estd.identify import ClientCertificate
from estd.ledger import LedgerBroken, Row

SIGHTINGS_MAX = 256
"""What may wait between two batches; a device that is forgotten here is seen again."""
_DONE_MAX = 8192


class Ledger(Protocol):
    """The seam to the ledger."""

    def find_many(self, serials: Collection[bytes]) -> Mapping[bytes, Row]: ...
    def supersede(self, serials: Sequence[bytes], when: int) -> None: ...


class Superseding:
    """What one issuer has seen. `saw` notes, `settle` revokes."""

    def __init__(self, profiles: frozenset[str], slot: metrics.Slot, report: Callable[..., None]) -> None:
        self._profiles = profiles
        self._slot = slot
        self._report = report
        self._waiting: dict[bytes, None] = {}
        self._done: OrderedDict[bytes, None] = OrderedDict()

    def saw(self, certificate: ClientCertificate, row: Row | None) -> None:
        """A client holds the key of `certificate`; `row` is what the ledger has under its serial number."""
        if row is None or row.renews is None or row.revoked_at is not None or row.profile not in self._profiles:
            return
        if row.renews not in self._done and hmac.compare_digest(row.certificate_der, certificate.der):
            self._waiting[row.renews] = None

    def _saw_all(self, leaves: Iterable[bytes], ledger: Ledger) -> None:
        """The same for certificates (DER) that were seen without an enrolment."""
        found: dict[bytes, ClientCertificate] = {}
        for leaf in leaves:
            try:
                certificate = ClientCertificate.parse(leaf)
            except EstError:
                continue  # none of ours
            found[certificate.serial] = certificate
        rows = ledger.find_many(found) if found else {}
        for serial, certificate in found.items():
            self.saw(certificate, rows.get(serial))

    def _behind(self, renewed: Collection[bytes], ledger: Ledger) -> list[bytes]:
        """Those of them that are not revoked yet, and what these renewed in their time without being seen."""
        going: list[bytes] = []
        while renewed:
            rows = [row for row in ledger.find_many(renewed).values() if row.revoked_at is None]
            going += [row.serial for row in rows if row.serial not in going]
            renewed = {row.renews for row in rows if row.renews is not None and row.profile in self._profiles}
        return going

    def settle(self, sighted: Collection[bytes], ledger: Ledger, now: float) -> None:
        """Revoke what was superseded, in one transaction. Raises LedgerBroken where the disk does not take it."""
        if not sighted and not self._waiting:
            return
        try:
            self._saw_all(sighted, ledger)
            going = self._behind(self._waiting, ledger)
            if going:
                ledger.supersede(going, int(now))
        except LedgerBroken:
            raise
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step="settle")
            return
        for serial in going:
            self._slot.count(metrics.SUPERSEDED.at)
            self._report("superseded", serial=serial.hex())
        self._done |= self._waiting
        self._waiting = {}
        while len(self._done) > _DONE_MAX:
            self._done.popitem(last=False)
