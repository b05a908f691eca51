"""One generator's load: the schedule of its requests, and what became of each of them."""

from __future__ import annotations

import asyncio
import binascii
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from bench.csrs import read_csrs
from bench.plan import SHED, Job, Plan, Tally
from bench.slot import Slot
from bench.wire import Answer

_MAX_TRIES = 5
_MAX_FAILURES = 20
_MAX_RETRY_AFTER_SECONDS = 60.0
_SAMPLE_EVERY = 100
_CONNECTS_AT_ONCE = 32
_SWEEP_SECONDS = 0.25
# The event loop's clock has steps of 1 ms: what is due within half a step goes now, so the error is half a step.
_STEP_SECONDS = 0.001
_EARLY_SECONDS = _STEP_SECONDS / 2
_TRANSIENT = frozenset({SHED, "connection", "timeout"})


def _make_contexts(plan: Plan) -> dict[int, ssl.SSLContext]:
    """A context for each device this generator plays."""
    contexts = {}
    for device in {number % plan.devices() for number in plan.mine(plan.csrs if plan.fresh else plan.connections)}:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(plan.trust)
        context.minimum_version = context.maximum_version = plan.tls
        if plan.credentials:
            context.load_cert_chain(plan.credentials[device])
        contexts[device] = context
    return contexts


