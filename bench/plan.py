"""What a generator has to do and what it brings back: all that crosses between the processes of a run."""

from __future__ import annotations

import ssl
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SHED = "shed"
"""The kind of an enrolment that was turned away with 429 or 503 and Retry-After: load shedding is no fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The load of one of the generators.

    Connections, requests and CSRs are numbered over the whole run, and generator g of n has each n-th from g on.
    With `bound_csrs` CSR i can only be sent on connection i % connections, because it asks to renew the certificate
    that connection authenticates with.
    """

    generator: int
    generators: int
    address: str
    port: int
    server_name: str
    trust: Path
    tls: ssl.TLSVersion
    head: bytes
    credentials: tuple[Path, ...]
    csr_directory: Path
    first_csr: int
    csrs: int
    bound_csrs: bool
    count: int
    seconds: float | None
    rate_per_second: float | None
    connections: int
    fresh: bool
    retry: bool
    timeout_seconds: float
    keep: Path | None

    def mine(self, count: int) -> range:
        """Which of `count` numbered things are this generator's."""
        return range(self.generator, count, self.generators)

    def devices(self) -> int:
        """How many devices the load knows; without certificates of their own they all look the same to TLS."""
        return max(1, len(self.credentials))


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of one generator's load.

    `kinds` counts the enrolments that failed for good, `events` all that happened on the way. `finished` is a moment
    of `time.perf_counter`, which is the same clock in all processes. `samples` are CSRs and answers, both in base64.
    """

    good: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    latencies_us: array[float] = field(default_factory=lambda: array("d"))
    late_us: array[float] = field(default_factory=lambda: array("d"))
    samples: list[tuple[bytes, bytes]] = field(default_factory=list)
    cpu_seconds: float = 0.0
    finished: float = 0.0

    def add(self, other: Tally) -> None:
        """Takes in the tally of another generator of the same run."""
        self.good += other.good
        self.kinds += other.kinds
        self.examples = other.examples | self.examples
        self.events += other.events
        self.unsent += other.unsent
        self.latencies_us.extend(other.latencies_us)
        self.late_us.extend(other.late_us)
        self.samples += other.samples
        self.cpu_seconds += other.cpu_seconds
        self.finished = max(self.finished, other.finished)


@dataclass(slots=True)
class Job:
    """One enrolment. It gets its CSR when it gets its connection; `start` is when it was meant to begin."""

    start: float
    csr: bytes = b""
    device: int = 0
    tries: int = 0
