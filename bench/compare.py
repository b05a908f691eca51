"""Says whether rounds measured slower or faster than others, or whether what differs is noise.

Machines drift by a quarter from hour to hour, so each figure is set against the floor of its own round before it is
compared, and a difference counts only when it is larger than what rounds of the same side differ by.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bench.runs import FLOOR_KEPT, OTHERS_MAX, Round, Run

ROUNDS_FOR_SPREAD = 3
"""With fewer files a side does not know its own spread."""
ASSUMED_SPREAD = 0.25
"""Taken for such a side: what the same command has differed by within an hour on a shared machine."""
STEPS, FLOOR = "each step", "the floor"
"""The groups of figures that belong to no run."""
LEAST_SPREAD = 0.03
"""However well some rounds agree, less than this is not told apart."""


class Verdict(StrEnum):
    """What a comparison comes to. Memory is smaller or larger, all else faster or slower; what was measured beside
    other programs on the machine is not judged."""

    NOISE = "within the noise"
    DISTURBED = "disturbed"
    FASTER = "faster"
    SLOWER = "slower"
    SMALLER = "smaller"
    LARGER = "larger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison: median, least and greatest of `count` rounds."""

    count: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Side:
        return cls(count=len(values), median=statistics.median(values), low=min(values), high=max(values))

    @property
    def spread(self) -> float:
        """(greatest - least) / median, and what has to be assumed where there are too few rounds to know it."""
        known = (self.high - self.low) / self.median
        return max(known, LEAST_SPREAD if self.count >= ROUNDS_FOR_SPREAD else ASSUMED_SPREAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of one round. `floor_us` is the round's own yardstick; None where the figure has none. `others` is
    which part of the machine other programs took meanwhile; 0 where it is not known or makes no difference."""

    group: str
    name: str
    unit: str
    value: float
    floor_us: float | None
    others: float = 0.0
    more_is_faster: bool = False

    @property
    def corrected(self) -> float | None:
        """The figure as it would be with a floor of 1 µs."""
        if self.floor_us is None:
            return None
        return self.value * self.floor_us if self.more_is_faster else self.value / self.floor_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A figure of both sides. `corrected_ratio` and its range are new / old with each round's floor taken out; where
    there is no floor they are the plain ones. `noise` is the difference that would have been believed."""

    group: str
    name: str
    unit: str
    old: Side
    new: Side
    ratio: float
    corrected_ratio: float
    corrected_low: float
    corrected_high: float
    by_floor: bool
    noise: float
    more_is_faster: bool
    verdict: Verdict


def is_beyond_spread(old: Sequence[float], new: Sequence[float]) -> bool:
    """Whether the sides stand apart: no value of one lies among the other's, and the medians' ratio, whichever way,
    is further from 1 than the wider of the two spreads. All values are above 0."""
    before, after = Side.of(old), Side.of(new)
    apart = before.high < after.low or after.high < before.low
    ratio = max(before.median / after.median, after.median / before.median)
    return apart and ratio - 1 > max(before.spread, after.spread)


def judge(old: Sequence[float], new: Sequence[float], *, more_is_faster: bool = False, memory: bool = False) -> Verdict:
    """The verdict on `new` against `old`: each round's value, above 0, corrected by its floor if it has one."""
    if not is_beyond_spread(old, new):
        return Verdict.NOISE
    rose = statistics.median(new) > statistics.median(old)
    if memory:
        return Verdict.LARGER if rose else Verdict.SMALLER
    return Verdict.FASTER if rose == more_is_faster else Verdict.SLOWER


def _of_run(at: Round, run: Run) -> Iterator[Figure]:
    floor_us = at.floor_us(run) or at.floor.get(FLOOR_KEPT)

    def timed(name: str, unit: str, value: float) -> Figure:
        return Figure(
            group=run.name, name=name, unit=unit, value=value, floor_us=floor_us, others=at.others(run) or 0.0,
            more_is_faster=unit == "/s",
        )  # fmt: skip

    if run.steps:
        yield timed("rate held", "/s", run.rate_per_second)
        return
    if not run.open_loop:
        yield timed("rate", "/s", run.rate_per_second)
    if run.server_cpu_us_per_enrolment is not None:
        yield timed("CPU", "µs", run.server_cpu_us_per_enrolment)
    for name in ("p50", "p99"):
        if name in run.latency_us:
            yield timed(name, "ms", run.latency_us[name] / 1e3)
    if peak := sum(process.peak_rss_bytes for process in run.processes):
        yield Figure(group=run.name, name="peak memory", unit="MiB", value=peak / (1 << 20), floor_us=None)


def figures(at: Round) -> Iterator[Figure]:
    """Everything of a round that can be compared: runs, then steps, then the floor itself.

    The rate of an open loop is not among them: the load sets it. Of a ramp there is the rate that held alone, since its
    other figures are of another load each time.
    """
    for run in at.runs:
        yield from _of_run(at, run)
    floor_us = at.floor.get(FLOOR_KEPT)
    for name, value in at.core.items():
        yield Figure(group=STEPS, name=name, unit="µs", value=value, floor_us=floor_us)
    for name, value in at.floor.items():
        yield Figure(group=FLOOR, name=name, unit="µs", value=value, floor_us=None)


def _by_name(rounds: Sequence[Round]) -> dict[tuple[str, str], list[Figure]]:
    """Those above 0 only: of a 0 there is no ratio."""
    found: dict[tuple[str, str], list[Figure]] = {}
    for at in rounds:
        for figure in figures(at):
            if figure.value > 0:
                found.setdefault((figure.group, figure.name), []).append(figure)
    return found


def _compared(before: list[Figure], after: list[Figure]) -> Comparison:
    first = after[0]
    old, new = [one.value for one in before], [one.value for one in after]
    old_corrected = [one.corrected for one in before if one.corrected is not None]
    new_corrected = [one.corrected for one in after if one.corrected is not None]
    by_floor = len(old_corrected) == len(old) and len(new_corrected) == len(new)
    judged_old, judged_new = (old_corrected, new_corrected) if by_floor else (old, new)
    was, now = Side.of(judged_old), Side.of(judged_new)
    verdict = judge(judged_old, judged_new, more_is_faster=first.more_is_faster, memory=first.unit == "MiB")
    if any(statistics.median(one.others for one in side) > OTHERS_MAX for side in (before, after)):
        verdict = Verdict.DISTURBED
    return Comparison(
        group=first.group,
        name=first.name,
        unit=first.unit,
        old=Side.of(old),
        new=Side.of(new),
        ratio=statistics.median(new) / statistics.median(old),
        corrected_ratio=now.median / was.median,
        corrected_low=now.low / was.high,
        corrected_high=now.high / was.low,
        by_floor=by_floor,
        noise=max(was.spread, now.spread),
        more_is_faster=first.more_is_faster,
        verdict=verdict,
    )


def compare(old: Sequence[Round], new: Sequence[Round]) -> list[Comparison]:
    """Each figure that both sides have, in the order of the new ones."""
    before, after = _by_name(old), _by_name(new)
    return [_compared(before[key], figures) for key, figures in after.items() if key in before]
