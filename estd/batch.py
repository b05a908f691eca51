"""The straight line of a batch: identify all, parse all, authorise all, prepare all, sign all, record once, answer.

Each request that fails at a step leaves the line with its refusal, and the rest go on. Nothing leaves as a certificate
before the transaction that records it has returned: nothing unrecorded is ever sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from estd import csr, frames, holding, metrics, policy, registry
from estd.devices import DeviceKey, Use
from estd.enquiry import Devices, Enquiry
from estd.errors import REASONS, EstError, NotFound, Reason, Unavailable
from estd.frames import Answer, Request
from estd.identify import client_chain
from estd.issuance import CertificateDer, Issuer, Prepared, serials
from estd.ledger import LedgerBroken, LeftOut, Row
from estd.ledger_requests import Held
from estd.material import Material
from estd.policy import Authorised, Client, Evidence, Issued
from estd.repeats import Repeats
from hsm.errors import TokenError, TokenTransient
from hsm.session import Job

BATCH_MAX = 32
"""Beyond this a batch gains nothing and its first request waits longer (docs/performance.md)."""

_NO_REGISTRY = Unavailable(Reason.INTERNAL, "The registry could not be asked; the server's log says why.")
_REASON_NUMBER = {reason: index for index, reason in enumerate(REASONS)}


class Signer(Protocol):
    """The seam to the token."""

    def sign_many(self, jobs: Sequence[Job]) -> list[bytes | TokenError]: ...


class Ledger(Devices, Protocol):
    """The seam to the ledger. Every call may raise LedgerError."""

    def find_many(self, serials: Collection[bytes]) -> Mapping[bytes, Row]: ...
    def find_repeat(self, repeat_key: bytes, when_ms: int) -> Row | None: ...
    def repeat_keys_since(self, when_ms: int) -> Iterator[tuple[bytes, bytes]]: ...
    def record(self, rows: Sequence[Row], held: Held, uses: Sequence[Use]) -> Mapping[bytes, LeftOut]: ...
    def store_health(self, slot: int, at: float) -> None: ...
    @property
    def requests(self) -> holding.Requests: ...


@dataclass(slots=True)
class _Item:
    """A request on its way down the line; what it has become so far."""

    request: Request
    policy: policy.LabelPolicy
    evidence: Evidence | None = None
    client: Client | None = None
    csr: csr.CertificationRequest | None = None
    authorised: Authorised | None = None
    prepared: Prepared | None = None
    issuer: Issuer | None = None
    certificate_der: CertificateDer | None = None
    twin: _Item | None = None
    """The same request earlier in this batch: both get one certificate."""
    verdict: holding.Verdict | None = None
    """What became of it where its label holds requests for a person."""
    answer: Answer | None = None


class Fatal(Exception):
    """The token or the ledger is not to be trusted any more: the answers are right, the process must end."""

    def __init__(self, answers: list[Answer], why: str) -> None:
        super().__init__(why)
        self.answers = answers


class BatchLine:
    """One issuer's line. It is given its token, its ledger and its clock."""

    def __init__(
        self,
        *,
        material: Material,
        signer: Signer,
        ledger: Ledger,
        repeats: Repeats,
        slot: metrics.Slot,
        report: Callable[..., None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._material = material
        self._signer = signer
        self._ledger = ledger
        self._repeats = repeats
        self._slot = slot
        self._report = report
        self._clock = clock
        self._enquiry = Enquiry(ledger, material.policies, report)

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer for each request, in any order. Raises Fatal, with answers for all, when the process must end."""
        now = self._clock()
        policies = self._material.policies
        known = [request for request in requests if request.label < len(policies)]
        nowhere = NotFound(Reason.UNKNOWN_LABEL, "There is no such label here.")
        strays = [refusal(request.id, nowhere) for request in requests if request.label >= len(policies)]
        items = [_Item(request, policies[request.label]) for request in known]
        mark = time.perf_counter()
        self._slot.observe(metrics.BATCH_SIZE, metrics.BATCH_SIZE.at, len(items))
        fatal = ""
        for item in items:
            self._guard(item, self._see, now)
        held = self._held(items)
        for item in self._enquiry.ask([item for item in items if item.answer is None], held):
            item.answer = refusal(item.request.id, _NO_REGISTRY)
        for name, step in (
            ("identify", partial(self._identify, held)),
            ("parse", self._parse),
            ("authorise", self._authorise),
        ):
            for item in items:
                if item.answer is None:
                    self._guard(item, step, now)
            mark = self._stage(name, mark)
        going = _without_twins([item for item in items if item.answer is None])
        going, waiting = self._hold(going, now)
        if going:
            for item, serial in zip(going, serials(len(going), int(now * 1000)), strict=True):
                self._guard(item, partial(self._prepare, serial), now)
            going = [item for item in going if item.answer is None]
            mark = self._stage("prepare", mark)
            fatal = self._sign(going)
            mark = self._stage("sign", mark)
            going = [item for item in going if item.answer is None]
        if going or waiting:
            fatal = self._record(going, waiting, now) or fatal
            self._stage("commit", mark)
        for item in items:
            if item.answer is None and item.twin is not None and item.twin.answer is not None:
                item.answer = item.twin.answer._replace(id=item.request.id)
        answers = strays + [item.answer for item in items if item.answer is not None]
        if fatal:
            raise Fatal(answers, fatal)
        return answers

    def use(self, ledger: Ledger) -> None:
        """Go on with another ledger, from the next batch on."""
        self._ledger = ledger
        self._enquiry.use(ledger)

    def _stage(self, name: str, since: float) -> float:
        mark = time.perf_counter()
        self._slot.observe(metrics.STAGE_SECONDS, metrics.STAGE_SECONDS.series(name), mark - since)
        return mark

    def _guard(self, item: _Item, step: Callable[[_Item, float], None], now: float) -> None:
        """Run one step on one request; whatever it raises is that request's answer alone."""
        try:
            step(item, now)
        except EstError as error:
            item.answer = refusal(item.request.id, error, item.client.identity if item.client else "")
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step=repr(step)[:200])
            trouble = Unavailable(Reason.INTERNAL, "The request could not be worked on; the server's log says why.")
            item.answer = refusal(item.request.id, trouble)

    def _see(self, item: _Item, _now: float) -> None:
        """Who asks, read."""
        request = item.request
        if time.monotonic() > request.deadline:
            raise Unavailable(Reason.DEADLINE, "The request waited too long for its turn.")
        certificate, intermediates = client_chain(request.chain) if request.chain else (None, ())
        item.evidence = Evidence(
            label=item.policy.label.name,
            renewal=request.kind == frames.RENEW,
            certificate=certificate,
            intermediates=intermediates,
            user=request.user,
            rule=request.rule,
            binding=request.binding,
        )
        if (told := self._enquiry.told(request)) is not None:
            item.evidence = item.evidence._replace(told=told)

    def _held(self, items: Sequence[_Item]) -> Mapping[bytes, Row]:
        """What the ledger holds under the serial numbers of the clients' certificates, asked once for the batch."""
        shown = [item for item in items if item.evidence is not None and item.evidence.certificate is not None]
        serials = {item.evidence.certificate.serial for item in shown if item.evidence and item.evidence.certificate}
        try:
            return self._ledger.find_many(serials) if serials else {}
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step="find_many")
            trouble = Unavailable(Reason.INTERNAL, "The ledger could not be asked; the server's log says why.")
            for item in shown:
                item.answer = refusal(item.request.id, trouble)
            return {}

    def _identify(self, held: Mapping[bytes, Row], item: _Item, now: float) -> None:
        assert item.evidence is not None
        certificate = item.evidence.certificate
        row = held.get(certificate.serial) if certificate is not None else None
        try:
            item.client = policy.identify(item.policy, item.evidence, _issued_before(row), now)
        except EstError as error:
            self._enquiry.refused(item.request.label, item.evidence, error)
            raise

    def _parse(self, item: _Item, _now: float) -> None:
        item.csr = csr.parse(item.request.csr_der)

    def _authorise(self, item: _Item, now: float) -> None:
        assert item.evidence is not None
        assert item.client is not None
        assert item.csr is not None
        item.authorised = policy.authorise(item.policy, item.evidence, item.client, item.csr)
        now_ms = int(now * 1000)
        key = item.authorised.repeat_key
        oldest_ms = now_ms - item.policy.label.repeat_seconds * 1000
        for when_ms in self._repeats.find(key, now_ms):
            row = self._ledger.find_repeat(key, when_ms) if when_ms >= oldest_ms else None
            if row is not None and row.not_after > now:
                self._slot.count(metrics.REPEATED.at)
                item.answer = _issued(item, row.serial, row.certificate_der)
                return
        if item.authorised.secret is not None and item.authorised.secret.spent:
            raise registry.spent()

    def _hold(self, items: list[_Item], now: float) -> tuple[list[_Item], list[_Item]]:
        """Those that go on, and those that begin to wait for a person; who waits or is denied has its answer."""
        held = [item for item in items if item.authorised is not None and holding.is_held(item.authorised)]
        if not held:
            return items, []
        asked = [holding.Asked(item.authorised, item.request.peer) for item in held if item.authorised is not None]
        try:
            verdicts = holding.judge(self._ledger.requests, asked, int(now * 1000))
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step="hold")
            trouble = Unavailable(Reason.INTERNAL, "The ledger could not be asked; the server's log says why.")
            verdicts = [holding.Verdict(trouble)] * len(held)
        for item, verdict in zip(held, verdicts, strict=True):
            item.verdict = verdict
            if verdict.refusal is not None and verdict.waiting is None:
                item.answer = refusal(item.request.id, verdict.refusal, _identity(item))
        left = [item for item in items if item.answer is None]
        waiting = [item for item in left if item.verdict is not None and item.verdict.waiting is not None]
        return [item for item in left if item.verdict is None or item.verdict.waiting is None], waiting

    def _prepare(self, serial: bytes, item: _Item, now: float) -> None:
        authorised = item.authorised
        assert authorised is not None
        item.issuer = self._material.issuers[authorised.label.ca, authorised.profile.name]
        item.prepared = item.issuer.prepare(
            serial=serial,
            now=int(now),
            subject_der=authorised.names.subject_der,
            san_der=authorised.names.san_der,
            spki_der=authorised.request.spki_der,
            key_bits=authorised.request.key_bits,
        )

    def _sign(self, items: list[_Item]) -> str:
        """Sign all; returns why the process must end, or nothing."""
        jobs = [Job(item.policy.label.ca, item.prepared.tbs) for item in items if item.prepared is not None]
        began = time.perf_counter()
        try:
            signatures = self._signer.sign_many(jobs)
        except TokenError as error:
            signatures = [error] * len(jobs)
        each = (time.perf_counter() - began) / (len(jobs) or 1)
        fatal = ""
        for item, signature in zip(items, signatures, strict=True):
            if isinstance(signature, TokenError):
                severity = "transient" if isinstance(signature, TokenTransient) else "fatal"
                self._slot.count(metrics.TOKEN_ERRORS.series(severity))
                fatal = str(signature) if severity == "fatal" else fatal
                trouble = Unavailable(Reason.TOKEN_AWAY, "The CA cannot sign at the moment.")
                item.answer = refusal(item.request.id, trouble, _identity(item))
                continue
            assert item.issuer is not None
            assert item.prepared is not None
            item.certificate_der = item.issuer.complete(item.prepared, signature)
            self._slot.observe(metrics.SIGN_SECONDS, metrics.SIGN_SECONDS.at, each)
        return fatal

    def _record(self, items: list[_Item], waiting: list[_Item], now: float) -> str:
        """Record all in one transaction, then answer; returns why the process must end, or nothing."""
        rows = [_row(item, int(now * 1000)) for item in items]
        began = time.perf_counter()
        try:
            approved = {row.serial: item.verdict for row, item in zip(rows, items, strict=True) if item.verdict}
            held = holding.changes(approved, [item.verdict for item in waiting])
            uses = [use for item, row in zip(items, rows, strict=True) if (use := _use(item, row)) is not None]
            left_out = self._ledger.record(rows, held, uses)
        except Exception as error:
            # Whatever was raised: the rows may or may not be there, so no certificate of this batch may leave.
            trouble = Unavailable(Reason.LEDGER_AWAY, "The CA cannot record certificates at the moment.")
            for item in (*items, *waiting):
                item.answer = refusal(item.request.id, trouble, _identity(item))
            return str(error) if isinstance(error, LedgerBroken) else f"the ledger failed: {error!r}"
        self._slot.observe(metrics.COMMIT_SECONDS, metrics.COMMIT_SECONDS.at, time.perf_counter() - began)
        self._slot.count(metrics.CERTIFICATES.at, len(rows) - len(left_out))
        for item in waiting:
            if item.verdict is not None and item.verdict.refusal is not None:
                item.answer = refusal(item.request.id, item.verdict.refusal, _identity(item))
        for item, row in zip(items, rows, strict=True):
            if row.serial in left_out:
                is_spent = left_out[row.serial] == "spent"
                why = registry.spent() if is_spent else holding.waits(item.policy.label)
                item.answer = refusal(item.request.id, why, _identity(item))
                continue
            self._repeats.add(row.repeat_key, row.issued_at_ms)
            item.answer = _issued(item, row.serial, row.certificate_der)
        return ""


