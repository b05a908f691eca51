"""The figures of a run: what is counted, divided and held against the goals, and the one JSON object of all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench import scrape, series
from bench.course import Measured, Result
from bench.machine import Machine
from bench.scenario import Goals, Scenario
from bench.tally import SHED

_GENERATOR_LIMIT = 0.9
"""A generator that uses more of a core measures itself as much as the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where figures come from: the command, and what it ran on."""

    what: str
    command: str
    commit: str
    machine: Machine


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
class StepRow:
    """A step of a ramp."""

    rate_per_second: float
    held: bool
    enrolments: int
    good_per_second: float
    p50_us: float | None
    p99_us: float | None
    shed: int
    errors: int
    server_cpu_us_per_enrolment: float | None
    generator_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MixFigures:
    """What came of one kind of request of a mix."""

    sent: int
    expected: int
    shed: int
    unexpected: int
    p99_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the server did in a closed loop before an open loop at a part of that."""

    rate_per_second: float
    enrolments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All figures; of a ramp those of its highest step that held, with all steps in `series`, `cpu_series`, `metrics`
    and `steps`. `errors` leaves out what was shed and includes what was not sent or failed verification; `requests`
    are all, in a mix those that do not enroll too. `generator_share` is how much of a core the busiest generator used.
    """

    what: str
    scenario: str
    command: str
    began: str
    commit: str
    machine: Machine
    enrolments: int
    requests: int
    seconds: float
    rate_per_second: float
    latency_us: dict[str, float]
    late_us: dict[str, float]
    errors: dict[str, int]
    errors_tolerated: bool
    examples: dict[str, str]
    shed: int
    events: dict[str, int]
    verified: int
    generator_cpu_us_per_enrolment: float | None
    generator_share: float
    generator_was_limit: bool
    server_cpu_us_per_enrolment: float | None
    processes: tuple[ProcessRow, ...]
    machine_idle_percent: float
    machine_steal_percent: float
    missed: tuple[str, ...]
    capacity: Capacity | None
    steps: tuple[StepRow, ...]
    mix: dict[str, MixFigures]
    series: dict[str, list[Any]]
    cpu_series: dict[str, Any]
    metrics: scrape.Histograms
    hdr: str

    def passed(self) -> bool:
        """Whether what came out is within the goals, and something came out well; what was shed is no error."""
        return self.errors_tolerated and not self.missed and self.requests > self.shed + sum(self.errors.values())


def _per(total_us: float, count: int) -> float | None:
    return total_us / count if count else None


def missed_goals(goals: Goals, rate_per_second: float, latency_us: dict[str, float]) -> tuple[str, ...]:
    """A sentence for each goal that was not reached."""
    missed = []
    if goals.rate_per_second is not None and rate_per_second < goals.rate_per_second:
        missed.append(f"{rate_per_second:,.0f} enrolments/s are below the goal of {goals.rate_per_second:,.0f}/s")
    if goals.p99_us is not None and not latency_us.get("p99", math.inf) <= goals.p99_us:
        reached = f"{latency_us['p99'] / 1e3:.2f} ms is above" if latency_us else "cannot be told, against"
        missed.append(f"p99 {reached} the goal of {goals.p99_us / 1e3:g} ms")
    return tuple(missed)


def _process_rows(measured: Measured) -> tuple[ProcessRow, ...]:
    return tuple(
        ProcessRow(
            label=use.label,
            pid=use.pid,
            state=use.state,
            cpu_us_per_enrolment=_per(use.cpu_ns / 1e3, measured.tally.good),
            cpu_seconds=use.cpu_ns / 1e9,
            rss_bytes=use.rss_bytes,
            peak_rss_bytes=use.peak_rss_bytes,
        )
        for use in measured.uses
    )


def _step_rows(result: Result) -> tuple[StepRow, ...]:
    rows = []
    for tried, step in zip(result.tried, result.steps, strict=False):
        latency_us = step.tally.latencies().percentiles()
        rows.append(
            StepRow(
                rate_per_second=tried.rate_per_second,
                held=tried.held,
                enrolments=step.tally.good,
                good_per_second=step.tally.good / step.seconds,
                p50_us=latency_us.get("p50"),
                p99_us=latency_us.get("p99"),
                shed=step.tally.failures[SHED],
                errors=sum(step.errors().values()),
                server_cpu_us_per_enrolment=step.server_cpu_us_per_enrolment(),
                generator_share=step.tally.busiest_share,
            )
        )
    return tuple(rows)


def _mix(measured: Measured) -> dict[str, MixFigures]:
    return {
        name: MixFigures(
            sent=row.sent,
            expected=row.expected,
            shed=row.shed,
            unexpected=row.unexpected,
            p99_us=row.latencies.percentiles().get("p99"),
        )
        for name, row in measured.tally.mix.items()
    }


def _capacity(measured: Measured | None) -> Capacity | None:
    if measured is None:
        return None
    return Capacity(rate_per_second=measured.tally.good / measured.seconds, enrolments=measured.tally.good)


def _all_missed(result: Result, goals: Goals, rate_per_second: float, latency_us: dict[str, float]) -> tuple[str, ...]:
    missed = missed_goals(goals, rate_per_second, latency_us)
    if result.tried and not any(tried.held for tried in result.tried):
        missed = (*missed, "no rate held the goals; the figures are of the first")
    return missed


def make_report(result: Result, scenario: Scenario, origin: Origin) -> Report:
    """Works out the figures."""
    measured = result.headline
    tally = measured.tally
    latencies = tally.latencies()
    latency_us = latencies.percentiles()
    errors = measured.errors()
    rate_per_second = tally.good / measured.seconds
    before, after = measured.machine_before, measured.machine_after
    ticks = max(1, after.total_ticks - before.total_ticks)
    busiest = max(step.tally.busiest_share for step in result.steps)
    return Report(
        what=origin.what,
        scenario=scenario.name,
        command=origin.command,
        began=result.began.isoformat(timespec="seconds"),
        commit=origin.commit,
        machine=origin.machine,
        enrolments=tally.good,
        requests=measured.requests(),
        seconds=measured.seconds,
        rate_per_second=rate_per_second,
        latency_us=latency_us,
        late_us=tally.late.percentiles((50.0, 99.0)),
        errors=errors,
        errors_tolerated=sum(errors.values()) <= scenario.goals.errors * measured.requests(),
        examples={failure: example for failure, example in tally.examples.items() if example},
        shed=tally.failures[SHED],
        events=dict(sorted(tally.events.items())),
        verified=len(tally.samples) - measured.mismatched,
        generator_cpu_us_per_enrolment=_per(tally.cpu_seconds * 1e6, tally.good),
        generator_share=busiest,
        generator_was_limit=busiest > _GENERATOR_LIMIT,
        server_cpu_us_per_enrolment=measured.server_cpu_us_per_enrolment(),
        processes=_process_rows(measured),
        machine_idle_percent=100 * (after.idle_ticks - before.idle_ticks) / ticks,
        machine_steal_percent=100 * (after.steal_ticks - before.steal_ticks) / ticks,
        missed=_all_missed(result, scenario.goals, rate_per_second, latency_us),
        capacity=_capacity(result.capacity),
        steps=_step_rows(result),
        mix=_mix(measured),
        **_over_time(result.steps),
        hdr=latencies.encode().decode(),
    )


def _over_time(steps: Sequence[Measured]) -> dict[str, Any]:
    """What a report has of all steps together."""
    return {
        "series": series.answers([step.tally.seconds for step in steps]),
        "cpu_series": series.cores([(len(step.tally.seconds), step.cpu) for step in steps]),
        "metrics": scrape.added(step.histograms for step in steps),
    }


def as_json(report: Report) -> str:
    """One line, so that the results of many runs can be appended to one file."""
    return json.dumps(asdict(report) | {"passed": report.passed()}, allow_nan=False)
