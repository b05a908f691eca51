"""`estd size`: its model, its answers in words, data and TOML, and the model against what was measured."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from estd import batch, cli_size, config, costs, sizing
from estd.cli import main
from estd.sizing import Fleet, Host, Sizing, limits, size
from tests import servers

ROOT = Path(__file__).resolve().parent.parent
COSTS = cli_size.reference()
PART = COSTS.part
KEPT, FRESH = COSTS.one_issuer.kept, COSTS.one_issuer.fresh
MILLION = 10**6
TOLERANCE = 0.15
"""By so much what is measured may differ from what costs.toml and the model say."""


def fleet(**different: Any) -> Fleet:
    """Ten million devices as the command takes them by default, but for what is different."""
    usual = Fleet(
        devices=10 * MILLION, validity_seconds=90 * 86400, renew_at=0.67, peak=3.0, kept=0.0, utilisation=0.7,
        cores_per_host=8, within_seconds=None, signature_us=None, signatures_per_second=None,
    )  # fmt: skip
    return replace(usual, **different)


def estd_size(*options: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["size", *options])
    assert result.exit_code == status, result.output
    return result.output


def data(*options: str) -> Any:
    return json.loads(estd_size("--devices", str(10 * MILLION), *options, "--json"))


# The model.


def test_the_rate_is_the_devices_over_the_time_between_renewals() -> None:
    """Ten million devices that renew every 60.3 days are 1.92 a second; a year has 6.05 rows of each device."""
    found = size(COSTS, fleet())
    assert found.average_per_second == pytest.approx(10 * MILLION / (90 * 86400 * 0.67))
    assert found.peak_per_second == pytest.approx(3 * found.average_per_second)
    assert found.sized_per_second == pytest.approx(found.peak_per_second / 0.7)
    assert found.rows_per_year == pytest.approx(10 * MILLION * 365 / 60.3)
    assert found.ledger_bytes_per_year == pytest.approx(found.rows_per_year * COSTS.row_bytes)
    assert found.slack_seconds == pytest.approx(29.7 * 86400)
    assert (found.hosts, found.host.edges, found.host.issuers, found.tokens) == (1, 1, 1, None)


def test_a_host_is_bounded_by_each_of_its_resources() -> None:
    """The limits are the rules of the module, written out for one issuer."""
    host = Host(cores=4, edges=2, issuers=1, sessions=1)
    commit_us = PART.commit_wait_us / 32
    assert limits(COSTS, host, kept=1.0, signature_us=None) == pytest.approx(
        {
            "edges": 2e6 / KEPT.edge_us,
            "issuers": 1e6 / (KEPT.issuer_us + commit_us),
            "cores": 4e6 * PART.busy / (KEPT.edge_us + KEPT.issuer_us + PART.supervisor_us),
        }
    )
    beside = limits(COSTS, host, kept=0.0, signature_us=None, beside_us=1000.0)
    assert beside["edges"] == pytest.approx(2e6 / FRESH.edge_us)
    assert beside["cores"] == pytest.approx(
        4e6 * PART.busy / (FRESH.edge_us + FRESH.issuer_us + PART.supervisor_us + 1000.0)
    )


def test_several_issuers_share_a_writer() -> None:
    """With several issuers a process writes the ledger: they wait for it, and it bounds the instance."""
    each = COSTS.several_issuers.kept
    commit_us = PART.commit_wait_us / 32
    found = limits(COSTS, Host(cores=64, edges=9, issuers=8, sessions=1), kept=1.0, signature_us=None)
    assert found["issuers"] == pytest.approx(8e6 / (each.issuer_us + each.ledger_us + commit_us))
    assert found["the ledger's writer"] == pytest.approx(1e6 / (each.ledger_us + commit_us))
    more = limits(COSTS, Host(cores=64, edges=9, issuers=64, sessions=1), kept=1.0, signature_us=None)
    assert more["the ledger's writer"] == found["the ledger's writer"]


def test_a_token_on_the_network_is_waited_for() -> None:
    """An issuer waits for each signature's time over its sessions, and several sessions have their price."""
    one, four = (
        limits(COSTS, Host(cores=8, edges=1, issuers=1, sessions=sessions), kept=1.0, signature_us=1000.0)["issuers"]
        for sessions in (1, 4)
    )
    own_us = KEPT.issuer_us + PART.commit_wait_us / 32
    assert one == pytest.approx(1e6 / (own_us + 1000))
    assert four == pytest.approx(1e6 / (own_us + PART.hand_over_us + 250))


