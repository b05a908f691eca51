"""The dashboard and Prometheus' configuration, held to what a running server exports."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

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
ALERTS_FILE = GRAFANA / "prometheus" / "alerts.yml"
OPERATIONS = GRAFANA.parent / "docs" / "operations.md"


class Alert(NamedTuple):
    expression: str
    severity: str
    summary: str
    runbook: str


_ALERT = re.compile(
    r"      - alert: (\w+)\n +expr: (.+)\n(?: +for: \w+\n)? +labels: \{severity: (\w+)\}\n +annotations:\n"
    r' +summary: "(.+)"\n +runbook_url: (\S+)\n'
)
ALERTS = {name: Alert(*rest) for name, *rest in _ALERT.findall(ALERTS_FILE.read_text())}
_OURS = [(name, one.expression) for name, one in ALERTS.items() if "estd_" in one.expression]
EXPRESSIONS = [
    pytest.param(expression, id=f"{title}-{number}") for number, (title, expression) in enumerate(TARGETS + _OURS)
]

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


class Case(NamedTuple):
    """What makes an alert fire on the host `bad`, and leaves it quiet on the host `good`, as promtool writes values."""

    series: str
    bad: str
    good: str
    value: str = ""
    """As the summary tells it."""
    beside: tuple[str, ...] = ()
    """More series, the same on both hosts, each with its values."""
    job: str = ""


_SECONDS = "estd_request_seconds_bucket{operation='simpleenroll',le='%s'}"
CASES = {
    "EstdDown": Case("up{job='estd'}", "0x60", "1x60", job="estd"),
    "EstdCannotIssue": Case("estd_ready", "0x60", "1x60"),
    "EstdTokenErrors": Case("estd_token_errors_total{severity='fatal'}", "0x58 1x5", "7x60"),
    "EstdLedgerErrors": Case("estd_rejections_total{reason='ledger_away'}", "0x58 3x5", "3x60"),
    "EstdProcessRestarts": Case("estd_process_restarts_total", "0x50 4x20", "0x50 1x20", "4"),
    "EstdServerErrors": Case(
        "estd_requests_total{status='503'}", "0+2x60", "0+0.5x60", "1.961%",
        ("estd_requests_total{status='200'} 0+100x60",),
    ),
    "EstdSheds": Case("estd_rejections_total{reason='overloaded'}", "0+1x60", "9x60"),
    "EstdQueueFills": Case("estd_queue_depth", "600x60", "0x59 600x5"),
    "EstdSlow": Case(
        _SECONDS % "1.0", "0+90x60", "0+100x60", "2.35s",
        (_SECONDS % "2.5" + " 0+100x60", _SECONDS % "+Inf" + " 0+100x60"),
    ),
    "EstdCrlEnds": Case("estd_crl_next_update_timestamp_seconds", "50000x60", "0x60", "12h 53m 20s"),
    "EstdWebhookFails": Case("estd_rejections_total{reason='webhook_away'}", "0+1x60", "1x60"),
    "EstdApprovalWaits": Case("estd_approvals_oldest_wait_seconds", "14401x60", "14400x60", "4h 0m 1s"),
    "EstdHandshakesFail": Case(
        "estd_handshake_failures_total", "0+30x60", "0+10x60", "30%", ("estd_connections_total 0+100x60",)
    ),
    "EstdReloadRefused": Case("estd_reloads_refused_total", "0x55 1x10", "1x60"),
    "EstdLogDropped": Case("estd_log_lines_dropped_total", "0x55 1x10", "1x60"),
}  # fmt: skip


def on(host: str, series: str) -> str:
    """The series with its host, double quotes for single ones."""
    name, _, labels = series.replace("'", '"').rstrip("}").partition("{")
    return f'{name}{{instance="{host}"{"," if labels else ""}{labels}}}'


def test_prometheus_takes_the_alerts() -> None:
    """promtool finds as many rules as this file reads, and each has its case."""
    promtool("check", "rules", str(ALERTS_FILE))
    assert len(ALERTS) == ALERTS_FILE.read_text().count("- alert:")
    assert set(CASES) == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_and_stays_quiet(alert: str, folder: Path) -> None:
    """promtool: after an hour the alert fires for the host that is in trouble, with its sentence, and for no other."""
    case, rule = CASES[alert], ALERTS[alert]
    wanted = [f"{case.series} {values}" for values in (case.bad, case.good)]
    series = [
        {"series": on(host, one.partition(" ")[0]), "values": one.partition(" ")[2]}
        for host, first in zip(("bad", "good"), wanted, strict=True)
        for one in (first, *case.beside)
    ]
    told = re.sub(r"\{\{ \$value \| \w+ \}\}", case.value, rule.summary)
    told = told.replace("{{ $labels.instance }}", "bad").replace("{{ $labels.severity }}", "fatal")
    fires = {
        "exp_labels": {"instance": "bad", "severity": rule.severity, **({"job": case.job} if case.job else {})},
        "exp_annotations": {"summary": told, "runbook_url": rule.runbook},
    }
    question = {"eval_time": "60m", "alertname": alert, "exp_alerts": [fires]}
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": [question]}]
    path = folder / "test.yml"
    path.write_text(json.dumps({"rule_files": [str(ALERTS_FILE)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(path))


def test_an_alert_says_what_to_do() -> None:
    """Each alert has a severity, a sentence, and a section in the runbook, which has no other."""
    headings = re.findall(r"^### (Estd\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert headings == list(ALERTS)
    for name, one in ALERTS.items():
        assert one.runbook == f"docs/operations.md#{name.lower()}"
        assert one.severity in ("critical", "warning")
        assert one.summary.startswith("{{ $labels.instance }}: ")
        assert one.summary.endswith(".")


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
