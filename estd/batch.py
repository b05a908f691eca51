"""The straight line of a batch: identify all, parse all, authorise all, prepare all, sign all, record once, answer.

Each request that fails at a step leaves the line with its refusal, and the rest go on. Nothing leaves as a certificate
before the transaction that records it has returned: nothing unrecorded is ever sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from estd import admission, csr, frames, holding, metrics, names, policy, registrar, registry
from estd.devices import Use, key_of_identity
from estd.enquiry import Devices, Enquiry
from estd.errors import EstError, NotFound, Reason, Unavailable
from estd.frames import Answer, Request
from estd.identify import client_chain
from estd.issuance import serials
from estd.items import Item, issued_before, one_per_secret, refusal, without_twins
from estd.labels import superseding
from estd.ledger import LedgerBroken, LeftOut, Row
from estd.ledger_requests import Held
from estd.material import Material
from estd.policy import Evidence
from estd.repeats import Repeats
from estd.superseding import Superseding
from hsm.errors import TokenError, TokenTransient
from hsm.session import Job

BATCH_MAX = 32
"""Beyond this a batch gains nothing and its first request waits longer (docs/performance.md)."""

_NO_LABEL = NotFound(Reason.UNKNOWN_LABEL, "There is no such label here.")
_NO_REGISTRY = Unavailable(Reason.INTERNAL, "The registry could not be asked; the server's log says why.")


class Signer(Protocol):
    """The seam to the token."""

    def sign_many(self, jobs: Sequence[Job]) -> list[bytes | TokenError]: ...


class Ledger(Devices, Protocol):
    """The seam to the ledger. Every call may raise LedgerError."""

    def find_many(self, serials: Collection[bytes]) -> Mapping[bytes, Row]: ...
    def find_subject(self, label: str, subject: str) -> Sequence[Row]: ...
    def find_repeat(self, repeat_key: bytes, when_ms: int) -> Row | None: ...
    def repeat_keys_since(self, when_ms: int) -> Iterator[tuple[bytes, bytes]]: ...
    def record(
        self, rows: Sequence[Row], held: Held, uses: Sequence[Use], challenges: Mapping[bytes, bytes]
    ) -> Mapping[bytes, LeftOut]: ...
    def supersede(self, serials: Sequence[bytes], when: int) -> None: ...
    def store_health(self, slot: int, at: float) -> None: ...
    @property
    def requests(self) -> holding.Requests: ...


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
        profiles = superseding(material.config.profiles)
        self._superseding = Superseding(profiles, slot, report) if profiles else None
        self._enquiry = Enquiry(ledger, material.policies, report)

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer for each request, in their order; their ids need not differ. Raises Fatal, with answers for all,
        when the process must end."""
        now = self._clock()
        policies = self._material.policies
        items = [Item(request, policies[request.label]) for request in requests if request.label < len(policies)]
        mark = time.perf_counter()
        self._slot.observe(metrics.BATCH_SIZE, metrics.BATCH_SIZE.at, len(items))
        fatal = ""
        for item in items:
            self._guard(item, self._see, now)
        known = self._known(items)
        for item in self._enquiry.ask([item for item in items if item.answer is None], known):
            item.refuse(_NO_REGISTRY)
        for name, step in (
            ("identify", partial(self._identify, known)),
            ("parse", self._parse),
            ("authorise", self._authorise),
        ):
            for item in items:
                if item.answer is None:
                    self._guard(item, step, now)
            mark = self._stage(name, mark)
        going = without_twins([item for item in items if item.answer is None])
        going, waiting = self._hold(going, now)
        going = one_per_secret(going)  # who waits for a person uses up nothing
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
        worked_on = iter(items)
        answers = [
            next(worked_on).answered if request.label < len(policies) else refusal(request.id, _NO_LABEL)
            for request in requests
        ]
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

    def _guard(self, item: Item, step: Callable[[Item, float], None], now: float) -> None:
        """Run one step on one request; whatever it raises is that request's answer alone."""
        try:
            step(item, now)
        except EstError as error:
            item.refuse(error)
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step=repr(step)[:200])
            trouble = Unavailable(Reason.INTERNAL, "The request could not be worked on; the server's log says why.")
            item.refuse(trouble)

    def _see(self, item: Item, _now: float) -> None:
        """Who asks, read."""
        request = item.request
        if time.monotonic() > request.deadline:
            raise Unavailable(Reason.DEADLINE, "The request waited too long for its turn.")
        certificate, intermediates = client_chain(request.chain) if request.chain else (None, ())
        item.evidence = Evidence(
            label=item.policy.label.name,
            renewal=request.kind in frames.RENEWALS,
            certificate=certificate,
            intermediates=intermediates,
            user=request.user,
            rule=request.rule,
            binding=request.binding,
            keygen=request.kind in frames.KEYGENS,
            key_to_come=request.kind == frames.MAY,
            asked_key=request.asked_key,
        )
        if (told := self._enquiry.told(item)) is not None:
            item.evidence = item.evidence._replace(told=told)

    def _known(self, items: Sequence[Item]) -> Mapping[bytes, Row]:
        """What the ledger holds under the serial numbers of the clients' certificates, asked once for the batch."""
        shown = [item for item in items if item.evidence is not None and item.evidence.certificate is not None]
        serials = {item.evidence.certificate.serial for item in shown if item.evidence and item.evidence.certificate}
        try:
            known = self._ledger.find_many(serials) if serials else {}
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step="find_many")
            trouble = Unavailable(Reason.INTERNAL, "The ledger could not be asked; the server's log says why.")
            for item in shown:
                item.refuse(trouble)
            return {}
        if self._superseding is not None and known:
            for item in shown:
                if item.evidence and item.evidence.certificate:
                    self._superseding.saw(item.evidence.certificate, known.get(item.evidence.certificate.serial))
        return known

    def settle(self, sighted: Collection[bytes] = ()) -> None:
        """Between batches: revoke what is superseded by the certificates that were seen, in requests or by an edge.
        Raises LedgerBroken when the process must end."""
        if self._superseding is not None:
            self._superseding.settle(sighted, self._ledger, self._clock())

    def _identify(self, known: Mapping[bytes, Row], item: Item, now: float) -> None:
        assert item.evidence is not None
        certificate = item.evidence.certificate
        row = known.get(certificate.serial) if certificate is not None else None
        refusals: list[EstError] = []
        try:
            item.client = admission.identify(item.policy, item.evidence, issued_before(row), now, refusals)
        finally:
            if refusals:
                self._enquiry.judged(item.request.label, item.evidence, item.client, refusals)

    def _parse(self, item: Item, _now: float) -> None:
        if item.csr is None:
            item.csr = csr.parse(item.request.csr_der)

    def _authorise(self, item: Item, now: float) -> None:
        assert item.evidence is not None
        assert item.client is not None
        assert item.csr is not None
        for_device = self._for_device(item, now) if item.client.ra and item.evidence.renewal else None
        item.authorised = policy.authorise(item.policy, item.evidence, item.client, item.csr, for_device)
        secret = item.authorised.secret
        if item.evidence.key_to_come:
            if secret is not None and secret.spent:
                raise registry.spent()
            if item.authorised.pending is None:
                item.may()
            return
        now_ms = int(now * 1000)
        key = item.authorised.repeat_key
        oldest_ms = now_ms - item.policy.label.repeat_seconds * 1000
        for when_ms in self._repeats.find(key, now_ms):
            row = self._ledger.find_repeat(key, when_ms) if when_ms >= oldest_ms else None
            if row is not None and row.not_after > now:
                self._slot.count(metrics.REPEATED.at)
                item.issued(row.serial, row.certificate_der)
                return
        if secret is not None and secret.spent:
            raise registry.spent()
        if item.request.kind in frames.ASKS and item.authorised.pending is None:
            item.may()

    def _for_device(self, item: Item, now: float) -> policy.Renewed:
        """What a registration authority renews."""
        assert item.evidence is not None
        assert item.csr is not None
        rows = self._ledger.find_subject(item.policy.label.name, names.shown(item.csr.subject))
        held = [one for one in map(issued_before, rows) if one is not None]
        keys = {key for one in held if (key := key_of_identity(one.identity)) is not None}
        devices = self._ledger.find_devices(keys) if keys else {}
        return registrar.choose(item.policy, item.evidence, item.csr, held, devices, now)

    def _hold(self, items: list[Item], now: float) -> tuple[list[Item], list[Item]]:
        """Those that go on, and those that begin to wait for a person; who waits or is denied has its answer."""
        held: list[Item] = []
        asked: list[holding.Asked] = []
        for item in items:
            assert item.authorised is not None
            if item.authorised.pending is not None:
                held.append(item)
                asked.append(holding.Asked(item.authorised, item.authorised.pending, item.request.peer))
        if not held:
            return items, []
        try:
            verdicts = holding.judge(self._ledger.requests, asked, int(now * 1000))
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step="hold")
            trouble = Unavailable(Reason.INTERNAL, "The ledger could not be asked; the server's log says why.")
            verdicts = [holding.Verdict(trouble)] * len(held)
        for item, verdict in zip(held, verdicts, strict=True):
            item.verdict = verdict
            if verdict.refusal is None and item.request.kind in frames.ASKS:
                item.may()
            elif verdict.refusal is not None and verdict.waiting is None:
                item.refuse(verdict.refusal)
        left = [item for item in items if item.answer is None]
        waiting = [item for item in left if item.verdict is not None and item.verdict.waiting is not None]
        return [item for item in left if item.verdict is None or item.verdict.waiting is None], waiting

    def _prepare(self, serial: bytes, item: Item, now: float) -> None:
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

    def _sign(self, items: list[Item]) -> str:
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
                item.refuse(trouble)
                continue
            assert item.issuer is not None
            assert item.prepared is not None
            item.certificate_der = item.issuer.complete(item.prepared, signature)
            self._slot.observe(metrics.SIGN_SECONDS, metrics.SIGN_SECONDS.at, each)
        return fatal

    def _record(self, items: list[Item], waiting: list[Item], now: float) -> str:
        """Record all in one transaction, then answer; returns why the process must end, or nothing."""
        rows = [item.row(int(now * 1000)) for item in items]
        began = time.perf_counter()
        try:
            approved: dict[bytes, holding.Verdict] = {}
            uses: list[Use] = []
            challenges: dict[bytes, bytes] = {}
            for item, row in zip(items, rows, strict=True):
                if item.verdict is not None:
                    approved[row.serial] = item.verdict
                if (use := item.use(row)) is not None:
                    uses.append(use)
                if item.request.revocation:
                    challenges[row.serial] = item.request.revocation
            changes = holding.changes(approved, [item.verdict for item in waiting])
            left_out = self._ledger.record(rows, changes, uses, challenges)
        except Exception as error:
            # Whatever was raised: the rows may or may not be there, so no certificate of this batch may leave.
            trouble = Unavailable(Reason.LEDGER_AWAY, "The CA cannot record certificates at the moment.")
            for item in (*items, *waiting):
                item.refuse(trouble)
            return str(error) if isinstance(error, LedgerBroken) else f"the ledger failed: {error!r}"
        self._slot.observe(metrics.COMMIT_SECONDS, metrics.COMMIT_SECONDS.at, time.perf_counter() - began)
        self._slot.count(metrics.CERTIFICATES.at, len(rows) - len(left_out))
        for item in waiting:
            if item.verdict is not None and item.verdict.refusal is not None:
                item.refuse(item.verdict.refusal)
        for item, row in zip(items, rows, strict=True):
            if row.serial in left_out:
                is_spent = left_out[row.serial] == "spent"
                why = registry.spent() if is_spent else holding.waits(item.policy.label)
                item.refuse(why)
                continue
            self._repeats.add(row.repeat_key, row.issued_at_ms)
            item.issued(row.serial, row.certificate_der)
        return ""
