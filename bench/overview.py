"""The drawings of whole rounds: cost beside its floor, rate under the machine's roof, each step, and what changed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from bench.axes import beside, round_steps, short, unit
from bench.compare import FLOOR, Comparison, Verdict
from bench.drawing import COLOURS, FULL_WIDTH, Key, Plot, canvas, plot
from bench.floor import KEPT
from bench.plots import process_colour
from bench.runs import HANDSHAKE, Round, Run
from bench.wording import count, figure, percent_change

_ROW_INCHES = 0.5
_DISC_POINTS = 15.0
_RATIO_MAX = 8.0
"""What changed by more stands at the edge of the drawing; its figure is beside it."""
_NEAR_RATIOS = (0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0)
_RATIOS = (0.125, 0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0, 8.0)
_FLOOR_COLOURS = dict(zip((*KEPT, HANDSHAKE), ("floor-1", "floor-2", "floor-3", "floor-4"), strict=True))
_VERDICT_COLOURS = {
    Verdict.NOISE: "muted", Verdict.DISTURBED: "shed", Verdict.FASTER: "issuer", Verdict.SMALLER: "issuer",
    Verdict.SLOWER: "bad", Verdict.LARGER: "bad",
}  # fmt: skip


def _costed(at: Round) -> list[tuple[int, Run, float]]:
    """The runs whose cost was measured, with their numbers on the page, from 1."""
    return [
        (number, run, run.server_cpu_us_per_enrolment)
        for number, run in enumerate(at.runs, 1)
        if run.server_cpu_us_per_enrolment
    ]


def cost_and_floor(at: Round) -> Plot | None:
    """For each run its CPU an enrolment by process, and below it what cryptography alone would cost."""
    rows = _costed(at)
    if not rows:
        return None
    height = _ROW_INCHES * len(rows) + 0.45
    with canvas((FULL_WIDTH, height)) as drawing:
        axes = drawing.add_axes((0.2, 0.3 / height, 0.66, 1 - 0.4 / height))
        seen: dict[str, str] = {}
        for row, (_, run, cost) in enumerate(rows):
            left = 0.0
            for process in run.processes:
                colour = process_colour(process.label)
                axes.barh(row - 0.12, process.cpu_us_per_enrolment, left=left, height=0.46, color=COLOURS[colour])
                left += process.cpu_us_per_enrolment
                if process.cpu_us_per_enrolment > 0.005 * cost:
                    seen.setdefault(process.label, colour)
            left = 0.0
            for part, us in at.floor_of(run).items():
                axes.barh(row + 0.25, us, left=left, height=0.22, color=COLOURS[_FLOOR_COLOURS[part]])
                left += us
                if us > 0.01 * cost:
                    seen.setdefault(part, _FLOOR_COLOURS[part])
            floor_us = at.floor_us(run)
            told = f"{cost / floor_us:.2f} × floor" if floor_us else "with all its requests" if run.mix else ""
            beside(axes, f"{figure(cost)} µs" + (f" · {told}" if told else ""), cost, row - 0.12)
        axes.set_yticks(range(len(rows)), [f"{number}. {short(run.name, 29)}" for number, run, _ in rows], fontsize=9)
        for label in axes.get_yticklabels():
            label.set_color(COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, max(cost for _, _, cost in rows) * 1.02)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axes.set_xlabel("µs of CPU an enrolment", loc="right", labelpad=1)
        keys = [Key(colour=colour, label=label) for label, colour in seen.items()]
        note = "thick: what the server's processes used; thin: the floor, what its cryptography alone costs here"
        return plot(drawing, "cost-and-floor", "Cost of an enrolment beside its floor", note, keys, size="full")


def roof(at: Round) -> Plot | None:
    """Rate against CPU cost: how far each run is below what all cores could do, and from the floor at its left."""
    rows = [row for row in _costed(at) if row[1].rate_per_second > 0]
    cores = at.cores
    if not rows or cores is None:
        return None
    costs = [cost for _, _, cost in rows]
    floors = [(name, us) for name, us in at.floor.items() if name.startswith("floor, ")]
    low = min(costs + [us for _, us in floors]) / 1.4
    high = max(costs) * 1.6
    with canvas((FULL_WIDTH, 3.1)) as drawing:
        axes = drawing.add_axes((0.055, 0.13, 0.93, 0.76))
        axes.set_xscale("log")
        axes.set_yscale("log")
        bottom = min(run.rate_per_second for _, run, _ in rows) / 2.2
        top = cores * 1e6 / low * 1.2
        axes.fill_between([low, high], [cores * 1e6 / low, cores * 1e6 / high], top, color=COLOURS["band"], linewidth=0)
        axes.plot([low, high], [cores * 1e6 / low, cores * 1e6 / high], color=COLOURS["muted"], linewidth=1.2)
        middle = math.sqrt(low * high)
        axes.annotate(
            f"the roof: all {cores:g} cores serve", (middle, cores * 1e6 / middle), (8, 6), textcoords="offset points",
            color=COLOURS["muted"], fontsize=8.5, va="bottom",
        )  # fmt: skip
        for name, us in floors:
            axes.axvline(us, color=COLOURS["floor-3"], linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{name} {figure(us)} µs", (us, bottom), (4, 5), textcoords="offset points", color=COLOURS["muted"],
                fontsize=8,
            )  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(bottom, top)
        for axis, least, most in ((axes.xaxis, low, high), (axes.yaxis, bottom, top)):
            axis.set_major_locator(FixedLocator(round_steps(least, most)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("µs of CPU an enrolment", loc="right", labelpad=1)
        _numbered(axes, rows)
        unit(axes, "enrolments a second")
        keys = [
            Key(
                colour="good",
                label=f"{number}. {short(run.name)}",
                value=f"{cost * run.rate_per_second / 1e6:.2f} cores",
            )
            for number, run, cost in rows
        ]
        note = "the server's cores in use are its rate times its cost; the load generator needs the rest of the machine"
        return plot(drawing, "roof", "Roofline", note, keys, size="full")


def _numbered(axes: Axes, rows: Sequence[tuple[int, Run, float]]) -> None:
    """A point for each run with its number in a disc, which moves down where another disc is in its place."""
    taken: list[tuple[float, float]] = []
    for number, run, cost in rows:
        at = cost, run.rate_per_second
        across, up = (pixel * 72 / axes.figure.dpi for pixel in axes.transData.transform(at))
        drop = 0.0
        while any(math.hypot(across - x, up - drop - y) < _DISC_POINTS for x, y in taken):
            drop += _DISC_POINTS / 4
        taken.append((across, up - drop))
        axes.plot(*at, "o", markersize=4, color=COLOURS["good"], markeredgewidth=0)
        axes.annotate(
            str(number), at, (0, -drop), textcoords="offset points", ha="center", va="center_baseline", fontsize=8,
            color="white", bbox={"boxstyle": "circle,pad=0.3", "facecolor": COLOURS["good"], "edgecolor": "none"},
            arrowprops={"arrowstyle": "-", "color": COLOURS["good"], "linewidth": 0.9},
        )  # fmt: skip


def steps(at: Round) -> Plot | None:
    """Each pure step between the socket and the token, in the order of the path."""
    if not at.core:
        return None
    height = 0.24 * len(at.core) + 0.45
    with canvas((FULL_WIDTH, height)) as drawing:
        axes = drawing.add_axes((0.26, 0.3 / height, 0.66, 1 - 0.4 / height))
        totals: dict[str, float] = {}
        for row, (name, us) in enumerate(at.core.items()):
            where, _, _ = name.partition(":")
            axes.barh(row, us, height=0.7, color=COLOURS[_step_colour(where)])
            beside(axes, figure(us), us, row)
            totals[where] = totals.get(where, 0.0) + us
        axes.set_yticks(range(len(at.core)), [short(name, 46) for name in at.core])
        for label in axes.get_yticklabels():
            label.set_color(COLOURS["ink"])
        axes.set_ylim(len(at.core) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
        axes.set_xlabel("µs of CPU", loc="right", labelpad=1)
        keys = [
            Key(colour=_step_colour(where), label=short(where, 12), value=f"{figure(total)} µs")
            for where, total in totals.items()
        ]
        return plot(drawing, "steps", "Each step alone", "warm, one request at a time", keys, size="full")


def _step_colour(where: str) -> str:
    return {"edge": "edge", "issuer": "issuer", "token": "ledger"}.get(where, "supervisor")


def changes(compared: Sequence[Comparison]) -> Plot | None:
    """Each figure's change with its range, on the band that is taken for noise; to the right is worse."""
    rows = [one for one in compared if one.group != FLOOR]
    if not rows:
        return None
    height = 0.21 * len(rows) + 0.5
    with canvas((FULL_WIDTH, height)) as drawing:
        axes = drawing.add_axes((0.28, 0.3 / height, 0.62, 1 - 0.4 / height))
        axes.set_xscale("log")
        ends = []
        for row, one in enumerate(rows):
            colour = COLOURS[_VERDICT_COLOURS[one.verdict]]
            low, middle, high = one.corrected_low, one.corrected_ratio, one.corrected_high
            if one.more_is_faster:
                low, middle, high = 1 / high, 1 / middle, 1 / low
            low, middle, high = (min(max(ratio, 1 / _RATIO_MAX), _RATIO_MAX) for ratio in (low, middle, high))
            band = min(1 + one.noise, _RATIO_MAX)
            axes.barh(row, band - 1 / band, left=1 / band, height=0.8, color=COLOURS["band"])
            axes.plot([low, high], [row, row], color=colour, linewidth=1.4, solid_capstyle="round")
            axes.plot(middle, row, "o", color=colour, markersize=5, markeredgewidth=0)
            axes.text(
                1.01, row, percent_change(one.corrected_ratio), transform=axes.get_yaxis_transform(), va="center",
                fontsize=8.5, color=colour,
            )  # fmt: skip
            ends += [low, high, band, 1 / band]
        axes.axvline(1, color=COLOURS["muted"], linewidth=0.9)
        axes.set_yticks(range(len(rows)), [f"{short(one.group, 24)}: {short(one.name, 38)}" for one in rows])
        for label in axes.get_yticklabels():
            label.set_color(COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        most = max(*ends, 1 / min(ends)) * 1.03
        axes.set_xlim(1 / most, most)
        ratios = [one for one in (_RATIOS if most > 2 else _NEAR_RATIOS) if 1 / most <= one <= most]
        axes.xaxis.set_major_locator(FixedLocator(ratios))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g} ×"))
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("less, faster ←  |  → more, slower", loc="right", labelpad=1)
        verdicts = [verdict for verdict in Verdict if any(one.verdict is verdict for one in rows)]
        keys = [
            Key(
                colour=_VERDICT_COLOURS[verdict], label=verdict.value,
                value=str(sum(one.verdict is verdict for one in rows)),
            )
            for verdict in verdicts
        ]  # fmt: skip
        keys.append(Key(colour="band", label="taken for noise"))
        note = "ratio of the medians, each round set against its own floor, with its extremes; rates are turned round"
        return plot(drawing, "changes", "What changed", note, keys, size="full")
