"""The drawings of one run as the server counted it: batch sizes, times of the token and of commits, stages of a batch.

Each gives None where the run has not what it draws, as when the admin port was out of reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from bench.axes import beside, short, unit
from bench.drawing import COLOURS, QUARTER, Key, Plot, canvas, plot
from bench.runs import Histogram, Run
from bench.wording import count, seconds_of

_SMALL_BOX = (0.12, 0.15, 0.84, 0.67)
_STAGE_COLOURS = {"sign": "issuer", "commit": "ledger"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A histogram without labels, and how it is drawn."""

    slug: str
    family: str
    title: str
    counted: str
    colour: str


FAMILIES = (
    Family(slug="batch", family="estd_batch_size", title="Batch size", counted="batches", colour="edge"),
    Family(slug="token", family="estd_sign_seconds", title="Token time", counted="signatures", colour="issuer"),
    Family(slug="commit", family="estd_commit_seconds", title="Commit time", counted="batches", colour="ledger"),
)


def all_of(run: Run, slug: str) -> list[Plot | None]:
    """All four."""
    return [*(buckets(run.metrics.get(one.family, {}).get(""), one, slug) for one in FAMILIES), stages(run, slug)]


def buckets(histogram: Histogram | None, family: Family, slug: str) -> Plot | None:
    """How many observations lie in each bucket, from the first to the last bucket that has any."""
    if histogram is None or not histogram.total:
        return None
    filled = [index for index, number in enumerate(histogram.counts) if number]
    first, last = filled[0], filled[-1]
    shares = [100 * number / histogram.total for number in histogram.counts[first : last + 1]]
    in_seconds = family.family.endswith("_seconds")
    with canvas(QUARTER) as figure:
        axes = figure.add_axes(_SMALL_BOX)
        axes.bar(range(len(shares)), shares, width=0.9, color=COLOURS[family.colour], linewidth=0)
        edges = [0.0, *histogram.le, math.inf][first : last + 2]
        if in_seconds:
            every = math.ceil(len(edges) / 7)
            names = [f"{edge * 1e3:g}" if math.isfinite(edge) else "∞" for edge in edges]
            axes.set_xticks([index - 0.5 for index in range(len(names))][::every], names[::every])
        else:
            axes.set_xticks(range(len(shares)), list(map(_sizes, edges, edges[1:])), fontsize=7)
        axes.set_xlim(-0.6, max(len(shares) - 0.4, 2.4))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        unit(axes, "% of all, by ms" if in_seconds else "% of all")
        mean = seconds_of(histogram.mean) if in_seconds else f"{histogram.mean:.1f}"
        keys = [
            Key(colour=family.colour, label="mean", value=mean),
            Key(colour="", label=f"of {count(histogram.total)} {family.counted}"),
        ]
        return plot(figure, f"{family.slug}-{slug}", family.title, "", keys, size="quarter")


def _sizes(above: float, to: float) -> str:
    """The whole numbers of a bucket."""
    if math.isinf(to):
        return f">{above:g}"
    return f"{to:g}" if to - above <= 1 else f"{above + 1:g}–{to:g}"


def stages(run: Run, slug: str) -> Plot | None:
    """Where the wall time of a batch goes: the mean of each stage, with each request's part of it."""
    found = {stage: one for stage, one in run.metrics.get("estd_batch_stage_seconds", {}).items() if one.total}
    if not found:
        return None
    batch = run.metrics.get("estd_batch_size", {}).get("")
    size = batch.mean if batch and batch.total else None
    with canvas(QUARTER) as figure:
        axes = figure.add_axes((0.25, 0.06, 0.4, 0.84))
        for at, (stage, one) in enumerate(found.items()):
            axes.barh(at, one.mean, color=COLOURS[_STAGE_COLOURS.get(stage, "edge")], height=0.62)
            each = f" · {one.mean / size * 1e6:,.0f}" if size else ""
            beside(axes, seconds_of(one.mean) + each, one.mean, at)
        axes.set_yticks(range(len(found)), [short(stage, 10) for stage in found])
        for label in axes.get_yticklabels():
            label.set_color(COLOURS["ink"])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        keys = [Key(colour="", label="mean" + (" · µs for each of its requests" if size else ""))]
        return plot(figure, f"stages-{slug}", "Stages of a batch", "", keys, size="quarter")
