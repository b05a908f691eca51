"""The figures of a run, as a table for people and as one JSON object."""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import asdict, dataclass

from bench.plan import SHED, Tally
from bench.procstat import MachineTime, ProcessUse

_MIB = 1 << 20
_PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What the run has to reach; None where nothing is asked."""

    rate_per_second: float | None
    p99_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRow:
    """A server process with its share of the cost of an enrolment."""

    label: str
    pid: int
    state: str
    cpu_us_per_enrolment: float | None
    cpu_seconds: float
    rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All figures. `errors` leaves out what was shed and includes what was not sent or failed verification."""

    what: str
    enrolments: int
    seconds: float
    rate_per_second: float
    latency_us: dict[str, float]
    late_us: dict[str, float]
    errors: dict[str, int]
    examples: dict[str, str]
    shed: int
    events: dict[str, int]
    verified: int
    generator_cpu_us_per_enrolment: float | None
    server_cpu_us_per_enrolment: float | None
    processes: tuple[ProcessRow, ...]
    machine_idle_percent: float
    machine_steal_percent: float
    missed: tuple[str, ...]

    def passed(self) -> bool:
        """Whether all enrolments came out well, apart from those shed, and all goals were reached."""
        return not self.errors and not self.missed and self.enrolments > 0


def percentiles(values: array[float], points: tuple[float, ...] = _PERCENTILES) -> dict[str, float]:
    """The nearest-rank percentiles and the maximum by name; empty without values."""
    if not values:
        return {}
    ordered = sorted(values)
    found = {f"p{point:g}": ordered[math.ceil(len(ordered) * point / 100) - 1] for point in points}
    return found | {"max": ordered[-1]}


def _per(total_us: float, count: int) -> float | None:
    return total_us / count if count else None


def _missed(goals: Goals, rate_per_second: float, latency_us: dict[str, float]) -> tuple[str, ...]:
    missed = []
    if goals.rate_per_second is not None and rate_per_second < goals.rate_per_second:
        missed.append(f"{rate_per_second:,.0f} enrolments/s are below the goal of {goals.rate_per_second:,.0f}/s")
    if goals.p99_us is not None and not latency_us.get("p99", math.inf) <= goals.p99_us:
        reached = f"{latency_us['p99'] / 1e3:.2f} ms is above" if latency_us else "cannot be told, against"
        missed.append(f"p99 {reached} the goal of {goals.p99_us / 1e3:g} ms")
    return tuple(missed)


def make_report(
    *,
    what: str,
    tally: Tally,
    seconds: float,
    uses: list[ProcessUse],
    machine_before: MachineTime,
    machine_after: MachineTime,
    mismatched: int,
    goals: Goals,
) -> Report:
    """Works out the figures; `mismatched` of the tally's samples did not hold what was asked for."""
    errors = {kind: count for kind, count in sorted(tally.kinds.items()) if kind != SHED}
    if tally.unsent:
        errors["not sent"] = tally.unsent
    if mismatched:
        errors["wrong certificate (of the samples)"] = mismatched
    rows = tuple(
        ProcessRow(
            label=use.label,
            pid=use.pid,
            state=use.state,
            cpu_us_per_enrolment=_per(use.cpu_ns / 1e3, tally.good),
            cpu_seconds=use.cpu_ns / 1e9,
            rss_bytes=use.rss_bytes,
            peak_rss_bytes=use.peak_rss_bytes,
        )
        for use in uses
    )
    machine_ticks = max(1, machine_after.total_ticks - machine_before.total_ticks)
    latency_us = percentiles(tally.latencies_us)
    rate_per_second = tally.good / seconds
    return Report(
        what=what,
        enrolments=tally.good,
        seconds=seconds,
        rate_per_second=rate_per_second,
        latency_us=latency_us,
        late_us=percentiles(tally.late_us, (50.0, 99.0)),
        errors=errors,
        examples={kind: example for kind, example in tally.examples.items() if example},
        shed=tally.kinds[SHED],
        events=dict(sorted(tally.events.items())),
        verified=len(tally.samples) - mismatched,
        generator_cpu_us_per_enrolment=_per(tally.cpu_seconds * 1e6, tally.good),
        server_cpu_us_per_enrolment=_per(sum(use.cpu_ns for use in uses) / 1e3, tally.good) if uses else None,
        processes=rows,
        machine_idle_percent=100 * (machine_after.idle_ticks - machine_before.idle_ticks) / machine_ticks,
        machine_steal_percent=100 * (machine_after.steal_ticks - machine_before.steal_ticks) / machine_ticks,
        missed=_missed(goals, rate_per_second, latency_us),
    )


def as_json(report: Report) -> str:
    """One line, so that the results of many runs can be appended to one file."""
    return json.dumps(asdict(report) | {"passed": report.passed()})


def _milliseconds(figures: dict[str, float]) -> str:
    return "   ".join(f"{name} {value / 1e3:.2f} ms" for name, value in figures.items()) or "-"


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _process_lines(report: Report) -> list[str]:
    if not report.processes:
        return []
    wide = max(24, *(len(row.label) + len(row.state) + 3 for row in report.processes))
    lines = ["", f"{'process':<{wide}} {'pid':>8} {'µs CPU/enrolment':>17} {'CPU s':>8} {'RSS MiB':>8} {'peak MiB':>9}"]
    for row in report.processes:
        label = f"{row.label} ({row.state})" if row.state else row.label
        lines.append(
            f"{label:<{wide}} {row.pid:>8} {_us(row.cpu_us_per_enrolment):>17} {row.cpu_seconds:>8.2f}"
            f" {row.rss_bytes / _MIB:>8.1f} {row.peak_rss_bytes / _MIB:>9.1f}"
        )
    total_seconds = sum(row.cpu_seconds for row in report.processes)
    total = _us(report.server_cpu_us_per_enrolment)
    return [*lines, f"{'server in all':<{wide}} {'':>8} {total:>17} {total_seconds:>8.2f}"]


def as_table(report: Report) -> str:
    """For people. What did not happen has no row, except errors: that there were none is worth saying."""
    lines = [
        report.what,
        f"enrolments   {report.enrolments:,} in {report.seconds:.2f} s = {report.rate_per_second:,.1f}/s",
        f"latency      {_milliseconds(report.latency_us)}",
    ]
    if report.late_us:
        lines.append(f"sent late    {_milliseconds(report.late_us)}  (the generator's own fault, within the latency)")
    if report.shed:
        lines.append(f"shed         {report.shed:,}")
    lines.append(f"errors       {sum(report.errors.values()):,}")
    for kind, count in report.errors.items():
        example = report.examples.get(kind, "")
        lines.append(f"  {kind:<20} {count:>8,}   {example.splitlines()[0] if example else ''}".rstrip())
    if report.events:
        lines.append("events       " + ", ".join(f"{count:,} {event}" for event, count in report.events.items()))
    lines.append(f"verified     {report.verified:,} certificates have the key of their CSR")
    lines.append(f"generator    {_us(report.generator_cpu_us_per_enrolment)} µs CPU/enrolment")
    lines.append(
        f"machine      {report.machine_idle_percent:.0f} % idle, {report.machine_steal_percent:.1f} % stolen by others"
    )
    lines.extend(_process_lines(report))
    lines.extend(f"MISSED       {missed}" for missed in report.missed)
    return "\n".join(lines)
