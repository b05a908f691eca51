"""Whether rounds are called slower, faster or alike: the decision alone, and on whole rounds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compare import ASSUMED_SPREAD, FLOOR, LEAST_SPREAD, Comparison, Side, Verdict, compare, judge
from bench.reading import read
from bench.runs import Round
from tests import rounds

FASTER, SLOWER, NOISE = Verdict.FASTER, Verdict.SLOWER, Verdict.NOISE


@pytest.mark.parametrize(
    ("old", "new", "verdict", "because"),
    [
        ([100, 101, 102], [120, 121, 122], SLOWER, "apart by far more than either differs by"),
        ([120, 121, 122], [100, 101, 102], FASTER, "the same the other way"),
        ([100, 100, 100], [100, 100, 100], NOISE, "nothing differs"),
        ([100, 100, 100], [102, 102, 102], NOISE, "less than is ever told apart"),
        ([100, 100, 100], [104, 104, 104], SLOWER, "a little more than that"),
        ([100, 101, 130], [120, 121, 122], NOISE, "one of the old ones lies beyond the new ones"),
        ([90, 100, 110], [112, 114, 116], NOISE, "apart, but by less than the old ones differ by"),
        ([90, 100, 110], [130, 132, 134], SLOWER, "apart by more than the old ones differ by"),
        ([100, 100, 120], [104, 130, 130], NOISE, "the medians lie further apart than that, but the values mix"),
        ([100], [124], NOISE, "one file each: what a machine drifts by in an hour"),
        ([100], [126], SLOWER, "one file each: more than that"),
        ([100], [80], NOISE, "the same downwards: 100 is 1.25 × 80"),
        ([100], [79], FASTER, "a little more"),
        ([100, 101, 102], [120], NOISE, "one side knows its spread, the other does not"),
        ([100, 101], [120, 121], NOISE, "two files do not tell a spread"),
    ],
)
def test_a_difference_counts_beyond_the_spread(
    old: list[float], new: list[float], verdict: Verdict, because: str
) -> None:
    """Apart, and by more than the wider spread; of few files the spread is assumed."""
    assert judge(old, new) is verdict, because


def test_the_words_fit_the_figure() -> None:
    """More is slower for a cost, faster for a rate, and larger for memory."""
    old, new = [100.0] * 3, [150.0] * 3
    assert judge(old, new) is SLOWER
    assert judge(old, new, more_is_faster=True) is FASTER
    assert judge(old, new, memory=True) is Verdict.LARGER
    assert judge(new, old, more_is_faster=True) is SLOWER
    assert judge(new, old, memory=True) is Verdict.SMALLER


VALUES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=6)


@given(VALUES, VALUES)
def test_what_is_slower_one_way_is_faster_the_other(old: list[float], new: list[float]) -> None:
    """The sides can be exchanged."""
    opposite = {SLOWER: FASTER, FASTER: SLOWER, NOISE: NOISE}
    assert judge(new, old) is opposite[judge(old, new)]


@given(VALUES, VALUES, st.sampled_from([2.0**-8, 0.5, 4.0, 2.0**10]))
def test_the_unit_does_not_matter(old: list[float], new: list[float], factor: float) -> None:
    """The same figures in another unit come to the same verdict."""
    assert judge([one * factor for one in old], [one * factor for one in new]) is judge(old, new)


@given(VALUES)
def test_a_side_tells_its_values(values: list[float]) -> None:
    """Median and extremes are those of the values, and the spread is never below what is assumed."""
    side = Side.of(values)
    assert (side.count, side.median, side.low, side.high) == (
        len(values), statistics.median(values), min(values), max(values),
    )  # fmt: skip
    assert side.spread >= (LEAST_SPREAD if len(values) >= 3 else ASSUMED_SPREAD)


def read_all(folder: Path, made: list[dict[str, Any]]) -> list[Round]:
    """The rounds as they are read from files."""
    found = []
    for number, one in enumerate(made):
        path = folder / f"{number}.json"
        path.write_text(json.dumps(one))
        found.append(read(path))
    return found


def on_machine(pace: float, *, slower: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """A closed loop, an open one and the steps on a machine that needs `pace` times as long for everything."""
    runs = [
        rounds.run("kept", seed=seed, rate=4000 / pace / slower, cost_us=290 * pace * slower, p50_us=14_000 * pace),
        rounds.run("steady", seed=seed, rate=1000, cost_us=400 * pace * slower, p50_us=3000 * pace, open_loop=True),
    ]
    return {
        "runs": runs,
        "floor": {name: value * pace for name, value in rounds.FLOOR.items()},
        "core": {name: value * pace * slower for name, value in rounds.CORE.items()},
    }


def verdicts(compared: list[Comparison]) -> dict[tuple[str, str], Verdict]:
    return {(one.group, one.name): one.verdict for one in compared}


def test_a_slower_machine_is_not_a_slower_server(folder: Path) -> None:
    """All figures of rounds that were measured on a machine half as fast are noise, but for the floor itself."""
    old = read_all(folder, [on_machine(1.0 + 0.01 * number) for number in range(3)])
    new = read_all(folder, [on_machine(2.0 + 0.01 * number) for number in range(3)])
    compared = compare(old, new)
    kept = next(one for one in compared if (one.group, one.name) == ("kept", "CPU"))
    assert kept.ratio == pytest.approx(2.0, rel=0.01)
    assert kept.corrected_ratio == pytest.approx(1.0, rel=0.01)
    assert {one.verdict for one in compared if one.group != FLOOR} == {NOISE}
    assert {one.verdict for one in compared if one.group == FLOOR} == {SLOWER}


def test_a_slower_server_is_seen_on_a_faster_machine(folder: Path) -> None:
    """A server that needs a third more stands out though the machine made good for it."""
    old = read_all(folder, [on_machine(1.33 + 0.01 * number) for number in range(3)])
    new = read_all(folder, [on_machine(1.0 + 0.01 * number, slower=1.33) for number in range(3)])
    found = verdicts(compare(old, new))
    assert found["kept", "rate"] is found["kept", "CPU"] is found["steady", "CPU"] is SLOWER
    assert found["each step", "issuer: authorise"] is SLOWER
    assert found["kept", "peak memory"] is NOISE


def test_what_others_disturbed_is_not_judged(folder: Path) -> None:
    """Where other programs took more than a tenth of the machine on either side, a run's times have no verdict; its
    memory and the steps do."""

    def beside(others: float, slower: float) -> list[dict[str, Any]]:
        runs = [rounds.run("kept", seed=seed, cost_us=200 * slower, others=others) for seed in range(3)]
        return [rounds.round_of([run]) | {"floor": rounds.FLOOR} for run in runs]

    quiet, loud = read_all(folder, beside(0.05, 1.0)), read_all(folder, beside(0.2, 2.0))
    for old, new in ((quiet, loud), (loud, quiet)):
        found = verdicts(compare(old, new))
        assert found["kept", "CPU"] is found["kept", "rate"] is found["kept", "p99"] is Verdict.DISTURBED
        assert found["kept", "peak memory"] is NOISE
        assert found["each step", "issuer: authorise"] is NOISE
    (run,) = loud[0].runs
    assert loud[0].others(run) == pytest.approx(0.2)
    assert loud[0].disturbed(run)
    assert not quiet[0].disturbed(quiet[0].runs[0])


def test_what_the_load_sets_is_not_compared(folder: Path) -> None:
    """The rate of an open loop is no figure of the server's; of a ramp only the rate that held is one."""
    both = read_all(folder, [rounds.round_of([rounds.run("steady", open_loop=True), rounds.ramp()])])
    compared = compare(both, both)
    assert {one.name for one in compared if one.group == "steady"} == {"CPU", "p50", "p99", "peak memory"}
    assert {one.name for one in compared if one.group == "ramp"} == {"rate held"}


def test_only_what_both_sides_have_is_compared(folder: Path) -> None:
    """A run, a step or a floor of one side alone has no row, and neither has a figure that is 0."""
    old = read_all(folder, [rounds.round_of([rounds.run("kept"), rounds.run("gone")])])
    without = rounds.round_of([rounds.run("kept"), rounds.run("new")]) | {"core": {}, "floor": {"a": 0.0}}
    compared = compare(old, read_all(folder, [without]))
    assert {one.group for one in compared} == {"kept"}
    assert not any(one.by_floor for one in compared)
    assert compare([], old) == []