FLEETS = st.builds(
    fleet,
    devices=st.integers(1, 10 * MILLION),
    validity_seconds=st.integers(3600, 2 * sizing.YEAR_SECONDS).map(float),
    peak=st.floats(1, 50),
    kept=st.floats(0, 1),
    utilisation=st.floats(0.05, 0.95),
    cores_per_host=st.integers(1, 64),
    within_seconds=st.none() | st.integers(60, 86400).map(float),
    signature_us=st.none() | st.floats(10, 20_000),
    signatures_per_second=st.none() | st.floats(1, 50_000),
)


def needs(one: Fleet, found: Sizing) -> list[tuple[float, float]]:
    """What is to be carried: rates, and which of the deployment's speeds they stand against."""
    herd = one.devices / one.within_seconds if one.within_seconds else 0.0
    return [(found.peak_per_second / one.utilisation, found.renewals.per_second), (herd, found.herd.per_second)]


@settings(deadline=None, max_examples=150)
@given(one=FLEETS)
def test_a_deployment_carries_what_it_is_for(one: Fleet) -> None:
    """No resource is asked for more than it gives, the settings are within the configuration's, and the utilisation at
    the peak is at most the one that was planned."""
    found = size(COSTS, one)
    assert all(need <= speed * (1 + 1e-6) for need, speed in needs(one, found))
    assert 1 <= found.host.edges <= 64
    assert 1 <= found.host.issuers <= 64
    assert 1 <= found.host.sessions <= sizing.SESSIONS_MAX
    assert found.cores <= found.host.cores * (1 + 1e-6)
    assert found.memory_full_mib > found.memory_mib > 0
    assert found.herd_seconds == pytest.approx(one.devices / found.herd.per_second)
    assert found.p99_ms > 0


@settings(deadline=None, max_examples=100)
@given(one=FLEETS)
def test_a_deployment_is_the_smallest(one: Fleet) -> None:
    """With one host fewer each would have to carry more than a host of any shape does; with an edge fewer, the edges
    do not carry it."""
    found = size(COSTS, one)
    if found.hosts > 1:
        part = replace(one, devices=math.ceil(one.devices / (found.hosts - 1)))
        assert size(COSTS, part).hosts > 1
    if found.host.edges > 1:
        fewer = replace(found.host, edges=found.host.edges - 1)
        speeds = [
            found.hosts * min(limits(COSTS, fewer, kept=kept, signature_us=one.signature_us).values())
            for kept in (one.kept, 0.0)
        ]
        assert any(need > speed for (need, _), speed in zip(needs(one, found), speeds, strict=True))


@settings(deadline=None, max_examples=100)
@given(one=FLEETS, more=st.floats(1, 10))
def test_more_devices_never_need_less(one: Fleet, more: float) -> None:
    """Rates, rows, tokens and hosts grow with the devices."""
    one = replace(one, devices=min(one.devices, 10**8))
    small, large = size(COSTS, one), size(COSTS, replace(one, devices=int(one.devices * more)))
    assert large.hosts >= small.hosts
    assert large.sized_per_second >= small.sized_per_second
    assert large.rows_per_year >= small.rows_per_year
    assert large.ledger_bytes_first >= small.ledger_bytes_first
    assert (large.tokens or 0) >= (small.tokens or 0)


@settings(deadline=None, max_examples=50)
@given(one=FLEETS)
def test_twice_the_devices_are_twice_the_rate(one: Fleet) -> None:
    """So are half the validity, and twice the peak but for the average."""
    one = replace(one, within_seconds=None)
    rate = size(COSTS, one).sized_per_second
    for twice in ({"devices": 2 * one.devices}, {"validity_seconds": one.validity_seconds / 2}, {"peak": 2 * one.peak}):
        assert size(COSTS, replace(one, **twice)).sized_per_second == pytest.approx(2 * rate)
    assert size(COSTS, replace(one, peak=2 * one.peak)).average_per_second == size(COSTS, one).average_per_second


