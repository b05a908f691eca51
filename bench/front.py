"""The top of the page: what was reached, whether all of it passed, and the way to each run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from bench import tables
from bench.markup import Markup, number, tag
from bench.runs import Round, Run
from bench.wording import count, figure, milliseconds, moment

_NOTHING = "No enrolment was measured"


def header(rounds: Sequence[Round]) -> Markup:
    """The headline is of the run with the highest rate, by medians where there are several rounds."""
    links = [tag("a", f"{index}. {name}", href=f"#run-{index}") for index, name in enumerate(tables.names(rounds), 1)]
    best = _best(rounds)
    return tag(
        "header",
        tag("div", "estd, an EST server (RFC 7030), measured from outside", class_="eyebrow"),
        tag("h1", _boast(best)),
        tag("p", " · ".join(_about(rounds)), class_="facts"),
        *_verdict(rounds),
        tag("div", *_tiles(rounds, best), class_="tiles"),
        tag("nav", *(part for link in links for part in (link, " "))) if len(links) > 1 else Markup(),
    )


def _about(rounds: Sequence[Round]) -> Iterable[str]:
    last = rounds[-1]
    cores = last.machine.get("cores")
    told = (
        moment(last.began),
        last.commit,
        f"{last.plan} round" if last.plan else "",
        last.machine.get("cpu", ""),
        f"{cores} cores" if cores else "",
        f"medians of {len(rounds)} files" if len(rounds) > 1 else "",
    )
    return filter(None, told)


def _verdict(rounds: Sequence[Round]) -> tuple[Markup, ...]:
    runs = [run for at in rounds for run in at.runs]
    reasons = Counter(f"{run.name}: {run.why()}" for run in runs if not run.passed)
    reasons += Counter(sentence for at in rounds for sentence in at.failures)
    if not reasons:
        said = f"all {len(runs)} runs passed" if len(runs) > 1 else "passed"
        return (tag("p", tag("span", said, class_="pill well")),) if runs else ()
    tried = len(runs) + sum(len(at.failures) for at in rounds)
    said = f"{reasons.total()} of {tried} runs failed"
    lines = (tag("li", reason if times == 1 else f"{reason} ({times} times)") for reason, times in reasons.items())
    return tag("p", tag("span", said, class_="pill ill")), tag("ul", *lines, class_="ill")


def _best(rounds: Sequence[Round]) -> list[tuple[Round, Run]]:
    """All runs of the name that has the highest median rate: one that always passed, where there is any."""
    found = (tables.of_name(rounds, name) for name in tables.names(rounds))
    enrolled = [pairs for pairs in found if any(run.enrolments for _, run in pairs)]
    return max(enrolled, key=lambda pairs: (all(run.passed for _, run in pairs), _rate(pairs)), default=[])


def _rate(pairs: Sequence[tuple[Round, Run]]) -> float:
    return statistics.median(run.rate_per_second for _, run in pairs)


def _cost(pairs: Sequence[tuple[Round, Run]]) -> float | None:
    known = [run.server_cpu_us_per_enrolment for _, run in pairs if run.server_cpu_us_per_enrolment]
    return statistics.median(known) if known else None


def _boast(best: Sequence[tuple[Round, Run]]) -> str:
    if not best:
        return _NOTHING
    cost = _cost(best)
    each = f", {figure(cost)} µs of CPU each" if cost else ""
    return f"{count(round(_rate(best)))} enrolments a second{each}"


def _tile(value: Markup, unit: str, label: str) -> Markup:
    return tag("div", tag("strong", value, tag("small", unit)), tag("span", label), class_="tile")


def _tiles(rounds: Sequence[Round], best: Sequence[tuple[Round, Run]]) -> Iterable[Markup]:
    if not best:
        return
    rate, cost = _rate(best), _cost(best)
    floors = [floor for floor in (at.floor_us(run) for at, run in best) if floor]
    yield _tile(number(rate, count(round(rate))), " /s", f"enrolments, {best[0][1].name}")
    if cost and floors:
        floor_us = statistics.median(floors)
        label = f"{figure(cost)} µs of CPU; its cryptography alone costs {figure(floor_us)} µs"
        yield _tile(number(cost / floor_us, f"{cost / floor_us:.2f}"), " × floor", label)
    latency = {
        point: statistics.median(known)
        for point in ("p50", "p99")
        if (known := [run.latency_us[point] for _, run in best if point in run.latency_us])
    }
    if "p99" in latency:
        p50 = f", p50 {milliseconds(latency['p50'])}" if "p50" in latency else ""
        yield _tile(number(latency["p99"], figure(latency["p99"] / 1e3)), " ms", f"p99 of the same run{p50}")
    runs = [run for at in rounds for run in at.runs]
    errors, enrolments = sum(sum(run.errors.values()) for run in runs), sum(run.enrolments for run in runs)
    yield _tile(number(errors, count(errors)), " errors", f"beside {count(enrolments)} enrolments in all runs")
