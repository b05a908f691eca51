"""Draws with matplotlib, and makes of each drawing a piece of a page: inline SVG in the page's own colours and font.

Every colour here stands for a variable of the page's style sheet, which has one value for light and one for dark; the
text stays text, so that it can be searched and takes the page's font. The drawing names nothing outside the page.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

COLOURS = {
    "card": "#fefefe",
    "ink": "#1c2024",
    "muted": "#60646c",
    "rule": "#d9dbe0",
    "good": "#2f6fd6",
    "shed": "#d99a00",
    "bad": "#cf3a2c",
    "p50": "#2f6fd5",
    "p99": "#c2410c",
    "edge": "#4a83dd",
    "issuer": "#11897c",
    "ledger": "#8456c8",
    "supervisor": "#8b8f98",
    "generators": "#c3c7ce",
    "other": "#b0708f",
    "floor-1": "#57606a",
    "floor-2": "#7a838e",
    "floor-3": "#9ba3ad",
    "floor-4": "#bcc3cb",
    "old": "#9a9fa8",
    "band": "#e9ebef",
}
"""Colours by the name of their variable; as hexadecimal digits each stands for itself alone."""

_NAMES = {value: name for name, value in COLOURS.items()}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"(?:^|url\()#([\w-]+)")
_FAMILY = re.compile(r"font-family: [^;]+")

HALF = (5.5, 2.5)
QUARTER = (2.75, 2.0)
FULL_WIDTH = 11.4
"""Inches; the page shows an inch about 100 pixels wide."""

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 8.5,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.color": COLOURS["rule"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.size": 3,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An entry of a drawing's legend, with the figure that belongs to it."""

    colour: str
    label: str
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawing for the page. `slug` is its id there, `title` its name, `note` how to read it."""

    slug: str
    title: str
    note: str
    svg: str
    keys: tuple[Key, ...] = ()
    size: str = "half"


@contextmanager
def canvas(size: tuple[float, float]) -> Iterator[Figure]:
    """An empty figure of so many inches, in the page's style."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield Figure(figsize=size)


def plot(figure: Figure, slug: str, title: str, note: str, keys: Iterable[Key] = (), size: str = "half") -> Plot:
    """The finished drawing."""
    return Plot(slug=slug, title=title, note=note, svg=inline(figure, slug, title), keys=tuple(keys), size=size)


def inline(figure: Figure, slug: str, title: str) -> str:
    """The figure as an <svg> element that can stand in a page beside others: its ids begin with `slug`."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": slug, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn = ElementTree.fromstring(file.getvalue())
    used = {one for element in drawn.iter() for value in element.attrib.values() for one in _REFERENCE.findall(value)}
    _tidy(drawn, slug, used)
    drawn.attrib = {"viewBox": drawn.attrib["viewBox"], "role": "img", "aria-label": title}
    return ElementTree.tostring(drawn, encoding="unicode")


def _tidy(element: ElementTree.Element, slug: str, used: set[str]) -> None:
    """Leaves out namespaces, metadata, matplotlib's style sheet and ids that nothing refers to."""
    element.tag = _local(element.tag)
    element.tail = None
    if element.tag != "text":
        element.text = None
    attributes = {_local(name): value for name, value in element.attrib.items()}
    name = attributes.pop("id", None)
    if name in used:
        attributes["id"] = f"{slug}-{name}"
    if attributes.get("transform", "").startswith(("rotate(-0 ", "rotate(0 ")):
        del attributes["transform"]
    element.attrib = {key: _own(value, slug) for key, value in attributes.items()}
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _tidy(child, slug, used)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _own(value: str, slug: str) -> str:
    """An attribute with references to the drawing's own ids, the page's colours and the page's font."""
    value = _REFERENCE.sub(lambda found: found[0].replace("#", f"#{slug}-"), value)
    value = _COLOUR.sub(lambda found: f"var(--{_NAMES[found[0]]})" if found[0] in _NAMES else found[0], value)
    return _FAMILY.sub("font-family: var(--font)", value)