def test_a_herd_scales_with_its_time() -> None:
    """Half the time needs about twice the hosts, once they are many, and each is let in within the time."""
    slow, fast = (size(COSTS, fleet(devices=10**9, within_seconds=seconds)) for seconds in (3600.0, 1800.0))
    assert fast.hosts == pytest.approx(2 * slow.hosts, rel=0.02)
    assert slow.herd_seconds <= 3600
    assert fast.herd_seconds <= 1800


def test_what_no_hosts_carry_is_said() -> None:
    """An impossible fleet is a sentence, not a number."""
    with pytest.raises(ValueError, match="no 1,000,000 hosts carry that"):
        size(COSTS, fleet(devices=10**18, within_seconds=1.0))


def test_the_models_constants_are_the_servers(folder: Path) -> None:
    """A batch, the numbers of processes, connections and seconds that the model has by heart are those of estd."""
    assert batch.BATCH_MAX == sizing.BATCH_ROWS
    made = servers.init(folder / "instance").config

    def settings_of(setting: str) -> config.Config:
        return config.parse(made.read_text().replace("[server]\n", f"[server]\n{setting}\n"), made.parent)

    usual = settings_of("")
    assert usual.server.max_connections == sizing.CONNECTIONS_MAX
    assert usual.server.idle_seconds == cli_size.IDLE_SECONDS
    assert 2 * usual.labels["default"].repeat_seconds == sizing.REPEATS_SECONDS
    for kind in ("edges", "issuers"):
        settings_of(f"{kind} = {sizing.PROCESSES_MAX}")
        with pytest.raises(config.ConfigError):
            settings_of(f"{kind} = {sizing.PROCESSES_MAX + 1}")


# The command.

CHANGES: list[tuple[tuple[str, ...], Callable[[Any, Any], bool]]] = [
    (("--validity", "45d"), lambda new, old: new["average_per_second"] == pytest.approx(2 * old["average_per_second"])),
    (("--renew-at", "0.335"), lambda new, old: new["rows_per_year"] == pytest.approx(2 * old["rows_per_year"])),
    (("--peak", "6"), lambda new, old: new["peak_per_second"] == pytest.approx(2 * old["peak_per_second"])),
    (("--kept", "1"), lambda new, old: new["renewals"]["per_second"] > 2 * old["renewals"]["per_second"]),
    (("--kept", "1"), lambda new, old: new["herd"] == old["herd"]),
    (("--first-enrolments-within", "1h"), lambda new, _: new["sized_per_second"] == pytest.approx(1e7 / 3600)),
    (("--first-enrolments-within", "1h"), lambda new, _: 1800 < new["herd_seconds"] <= 3600),
    (("--utilisation", "0.35"), lambda new, old: new["sized_per_second"] == pytest.approx(2 * old["sized_per_second"])),
    (("--utilisation", "0.9"), lambda new, old: new["p99_ms"] > 2 * old["p99_ms"]),
    (("--signature", "5ms"), lambda new, old: new["renewals"]["saturates_first"] == "issuers"),
    (("--signature", "5ms"), lambda new, old: new["p99_ms"] > old["p99_ms"] + 10),
    (("--signatures-per-second", "2"), lambda new, _: new["tokens"] == math.ceil(new["sized_per_second"] / 2)),
    (("--signatures-per-second", "9"), lambda new, _: new["renewals"]["saturates_first"] == "tokens"),
    (("--cores-per-host", "1"), lambda new, old: new["renewals"]["saturates_first"] == "cores"),
    (("--cores-per-host", "16", "--first-enrolments-within", "10m"), lambda new, _: new["hosts"] == 2),
]


