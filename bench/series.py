"""A run second by second: what came back, and which share of a core each process used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.histogram import Latencies
from bench.tally import Second

_SHORTEST_SECONDS = 0.5
"""An interval that is shorter is joined to the one before it: the kernel's clocks are coarse."""


@dataclass(slots=True, kw_only=True)
class CpuSeries:
    """CPU by process, read about each second, as totals that grow; whoever is not there yet has used nothing."""

    moments: list[float] = field(default_factory=list)
    """Seconds since the run began."""
    used_ns: list[dict[str, int]] = field(default_factory=list)

    def look(self, moment: float, used_ns: dict[str, int]) -> None:
        """Takes in what the processes have used up to now; the first look is the beginning."""
        if len(self.moments) > 2 and moment - self.moments[-1] < _SHORTEST_SECONDS:
            self.moments.pop()
            self.used_ns.pop()
        self.moments.append(moment)
        self.used_ns.append(used_ns)

    def cores(self) -> tuple[list[float], dict[str, list[float]]]:
        """The ends of the intervals, and for each process how many cores it used in each."""
        names = sorted({name for used in self.used_ns for name in used})
        intervals = list(zip(self.moments, self.moments[1:], self.used_ns, self.used_ns[1:], strict=False))
        processes = {
            name: [
                round((late_ns.get(name, 0) - early_ns.get(name, 0)) / 1e9 / (late - early), 4)
                for early, late, early_ns, late_ns in intervals
            ]
            for name in names
        }
        return [round(moment, 3) for moment in self.moments[1:]], processes


def answers(steps: Sequence[Sequence[Second]]) -> dict[str, list[Any]]:
    """What came back in each second, the steps one after the other; a second without an enrolment has no latency."""
    seconds = [second for step in steps for second in step]
    latencies = [Latencies(second.latencies).percentiles((50.0, 99.0)) for second in seconds]
    return {
        "seconds": list(range(1, len(seconds) + 1)),
        "good": [second.good for second in seconds],
        "shed": [second.shed for second in seconds],
        "errors": [second.errors for second in seconds],
        "p50_us": [found.get("p50") for found in latencies],
        "p99_us": [found.get("p99") for found in latencies],
    }


def cores(steps: Sequence[tuple[int, CpuSeries]]) -> dict[str, Any]:
    """The CPU of the steps one after the other, each with how many seconds `answers` has of it."""
    ends: list[float] = []
    processes: dict[str, list[float]] = {}
    begin = 0
    for length, series in steps:
        step_ends, used = series.cores()
        _extend(processes, used, len(ends), len(step_ends))
        ends += [round(begin + end, 3) for end in step_ends]
        begin += length
    return {"seconds": ends, "processes": processes}


def _extend(processes: dict[str, list[float]], used: Mapping[str, list[float]], before: int, more: int) -> None:
    for name in used:
        processes.setdefault(name, [0.0] * before)
    for name, values in processes.items():
        values.extend(used.get(name, [0.0] * more))
