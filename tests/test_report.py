"""The report: its page needs nothing beside itself and holds the figures of the files, whatever stands in them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench import report
from bench.drawing import COLOURS
from bench.floor import KEPT
from bench.markup import tag
from bench.reading import percentile_curve
from bench.runs import HANDSHAKE
from tests import rounds

VOID = {"meta", "br", "img", "input", "link", "hr"}
OF_A_RUN = ("throughput", "latency", "percentiles", "cores", "batch", "token", "commit", "stages")
HOSTILE = (
    '$\\frac$ "><script src="https://example.com/x.js">alert(1)</script><img src=x onerror=alert(1)> | `a` <!-- {x}'
)
"""A formula that matplotlib would refuse, markup for the page, and what ends a cell in Markdown."""


@dataclass
class Element:
    """An element of the page with all text in it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """A page, parsed; `open_tags` is empty at the end when everything was closed in order."""

    source: str
    elements: list[Element] = field(default_factory=list)
    open_tags: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        assert len(element.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append(element)
        if tag not in VOID:
            self.open_tags.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open_tags:
            element.text += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def ids(self) -> list[str]:
        return [element.attributes["id"] for element in self.elements if "id" in element.attributes]

    def table(self, head: str) -> list[list[Element]]:
        """The rows of cells of the table that has this column; a cell's exact figure is put into its attributes."""
        rows: list[list[Element]] = []
        inside = wanted = False
        for element in self.elements:
            if element.tag == "table":
                inside, wanted = head in element.text, False
            elif inside and element.tag == "tr":
                rows.append([])
                wanted = True
            elif inside and wanted and element.tag == "td":
                rows[-1].append(element)
            elif inside and wanted and element.tag == "data":
                rows[-1][-1].attributes["value"] = element.attributes["value"]
        return [row for row in rows if row]


def write(folder: Path, name: str, made: Any) -> Path:
    path = folder / name
    path.write_text(made if isinstance(made, str) else json.dumps(made))
    return path


def run_report(*arguments: object, status: int = 0) -> Result:
    """The command, which must end with that status and not with a fault."""
    done = CliRunner().invoke(report.main, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == status, done.output
    return done


def page_of(folder: Path, made: Any, *options: object) -> Page:
    output = folder / "page.html"
    run_report(write(folder, "made.json", made), *options, "--output", output)
    page = Page(output.read_text())
    assert page.open_tags == []
    return page


def refers_to_nothing_outside(page: Page) -> None:
    """No script, no frame, nothing to load, no link but into the page itself."""
    assert {element.tag for element in page.elements} & {
        "script", "link", "img", "iframe", "object", "embed", "base", "form", "image",
    } == set()  # fmt: skip
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for element in page.elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), name
            assert name not in ("src", "srcset", "action", "xlink:href")
            if name == "href":
                assert value.removeprefix("#") in ids
            for reference in re.findall(r"url\((.*?)\)", value):
                assert reference.removeprefix("#") in ids
    (style,) = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    policy = [one for one in page.all("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert [one.attributes["content"] for one in policy] == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_every_drawing_is_there(folder: Path) -> None:
    """A whole round has the drawings of the overview and those of each run; compared, it has what changed."""
    old = write(folder, "old.json", rounds.round_of(seed=9))
    page = page_of(folder, rounds.round_of(), "--against", old)
    drawn = {element.attributes["id"] for element in page.all("figure")}
    each = {f"{what}-{number}" for what in OF_A_RUN for number in range(1, 7)}
    assert drawn == {"cost-and-floor", "roof", "steps", "changes", "ramp-4"} | each
    assert len(page.all("svg")) == len(drawn)
    assert all(one.attributes["aria-label"] for one in page.all("svg"))
    refers_to_nothing_outside(page)


def test_the_colours_are_the_pages_own(folder: Path) -> None:
    """Every colour of a drawing is a variable that the style sheet gives a value in the light and one in the dark."""
    page = page_of(folder, rounds.round_of())
    (style,) = page.all("style")
    light, dark = re.findall(r":root \{([^}]*--ink[^}]*)\}", style.text)
    used = {name for element in page.elements for name in re.findall(r"var\(--([\w-]+)\)", str(element.attributes))}
    assert set(COLOURS) <= set(re.findall(r"--([\w-]+):", light))
    assert used - {"font", "c"} <= set(re.findall(r"--([\w-]+):", dark))
    styles = [one.attributes.get("style", "") for one in page.elements]
    assert {colour for one in styles for colour in re.findall(r"#[0-9a-f]{3,}", one)} <= {"#ffffff"}


def _others(run: dict[str, Any], cores: int) -> float:
    """What was busy on the machine and was neither server nor load generator."""
    busy_seconds = cores * run["seconds"] * (100 - run["machine_idle_percent"] - run["machine_steal_percent"]) / 100
    ours = sum(process["cpu_seconds"] for process in run["processes"])
    ours += run["generator_cpu_us_per_enrolment"] * run["enrolments"] / 1e6
    return (busy_seconds - ours) / (cores * run["seconds"])


def expected_rows(made: dict[str, Any]) -> list[dict[str, float | None]]:
    """The figures of the headline table, worked out of the JSON alone."""
    rows = []
    for run in made["runs"]:
        floor = sum(made["floor"][part] for part in KEPT)
        floor += made["floor"][HANDSHAKE] * min(1.0, run["events"]["connections opened"] / run["enrolments"])
        rows.append(
            {
                "rate_per_second": run["rate_per_second"],
                "p50_ms": run["latency_us"]["p50"] / 1e3,
                "p99_ms": run["latency_us"]["p99"] / 1e3,
                "p99.9_ms": run["latency_us"]["p99.9"] / 1e3,
                "shed": run["shed"],
                "errors": sum(run["errors"].values()),
                "cpu_us": run["server_cpu_us_per_enrolment"],
                "others": _others(run, made["machine"]["cores"]),
                "times_floor": None if run["mix"] else run["server_cpu_us_per_enrolment"] / floor,
            }
        )
    return rows


def test_the_figures_are_those_of_the_file(folder: Path) -> None:
    """The table on the page, --json and the file agree to the last digit; what is shown is the figure, rounded."""
    made = rounds.round_of(seed=3)
    expected = expected_rows(made)
    page = page_of(folder, made)
    shown = page.table("p99.9, ms")
    told = json.loads(run_report(folder / "made.json", "--json").stdout)
    assert (
        [row[1].text for row in shown] == [one["run"] for one in told["runs"]] == [one["name"] for one in made["runs"]]
    )
    assert told["comparison"] == []
    for row, found, wanted in zip(shown, told["runs"], expected, strict=True):
        for cell, key in zip(row[2:-1], list(found)[2:-1], strict=True):
            value = wanted[key]
            assert found[key] == (None if value is None else pytest.approx(value))
            if value is not None:
                assert float(cell.attributes["value"]) == pytest.approx(value)
                shown_as = 100 * value if key == "others" else value
                assert float(cell.text.replace(",", "")) == pytest.approx(shown_as, rel=0.006, abs=0.5)
    outcomes = ["passed" if one["passed"] else "failed" for one in made["runs"]]
    assert [row[-1].text for row in shown] == [one["outcome"] for one in told["runs"]] == outcomes


def test_the_headline_is_the_fastest_run_that_passed(folder: Path) -> None:
    """A faster run that failed does not make the headline, and what failed is told."""
    runs = [rounds.run("slow", rate=100), rounds.run("fast", rate=900), rounds.run("false", rate=9000, missed=("no",))]
    page = page_of(folder, rounds.round_of(runs))
    (head,) = page.all("h1")
    assert head.text.startswith(f"{round(runs[1]['rate_per_second']):,} enrolments a second")
    (header,) = page.all("header")
    assert "1 of 3 runs failed" in header.text
    assert "false: no" in header.text


def test_a_disturbed_run_says_so(folder: Path) -> None:
    """Where other programs took much of the machine the run's own part of the page warns, and no other's."""
    runs = [rounds.run("alone", others=0.02), rounds.run("beside", others=0.31)]
    alone, beside = page_of(folder, rounds.round_of(runs)).all("article")
    assert "31 % taken by other programs" in beside.text
    assert "Other programs took more than 10 % of the machine" in beside.text
    assert "2 % taken by other programs" in alone.text
    assert "Other programs" not in alone.text


def test_the_drawings_are_of_the_files_figures(folder: Path) -> None:
    """The legends tell sums, means and percentiles of what the file holds."""
    made = rounds.round_of([rounds.run("kept", shed=24, errors={"status 500": 12}), rounds.ramp()])
    page = page_of(folder, made)
    legends = {one.attributes["id"]: " ".join(one.text.split()) for one in page.all("figure")}
    run, ramp = made["runs"]
    assert f"good {sum(run['series']['good']):,} shed 24 errors 12" in legends["throughput-1"]
    assert f"p99 {run['latency_us']['p99'] / 1e3:.1f} ms" in legends["percentiles-1"]
    batches = run["metrics"]["estd_batch_size"][""]
    total = sum(batches["count"])
    assert f"mean {batches['sum'] / total:.1f} of {total:,} batches" in legends["batch-1"]
    issuer = run["cpu_series"]["processes"]["issuer 0"]
    assert f"issuer 0 {sum(issuer) / len(issuer):.2f}" in legends["cores-1"]
    held = max(step["rate_per_second"] for step in ramp["steps"] if step["held"])
    assert f"highest rate that held {held:,}/s" in legends["ramp-2"]
    assert f"{run['server_cpu_us_per_enrolment']:.0f} µs" in legends["cost-and-floor"]


def test_the_curve_is_the_histograms(folder: Path) -> None:
    """The curve by percentile rises, stays below 100 and meets the percentiles that the run tells."""
    run = rounds.run("kept")
    curve = percentile_curve(run["hdr"])
    assert list(curve) == sorted(curve)
    assert curve[-1][0] < 100
    assert curve[-1][1] == run["latency_us"]["max"]
    for name, value in run["latency_us"].items():
        if name != "max":
            at = next(us for percent, us in curve if percent >= float(name[1:]))
            assert at == pytest.approx(value, rel=0.02), name


def test_the_table_to_paste_has_the_same_rows(folder: Path) -> None:
    """--markdown, the page's <pre> and its table hold the same words."""
    page = page_of(folder, rounds.round_of())
    out = run_report(folder / "made.json", "--markdown").stdout
    (pre,) = page.all("pre")
    assert pre.text.strip() == out.strip()
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in out.strip().splitlines()]
    assert lines[2:] == [[cell.text for cell in row] for row in page.table("p99.9, ms")]
    assert len({len(line) for line in out.strip().splitlines()}) == 1


def test_several_files_are_medians(folder: Path) -> None:
    """Of three files the table has the median with the extremes; drawings and their ids stay one for each run."""
    paths = [
        write(
            folder, f"{rate}.json", rounds.round_of([rounds.run("kept", seed=rate, rate=rate)]) | {"began": str(rate)}
        )
        for rate in (3000, 1000, 2000)
    ]
    output = folder / "page.html"
    told = json.loads(run_report(*paths, "--json", "--output", output).stdout)
    rates = sorted(json.loads(path.read_text())["runs"][0]["rate_per_second"] for path in paths)
    assert told["runs"][0]["rate_per_second"] == rates[1]
    page = Page(output.read_text())
    assert page.table("p99.9, ms")[0][2].text == f"{rates[1]:,.0f} {rates[0]:,.0f}–{rates[2]:,.0f}"
    refers_to_nothing_outside(page)


def test_files_of_one_side_may_follow_one_option(folder: Path) -> None:
    """--against takes all files up to the next option, as a shell's pattern makes them."""
    old = [write(folder, f"old{number}.json", rounds.round_of(seed=number)) for number in range(3)]
    new = [write(folder, f"new{number}.json", rounds.round_of(seed=10 + number, slower=1.5)) for number in range(3)]
    output = folder / "page.html"
    told = json.loads(run_report(*new, "--against", *old, "--output", output, "--json").stdout)
    cost = next(one for one in told["comparison"] if (one["group"], one["figure"]) == ("kept", "CPU, µs"))
    assert cost["verdict"] == "slower"
    assert cost["corrected_ratio"] == pytest.approx(1.5, rel=0.02)
    page = Page(output.read_text())
    refers_to_nothing_outside(page)
    rows = {(row[0].text, row[1].text): row for row in page.table("ratio by floor")}
    assert rows["kept", "CPU, µs"][-1].text == "slower"
    assert float(rows["kept", "CPU, µs"][5].attributes["value"]) == cost["corrected_ratio"]
    assert len(rows) == len(told["comparison"])


def hostile_round() -> dict[str, Any]:
    """A round whose every text is hostile."""
    mixed = rounds.mixed()
    run = rounds.ramp() | {
        key: f"{key} {HOSTILE}" for key in ("name", "scenario", "what", "command", "began", "commit")
    }
    run |= {
        "missed": [HOSTILE],
        "passed": False,
        "errors": {HOSTILE: 3},
        "events": {HOSTILE: 3, "connections opened": 64},
        "processes": [one | {"label": HOSTILE} for one in run["processes"]],
        "mix": {f"{kind} {HOSTILE}": row for kind, row in mixed["mix"].items()},
        "latency_us": run["latency_us"] | {f"p{HOSTILE}": 1.0},
    }
    run["cpu_series"]["processes"][HOSTILE] = run["cpu_series"]["processes"].pop("edge 0")
    stages = run["metrics"]["estd_batch_stage_seconds"]
    stages[HOSTILE] = stages.pop("sign")
    whole = rounds.round_of([run])
    return whole | {
        "began": HOSTILE,
        "commit": HOSTILE,
        "plan": HOSTILE,
        "machine": {HOSTILE: HOSTILE, "cpu": HOSTILE, "cores": HOSTILE},
        "floor": whole["floor"] | {f"floor, {HOSTILE}": 5.0},
        "core": {HOSTILE: 1.0},
        "failures": [HOSTILE],
    }


def test_hostile_text_stays_text(folder: Path) -> None:
    """Markup, quotes and formulas in any text of a file are shown as they are, on the page and in Markdown."""
    old = write(folder, "old.json", hostile_round())
    page = page_of(folder, hostile_round(), "--against", old)
    refers_to_nothing_outside(page)
    assert HOSTILE in page.all("h3")[0].text
    assert HOSTILE in page.all("title")[0].text
    assert page.all("header")[0].text.count("<script") >= 3
    assert any("$\\frac$" in one.text and "<script" in one.text for one in page.all("text"))
    out = run_report(folder / "made.json", "--markdown").stdout.splitlines()
    assert "\\<script" in out[2]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in out} == {13}


def test_an_attribute_cannot_be_left() -> None:
    """Quotes and markup in an attribute's value stay in it."""
    page = Page(tag("p", "text", title='"><b>', class_=None))
    assert [(one.tag, one.attributes, one.text) for one in page.elements] == [("p", {"title": '"><b>'}, "text")]


MINIMAL = {
    "what": "simpleenroll at 127.0.0.1:8443/.well-known/est, closed loop", "enrolments": 100, "seconds": 1.0,
    "rate_per_second": 100.0, "latency_us": {"p50": 1e3, "p99": 2e3}, "late_us": {}, "errors": {}, "examples": {},
    "shed": 0, "events": {}, "verified": 1, "generator_cpu_us_per_enrolment": None,
    "server_cpu_us_per_enrolment": None, "processes": [], "machine_idle_percent": 0.0, "machine_steal_percent": 0.0,
    "missed": [], "passed": True,
}  # fmt: skip
"""A run of an earlier time, without anything that is drawn."""


@pytest.mark.parametrize(
    ("made", "headline"),
    [
        (MINIMAL, "100 enrolments a second"),
        (MINIMAL | {"enrolments": 0, "rate_per_second": 0, "latency_us": {}, "passed": False}, "No enrolment"),
        ({"runs": []}, "No enrolment"),
        ({"runs": [], "floor": rounds.FLOOR, "core": rounds.CORE}, "No enrolment"),
        ({"runs": [rounds.run("kept") | {"metrics": {}, "hdr": "", "cpu_series": {}}]}, "enrolments a second"),
        ({"runs": [rounds.run("kept", seconds=1)], "machine": {"cores": "many"}}, "enrolments a second"),
    ],
    ids=["earlier", "nothing good", "no runs", "floor and steps alone", "no metrics", "a second"],
)
def test_what_is_absent_is_left_out(folder: Path, made: dict[str, Any], headline: str) -> None:
    """A run or a round that lacks much still makes a page, without what it lacks."""
    page = page_of(folder, made)
    refers_to_nothing_outside(page)
    assert headline in page.all("h1")[0].text
    assert len(page.all("figure")) == len(page.all("svg"))


def test_a_second_without_answers_is_a_gap(folder: Path) -> None:
    """null in a series is drawn as nothing, and not as 0."""
    run = rounds.run("kept")
    run["series"]["p50_us"][3] = run["series"]["p99_us"][3] = None
    page = page_of(folder, rounds.round_of([run]))
    assert "latency-1" in page.ids()


def test_runs_may_stand_one_a_line(folder: Path) -> None:
    """What bench.fleet --json appended to one file is read as one set of runs; those of a name are taken together."""
    lines = "".join(json.dumps(rounds.run(name, seed=seed)) + "\n" for seed, name in enumerate(["a", "b", "a"]))
    told = json.loads(run_report(write(folder, "runs.json", lines), "--json").stdout)
    assert [row["run"] for row in told["runs"]] == ["a", "b"]


def broken(**changes: Any) -> dict[str, Any]:
    return rounds.round_of([rounds.run("kept") | changes])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        (json.dumps(rounds.round_of())[:-1000], "was it cut off?"),
        ("[1, 2]", "something else than an object"),
        ("\n".join(["{}", "{"]), "is not JSON"),
        ('{"runs": [], "floor": {"a": NaN}}', "NaN"),
        ("[" * 100_000, "is not JSON"),
        ({"hello": 1}, "neither a round nor a run"),
        ({"runs": 5}, "'runs' is not a list"),
        ({"runs": [5]}, "runs[0] is not a JSON object"),
        (broken(rate_per_second="fast"), "'rate_per_second' is not a number"),
        (broken(rate_per_second=10**400), "'rate_per_second' is not a number"),
        (broken(enrolments=True), "'enrolments' is not a number"),
        (broken(what=5), "'what' is not text"),
        (broken(missed=[5]), "'missed' is not a list of texts"),
        (broken(hdr="no"), "'hdr' is not an encoded HdrHistogram"),
        (broken(hdr="HISTFAAAACl4nJNp"), "'hdr' is not an encoded HdrHistogram"),
        (broken(series={"seconds": [1, 2], "good": [1]}), "'good' has 1 values for 2 seconds"),
        (broken(series={"seconds": [1], "good": ["x"]}), "'good[0]' is not a number"),
        (broken(metrics={"estd_batch_size": {"": {"le": [1], "count": [1], "sum": 1}}}), "do not fit 1 bounds"),
        (broken(errors={"status 500": None, "x": "y"}), "'x' is not a number"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_a_sentence(folder: Path, content: Any, sentence: str) -> None:
    """A missing, cut or wrong file ends with 2 and one sentence that names it and what is wrong, on either side."""
    good = write(folder, "good.json", rounds.round_of([rounds.run("kept")]))
    path = folder / "wrong.json" if content is None else write(folder, "wrong.json", content)
    output = folder / "page.html"
    for arguments in ((path,), (good, "--against", path)):
        told = run_report(*arguments, "--output", output, status=2).stderr
        assert "wrong.json" in told
        assert sentence in told
        assert not output.exists()


def test_what_is_no_text_is_a_sentence(folder: Path) -> None:
    """Bytes that are no UTF-8 are told."""
    path = folder / "wrong.json"
    path.write_bytes(b"\xff\xfe")
    assert "it is not text" in run_report(path, "--json", status=2).stderr


def test_the_command_line_is_checked(folder: Path) -> None:
    """Nothing to make, nothing to compare with, no file, and a folder that is not there end with 2."""
    good = write(folder, "good.json", rounds.round_of([]) | {"runs": []})
    assert "--output" in run_report(good, status=2).stderr
    assert "--against is followed" in run_report(good, "--against", "--json", status=2).stderr
    assert "--against is followed" in run_report(good, "--json", "--against", status=2).stderr
    assert "Missing argument" in run_report("--json", status=2).stderr
    assert "cannot be written" in run_report(good, "--output", folder / "absent" / "page.html", status=2).stderr
