"""The drawing of a ramp: what became of each step on the way to the highest rate that holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.axes import latency_axis, thousands, unit
from bench.drawing import COLOURS, FULL_WIDTH, Key, Plot, canvas, plot
from bench.runs import Run
from bench.wording import count

_Step = dict[str, float]


def ramp(run: Run, slug: str) -> Plot | None:
    """What was reached, how long it took and what it cost at each rate that was offered."""
    steps = sorted((step for step in run.steps if "rate_per_second" in step), key=lambda step: step["rate_per_second"])
    if not steps:
        return None
    offered = [step["rate_per_second"] for step in steps]
    reached = [step.get("good_per_second", math.nan) for step in steps]
    with canvas((FULL_WIDTH, 2.9)) as figure:
        left, middle, right = (figure.add_axes((x, 0.15, 0.27, 0.72)) for x in (0.045, 0.375, 0.705))
        left.plot([0, max(offered)], [0, max(offered)], color=COLOURS["old"], linewidth=0.9, linestyle=(0, (4, 3)))
        _points(left, steps, reached, "good")
        left.set_ylim(bottom=0)
        thousands(left)
        unit(left, "good answers a second; dashed: as offered")
        latencies = []
        for name in ("p50", "p99"):
            values = [step.get(f"{name}_us", math.nan) / 1e3 for step in steps]
            _points(middle, steps, values, name)
            latencies += values
        latency_axis(middle, [value for value in latencies if not math.isnan(value)])
        cost = [step.get("server_cpu_us_per_enrolment", math.nan) for step in steps]
        _points(right, steps, cost, "issuer")
        right.set_ylim(0, max((value for value in cost if not math.isnan(value)), default=1.0) * 1.15)
        thousands(right)
        unit(right, "µs of CPU an enrolment")
        for axes in (left, middle, right):
            axes.set_xlim(0, max(offered) * 1.04)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
            axes.set_xlabel("offered a second", loc="right", labelpad=1)
        held = max((step["rate_per_second"] for step in steps if step["held"]), default=0.0)
        keys = [
            Key(colour="good", label="good answers; highest rate that held", value=f"{count(round(held))}/s"),
            Key(colour="p50", label="p50"),
            Key(colour="p99", label="p99"),
            Key(colour="issuer", label="CPU"),
            Key(colour="shed", label="shed in all", value=count(sum(step.get("shed", 0.0) for step in steps))),
            Key(colour="bad", label="errors", value=count(sum(step.get("errors", 0.0) for step in steps))),
        ]
        note = "a step is hollow where it missed the goals; of those that were repeated the line takes the best"
        return plot(
            figure,
            f"ramp-{slug}",
            "Up the ramp",
            note if any(not step["held"] for step in steps) else "",
            keys,
            size="full",
        )


def _points(axes: Axes, steps: Sequence[_Step], up: Sequence[float], colour: str) -> None:
    """A point for each step, hollow where it missed, and a line through the best at each rate."""
    across = [step["rate_per_second"] for step in steps]
    best: dict[float, int] = {}
    for at, step in enumerate(steps):
        rival = best.get(across[at])
        if rival is None or _merit(step) > _merit(steps[rival]):
            best[across[at]] = at
    axes.plot(list(best), [up[at] for at in best.values()], color=COLOURS[colour])
    axes.plot(across, up, "o", color=COLOURS[colour], markersize=4.5, markeredgewidth=0)
    missed = [at for at, step in enumerate(steps) if not step["held"]]
    hollow = [across[at] for at in missed], [up[at] for at in missed]
    axes.plot(*hollow, "o", markersize=2.6, color=COLOURS["card"], markeredgewidth=0)


def _merit(step: _Step) -> tuple[float, float]:
    return step["held"], -step.get("p99_us", math.inf)