@pytest.mark.parametrize(("options", "holds"), CHANGES, ids=lambda one: " ".join(one) if isinstance(one, tuple) else "")
def test_every_flag_has_its_effect(options: tuple[str, ...], holds: Callable[[Any, Any], bool]) -> None:
    """Each option changes the answer as it says."""
    assert holds(data(*options), data())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "Missing option '--devices'"),
        (("--devices", "0"), "0 is not in the range"),
        (("--devices", "1", "--validity", "90"), "'90' is not a duration such as 90d, 12h or 10m"),
        (("--devices", "1", "--validity", "0d"), "must be longer than nothing"),
        (("--devices", "1", "--first-enrolments-within", "soon"), "'soon' is not a duration"),
        (("--devices", "1", "--signature", "1"), "'1' is not a time such as 1ms, 0.5ms or 800us"),
        (("--devices", "1", "--signature", "0ms"), "'0ms' is not a time such as 1ms"),
        (("--devices", "1", "--renew-at", "1.5"), "1.5 is not in the range"),
        (("--devices", "1", "--peak", "0.5"), "0.5 is not in the range"),
        (("--devices", "1", "--peak", "nan"), "is not a number"),
        (("--devices", "1", "--peak", "inf"), "inf is not in the range"),
        (("--devices", "1", "--kept", "2"), "2.0 is not in the range"),
        (("--devices", "1", "--utilisation", "1"), "1.0 is not in the range"),
        (("--devices", "1", "--signatures-per-second", "0"), "0.0 is not in the range"),
        (("--devices", "1", "--cores-per-host", "0"), "0 is not in the range"),
        (("--devices", "1", "--measured", "absent.json"), "does not exist"),
    ],
)
def test_a_bad_option_is_a_sentence(options: tuple[str, ...], sentence: str) -> None:
    """What cannot be reckoned with ends with status 2 and the option's name."""
    said = " ".join(estd_size(*options, status=2).split())
    assert sentence in said
    assert options[-2:-1] == () or options[-2] in said


def test_too_large_a_fleet_is_a_sentence() -> None:
    """What no deployment carries ends with status 1."""
    said = estd_size("--devices", str(10**12), "--first-enrolments-within", "1s", status=1)
    assert said.startswith("Error: no 1,000,000 hosts carry that")


def test_words_and_data_say_the_same() -> None:
    """The words hold the rates, the numbers, the TOML and the remarks of the data."""
    options = ("--first-enrolments-within", "5m", "--signature", "1ms")
    said, told = estd_size("--devices", str(10 * MILLION), *options), data(*options)
    assert f"{told['sized_per_second']:,.1f}/s" in said
    assert f"{told['hosts']:,}, each with 8 cores" in said
    assert f"{told['host']['edges']} edges, {told['host']['issuers']} issuers, the ledger's writer" in said
    assert f"saturates first: {told['renewals']['saturates_first']}" in said
    assert told["toml"] in said
    assert len(told["remarks"]) == 3
    assert all(f"- {remark}\n" in said for remark in told["remarks"])
    assert told["costs"]["measured"] in said


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ((), "Nothing was said of the day"),
        (("--first-enrolments-within", "1d", "--signatures-per-second", "50"), "An instance knows one token"),
    ],
)
def test_remarks(options: tuple[str, ...], start: str) -> None:
    """What the figures alone would hide is said in a sentence, and only where it matters."""
    (remark,) = [one for one in data(*options)["remarks"] if one.startswith(start)]
    assert remark.endswith(".")
    assert not any(one.startswith(start) for one in data("--first-enrolments-within", "1d")["remarks"])


def test_a_roll_out_says_when_open_connections_close() -> None:
    """The `idle` that is recommended leaves the edges places enough at the rate of the herd."""
    told = data("--first-enrolments-within", "30m")
    (remark,) = [one for one in told["remarks"] if "idle" in one]
    found = re.search(r'idle = "(\d+)s"', remark)
    assert found
    places = told["hosts"] * told["host"]["edges"] * sizing.CONNECTIONS_MAX
    assert int(found[1]) * told["herd"]["per_second"] <= places < (int(found[1]) + 1) * told["herd"]["per_second"]


def paste(toml: str, text: str) -> str:
    """The settings of `toml` in the tables of that name in a configuration."""
    for table, keys in tomllib.loads(toml).items():
        lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
        text, count = re.subn(rf"^\[{table}\]\n", f"[{table}]\n{lines}", text, flags=re.MULTILINE)
        assert count == 1
    return text


@pytest.mark.parametrize(
    "options",
    [(), ("--first-enrolments-within", "1h"), ("--first-enrolments-within", "1m", "--signature", "3ms")],
)
def test_the_toml_is_estds(folder: Path, options: tuple[str, ...]) -> None:
    """The settings that are printed are accepted in an instance's file, and are the deployment's."""
    made = servers.init(folder / "instance").config
    told = data(*options)
    read = config.parse(paste(told["toml"], made.read_text()), made.parent)
    assert (read.server.edges, read.server.issuers) == (told["host"]["edges"], told["host"]["issuers"])
    assert read.token.sessions == told["host"]["sessions"]


