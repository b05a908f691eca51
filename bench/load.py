"""One generator's load: the schedule of its requests, and which of them are tried again."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections import deque
from collections.abc import Callable

from bench.aborts import client_hello
from bench.plan import Job, Plan, interleave
from bench.recorder import Recorder
from bench.slot import Slot
from bench.supply import devices_of, supplies
from bench.tally import SHED, Tally
from bench.wire import Answer

_MAX_FAILURES = 20
_MAX_RETRY_AFTER_SECONDS = 60.0
_CONNECTS_AT_ONCE = 32
_SWEEP_SECONDS = 0.25
# The event loop's clock has steps of 1 ms: what is due within half a step goes now, so the error is half a step.
_STEP_SECONDS = 0.001
_EARLY_SECONDS = _STEP_SECONDS / 2
_TRANSIENT = frozenset({SHED, "connection", "timeout"})


def _make_context(plan: Plan, device: int) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(plan.trust)
    context.minimum_version = context.maximum_version = plan.tls
    credential = plan.credentials[device]
    if credential is not None:
        context.load_cert_chain(credential)
    return context


class Load:
    """Made and prepared outside of the measured time, then run once."""

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.recorder = Recorder(plan)
        self.tally: Tally = self.recorder.tally
        self.contexts = {device: _make_context(plan, device) for device in devices_of(plan)}
        self.hello = client_hello(next(iter(self.contexts.values())), plan.server_name) if self.contexts else b""
        self._slots = [Slot(self, device, supply) for device, supply in supplies(plan)]
        self._kinds = itertools.cycle([plan.kinds[index] for index in interleave([kind.weight for kind in plan.kinds])])
        self._rate_per_second = plan.step.rate_per_second
        self._budget = len(plan.mine(plan.step.count))
        self._issued_all = self._budget == 0
        self._outstanding = 0
        self._usable = set(self._slots)
        self._idle: deque[Slot] = deque()
        self._waiting: deque[Job] = deque()
        self._deadline = float("inf")
        self._next_due = 0.0
        self._done: asyncio.Future[None] = loop.create_future()

    async def open_connections(self) -> None:
        """Opens those that are kept alive; one that fails is tried again when a request wants it, and counted then."""
        opened = [slot.open(slot.device) for slot in self._slots if slot.device is not None]
        for first in range(0, len(opened), _CONNECTS_AT_ONCE):
            await asyncio.gather(*opened[first : first + _CONNECTS_AT_ONCE])

    async def run(self, start: float, tell: Callable[[Tally], None]) -> Tally:
        """Runs from the moment `start` of `time.perf_counter`; `tell` is called with the tally now and then."""
        step = self.plan.step
        await asyncio.sleep(start - time.perf_counter())
        self.recorder.begin(start)
        if step.seconds is not None:
            self._deadline = start + step.seconds
        if self._rate_per_second is None:
            for slot in self._slots:
                self._free(slot)
        else:
            self._idle.extend(self._slots)
            self._next_due = start + self.plan.generator / self._rate_per_second
            self._pace(self.plan.generators / self._rate_per_second)
        self._sweep(tell)
        await self._done
        self.recorder.end(self._outstanding + (self._budget if time.perf_counter() < self._deadline else 0))
        tell(self.tally)
        for slot in self._slots:
            slot.close()
        await asyncio.sleep(0.1)  # for the close_notify of each
        return self.tally

    def end(self) -> None:
        """Begin nothing more, not even what waits for a connection, and end when what was begun is answered."""
        self._deadline = min(self._deadline, time.perf_counter())
        self._outstanding -= len(self._waiting)
        self._waiting.clear()

    def _issue(self, start: float) -> Job | None:
        if self._budget == 0 or start >= self._deadline:
            self._issued_all = True
            return None
        self._budget -= 1
        self._outstanding += 1
        return Job(start, next(self._kinds))

    def _free(self, slot: Slot) -> None:
        """Gives the slot its next job: closed loop a new one, open loop the oldest that waits."""
        if slot.retries:
            slot.begin(slot.retries.popleft())
        elif self._rate_per_second is None:
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
            self.tally.late.record((now - job.start) * 1e6)
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
        patience_seconds = self.plan.timeout_seconds * self.plan.tries
        while self._waiting and self._waiting[0].start < now - patience_seconds:
            self._settle_failed(self._waiting.popleft(), "timeout", f"no free connection within {patience_seconds:g} s")
        tell(self.tally)
        self._check_end()
        if not self._done.done():
            self.loop.call_later(_SWEEP_SECONDS, self._sweep, tell)

    def answered(self, slot: Slot, job: Job, answer: Answer) -> None:
        """The answer to a job has come, be it good or bad."""
        if answer.status != job.kind.status:
            self._refused(slot, job, answer)
        elif answer.status == 200 and not answer.holds_certificates():
            self.failed(slot, job, "content", f"{answer.headers.get(b'content-type')!r}: {answer.body[:200]!r}")
        else:
            self.succeeded(slot, job, answer.body)

    def succeeded(self, slot: Slot, job: Job, body: bytes = b"") -> None:
        """What had to come of a job has come of it."""
        self._outstanding -= 1
        self.recorder.good(job, body)
        self._free(slot)

    def _refused(self, slot: Slot, job: Job, answer: Answer) -> None:
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
        failure: str,
        detail: str,
        *,
        after_seconds: float | None = None,
        pause_seconds: float = 0.0,
    ) -> None:
        """A try of a job has failed: repeats it after a while, or settles it. The slot rests for `pause_seconds`."""
        given_up = slot.failures >= _MAX_FAILURES
        repeat_seconds = max(pause_seconds, 0.1 * 2**job.tries if after_seconds is None else after_seconds)
        in_time = time.perf_counter() + repeat_seconds < self._deadline + self.plan.timeout_seconds
        retry = failure in _TRANSIENT and job.tries < self.plan.tries and in_time and not given_up
        if retry:
            self.tally.events["retries"] += 1
        else:
            self._settle_failed(job, failure, detail)
        if given_up:
            while slot.retries:
                self._settle_failed(slot.retries.popleft(), failure, detail)
            self._usable.discard(slot)
            self._check_end()
        elif retry and self._rate_per_second is None:
            self.loop.call_later(repeat_seconds, slot.begin, job)  # the device waits as it was told
        else:
            if retry:
                self.loop.call_later(repeat_seconds, self._repeat, slot, job)
            self.loop.call_later(pause_seconds, self._free, slot)

    def _repeat(self, slot: Slot, job: Job) -> None:
        """Open loop: the job goes back to the same slot, because that is the same device."""
        if slot.failures >= _MAX_FAILURES:
            self._settle_failed(job, "connection", "the server was given up")
            self._check_end()
        elif slot in self._idle:
            self._idle.remove(slot)
            slot.begin(job)
        elif slot not in self._usable and slot.job is None:  # it has no new work, but it has this
            slot.begin(job)
        else:
            slot.retries.append(job)

    def _settle_failed(self, job: Job, failure: str, detail: str) -> None:
        self._outstanding -= 1
        self.recorder.failed(job, failure, detail)

    def _check_end(self) -> None:
        if ((self._outstanding == 0 and self._issued_all) or not self._usable) and not self._done.done():
            self._done.set_result(None)
