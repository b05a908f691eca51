"""What the tables of a report hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from bench import wording
from bench.compare import Comparison, Side
from bench.runs import Round, Run
from bench.table import Cell, Table

_NOTHING = Cell(text="–")
_HEADS = (
    "#", "run", "enrolments/s", "p50, ms", "p99, ms", "p99.9, ms", "shed", "errors", "CPU, µs", "× floor", "others, %",
    "outcome",
)  # fmt: skip
_KEYS = (
    "number", "run", "rate_per_second", "p50_ms", "p99_ms", "p99.9_ms", "shed", "errors", "cpu_us", "times_floor",
    "others", "outcome",
)  # fmt: skip


def names(rounds: Sequence[Round]) -> list[str]:
    """The runs' names, in the order in which they first appear."""
    return list(dict.fromkeys(run.name for at in rounds for run in at.runs))


def of_name(rounds: Sequence[Round], name: str) -> list[tuple[Round, Run]]:
    """The runs of that name, each with its round."""
    return [(at, run) for at in rounds for run in at.runs if run.name == name]


def _cell(values: Sequence[float | None], show: Callable[[float], str]) -> Cell:
    """The median, with the extremes where there are several values that differ as shown."""
    known = [value for value in values if value is not None]
    if not known:
        return _NOTHING
    middle, low, high = statistics.median(known), show(min(known)), show(max(known))
    return Cell(text=show(middle), value=middle, low=low if low != high else "", high=high if low != high else "")


def _outcome(runs: Sequence[Run]) -> Cell:
    failed = sum(not run.passed for run in runs)
    if not failed:
        return Cell(text="passed", mood="well")
    return Cell(text="failed" if len(runs) == 1 else f"{failed} of {len(runs)} failed", mood="ill")


def headline(rounds: Sequence[Round]) -> Table:
    """A row for each run by name; medians over the rounds where there are several."""
    rows = []
    for index, name in enumerate(names(rounds), 1):
        found = of_name(rounds, name)
        runs = [run for _, run in found]
        floors = [(run.server_cpu_us_per_enrolment, at.floor_us(run)) for at, run in found]
        times = [cost / floor_us if cost and floor_us else None for cost, floor_us in floors]
        rows.append(
            (
                Cell(text=str(index), value=index),
                Cell(text=name),
                _cell([run.rate_per_second for run in runs], wording.count),
                *(
                    _cell(
                        [run.latency_us[point] / 1e3 if point in run.latency_us else None for run in runs],
                        wording.figure,
                    )
                    for point in ("p50", "p99", "p99.9")
                ),
                _cell([run.shed for run in runs], wording.count),
                _cell([sum(run.errors.values()) for run in runs], wording.count),
                _cell([run.server_cpu_us_per_enrolment for run in runs], wording.figure),
                _cell(times, lambda value: f"{value:.2f}"),
                _cell([at.others(run) for at, run in found], lambda share: f"{100 * share:.0f}"),
                _outcome(runs),
            )
        )
    return Table(keys=_KEYS, heads=_HEADS, words=2, rows=tuple(rows))


def _side(side: Side) -> Cell:
    low, high = wording.figure(side.low), wording.figure(side.high)
    same = side.count == 1 or low == high
    return Cell(text=wording.figure(side.median), value=side.median, low="" if same else low, high="" if same else high)


_MOODS = {"faster": "well", "smaller": "well", "slower": "ill", "larger": "ill"}


def comparison(compared: Sequence[Comparison]) -> Table:
    """A row for each figure that both sides have."""
    rows = tuple(
        (
            Cell(text=one.group),
            Cell(text=f"{one.name}, {one.unit}"),
            _side(one.old),
            _side(one.new),
            Cell(text=f"{one.ratio:.3f}", value=one.ratio),
            Cell(text=f"{one.corrected_ratio:.3f}", value=one.corrected_ratio) if one.by_floor else _NOTHING,
            Cell(text=f"± {100 * one.noise:.0f} %", value=one.noise),
            Cell(text=one.verdict.value, mood=_MOODS.get(one.verdict.value, "dull")),
        )
        for one in compared
    )
    keys = ("group", "figure", "old", "new", "ratio", "corrected_ratio", "noise", "verdict")
    heads = ("run", "figure", "before", "now", "ratio", "ratio by floor", "noise", "verdict")
    return Table(keys=keys, heads=heads, words=2, rows=rows)


def mix(run: Run) -> Table:
    """What became of each kind of request of a mixed run."""
    columns = {"sent": wording.count, "expected": wording.count, "shed": wording.count, "unexpected": wording.count}
    present = [name for name in columns if any(name in row for row in run.mix.values())]
    rows = tuple(
        (
            Cell(text=kind),
            *(_cell([row.get(name)], columns[name]) for name in present),
            _cell([row["p99_us"] / 1e3 if "p99_us" in row else None], wording.figure),
        )
        for kind, row in run.mix.items()
    )
    return Table(keys=("kind", *present, "p99_ms"), heads=("request", *present, "p99, ms"), words=1, rows=rows)


def facts(heads: tuple[str, str], named: Mapping[str, str]) -> Table:
    """Words by name."""
    rows = tuple((Cell(text=name), Cell(text=value)) for name, value in named.items())
    return Table(keys=heads, heads=heads, words=2, rows=rows)


def amounts(heads: tuple[str, str], named: Mapping[str, float]) -> Table:
    """Figures by name."""
    rows = tuple((Cell(text=name), Cell(text=wording.figure(value), value=value)) for name, value in named.items())
    return Table(keys=heads, heads=heads, words=1, rows=rows)