def _issued_before(row: Row | None) -> Issued | None:
    if row is None:
        return None
    return Issued(
        certificate_der=row.certificate_der,
        label=row.label,
        profile=row.profile,
        revoked=row.revoked_at is not None,
        identity=row.identity,
    )


def _without_twins(items: list[_Item]) -> list[_Item]:
    """The items less those that repeat an earlier one, which are told their twin, and those whose one-time secret an
    earlier one uses, which are refused."""
    first: dict[bytes, _Item] = {}
    secrets: dict[DeviceKey, _Item] = {}
    for item in items:
        assert item.authorised is not None
        found = first.setdefault(item.authorised.repeat_key, item)
        item.twin = found if found is not item else None
        secret = item.authorised.secret if found is item else None
        if secret is not None and secrets.setdefault(secret.key, item) is not item:
            item.answer = refusal(item.request.id, registry.spent(), _identity(item))
            del first[item.authorised.repeat_key]
    return list(first.values())


def _identity(item: _Item) -> str:
    return item.client.identity if item.client else ""


def _use(item: _Item, row: Row) -> Use | None:
    """The one-time secret that this certificate uses up; None without one."""
    assert item.authorised is not None
    secret = item.authorised.secret
    return None if secret is None else Use(row.serial, secret.key, secret.sha256, row.issued_at_ms)


def _row(item: _Item, issued_at_ms: int) -> Row:
    authorised, prepared = item.authorised, item.prepared
    assert authorised is not None
    assert prepared is not None
    assert item.certificate_der is not None
    return Row(
        serial=prepared.serial,
        certificate_der=item.certificate_der,
        csr_sha256=authorised.request.sha256,
        repeat_key=authorised.repeat_key,
        identity=authorised.identity,
        subject=authorised.names.text,
        label=authorised.label.name,
        profile=authorised.profile.name,
        not_before=prepared.not_before,
        not_after=prepared.not_after,
        issued_at_ms=issued_at_ms,
        renews=authorised.renews,
    )


def _issued(item: _Item, serial: bytes, certificate_der: bytes) -> Answer:
    return Answer(item.request.id, 200, 0, 0, _identity(item), serial, certificate_der)


def refusal(number: int, error: EstError, identity: str = "") -> Answer:
    """The frame that carries a refusal back to the edge."""
    return Answer(
        number, error.status, _REASON_NUMBER[error.reason], error.retry_after or 0, identity, b"",
        error.sentence.encode(),
    )  # fmt: skip
