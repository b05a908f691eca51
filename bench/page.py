"""The report as one HTML page that needs nothing beside itself: no network, no script, and good on paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from bench import climb, front, inside, overview, plots, tables
from bench.compare import ASSUMED_SPREAD, FLOOR, ROUNDS_FOR_SPREAD, STEPS, Comparison, Verdict
from bench.drawing import Plot
from bench.markup import Markup, join, tag
from bench.runs import OTHERS_MAX, Round, Run
from bench.wording import count, figure, milliseconds

_TEMPLATE = Path(__file__).with_name("page.html")


def page(rounds: Sequence[Round], old: Sequence[Round], compared: Sequence[Comparison], markdown: str) -> str:
    """The whole page. The drawings are of the last of `rounds`; the tables hold medians of all of them."""
    last = rounds[-1]
    body = join(
        (
            front.header(rounds),
            tag(
                "main",
                _runs(rounds),
                _compared(rounds, old, compared) if old else Markup(),
                _section("What it costs", _COST, _plots((overview.cost_and_floor(last), overview.roof(last)))),
                *(_run(rounds, old, index, name) for index, name in enumerate(tables.names(rounds), 1)),
                _section("Each step alone", _STEPS, _plots((overview.steps(last),))),
                tag("div", _section("A table to paste", _PASTE, tag("pre", markdown)), class_="screen"),
                _method(last),
            ),
            tag(
                "footer",
                "Made from ",
                ", ".join(Path(at.path).name for at in (*rounds, *old)),
                " by python -m bench.report.",
            ),
        )
    )
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(title=tag("i", _title(last))[3:-4], body=body)


_COST = (
    "The floor is verifying the request, signing, and verifying the signature made, with the server's part of a TLS"
    " handshake where the connection is fresh: measured on this machine in the same round, without any server."
)
_STEPS = "The pure steps between the socket and the token, by python -m bench.core."
_PASTE = "The same rows as Markdown; one click selects them."


def _title(at: Round) -> str:
    return f"estd: measurements of {at.began or 'a run'}" + (f", {at.commit}" if at.commit else "")


def _section(title: str, about: str, *content: Markup) -> Markup:
    """A heading with what belongs to it; nothing where there is no content."""
    return tag("section", tag("h2", title), tag("p", about), *content) if any(content) else Markup()


def _plots(drawn: Iterable[Plot | None]) -> Markup:
    figures = [_figure(one) for one in drawn if one]
    return tag("div", *figures, class_="plots") if figures else Markup()


def _figure(drawn: Plot) -> Markup:
    keys = [
        tag(
            "span", key.label, *((" ", tag("b", key.value)) if key.value else ()),
            class_="key" if key.colour else "key bare", style=f"--c: var(--{key.colour})" if key.colour else None,
        )
        for key in drawn.keys
    ]  # fmt: skip
    caption = tag(
        "figcaption",
        tag("b", drawn.title),
        tag("i", drawn.note) if drawn.note else Markup(),
        tag("div", *(part for key in keys for part in (key, " ")), class_="keys"),
    )
    return tag("figure", caption, Markup(drawn.svg), id=drawn.slug, class_=drawn.size)


def _runs(rounds: Sequence[Round]) -> Markup:
    several = f" Medians of {len(rounds)} files, their extremes beneath." if len(rounds) > 1 else ""
    about = (
        "Latency as the device sees it; CPU of all server processes for each enrolment, by the kernel; others: the part"
        f" of the machine that other programs took.{several}"
    )
    table = tables.headline(rounds)
    return _section("The runs", about, table.html()) if table.rows else Markup()


_FEW = (
    f"Fewer than {ROUNDS_FOR_SPREAD} files do not tell how much they differ: for such a side a spread of"
    f" {100 * ASSUMED_SPREAD:.0f} % is assumed."
)
_CHANCE = "Even so some of many figures stand apart by chance: one in ten with 3 files a side, one in 126 with 5."


def _compared(rounds: Sequence[Round], old: Sequence[Round], compared: Sequence[Comparison]) -> Markup:
    if not compared:
        return _section("Before and now", "The two sides have no run and no figure of the same name.", tag("p", ""))
    told = {verdict: sum(one.verdict is verdict for one in compared if one.group != FLOOR) for verdict in Verdict}
    summary = ", ".join(f"{number} {verdict}" for verdict, number in told.items() if number)
    about = (
        f"{len(old)} before, {len(rounds)} now: {summary}. Machines drift, so each figure is set against the floor of"
        " its own round first. A difference counts when no value of one side lies among the other's and the medians"
        " differ by more than the wider spread, (greatest − least) / median. Where other programs took more than"
        f" {100 * OTHERS_MAX:.0f} % of the machine there is no verdict: the figure is called disturbed."
    )
    caution = _FEW if min(len(old), len(rounds)) < ROUNDS_FOR_SPREAD else _CHANCE
    drawn = _plots((overview.changes(compared),))
    runs = tables.comparison([one for one in compared if one.group not in (STEPS, FLOOR)])
    alone = tables.comparison([one for one in compared if one.group in (STEPS, FLOOR)])
    more = tag("details", tag("summary", "Each step and the floor itself"), alone.html(grouped=True))
    return _section("Before and now", about, tag("p", caution), drawn, runs.html(grouped=True), more)


def _run(rounds: Sequence[Round], old: Sequence[Round], index: int, name: str) -> Markup:
    found = tables.of_name(rounds, name)
    before = [run for _, run in tables.of_name(old, name)]
    at, run = found[-1]
    slug = str(index)
    drawn = [
        climb.ramp(run, slug),
        plots.throughput(run, slug),
        plots.latency_over_time(run, slug),
        plots.percentiles([one for _, one in found], before, slug),
        plots.cores(run, slug, at.cores),
        *inside.all_of(run, slug),
    ]
    outcome = tag("span", "passed" if run.passed else "failed", class_=f"pill {'well' if run.passed else 'ill'}")
    return tag(
        "article",
        tag("div", tag("span", slug, class_="number"), tag("h3", name), outcome, class_="title"),
        tag("p", run.what, class_="facts"),
        tag("p", _told(at, run), class_="facts"),
        Markup() if run.passed else tag("p", run.why(), class_="ill"),
        tag("p", _OF_STEPS, class_="facts") if run.steps else Markup(),
        tag("p", _LIMITED, class_="facts warn") if run.generator_was_limit else Markup(),
        tag("p", _DISTURBED, class_="facts warn") if at.disturbed(run) else Markup(),
        tag("code", run.command, class_="command") if run.command else Markup(),
        tables.mix(run).html("What became of each kind of request") if run.mix else Markup(),
        _plots(drawn),
        id=f"run-{index}",
    )


_DISTURBED = (
    f"Other programs took more than {100 * OTHERS_MAX:.0f} % of the machine meanwhile: its figures are not the server's"
    " alone."
)
_OF_STEPS = (
    "Its figures are those of the highest step that held; what is drawn over time and as the server counted it is of"
    " all steps, one after the other."
)
_LIMITED = "The load generator had no more to give: the server may be faster than this run shows."


def _told(at: Round, run: Run) -> str:
    told = [
        f"{count(run.enrolments)} enrolments in {run.seconds:.1f} s" + _of_requests(run),
        f"{count(run.verified)} answers checked against their CSR",
    ]
    if "p99" in run.late_us:
        told.append(f"sent late: p99 {milliseconds(run.late_us['p99'])}")
    if run.generator_cpu_us_per_enrolment is not None:
        share = f", {100 * run.generator_share:.0f} % of a core at most" if run.generator_share is not None else ""
        told.append(f"load generator {figure(run.generator_cpu_us_per_enrolment)} µs an enrolment{share}")
    others = at.others(run)
    taken = f", {100 * others:.0f} % taken by other programs" if others is not None else ""
    told.append(f"machine {run.machine_idle_percent:.0f} % idle, {run.machine_steal_percent:.1f} % stolen{taken}")
    return " · ".join(told + [f"{count(number)} {event}" for event, number in run.events.items()])


def _of_requests(run: Run) -> str:
    return f" among {count(run.requests)} requests" if run.requests > run.enrolments else ""


_METHOD = (
    "The load generator runs on the same machine and takes its share of it. Every certificate was signed by the token,"
    " its signature checked, and on disk before its answer left. In an open loop latency counts from the moment a"
    " request was meant to go out, so that a server that stalls hides nothing. A percentile is of all answers of a run"
    " (HdrHistogram, three digits), not a mean of percentiles."
)


def _method(at: Round) -> Markup:
    shown = [table.html() for table in (tables.facts(("the machine", ""), at.machine), tables.amounts(_FLOOR, at.floor))
             if table.rows]  # fmt: skip
    return _section("How it was measured", _METHOD, tag("div", *shown, class_="columns"))


_FLOOR = ("the floor", "µs of CPU")