class Load:
    """Made and prepared outside of the measured time, then run once."""

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.tally = Tally()
        self.contexts = _make_contexts(plan)
        self._slots = self._make_slots()
        self._kept: BinaryIO | None = plan.keep.open("wb", buffering=1 << 20) if plan.keep else None
        self._budget = len(plan.mine(plan.count))
        self._issued_all = self._budget == 0
        self._outstanding = 0
        self._usable = set(self._slots)
        self._idle: deque[Slot] = deque()
        self._waiting: deque[Job] = deque()
        self._deadline = float("inf")
        self._next_due = 0.0
        self._done: asyncio.Future[None] = loop.create_future()

    def _make_slots(self) -> list[Slot]:
        plan = self.plan
        stride = plan.connections if plan.bound_csrs else plan.generators
        owned: dict[int, list[tuple[int, bytes]]] = {}
        for number, csr in enumerate(read_csrs(plan.csr_directory, first=plan.first_csr, count=plan.csrs)):
            owner = number % stride
            if owner % plan.generators == plan.generator:
                work = (number % plan.devices(), binascii.b2a_base64(csr, newline=False))
                owned.setdefault(owner, []).append(work)
        shared = iter(owned.get(plan.generator, []))
        return [
            Slot(
                self,
                None if plan.fresh else number % plan.devices(),
                iter(owned.get(number, [])) if plan.bound_csrs else shared,
            )
            for number in plan.mine(plan.connections)
        ]

    async def open_connections(self) -> None:
        """Opens those that are kept alive; one that fails is tried again when a request wants it, and counted then."""
        opened = [slot.open(slot.device) for slot in self._slots if slot.device is not None]
        for first in range(0, len(opened), _CONNECTS_AT_ONCE):
            await asyncio.gather(*opened[first : first + _CONNECTS_AT_ONCE])

    async def run(self, start: float, tell: Callable[[Tally], None]) -> Tally:
        """Runs from the moment `start` of `time.perf_counter`; `tell` is called with the tally now and then."""
        plan = self.plan
        await asyncio.sleep(start - time.perf_counter())
        cpu_before = time.process_time()
        if plan.seconds is not None:
            self._deadline = start + plan.seconds
        if plan.rate_per_second is None:
            for slot in self._slots:
                self._free(slot)
        else:
            self._idle.extend(self._slots)
            self._next_due = start + plan.generator / plan.rate_per_second
            self._pace(plan.generators / plan.rate_per_second)
        self._sweep(tell)
        await self._done
        self.tally.finished = time.perf_counter()
        self.tally.cpu_seconds = time.process_time() - cpu_before
        self.tally.unsent = self._outstanding + (self._budget if self.tally.finished < self._deadline else 0)
        tell(self.tally)
        if self._kept is not None:
            self._kept.close()
        for slot in self._slots:
            slot.close()
        await asyncio.sleep(0.1)  # for the close_notify of each
        return self.tally

    def request(self, csr: bytes) -> bytes:
        """The request to send for a CSR in base64."""
        return b"%b%d\r\n\r\n%b" % (self.plan.head, len(csr), csr)

    def _issue(self, start: float) -> Job | None:
        if self._budget == 0 or start >= self._deadline:
            self._issued_all = True
            return None
        self._budget -= 1
        self._outstanding += 1
        return Job(start)

    def _free(self, slot: Slot) -> None:
        """Gives the slot its next job: closed loop a new one, open loop the oldest that waits."""
        if slot.retries:
            slot.begin(slot.retries.popleft())
        elif self.plan.rate_per_second is None:
            job = self._issue(time.perf_counter())
            if job is not None and not slot.begin(job):
                self._budget += 1
                self._outstanding -= 1
                self._usable.discard(slot)
        else:
            self._idle.append(slot)
            self._dispatch()
        self._check_end()

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            slot = self._idle.popleft()
            if slot.begin(self._waiting[0]):
                self._waiting.popleft()
            else:
                self._usable.discard(slot)

    def _pace(self, interval_seconds: float) -> None:
        """Open loop: begins what is due by the schedule, however late the answers are."""
        now = time.perf_counter()
        while self._next_due <= now + _EARLY_SECONDS:
            job = self._issue(min(self._next_due, now))
            if job is None:
                break
            self.tally.late_us.append((now - job.start) * 1e6)
            self._waiting.append(job)
            self._next_due += interval_seconds
        self._dispatch()
        self._check_end()
        if not self._issued_all and not self._done.done():
            wait_seconds = max(self._next_due - _EARLY_SECONDS - now, _STEP_SECONDS)
            self.loop.call_later(wait_seconds, self._pace, interval_seconds)

    def _sweep(self, tell: Callable[[Tally], None]) -> None:
        """Ends what takes too long: one look over all slots costs less than a timer for each request."""
        now = time.perf_counter()
        for slot in self._slots:
            slot.expire(now - self.plan.timeout_seconds)
        patience_seconds = self.plan.timeout_seconds * (_MAX_TRIES if self.plan.retry else 1)
        while self._waiting and self._waiting[0].start < now - patience_seconds:
            self._waiting.popleft()
            self._settle_failed("timeout", f"no free connection within {patience_seconds:g} s")
        tell(self.tally)
        self._check_end()
        if not self._done.done():
            self.loop.call_later(_SWEEP_SECONDS, self._sweep, tell)

    def answered(self, slot: Slot, job: Job, answer: Answer) -> None:
        """The answer to a job has come, be it good or bad."""
        if answer.status == 200:
            content_type = answer.headers.get(b"content-type", b"")
            if content_type.partition(b";")[0].lower() == b"application/pkcs7-mime" and answer.body:
                self._settle_good(job, answer.body)
                self._free(slot)
            else:
                self.failed(slot, job, "content", f"{content_type!r}: {answer.body[:200]!r}")
            return
        after_seconds = answer.retry_after_seconds() if answer.status in (429, 503) else None
        detail = answer.body[:200].decode(errors="replace").strip()
        if after_seconds is None:
            self.failed(slot, job, f"status {answer.status}", detail)
        else:
            self.tally.events["answers with Retry-After"] += 1
            self.failed(slot, job, SHED, detail, after_seconds=min(after_seconds, _MAX_RETRY_AFTER_SECONDS))

    def failed(
        self,
        slot: Slot,
        job: Job,
        kind: str,
        detail: str,
        *,
        after_seconds: float | None = None,
        pause_seconds: float = 0.0,
    ) -> None:
        """A try of a job has failed: repeats it after a while, or settles it. The slot rests for `pause_seconds`."""
        given_up = slot.failures >= _MAX_FAILURES
        repeat_seconds = max(pause_seconds, 0.1 * 2**job.tries if after_seconds is None else after_seconds)
        in_time = time.perf_counter() + repeat_seconds < self._deadline + self.plan.timeout_seconds
        retry = self.plan.retry and kind in _TRANSIENT and job.tries < _MAX_TRIES and in_time and not given_up
        if retry:
            self.tally.events["retries"] += 1
        else:
            self._settle_failed(kind, detail)
        if given_up:
            while slot.retries:
                slot.retries.popleft()
                self._settle_failed(kind, detail)
            self._usable.discard(slot)
            self._check_end()
        elif retry and self.plan.rate_per_second is None:
            self.loop.call_later(repeat_seconds, slot.begin, job)  # the device waits as it was told
        else:
            if retry:
                self.loop.call_later(repeat_seconds, self._repeat, slot, job)
            self.loop.call_later(pause_seconds, self._free, slot)

    def _repeat(self, slot: Slot, job: Job) -> None:
        """Open loop: the job goes back to the same slot, because that is the same device."""
        if slot.failures >= _MAX_FAILURES:
            self._settle_failed("connection", "the server was given up")
            self._check_end()
        elif slot in self._idle:
            self._idle.remove(slot)
            slot.begin(job)
        elif slot not in self._usable and slot.job is None:  # it has no new work, but it has this
            slot.begin(job)
        else:
            slot.retries.append(job)

    def _settle_good(self, job: Job, body: bytes) -> None:
        tally = self.tally
        tally.latencies_us.append((time.perf_counter() - job.start) * 1e6)
        if tally.good % _SAMPLE_EVERY == 0:
            tally.samples.append((job.csr, body))
        tally.good += 1
        self._outstanding -= 1
        if self._kept is not None:
            self._kept.write(b"".join(body.split()) + b"\n")

    def _settle_failed(self, kind: str, detail: str) -> None:
        self.tally.kinds[kind] += 1
        self.tally.examples.setdefault(kind, detail)
        self._outstanding -= 1

    def _check_end(self) -> None:
        if ((self._outstanding == 0 and self._issued_all) or not self._usable) and not self._done.done():
            self._done.set_result(None)
