"""The drawings of one run as it looks from outside: over time and by percentile.

Each function gives None where the run has not what it draws. `slug` makes the drawing's id unique in its page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from bench.axes import latency_axis, thousands, unit
from bench.drawing import COLOURS, HALF, Key, Plot, canvas, plot
from bench.runs import Run
from bench.wording import count, milliseconds

_BOX = (0.085, 0.17, 0.88, 0.69)


def process_colour(label: str) -> str:
    """The colour of a process, by the first word of its name."""
    word = label.partition(" ")[0]
    return word if word in ("edge", "issuer", "ledger", "supervisor", "generators") else "other"


def _time_axis(axes: Axes, seconds: Sequence[float]) -> None:
    axes.set_xlim(0, max(seconds))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set_xlabel("seconds since the start", loc="right", labelpad=1)


def _steps(seconds: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """As corners of a staircase: a value belongs to the interval that ends at its second."""
    starts = [0.0, *seconds[:-1]]
    return (
        [edge for start, end in zip(starts, seconds, strict=True) for edge in (start, end)],
        [value for value in values for _ in range(2)],
    )


def _stacked(axes: Axes, seconds: Sequence[float], rows: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Areas upon each other, the first one lowest; each row is a colour and its values."""
    below = [0.0] * (2 * len(seconds))
    for colour, values in rows:
        edges, heights = _steps(seconds, values)
        above = [low + (0.0 if math.isnan(high) else high) for low, high in zip(below, heights, strict=True)]
        axes.fill_between(edges, below, above, color=COLOURS[colour], linewidth=0)
        below = above


def throughput(run: Run, slug: str) -> Plot | None:
    """Answers in each second: good, shed and errors upon each other."""
    rows = [(kind, run.series.values[kind]) for kind in ("good", "shed", "errors") if kind in run.series.values]
    if not rows or not run.series.seconds:
        return None
    colours = {"good": "good", "shed": "shed", "errors": "bad"}
    with canvas(HALF) as figure:
        axes = figure.add_axes(_BOX)
        _stacked(axes, run.series.seconds, [(colours[kind], values) for kind, values in rows])
        _time_axis(axes, run.series.seconds)
        thousands(axes)
        axes.set_ylim(bottom=0)
        unit(axes, "answers in each second")
        keys = [Key(colour=colours[kind], label=kind, value=count(sum(values))) for kind, values in rows]
        return plot(figure, f"throughput-{slug}", "Throughput over time", "", keys)


def latency_over_time(run: Run, slug: str) -> Plot | None:
    """p50 and p99 of the answers of each second."""
    rows = [
        (name, [value / 1e3 for value in run.series.values[f"{name}_us"]])
        for name in ("p50", "p99")
        if any(not math.isnan(value) for value in run.series.values.get(f"{name}_us", ()))
    ]
    if not rows:
        return None
    with canvas(HALF) as figure:
        axes = figure.add_axes(_BOX)
        for name, values in rows:
            edges, heights = _steps(run.series.seconds, values)
            axes.plot(edges, heights, color=COLOURS[name])
        _time_axis(axes, run.series.seconds)
        latency_axis(axes, [value for _, values in rows for value in values if not math.isnan(value)])
        keys = [
            Key(colour=name, label=name, value=milliseconds(run.latency_us[name]) if name in run.latency_us else "")
            for name, _ in rows
        ]
        return plot(figure, f"latency-{slug}", "Latency over time", "", keys)


def percentiles(runs: Sequence[Run], old: Sequence[Run], slug: str) -> Plot | None:
    """Latency against percentile on a scale of log(1 - p), for the last of `runs` strongly, the others faintly."""
    drawn = [run for run in runs if run.curve]
    if not drawn:
        return None
    before = [run for run in old if run.curve]
    with canvas(HALF) as figure:
        axes = figure.add_axes(_BOX)
        axes.grid(axis="x")
        values, nines = [], 2.0
        for run in (*before, *drawn):
            across = [-math.log10(1 - percent / 100) for percent, _ in run.curve]
            up = [us / 1e3 for _, us in run.curve]
            last = run is drawn[-1]
            axes.plot(
                across, up, color=COLOURS["old" if run in before else "p50"], linewidth=1.8 if last else 0.9,
                alpha=1.0 if last else 0.75, drawstyle="steps-pre",
            )  # fmt: skip
            values += up
            nines = max(nines, across[-1])
        at = [0.0, *(-math.log10(1 - percent / 100) for percent in (50, 90))]
        at += [float(number) for number in range(2, math.ceil(nines) + 1)]
        axes.xaxis.set_major_locator(FixedLocator(at))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{100 * (1 - 10**-place):.7g} %"))
        axes.set_xlim(0, nines * 1.02)
        axes.set_xlabel("of the answers came within", loc="right", labelpad=1)
        latency_axis(axes, values)
        shown = drawn[-1].latency_us
        for point in (50, 90, 99, 99.9):
            if (value := shown.get(f"p{point:g}")) is not None:
                across_at = -math.log10(1 - point / 100)
                axes.plot(across_at, value / 1e3, "o", markersize=4, color=COLOURS["ink"], clip_on=False)
        keys = [Key(colour="", label=name, value=milliseconds(value)) for name, value in shown.items()]
        if before:
            keys.append(Key(colour="old", label="before"))
        return plot(figure, f"percentiles-{slug}", "Latency by percentile", "", keys)


def cores(run: Run, slug: str, machine_cores: float | None) -> Plot | None:
    """How many cores each process kept busy over time, the load generator on top."""
    named = sorted(run.cores.values.items(), key=lambda item: item[0] == "generators")
    if not named or not run.cores.seconds:
        return None
    with canvas(HALF) as figure:
        axes = figure.add_axes(_BOX)
        _stacked(axes, run.cores.seconds, [(process_colour(label), values) for label, values in named])
        _time_axis(axes, run.cores.seconds)
        axes.set_ylim(bottom=0)
        if machine_cores:
            axes.axhline(machine_cores, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_ylim(0, machine_cores * 1.06)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        unit(axes, "cores in use" + (f"; dashed: all {machine_cores:g}" if machine_cores else ""))
        keys = [Key(colour=process_colour(label), label=label, value=f"{_mean(values):.2f}") for label, values in named]
        return plot(figure, f"cores-{slug}", "CPU by process over time", "", keys)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else 0.0
