"""The course of a run: one step, a step at a part of the capacity, or the steps of a ramp; each measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from bench import devices, scrape
from bench.generators import Progress, run_generators
from bench.kinds import Options
from bench.plan import Step
from bench.preparation import Preparation
from bench.procstat import MachineTime, ProcessUse, Watch, read_machine, read_process
from bench.progress import ProgressLine
from bench.ramp import Ramp, Tried, highest_held, next_rate
from bench.series import CpuSeries
from bench.tally import SHED, Tally

_GENERATORS = "generators"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A step and all that was seen of it; `mismatched` of the tally's samples were not what was asked for."""

    step: Step
    tally: Tally
    seconds: float
    uses: list[ProcessUse]
    machine_before: MachineTime
    machine_after: MachineTime
    cpu: CpuSeries
    histograms: scrape.Histograms
    mismatched: int

    def requests(self) -> int:
        """All that were due, those that were not sent too."""
        return self.tally.settled + self.tally.unsent

    def errors(self) -> dict[str, int]:
        """What failed, without what was shed, and with what was not sent or is no answer to its CSR."""
        errors = {failure: count for failure, count in sorted(self.tally.failures.items()) if failure != SHED}
        if self.tally.unsent:
            errors["not sent"] = self.tally.unsent
        if self.mismatched:
            errors["wrong certificate (of the samples)"] = self.mismatched
        return errors

    def server_cpu_us_per_enrolment(self) -> float | None:
        """None where no server process was seen, or nothing enrolled."""
        used_us = sum(use.cpu_ns for use in self.uses) / 1e3
        return used_us / self.tally.good if self.uses and self.tally.good else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`headline` is the step that the figures are of: of a ramp the highest that held. `tried` is empty but for a ramp,
    which has one for each of the steps. `capacity` was measured first, and is no step."""

    began: datetime
    headline: Measured
    steps: Sequence[Measured]
    tried: Sequence[Tried]
    capacity: Measured | None


class Course:
    """Runs a scenario against a server whose supervisor is `pid`, or is named in the instance."""

    def __init__(self, options: Options, preparation: Preparation, pid: int | None) -> None:
        self._options = options
        self._preparation = preparation
        self._pid = pid
        self._metrics_url = scrape.metrics_url(options.instance)

    def watch(self) -> Watch:
        """A new look at the server's processes."""
        return Watch(pid=self._pid, pid_file=self._options.instance / "run" / "estd.pid")

    def run(self) -> Result:
        """The whole scenario. Raises GeneratorError."""
        scenario = self._options.scenario
        capacity: Measured | None = None
        began = datetime.now(UTC)
        if scenario.ramp is not None and scenario.rate_per_second is not None:
            return self._climb(scenario.ramp, scenario.rate_per_second, began)
        step = scenario.step()
        if scenario.share is not None:
            capacity = self._measure(scenario.capacity_step(), "measuring the capacity")
            if not capacity.tally.good:
                raise click.ClickException(f"nothing was enrolled to tell the capacity: {capacity.tally.examples}")
            step = scenario.at_rate(scenario.share * capacity.tally.good / capacity.seconds)
        measured = self._measure(step, scenario.name or "enrolling", ends_when_told=True)
        return Result(began=began, headline=measured, steps=(measured,), tried=(), capacity=capacity)

    def _climb(self, ramp: Ramp, first_per_second: float, began: datetime) -> Result:
        scenario = self._options.scenario
        steps: list[Measured] = []
        tried: list[Tried] = []
        while (rate_per_second := next_rate(ramp, first_per_second, tried)) is not None:
            step = self._measure(scenario.at_rate(rate_per_second), f"{rate_per_second:,.0f}/s")
            held = scenario.goals.hold(
                p99_us=step.tally.latencies().percentiles().get("p99"),
                failed=sum(step.errors().values()) + step.tally.failures[SHED],
                requests=step.requests(),
            )
            steps.append(step)
            tried.append(Tried(rate_per_second=rate_per_second, held=held))
        best = highest_held(tried)
        headline = next(
            (step for step, one in zip(steps, tried, strict=True) if one.held and one.rate_per_second == best), steps[0]
        )
        return Result(began=began, headline=headline, steps=steps, tried=tried, capacity=None)

    def _measure(self, step: Step, what: str, *, ends_when_told: bool = False) -> Measured:
        plans = self._preparation.plans(step)
        watch = self.watch()
        cpu = CpuSeries()
        machine: list[MachineTime] = []
        histograms: list[scrape.Histograms] = []
        pids: list[int] = []
        began = 0.0

        def look() -> None:
            watch.look()
            readings = [read_process(pid) for pid in pids]
            generators_ns = sum(reading.cpu_ns for reading in readings if reading is not None)
            cpu.look(time.perf_counter() - began, watch.cpu_ns() | {_GENERATORS: generators_ns})

        def begin(generator_pids: Sequence[int]) -> None:
            nonlocal began
            histograms.append(scrape.read_histograms(self._metrics_url))
            pids.extend(generator_pids)
            if not watch.begin():
                click.echo("no process of the server is found: give --pid to see what they use", err=True)
            machine.append(read_machine())
            began = time.perf_counter()
            look()

        def tell(progress: Progress) -> None:
            note = f"{progress.good} good, {progress.shed} shed, {progress.errors} errors"
            line.update(progress.settled if step.seconds is None else time.perf_counter() - began, note)

        with ProgressLine(what, step.seconds or step.count) as line:
            outcome = run_generators(plans, begin=begin, tell=tell, look=look, ends_when_told=ends_when_told)
        machine.append(read_machine())
        histograms.append(scrape.read_histograms(self._metrics_url))
        return Measured(
            step=step,
            tally=outcome.tally,
            seconds=outcome.seconds,
            uses=watch.uses(),
            machine_before=machine[0],
            machine_after=machine[1],
            cpu=cpu,
            histograms=scrape.difference(histograms[0], histograms[1]),
            mismatched=sum(not devices.is_answer_to(csr, answer) for csr, answer in outcome.tally.samples),
        )
