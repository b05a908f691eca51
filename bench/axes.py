"""The parts of a drawing's axes that several drawings share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bench.drawing import COLOURS
from bench.wording import count

_LOG_FROM = 20.0
"""A scale that spans more than this factor is logarithmic."""


def unit(axes: Axes, text: str) -> None:
    """What the vertical axis counts, level above it instead of turned beside it."""
    axes.annotate(text, (0, 1), (-2, 6), xycoords="axes fraction", textcoords="offset points", color=COLOURS["muted"],
                  fontsize=8, ha="left", va="bottom")  # fmt: skip


def beside(axes: Axes, text: str, x: float, y: float, colour: str = "ink") -> None:
    """A figure to the right of what it belongs to."""
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=8.5, color=COLOURS[colour],
                  annotation_clip=False)  # fmt: skip


def round_steps(low: float, high: float, ones: Sequence[float] = (1, 2, 5)) -> list[float]:
    """For a logarithmic scale: these multiples of each power of ten, as far as they lie between the two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [one * 10.0**power for power in powers for one in ones if low <= one * 10.0**power <= high]


def short(text: str, most: int = 30) -> str:
    """A name that fits into a drawing."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def thousands(axes: Axes) -> None:
    """An axis upwards that counts."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


def latency_axis(axes: Axes, values: Sequence[float]) -> None:
    """In ms; logarithmic where the values span a lot."""
    known = [value for value in values if value > 0]
    if known and max(known) / min(known) > _LOG_FROM:
        axes.set_yscale("log")
        low, high = min(known) / 1.3, max(known) * 1.3
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(FixedLocator(round_steps(low, high, (1, 2, 5) if high / low < 200 else (1,))))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, max(known, default=1.0) * 1.12)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    unit(axes, "ms")