def test_a_server_runs_as_it_is_told(folder: Path) -> None:
    """An instance with the settings of the answer has these processes, and is ready."""
    made = servers.init(folder / "instance")
    host = data("--first-enrolments-within", "1h")["host"]
    assert host["issuers"] > 1
    made.config.write_text(paste(Host(**host).toml(), made.config.read_text()))
    with servers.running(made):
        roles = sorted(name.partition("-")[0] for name in made.pids())
        assert roles == sorted(["edge"] * host["edges"] + ["issuer"] * host["issuers"] + ["ledger"])


# A round of one's own.


WHAT = "simpleenroll at 127.0.0.1:8443/.well-known/est, certificate, TLS 1.3, closed loop over 64 "


def run_of(cost: costs.Enrolment, rate: float, *, fresh: bool) -> dict[str, Any]:
    """A closed loop as bench.fleet writes it, as far as it is read."""
    used = {"supervisor": PART.supervisor_us, "edge 0": cost.edge_us, "issuer 0": cost.issuer_us}
    commit_us = PART.commit_wait_us + 20 * PART.row_us
    return {
        "what": WHAT + ("fresh connections" if fresh else "keep-alive"),
        "scenario": "",
        "enrolments": 1000,
        "events": {"connections opened": 1000 if fresh else 64},
        "rate_per_second": rate,
        "generator_cpu_us_per_enrolment": 100.0,
        "processes": [{"label": label, "cpu_us_per_enrolment": us} for label, us in used.items()],
        "machine": {"cores": 2},
        "metrics": {
            "estd_commit_seconds": {"": {"le": [1.0], "count": [50, 0], "sum": 50 * commit_us / 1e6}},
            "estd_batch_size": {"": {"le": [32], "count": [50, 0], "sum": 1000}},
        },
    }


def round_of(factor: float = 1.0) -> dict[str, Any]:
    """A round of the reference machine, or of one where all CPU takes `factor` as long."""

    def times(cost: costs.Enrolment) -> costs.Enrolment:
        return costs.Enrolment(edge_us=cost.edge_us * factor, issuer_us=cost.issuer_us * factor, ledger_us=0.0)

    def rate(cost: costs.Enrolment) -> float:
        return PART.busy * 2e6 / (PART.supervisor_us + cost.edge_us + cost.issuer_us + 100.0)

    kept, fresh = times(KEPT), times(FRESH)
    other = run_of(times(fresh), 10.0, fresh=True)
    return {
        "began": "2026-11-22T12:00:00+00:00",
        "machine": {"cpu": "A CPU", "cores": 2},
        "floor": {"a row of the ledger, batch of 32": PART.row_us},
        "runs": [
            run_of(kept, rate(kept), fresh=False),
            run_of(fresh, rate(fresh), fresh=True),
            other
            | {"what": "simpleenroll at 127.0.0.1:8443, certificate, TLS 1.3, open loop of 10/s over 64 keep-alive"},
            other | {"what": other["what"].replace("64", "16")},
            other | {"what": other["what"].replace("simpleenroll", "simplereenroll")},
            other | {"scenario": "herd"},
        ],
    }


def test_a_round_of_the_reference_is_the_reference() -> None:
    """What is read from a round is what it was made of; the runs that saturate nothing are passed over."""
    made = round_of()
    made["runs"].reverse()
    assert len(costs.saturated(made)) == 2
    found = costs.calibrated(COSTS, made)
    assert found.part.busy == pytest.approx(PART.busy)
    assert found.part.commit_wait_us == pytest.approx(PART.commit_wait_us)
    assert found.measured == "A CPU, 2026-11-22T12:00:00+00:00"
    assert found.one_issuer == COSTS.one_issuer
    assert found.several_issuers == COSTS.several_issuers
    assert found.memory == COSTS.memory


def test_a_slower_machine_needs_more(folder: Path) -> None:
    """On a machine where everything takes twice as long, the same fleet needs twice the hosts."""
    path = folder / "round.json"
    path.write_text(json.dumps(round_of(2.0)))
    options = ("--first-enrolments-within", "1m")
    slow, usual = data(*options, "--measured", str(path)), data(*options)
    assert slow["hosts"] == pytest.approx(2 * usual["hosts"], rel=0.1)
    several = slow["costs"]["several_issuers"]["fresh"]
    assert several["issuer_us"] == pytest.approx(2 * COSTS.several_issuers.fresh.issuer_us)


