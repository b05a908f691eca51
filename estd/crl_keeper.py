"""Keeps each CA's CRL current: made anew on its schedule, soon after a revocation, and when somebody asks.

It lives in the issuer that owns the token and works between batches, a small step at a time (`step`), so that a
hundred thousand revocations hold no enrolment up for long. A number is recorded in the ledger before a CRL with it is
signed, so none is ever given twice; the CRL itself goes into a file (estd/crl_file.py). What fails is tried again;
what the token or the ledger cannot recover from is raised, and the process is made anew.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Protocol

from estd import crl_file, metrics
from estd.crl_list import ListTemplate, entry, issuer_of
from estd.crl_plan import CrlPlan
from estd.crl_signers import CrlSigner
from estd.issuance import CaCertificate
from estd.ledger import LedgerError
from estd.ledger_crls import CrlRecord, Crls, Revocation
from hsm.errors import TokenError, TokenTransient
from hsm.session import Job

_SLICE = 200
"""Revocations read in one step: some two milliseconds."""
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_END = object()


class CrlLedger(Protocol):
    """The seam to the ledger. Every call may raise LedgerError."""

    @property
    def crls(self) -> Crls: ...
    def store_crl(self, record: CrlRecord) -> None: ...


class Signer(Protocol):
    """The seam to the token."""

    def sign_many(self, jobs: Sequence[Job]) -> list[bytes | TokenError]: ...


class _Made:
    """One CA's CRL: its entries so far and what the last one was."""

    def __init__(self, signer: CrlSigner, crls: Crls) -> None:
        self.name = signer.name
        self.ca_name = signer.ca_name
        self.plan: CrlPlan = signer.plan
        self.ca: CaCertificate = signer.ca
        self.template = ListTemplate(signer.ca)
        self.entries: list[bytes] = []
        self.ends = array("q")
        """The notAfter of the entry in the same place."""
        record = crls.last(signer.name)
        if record is None:  # a former key's CRLs go on from what was the CA's last one
            before = crls.last(signer.ca_name)
            record = CrlRecord(signer.name, 0 if before is None else before.number, 0, 0, 0, 0)
        self.record = record
        self.is_published = False
        self.last_id = self.record.last_id
        self.is_wanted = False
        self.pending_since = 0.0
        """When a revocation that no CRL lists was first seen; 0 where there is none."""
        self.retry_at = 0.0

    def add(self, one: Revocation, tick: float) -> None:
        if one.not_after >= self.record.scheduled_at:
            self.entries.append(entry(one.serial, one.revoked_at, one.reason))
            self.ends.append(one.not_after)
        if one.id > self.last_id:
            self.last_id = one.id
            self.pending_since = self.pending_since or tick

    def find_published(self, keys: Sequence[_Made]) -> None:
        """Whether the file holds the CRL that the ledger knows as the last one. Where not, the ledger may be of a
        back-up, and the file of before the CA's other key issued: go on from what the world has seen of any of its
        `keys`."""
        self.is_published = 0 < _number(self.plan.file, self.ca) == self.record.number
        if not self.is_published:
            seen = (_number(place.plan.file, key.ca) for place in keys for key in keys)
            self.record = self.record._replace(number=max(self.record.number, *seen))

    def is_scheduled(self, now: float) -> bool:
        return not self.is_published or now >= self.record.scheduled_at + self.plan.renew_seconds

    def has_expired(self, now: float) -> bool:
        return now > self.ca.certificate.not_valid_after_utc.timestamp()

    def is_due(self, now: float, tick: float) -> bool:
        if tick < self.retry_at or self.has_expired(now):
            return False
        waited = self.pending_since != 0.0 and tick - self.pending_since >= self.plan.delay_seconds
        return waited or self.is_wanted or self.is_scheduled(now)

    def without_expired(self, floor: int) -> None:
        """Let go of entries whose certificate expired before `floor`, the thisUpdate of the last CRL of the schedule:
        it listed them after they had expired, as RFC 5280 §3.3 demands, and they need not be listed any more."""
        kept = [end >= floor for end in self.ends]
        if not all(kept):
            self.entries = list(compress(self.entries, kept))
            self.ends = array("q", compress(self.ends, kept))


def _number(path: Path, ca: CaCertificate) -> int:
    """Of the CRL in the file; 0 where there is none of this key."""
    try:
        return crl_file.read(path, ca).number
    except (OSError, ValueError):
        return 0


