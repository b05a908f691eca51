"""A generator's record of what came of its requests, second by second."""

from __future__ import annotations

import time
from typing import BinaryIO

from bench.histogram import Latencies
from bench.plan import Job, Plan
from bench.tally import SHED, MixRow, Second, Tally

_SAMPLE_EVERY = 100


class Recorder:
    """Only the present second has a histogram that is open; those before it are kept encoded."""

    def __init__(self, plan: Plan) -> None:
        self.tally = Tally()
        if len(plan.kinds) > 1:
            self.tally.mix = {kind.name: MixRow() for kind in plan.kinds}
        self._kept: BinaryIO | None = plan.keep.open("wb", buffering=1 << 20) if plan.keep else None
        self._start = self._second_ends = self._cpu_before = 0.0
        self._open_second()

    def begin(self, start: float) -> None:
        """The run begins at this moment of `time.perf_counter`."""
        self._start = start
        self._second_ends = start + 1.0
        self._cpu_before = time.process_time()

    def _open_second(self) -> None:
        self._good = self._shed = self._errors = 0
        self._latencies = Latencies()

    def _close_second(self) -> None:
        second = Second(good=self._good, shed=self._shed, errors=self._errors, latencies=self._latencies.encode())
        self.tally.seconds.append(second)
        self._second_ends += 1.0
        self._open_second()

    def _now(self) -> float:
        now = time.perf_counter()
        while now >= self._second_ends:
            self._close_second()
        return now

    def good(self, job: Job, body: bytes) -> None:
        """What had to come back has come."""
        latency_us = (self._now() - job.start) * 1e6
        tally = self.tally
        tally.settled += 1
        if tally.mix:
            row = tally.mix[job.kind.name]
            row.sent += 1
            row.expected += 1
            row.latencies.record(latency_us)
        if job.kind.pool is None:
            return
        self._good += 1
        self._latencies.record(latency_us)
        if tally.good % _SAMPLE_EVERY == 0:
            tally.samples.append((job.csr, body))
        tally.good += 1
        if self._kept is not None:
            self._kept.write(b"".join(body.split()) + b"\n")

    def failed(self, job: Job, failure: str, detail: str) -> None:
        """A request has failed for good; in a mix the failure is named with its kind."""
        self._now()
        tally = self.tally
        tally.settled += 1
        if tally.mix:
            row = tally.mix[job.kind.name]
            row.sent += 1
            row.shed += failure == SHED
            failure = failure if failure == SHED else f"{job.kind.name}: {failure}"
        tally.failures[failure] += 1
        tally.examples.setdefault(failure, detail)
        if failure == SHED:
            self._shed += 1
        else:
            self._errors += 1

    def end(self, unsent: int) -> None:
        """The run is over; `unsent` requests were not settled."""
        tally = self.tally
        tally.finished = self._now()
        tally.unsent = unsent
        tally.cpu_seconds = time.process_time() - self._cpu_before
        tally.busiest_share = tally.cpu_seconds / (tally.finished - self._start)
        self._close_second()
        if self._kept is not None:
            self._kept.close()
