"""What a report is made of: runs of bench.fleet and rounds of bench.round, as checked values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.floor import KEPT

HANDSHAKE = "mutual TLS 1.3 handshake, server"
"""The part of the floor that a fresh connection adds."""
FLOOR_KEPT = "floor, kept connection"
_CONNECTIONS = "connections opened"
OTHERS_MAX = 0.1
"""The part of the machine that others may take before a run counts as disturbed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What happened in each second of a run; NaN where a second had no answer to take a percentile of."""

    seconds: tuple[float, ...]
    values: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """One series of a Prometheus histogram: `counts` are per bucket, the last one lies above all bounds `le`."""

    le: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float

    @property
    def total(self) -> float:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        return self.sum / self.total if self.total else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A server process and its part of the cost of an enrolment."""

    label: str
    cpu_us_per_enrolment: float
    cpu_seconds: float
    peak_rss_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of bench.fleet. `curve` holds (percentile, µs) pairs that rise, thinned out for drawing."""

    name: str
    what: str
    command: str
    began: str
    passed: bool
    missed: tuple[str, ...]
    enrolments: float
    requests: float
    seconds: float
    rate_per_second: float
    latency_us: dict[str, float]
    late_us: dict[str, float]
    shed: float
    errors: dict[str, float]
    events: dict[str, float]
    verified: float
    server_cpu_us_per_enrolment: float | None
    generator_cpu_us_per_enrolment: float | None
    generator_share: float | None
    generator_was_limit: bool
    machine_idle_percent: float
    machine_steal_percent: float
    processes: tuple[Process, ...]
    curve: tuple[tuple[float, float], ...]
    series: Series
    cores: Series
    metrics: dict[str, dict[str, Histogram]]
    steps: tuple[dict[str, float], ...]
    """Of a ramp, whose own figures are those of the highest step that held; `held` is 1 or 0."""
    mix: dict[str, dict[str, float]]
    """By kind of request."""

    @property
    def handshakes(self) -> float:
        """Handshakes for each enrolment: 1 on fresh connections, next to nothing on kept ones."""
        return min(1.0, self.events.get(_CONNECTIONS, 0.0) / self.enrolments) if self.enrolments else 0.0

    @property
    def open_loop(self) -> bool:
        """Whether the load, not the server, said how many requests there were."""
        return bool(self.late_us)

    @property
    def cpu_seconds(self) -> float:
        """What server and load generator used together."""
        generator_us = (self.generator_cpu_us_per_enrolment or 0.0) * self.enrolments
        return sum(process.cpu_seconds for process in self.processes) + generator_us / 1e6

    def why(self) -> str:
        """What a run that did not pass missed."""
        errors = [f"{number:,.0f} × {kind}" for kind, number in self.errors.items()]
        return "; ".join((*self.missed, *errors)) or "nothing came out well"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What was measured in one go: the floor, the steps and the runs; a file of runs alone has neither of the first."""

    path: str
    began: str
    commit: str
    plan: str
    machine: dict[str, str]
    floor: dict[str, float]
    core: dict[str, float]
    runs: tuple[Run, ...]
    failures: tuple[str, ...]

    @property
    def cores(self) -> float | None:
        """How many cores the machine has, where that was told."""
        try:
            return float(self.machine.get("cores", "")) or None
        except ValueError:
            return None

    def others(self, run: Run) -> float | None:
        """Which part of the machine was busy for neither the server nor its load generator, 0 to 1."""
        if self.cores is None or not run.seconds or not run.processes:
            return None
        busy = (100 - run.machine_idle_percent - run.machine_steal_percent) / 100
        return min(1.0, max(0.0, busy - run.cpu_seconds / (self.cores * run.seconds)))

    def disturbed(self, run: Run) -> bool:
        """Whether others took so much of the machine that the figures are not the server's alone."""
        return (self.others(run) or 0.0) > OTHERS_MAX

    def floor_of(self, run: Run) -> dict[str, float]:
        """The parts of the floor of such a run in µs, each as often as an enrolment of it needs it.

        Empty where they were not measured, and for a mix, whose cost is that of other requests too.
        """
        if run.mix or any(part not in self.floor for part in (*KEPT, HANDSHAKE)):
            return {}
        parts = {part: self.floor[part] for part in KEPT}
        return parts | ({HANDSHAKE: self.floor[HANDSHAKE] * run.handshakes} if run.handshakes else {})

    def floor_us(self, run: Run) -> float | None:
        """The floor of such a run in µs, or None where there is none."""
        return sum(self.floor_of(run).values()) or None