class CrlKeeper:
    """The CRLs of those CAs that publish one. `step` does a little and says whether there is more to do at once."""

    def __init__(
        self,
        *,
        crls: Iterable[CrlSigner],
        ledger: CrlLedger,
        signer: Signer,
        slot: metrics.Slot,
        report: Callable[..., None],
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._signer = signer
        self._slot = slot
        self._report = report
        self._clock = clock
        self._ticks = ticks
        self._made = [_Made(one, ledger.crls) for one in crls]
        for one in self._made:
            one.find_published([other for other in self._made if other.ca_name == one.ca_name])
        self._seen = 0
        self._caught_up = False
        self._making: Iterator[None] | None = None
        self.look_at = 0.0
        """When `step` next has something to look at, by `ticks`."""
        self._show()

    def __bool__(self) -> bool:
        return bool(self._made)

    def step(self) -> bool:
        """Raises LedgerError, or TokenError where the token is not to be trusted any more."""
        if self._making is not None:
            if next(self._making, _END) is _END:
                self._making = None
            return True
        tick = self._ticks()
        if tick < self.look_at:
            return False
        if not self._read(tick):
            return True
        now = self._clock()
        for one in self._made:
            if one.is_due(now, tick):
                self._making = self._guarded(one, now)
                return True
        self.look_at = tick + _LOOK_SECONDS
        return False

    def make_all(self) -> None:
        """A new CRL of each CA, now: for the command line, while nobody serves. Raises what stood in the way."""
        while not self._read(self._ticks()):
            pass
        for one in self._made:
            for _ in self._make(one, self._clock()):
                pass

    def _read(self, tick: float) -> bool:
        """The next slice of the ledger's revocations; True once all are read."""
        floor = min((one.record.scheduled_at for one in self._made), default=0)
        found = self._ledger.crls.revocations(self._seen, floor, _SLICE)
        for revocation in found:
            self._seen = revocation.id
            issuer = issuer_of(revocation.certificate_der)
            for one in self._made:
                if one.template.issuer == issuer:
                    one.add(revocation, tick)
        if len(found) == _SLICE:
            return False
        if not self._caught_up:
            self._caught_up = True
            self._show()
        for one in self._made:
            stored = self._ledger.crls.last(one.name)
            one.is_wanted = stored is not None and stored.wanted == one.record.number
        return True

    def _guarded(self, one: _Made, now: float) -> Iterator[None]:
        """Make a CRL; what may pass is reported and tried again later."""
        try:
            yield from self._make(one, now)
        except LedgerError:
            raise
        except Exception as error:
            self._slot.set(metrics.BUSY_SINCE.at, 0.0)
            if isinstance(error, TokenError) and not isinstance(error, TokenTransient):
                raise
            one.retry_at = self._ticks() + _RETRY_SECONDS
            self._report("crl_failed", ca=one.name, why=str(error)[:500])

    def _make(self, one: _Made, now: float) -> Iterator[None]:
        """Leave out, compose, number, sign, publish: with a pause after each. In a rollover the CRLs of both keys are
        one issuer's and list the same certificates, so they have one sequence of numbers (RFC 5280 §5.2.3)."""
        old, at = one.record, int(now)
        scheduled = one.is_scheduled(now)
        if scheduled:
            one.without_expired(old.scheduled_at)
            yield
        record = CrlRecord(
            ca=one.name,
            number=1 + max(old.number, self._ledger.crls.highest(one.ca_name)),
            this_update=at,
            next_update=at + one.plan.validity_seconds,
            scheduled_at=old.scheduled_at,
            last_id=max(one.last_id, old.last_id),
        )
        entries = len(one.entries)
        tbs = one.template.prepare(
            number=record.number,
            this_update=record.this_update,
            next_update=record.next_update,
            entries=one.entries,
        )
        one.pending_since = 0.0
        yield
        self._ledger.store_crl(record)
        one.record = record
        one.is_published = False
        yield
        self._slot.set(metrics.BUSY_SINCE.at, time.monotonic())
        (signature,) = self._signer.sign_many([Job(one.name, tbs)])
        self._slot.set(metrics.BUSY_SINCE.at, 0.0)
        if isinstance(signature, TokenError):
            raise signature
        crl_der = one.template.complete(tbs, signature)
        yield
        crl_file.write(one.plan.file, crl_der)
        one.is_published = True
        if scheduled:  # only now: what expired before this CRL may be missing from the next
            one.record = record._replace(scheduled_at=at)
            self._ledger.store_crl(one.record)
        self._slot.count(metrics.CRLS.at)
        self._report(
            "crl_made", ca=one.name, number=record.number, entries=entries, bytes=len(crl_der), scheduled=scheduled
        )
        self._show()

    def _show(self) -> None:
        """The gauges: of several CAs that have not expired the CRL that is nearest its end."""
        living = [one for one in self._made if not one.has_expired(self._clock())]
        published = [one.record for one in living if one.is_published]
        if len(published) < len(living) or not published:
            first = (0.0, 0.0)
        else:
            first = min((float(one.next_update), float(one.this_update)) for one in published)
        self._slot.set(metrics.CRL_NEXT_UPDATE.at, first[0])
        self._slot.set(metrics.CRL_THIS_UPDATE.at, first[1])
        self._slot.set(metrics.CRL_ENTRIES.at, float(sum(len(one.entries) for one in self._made)))
