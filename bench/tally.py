"""What a generator brings back, and how the parts of several become one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from bench.histogram import Latencies, merged

SHED = "shed"
"""The name of an enrolment that was turned away with 429 or 503 and Retry-After: load shedding is no fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """What came back within one second of the run. `latencies` of the good ones is an encoded histogram."""

    good: int
    shed: int
    errors: int
    latencies: bytes

    def plus(self, other: Second) -> Second:
        return Second(
            good=self.good + other.good,
            shed=self.shed + other.shed,
            errors=self.errors + other.errors,
            latencies=merged((Latencies(self.latencies), Latencies(other.latencies))).encode(),
        )


@dataclass(slots=True, kw_only=True)
class MixRow:
    """What came of one kind of request: `expected` had the status it has to have, `shed` may be repeated later."""

    sent: int = 0
    expected: int = 0
    shed: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    @property
    def unexpected(self) -> int:
        return self.sent - self.expected - self.shed

    def add(self, other: MixRow) -> None:
        self.sent += other.sent
        self.expected += other.expected
        self.shed += other.shed
        self.latencies.add(other.latencies)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of one generator's load, or of all.

    `good` counts enrolments, `settled` all requests of which it is known what came of them, `failures` those that
    failed for good, by name, and `events` all that happened on the way. `mix` is empty where there is one kind of
    request. `finished` is a moment of `time.perf_counter`, which is the same clock in all processes. `samples` are CSRs
    and answers, both in base64. `busiest_share` is how much of a core the busiest generator used.
    """

    good: int = 0
    settled: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    seconds: list[Second] = field(default_factory=list)
    late: Latencies = field(default_factory=Latencies)
    mix: dict[str, MixRow] = field(default_factory=dict)
    samples: list[tuple[bytes, bytes]] = field(default_factory=list)
    cpu_seconds: float = 0.0
    busiest_share: float = 0.0
    finished: float = 0.0

    def add(self, other: Tally) -> None:
        """Takes in the tally of another generator of the same run."""
        self.good += other.good
        self.settled += other.settled
        self.failures += other.failures
        self.examples = other.examples | self.examples
        self.events += other.events
        self.unsent += other.unsent
        pairs = itertools.zip_longest(self.seconds, other.seconds)
        self.seconds = [one.plus(two) if one and two else one or two for one, two in pairs]
        self.late.add(other.late)
        for name, row in other.mix.items():
            self.mix.setdefault(name, MixRow()).add(row)
        self.samples += other.samples
        self.cpu_seconds += other.cpu_seconds
        self.busiest_share = max(self.busiest_share, other.busiest_share)
        self.finished = max(self.finished, other.finished)

    def latencies(self) -> Latencies:
        """Of all good enrolments."""
        return merged(Latencies(second.latencies) for second in self.seconds)
