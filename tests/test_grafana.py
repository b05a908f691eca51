"""The dashboard and Prometheus' configuration, held to what a running server exports."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from estd import config
from tests import make
from tests.conftest import program
from tests.servers import Server
from tests.test_config import text

GRAFANA = Path(__file__).resolve().parent.parent / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "estd.json").read_text())
PROMETHEUS = GRAFANA / "prometheus" / "prometheus.yml"
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [pytest.param(expression, id=f"{title}-{number}") for number, (title, expression) in enumerate(TARGETS)]

_METRIC = re.compile(r"\b(estd_[a-z0-9_]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
NOT_SHOWN = {
    "estd_busy_since_seconds": "on a clock of its own, for the supervisor, which ends what hangs",
    "estd_generation": "which configuration serves is for whoever reloads, and `estd reload` tells it",
    "estd_reloads_refused": "`estd reload` tells it with the reasons, and so does the log",
    "estd_webhook_seconds": "only where a label has a webhook; docs/devices.md names the query",
}
"""What the server exports and the dashboard does not show, and why."""


def plain(expression: str) -> str:
    """The expression as Prometheus gets it."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")


@pytest.fixture(scope="module")
def served(server: Server) -> dict[str, list[dict[str, str]]]:
    """Name of each sample that a server exports after an enrolment, with the labels of its series."""
    with server.client(basic=True) as client:
        client.enroll(lambda _: make.csr())
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(server.admin("/metrics")[1]):
        for sample in family.samples:
            found.setdefault(sample.name, []).append({"instance": "i", "job": "estd", **sample.labels})
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_each_metric_of_the_dashboard_is_served(served: dict[str, list[dict[str, str]]], expression: str) -> None:
    """Every name in an expression, suffix included, is a sample of /metrics, and its matchers fit some series."""
    found = _METRIC.findall(plain(expression))
    assert found
    for name, matchers in found:
        assert name in served
        series = served[name]
        for label, operator, value in _MATCHER.findall(matchers):
            pattern = value if operator == "=~" else re.escape(value)
            series = [labels for labels in series if re.fullmatch(pattern, labels[label])]
        assert series, f"no series of {name} has {matchers}"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_groups_and_legends_name_labels_that_are_there(
    served: dict[str, list[dict[str, str]]], expression: str
) -> None:
    """What an expression groups by is a label of every metric in it."""
    grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
    for name, _ in _METRIC.findall(plain(expression)):
        assert grouped <= set(served[name][0])


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_counters_are_shown_as_rates(served: dict[str, list[dict[str, str]]], expression: str) -> None:
    """A counter is never drawn as it stands; only gauges are. A quantile keeps its buckets' bounds."""
    for name, _ in _METRIC.findall(plain(expression)):
        is_counter = name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert bool(re.search(rf"\b(rate|increase)\({name}\b", expression)) == is_counter
        if name.endswith("_bucket"):
            assert re.search(r"\bby \(le\b", expression)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """Each panel has a title, a unit, and a description in a sentence; each of its lines has a legend."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


def test_legends_name_labels_of_their_expression() -> None:
    """A legend's placeholder is a label that the expression keeps."""
    for panel in PANELS:
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            groups = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            if groups:
                assert wanted <= {label.strip() for label in groups[0].split(",")}, panel["title"]
            else:
                assert wanted <= {"process"}, panel["title"]


def test_every_metric_is_shown(served: dict[str, list[dict[str, str]]]) -> None:
    """What the server exports has its place on the dashboard, or a reason why not."""
    used = {name for _, expression in TARGETS for name, _ in _METRIC.findall(expression)}
    stems = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    exported = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in served if name.startswith("estd_")}
    assert exported - stems == set(NOT_SHOWN)


def test_the_layout_has_no_overlap() -> None:
    """Panels have their own ids and places in the 24 columns."""
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(one["x"] >= 0 and one["x"] + one["w"] <= 24 for one in places)
    for one, other in itertools.combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)


def test_every_panel_asks_the_chosen_source() -> None:
    """Data source and instance are the dashboard's variables, so that it fits any Grafana."""
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "instance"}
    for panel in PANELS:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    for title, expression in TARGETS:
        assert set(re.findall(r"\$(\w+)", expression)) <= {"instance", "__rate_interval"}, title
        assert all('instance=~"$instance"' in matchers for _, matchers in _METRIC.findall(expression)), title


def promtool(*arguments: str, data: str | None = None) -> None:
    """promtool, which must find nothing."""
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, check=False, input=data, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (data and done.stdout + done.stderr), done.stdout + done.stderr


def test_prometheus_takes_the_configuration() -> None:
    """promtool finds nothing wrong with prometheus.yml, and what it scrapes is where estd serves by default."""
    promtool("check", "config", str(PROMETHEUS))
    admin = config.parse(text(), Path("/srv")).server.admin
    assert f'"{admin}"' in PROMETHEUS.read_text()
    assert "metrics_path: /metrics" in PROMETHEUS.read_text()


def test_prometheus_takes_the_metrics(server: Server) -> None:
    """promtool finds nothing wrong with what a running server exports: names, help, units."""
    status, exported = server.admin("/metrics")
    assert status == 200
    promtool("check", "metrics", data=exported)


def test_prometheus_takes_each_expression(folder: Path) -> None:
    """Every expression is PromQL, as promtool parses it."""
    rules = [
        {"record": f"dashboard:{number}", "expr": plain(expression)} for number, (_, expression) in enumerate(TARGETS)
    ]
    path = folder / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", str(path))


def test_provisioning_leads_to_what_is_there() -> None:
    """Grafana's files name the data source that the dashboard begins with, at the interval of the scrapes."""
    source = (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    (chosen,) = (one for one in DASHBOARD["templating"]["list"] if one["name"] == "datasource")
    assert f"uid: {chosen['current']['value']}\n" in source
    assert f"name: {chosen['current']['text']}\n" in source
    interval = re.search(r"scrape_interval: (\S+)", PROMETHEUS.read_text())
    assert interval is not None
    assert f"timeInterval: {interval[1]}" in source
    provider = (GRAFANA / "provisioning" / "dashboards" / "estd.yml").read_text()
    folder = re.search(r"path: (\S+)", provider)
    assert folder is not None
    assert f"`{folder[1]}/`" in (GRAFANA / "README.md").read_text()


def test_the_readme_names_every_file() -> None:
    """Each file of grafana/ has its line in the README."""
    readme = (GRAFANA / "README.md").read_text()
    for path in GRAFANA.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert f"`{path.relative_to(GRAFANA)}`" in readme