def without_metrics(made: Any) -> None:
    for one in made["runs"]:
        one["metrics"] = {}


def test_a_round_without_metrics_has_the_references_disk() -> None:
    """A server whose admin port was not read tells nothing of its disk."""
    made = round_of()
    without_metrics(made)
    assert costs.calibrated(COSTS, made).part.commit_wait_us == PART.commit_wait_us


def second_issuer(made: Any) -> None:
    made["runs"][0]["processes"].append({"label": "ledger 0", "cpu_us_per_enrolment": 40.0})


def no_server(made: Any) -> None:
    made["runs"][1]["processes"] = []


def only_kept(made: Any) -> None:
    del made["runs"][1:]


def no_floor(made: Any) -> None:
    made["floor"] = {}


def no_runs(made: Any) -> None:
    del made["runs"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (second_issuer, "it was measured with a process 'ledger'"),
        (no_server, "the server's processes were not seen"),
        (only_kept, "it lacks a closed loop of simpleenroll over 64 connections, kept or fresh"),
        (no_floor, "its floor is missing"),
        (no_runs, "it is no round of python -m bench.round"),
    ],
)
def test_a_round_that_says_too_little_is_a_sentence(folder: Path, spoil: Callable[[Any], None], sentence: str) -> None:
    """A file that cannot be reckoned with ends with status 1, its name and why."""
    made = deepcopy(round_of())
    spoil(made)
    path = folder / "round.json"
    path.write_text(json.dumps(made))
    said = estd_size("--devices", "1", "--measured", str(path), status=1)
    assert said.startswith(f"Error: {path}: {sentence}")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"3", b"null"])
def test_a_file_that_is_no_round_is_a_sentence(folder: Path, content: bytes) -> None:
    """So does a file of something else."""
    path = folder / "round.json"
    path.write_bytes(content)
    said = estd_size("--devices", "1", "--measured", str(path), status=1)
    assert re.search(r"it is (no round|not JSON)", said)


def test_a_row_is_as_large_as_it_says(folder: Path) -> None:
    """A ledger of real rows has the size that the answer says, within what names make of it."""
    made = servers.init(folder / "instance")
    command = [sys.executable, "-m", "bench.fill", str(made.folder), "--rows", "20000", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["ledger_bytes"] / 20_000 == pytest.approx(COSTS.row_bytes, rel=TOLERANCE)


# The model against the round that the repository keeps.

RESULTS = ROOT / "bench" / "results"


@pytest.fixture(scope="module")
def landmark() -> Any:
    """The latest round of bench/results."""
    rounds = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    rounds = [one for one in rounds if "runs" in one]
    if not rounds:
        pytest.fail("there is no round in bench/results: keep one there that python -m bench.round --full has made")
    return max(rounds, key=lambda one: one["began"])


def test_the_costs_are_those_of_the_landmark(landmark: Any) -> None:
    """costs.toml says of an enrolment what the round measured."""
    measured = costs.calibrated(COSTS, landmark)
    for ours, theirs in ((KEPT, measured.one_issuer.kept), (FRESH, measured.one_issuer.fresh)):
        assert ours.edge_us == pytest.approx(theirs.edge_us, rel=TOLERANCE)
        assert ours.issuer_us == pytest.approx(theirs.issuer_us, rel=TOLERANCE)
    assert PART.row_us == pytest.approx(measured.part.row_us, rel=TOLERANCE)
    assert PART.busy == pytest.approx(measured.part.busy, rel=TOLERANCE)


@pytest.mark.parametrize("fresh", [False, True], ids=["kept", "fresh"])
def test_the_model_predicts_the_landmark(landmark: Any, fresh: bool) -> None:
    """The rate that the model gives the machine of the round, with the generator on the same cores, is the rate that
    each of its saturating runs reached."""
    for run in (run for run in costs.saturated(landmark) if run.fresh is fresh):
        host = Host(cores=run.cores, edges=1, issuers=1, sessions=1)
        allowed = limits(COSTS, host, kept=float(not fresh), signature_us=None, beside_us=run.generator_us)
        assert min(allowed.values()) == pytest.approx(run.rate_per_second, rel=TOLERANCE)
