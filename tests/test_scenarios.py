"""The scenarios of the load generator: each, at a small size, tells what the server's own metrics tell."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import mix, scenario_file, scrape, series
from bench.aborts import ABORTS, FAILED_HANDSHAKES
from bench.course import Measured, Result
from bench.figures import Origin, make_report
from bench.histogram import HIGHEST_US, Latencies, merged
from bench.plan import Step, interleave, often
from bench.printed import as_table
from bench.procstat import MachineTime
from bench.ramp import Ramp, Tried, highest_held, next_rate
from bench.scenario import Goals, Scenario, complete, override
from bench.series import CpuSeries
from bench.tally import MixRow, Second, Tally
from tests import servers
from tests.servers import Server, wait_for
from tests.test_fleet import ROOT, fleet, report

ANY_P99 = ("--p99", "120s")
"""The machine may be busy: how fast it is, is for the bench to say, not for a test."""


class Counted:
    """What the server has counted since this was made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._text = server.admin("/metrics")[1]

    def __call__(self, name: str, **labels: str) -> float:
        return self._server.metric(name, **labels) - self._sum(name, labels)

    def _sum(self, name: str, labels: dict[str, str]) -> float:
        return sum(
            float(line.rpartition(" ")[2])
            for line in self._text.splitlines()
            if line.split("{")[0].split(" ")[0] == name and all(f'{k}="{v}"' in line for k, v in labels.items())
        )


def hold_together(made: dict[str, Any]) -> None:
    """The series, the histogram and the server's own histograms are of the same requests as the figures."""
    steps = made["steps"] or [made]
    enrolled = sum(step["enrolments"] for step in steps)
    second = made["series"]
    assert second["seconds"] == list(range(1, len(second["seconds"]) + 1))
    assert sum(second["good"]) == enrolled
    assert sum(second["shed"]) == sum(step["shed"] for step in steps)
    assert [value is not None for value in second["p99_us"]] == [good > 0 for good in second["good"]]
    latencies = Latencies(made["hdr"].encode())
    assert latencies.count() == made["enrolments"]
    assert latencies.percentiles() == made["latency_us"]
    cpu = made["cpu_series"]
    assert {"supervisor", "edge 0", "issuer 0", "generators"} <= set(cpu["processes"])
    assert {len(values) for values in cpu["processes"].values()} == {len(cpu["seconds"])}
    assert cpu["seconds"] == sorted(cpu["seconds"])
    assert sum(cpu["processes"]["generators"]) > 0
    assert sum(made["metrics"]["estd_batch_size"][""]["count"]) > 0
    for labels in made["metrics"].values():
        assert all(len(one["count"]) == len(one["le"]) + 1 for one in labels.values())


def answered(made: dict[str, Any], operation: str) -> float:
    return float(sum(made["metrics"]["estd_request_seconds"][operation]["count"]))


def test_steady(server: Server) -> None:
    """The capacity is measured first; what both enrolled is what the server issued, and the flow is a part of it."""
    counted = Counted(server)
    made = report(server, "--scenario", "steady", "--seconds", "2", "--count", "200", "--connections", "8", *ANY_P99)
    assert made["passed"]
    assert made["scenario"] == "steady"
    assert counted("estd_certificates_total") == made["enrolments"] + made["capacity"]["enrolments"]
    assert answered(made, "simpleenroll") == made["enrolments"]
    assert made["metrics"]["estd_batch_size"][""]["sum"] == made["enrolments"]
    offered = 0.7 * made["capacity"]["rate_per_second"]
    assert made["requests"] == pytest.approx(min(200, 2 * offered), abs=2)
    assert made["late_us"]
    hold_together(made)


def test_ramp(server: Server) -> None:
    """Each step is in the report, with the rates that a ramp has whose goals all hold; together they are what the
    server issued."""
    counted = Counted(server)
    options = ("--rate", "40/s", "--to", "120/s", "--seconds", "1", "--connections", "8")
    made = report(server, "--scenario", "ramp", *options, *ANY_P99)
    assert made["passed"]
    assert [step["rate_per_second"] for step in made["steps"]] == [40, 60, 90, 120]
    assert [step["enrolments"] for step in made["steps"]] == [40, 60, 90, 120]
    assert all(step["held"] and step["errors"] == 0 for step in made["steps"])
    assert counted("estd_certificates_total") == answered(made, "simpleenroll") == 310
    assert made["enrolments"] == 120
    hold_together(made)


def test_a_ramp_that_nothing_holds(server: Server) -> None:
    """A ramp whose first rate misses its goals twice ends there, and with 1."""
    options = ("--rate", "20/s", "--seconds", "1", "--connections", "2", "--p99", "1us")
    made = report(server, "--scenario", "ramp", *options, status=1)
    assert [(step["rate_per_second"], step["held"]) for step in made["steps"]] == [(20, False), (20, False)]
    assert "no rate held" in made["missed"][-1]


def test_herd(server: Server) -> None:
    """All devices enrol once, each on a connection of its own."""
    counted = Counted(server)
    made = report(server, "--scenario", "herd", "--herd", "40", *ANY_P99)
    assert made["passed"]
    assert made["enrolments"] == counted("estd_certificates_total") == 40
    repeats = made["events"].get("retries", 0)
    assert made["events"]["connections opened"] == 40 + repeats == answered(made, "simpleenroll")
    hold_together(made)


def test_a_herd_that_is_shed_comes_back_when_told(folder: Path) -> None:
    """A server with no room for a herd tells it when to come back; each device obeys and gets its certificate."""
    small = servers.init(folder / "instance")
    text = small.config.read_text()
    small.config.write_text(text.replace("# queue = 1024", "queue = 1", 1))
    with servers.running(small):
        counted = Counted(small)
        made = report(small, "--scenario", "herd", "--herd", "16", *ANY_P99)
        assert made["passed"]
        assert made["enrolments"] == counted("estd_certificates_total") == 16
        shed = counted("estd_requests_total", status="503")
        assert shed > 0
        assert shed == made["events"]["answers with Retry-After"] == made["events"]["retries"]
        assert made["seconds"] >= 2  # the least that the server asks for


def test_renewals(server: Server) -> None:
    """Devices get the certificate that they renew first; each renewal has a connection of its own."""
    counted = Counted(server)
    made = report(server, "--scenario", "renewals", "--count", "40", "--devices", "8")
    assert made["passed"]
    assert made["enrolments"] == answered(made, "simplereenroll") == 40
    assert counted("estd_certificates_total") == 40 + 8
    assert counted("estd_requests_total", operation="simplereenroll", status="200") == 40
    assert made["events"]["connections opened"] == 40
    hold_together(made)


def test_mixed(server: Server) -> None:
    """Each kind of request comes out as it has to, and the server counted them under the same status."""
    counted = Counted(server)
    options = ("--count", "200", "--rate", "100/s", "--devices", "6", "--generators", "2")
    made = report(server, "--scenario", "mixed", *options, *ANY_P99)
    assert made["passed"]
    assert made["requests"] == 200
    weights = scenario_file.read("mixed").mix
    sent = {name: row["sent"] for name, row in made["mix"].items()}
    assert sent == dict(zip(weights, [2 * most for most in often(list(weights.values()), 100)], strict=True))
    assert set(sent) == set(mix.NAMES)
    assert all(row["expected"] == row["sent"] and row["unexpected"] == 0 for row in made["mix"].values())
    assert made["enrolments"] == sent["enroll"] + sent["renew"]
    assert counted("estd_certificates_total") == made["enrolments"] + 6
    for name, status in mix.BAD.items():
        alike = sum(sent[other] for other, one in mix.BAD.items() if one == status)
        assert counted("estd_requests_total", status=str(status)) == alike, name
    assert counted("estd_rejections_total", reason="bad_signature") == sent["bad_signature"]
    assert counted("estd_rejections_total", reason="not_base64") == sent["bad_base64"]
    assert counted("estd_rejections_total", reason="bad_http") == sent["bad_http"]
    assert counted("estd_requests_total", operation="cacerts", status="200") == sent["cacerts"]
    failed = sum(sent[name] for name in FAILED_HANDSHAKES)
    wait_for(lambda: counted("estd_handshake_failures_total") >= failed, 20)
    assert counted("estd_handshake_failures_total") == failed
    assert counted("estd_connections_total") == 200 + 6 + 1  # those of the first certificates, and a look at the start
    hold_together(made)


def test_an_unexpected_answer_fails_a_mix(server: Server, folder: Path) -> None:
    """A kind whose answer is another than it has to be is an error with the kind's name."""
    scenario = folder / "wrong.toml"
    scenario.write_text('about = "x"\ncount = 12\nfresh = true\n[mix]\ncacerts = 1\nenroll = 1\nbad_base64 = 1\n')
    made = report(server, "--scenario", str(scenario), "--connections", "4", "--label", "closed", status=1)
    assert made["errors"] == {"enroll: status 401": 4}
    assert made["mix"]["cacerts"]["expected"] == made["mix"]["bad_base64"]["expected"] == 4


def test_a_stall_is_seen_by_all_who_came_meanwhile(server: Server) -> None:
    """Latency counts from when a request was due: while the issuer stands still, an open loop's requests wait in the
    generator for one of few connections, and all of them are late, not only those few."""
    command = [
        sys.executable, "-m", "bench.fleet", server.url, "--instance", str(server.folder), "--json", "--rate", "100/s",
        "--count", "300", "--connections", "2",
    ]  # fmt: skip
    counted = Counted(server)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: counted("estd_certificates_total") >= 20, 60)
        issuer = server.pids()["issuer-0"]
        os.kill(issuer, signal.SIGSTOP)
        threading.Event().wait(1.0)
        os.kill(issuer, signal.SIGCONT)
        out, _ = process.communicate(timeout=60)
    made = json.loads(out)
    assert made["enrolments"] == 300
    # A hundred were due within the second, and at least half of them waited for more than 0.4 s: a sixth of all.
    assert made["latency_us"]["p90"] > 400_000


def test_the_table_tells_steps_and_kinds(server: Server) -> None:
    """What a scenario adds to the figures is for people too."""
    out = fleet(server, "--scenario", "mixed", "--count", "24", "--rate", "100/s", "--devices", "2", *ANY_P99).stdout
    assert "mixed: a mix of requests" in out
    assert "close_after_handshake" in out
    assert "of a core" in out


# What needs no server.


@pytest.mark.parametrize("name", scenario_file.names())
def test_each_scenario_is_whole(name: str) -> None:
    """Each file reads strictly, says in a line what it is about, and contradicts nothing."""
    scenario = scenario_file.read(name)
    assert scenario.name == name
    assert scenario.about.endswith(".")
    assert "\n" not in scenario.about
    assert complete(scenario).about == scenario.about


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seconds = '5s'", "about: is missing"),
        ('about = "x"\nconections = 4', "conections: is not a key that a scenario has"),
        ('about = "x"\n[ramp]\nstep = 4', "ramp.step: is not a key"),
        ('about = "x"\n[mix]\nenrol = 4', "mix.enrol: is not a key"),
        ('about = "x"\n[goals]\np98 = "1s"', "goals.p98: is not a key"),
        ('about = "x"\nrate = 100', "rate: 100 is not a rate"),
        ('about = "x"\nrate = "fast"', "rate: 'fast' is not a rate"),
        ('about = "x"\nshare = 0', "share: 0 is not"),
        ('about = "x"\nseconds = 5', "seconds: 5 is not a duration"),
        ('about = "x"\ncount = true', "count: True is not a whole number"),
        ('about = "x"\nherd = 0', "herd: 0 is not how many"),
        ('about = "x"\noperation = "cacerts"', "operation: 'cacerts' is not one of simpleenroll"),
        ('about = "x"\n[mix]\nenroll = -1', "mix.enroll: -1 is not a whole number"),
        ('about = "x"\n[ramp]\nfactor = 1', "ramp.factor: 1 is not a number"),
        ('about = "x"\n[ramp]\nprecision = 0.001', "ramp.precision: 0.001 is not"),
        ('about = "x"\n[goals]\nerrors = 2', "goals.errors: 2 is not"),
        ("about = ", "not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, told: str) -> None:
    """Each problem names its key."""
    with pytest.raises(scenario_file.ScenarioError) as raised:
        scenario_file.parse(text, "x")
    assert told in str(raised.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    """A file with two problems is corrected in one go."""
    with pytest.raises(scenario_file.ScenarioError) as raised:
        scenario_file.parse('about = "x"\nfoo = 1\nbar = 2', "x")
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"generators": 65}, "generators"),
        ({"rate_per_second": 5.0, "share": 0.5}, "rate and share"),
        ({"herd": 5, "rate_per_second": 5.0}, "herd"),
        ({"herd": 5, "count": 5}, "herd"),
        ({"ramp": Ramp()}, "ramp"),
        ({"ramp": Ramp(to_per_second=1.0), "rate_per_second": 2.0, "seconds": 1.0}, "last rate"),
        ({"mix": {"enroll": 1}}, "fresh"),
        ({"mix": {"enroll": 1}, "fresh": True, "operation": "simplereenroll"}, "operation"),
    ],
)
def test_contradictions_are_told(values: dict[str, Any], told: str) -> None:
    """Values that each are right and do not go together are no scenario."""
    with pytest.raises(ValueError, match=told):
        complete(Scenario(**values))


def test_the_command_line_overrides_the_file() -> None:
    """A rate replaces a share and back; what is not given stays; a herd's size is all of its sizes."""
    file = Scenario(share=0.5, seconds=9.0)
    assert override(file, {"rate_per_second": 7.0, "tries": None}) == Scenario(rate_per_second=7.0, seconds=9.0)
    assert override(Scenario(rate_per_second=7.0), {"share": 0.5}) == Scenario(share=0.5)
    herd = complete(Scenario(herd=7))
    assert (herd.count, herd.connections, herd.devices, herd.fresh) == (7, 7, 7, True)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--scenario", "calm"), "herd, mixed, ramp, renewals, steady"),
        (("--scenario", "herd", "--rate", "5/s"), "herd"),
        (("--scenario", "ramp", "--count", "5"), "ramp"),
        (("--to", "5/s"), "--to"),
    ],
)
def test_a_wrong_scenario_is_told(server: Server, option: Sequence[str], told: str) -> None:
    """It ends with 2 and a sentence, before anything is sent."""
    counted = Counted(server)
    assert told in " ".join(fleet(server, *option, status=2).stderr.split())
    assert counted("estd_connections_total") == 0


# The search of a ramp.


def climb(capacity_per_second: float, ramp: Ramp, first: float, spoiled: frozenset[int] = frozenset()) -> list[Tried]:
    """The steps against a server that holds every rate up to its capacity, but in the spoiled steps."""
    tried: list[Tried] = []
    while (rate := next_rate(ramp, first, tried)) is not None:
        tried.append(Tried(rate_per_second=rate, held=rate <= capacity_per_second and len(tried) not in spoiled))
        assert len(tried) < 200
    return tried


@settings(max_examples=200)
@given(capacity=st.floats(100, 100_000), factor=st.floats(1.05, 4), precision=st.floats(0.01, 0.5))
def test_a_ramp_finds_the_capacity(capacity: float, factor: float, precision: float) -> None:
    """The highest rate that held is the capacity within the precision, and the ramp goes no further than it must."""
    tried = climb(capacity, Ramp(to_per_second=200_000, factor=factor, precision=precision), 100)
    best = highest_held(tried)
    assert best is not None
    assert best <= capacity <= best * max(1 + precision, 1.0) * 1.0000001
    first_miss = next(index for index, one in enumerate(tried) if not one.held)
    assert max(one.rate_per_second for one in tried) == tried[first_miss].rate_per_second


def test_a_ramp_ends_at_its_last_rate() -> None:
    """A server that holds everything is asked up to the last rate, and not beyond."""
    assert [one.rate_per_second for one in climb(1e9, Ramp(to_per_second=500, factor=2), 100)] == [100, 200, 400, 500]


def test_a_ramp_repeats_what_a_neighbour_spoiled() -> None:
    """A step that misses once and then holds does not end the rise."""
    tried = climb(1e9, Ramp(to_per_second=400, factor=2), 100, spoiled=frozenset({1}))
    assert [(one.rate_per_second, one.held) for one in tried] == [(100, True), (200, False), (200, True), (400, True)]


def test_a_ramp_that_holds_nothing_says_so() -> None:
    """When the first rate misses each time there is no answer."""
    tried = climb(50, Ramp(repeats=2), 100)
    assert [one.rate_per_second for one in tried] == [100, 100, 100]
    assert highest_held(tried) is None


@pytest.mark.parametrize(
    ("p99_us", "failed", "held"), [(999.0, 1, True), (1001.0, 0, False), (999.0, 2, False), (None, 0, False)]
)
def test_the_goals_of_a_step(p99_us: float | None, failed: int, held: bool) -> None:
    """p99 and the part of the requests that fail both hold, and something was enrolled."""
    assert Goals(p99_us=1000.0, errors=0.01).hold(p99_us=p99_us, failed=failed, requests=100) is held


# The parts that are merged.


@settings(max_examples=50)
@given(values=st.lists(st.floats(0, 3 * HIGHEST_US), min_size=1, max_size=200), cut=st.integers(0, 200))
def test_histograms_can_be_merged(values: list[float], cut: int) -> None:
    """Two halves that were recorded apart, encoded and decoded are the whole."""
    whole, one, two = Latencies(), Latencies(), Latencies()
    for index, value in enumerate(values):
        whole.record(value)
        (one if index < cut else two).record(value)
    joined = merged((Latencies(one.encode()), pickle.loads(pickle.dumps(two))))
    assert joined.count() == len(values)
    assert joined.percentiles() == pytest.approx(whole.percentiles(), rel=0.001)
    largest = min(max(values), HIGHEST_US)
    assert whole.percentiles()["max"] == pytest.approx(largest, rel=0.001, abs=1)


def second(*latencies_us: float, shed: int = 0, errors: int = 0) -> Second:
    histogram = Latencies()
    for one in latencies_us:
        histogram.record(one)
    return Second(good=len(latencies_us), shed=shed, errors=errors, latencies=histogram.encode())


def test_tallies_of_two_generators_become_one() -> None:
    """Seconds are added one to one, also where one generator ended earlier; the busiest stays the busiest."""
    one = Tally(good=2, settled=3, seconds=[second(10, 20, errors=1)], busiest_share=0.5, finished=7.0, cpu_seconds=1)
    one.mix = {"enroll": MixRow(sent=3, expected=2)}
    two = Tally(good=2, settled=3, seconds=[second(30), second(40, shed=1)], busiest_share=0.2, cpu_seconds=1)
    two.mix = {"enroll": MixRow(sent=3, expected=2, shed=1), "cacerts": MixRow(sent=1, expected=1)}
    total = Tally()
    for part in (one, two):
        total.add(pickle.loads(pickle.dumps(part)))
    assert (total.good, total.settled, total.busiest_share, total.cpu_seconds, total.finished) == (4, 6, 0.5, 2, 7.0)
    assert total.latencies().percentiles((50.0,)) == {"p50": 20, "max": 40}
    assert {name: (row.sent, row.unexpected) for name, row in total.mix.items()} == {
        "enroll": (6, 1),
        "cacerts": (1, 0),
    }
    assert series.answers([total.seconds]) == {
        "seconds": [1, 2],
        "good": [3, 1],
        "shed": [0, 1],
        "errors": [1, 0],
        "p50_us": [20, 40],
        "p99_us": [30, 40],
    }


@given(weights=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(any), requests=st.integers(0, 300))
def test_kinds_are_evenly_spread(weights: list[int], requests: int) -> None:
    """In a period each kind comes as often as its weight, and `often` counts what a generator sends."""
    period = interleave(weights)
    assert [Counter(period)[index] for index in range(len(weights))] == weights
    sent = Counter((period * (requests // len(period) + 1))[:requests])
    assert often(weights, requests) == [sent[index] for index in range(len(weights))]


def test_the_cpu_of_a_replaced_process_goes_on() -> None:
    """A process that appears used all it has since the last look; a short last interval is joined to the one before."""
    cpu = CpuSeries()
    cpu.look(0.0, {"edge 0": 10**9})
    cpu.look(1.0, {"edge 0": 2 * 10**9})
    cpu.look(2.0, {"edge 0": 2 * 10**9, "issuer 0": 10**8})
    cpu.look(2.25, {"edge 0": 2 * 10**9, "issuer 0": 10**9 // 4})
    ends, processes = cpu.cores()
    assert ends == [1.0, 2.25]
    assert processes == {"edge 0": [1.0, 0.0], "issuer 0": [0.0, 0.2]}
    joined = series.cores([(3, cpu), (3, cpu)])
    assert joined["seconds"] == [1.0, 2.25, 4.0, 5.25]
    assert joined["processes"]["edge 0"] == [1.0, 0.0, 1.0, 0.0]


EXPOSITION = """\
# HELP x_seconds X.
# TYPE x_seconds histogram
x_seconds_bucket{le="1.0",process="a",stage="sign"} 1
x_seconds_bucket{le="2.0",process="a",stage="sign"} 3
x_seconds_bucket{le="+Inf",process="a",stage="sign"} 4
x_seconds_sum{process="a",stage="sign"} 9.5
x_seconds_count{process="a",stage="sign"} 4
x_seconds_bucket{le="1.0",process="b",stage="sign"} 0
x_seconds_bucket{le="2.0",process="b",stage="sign"} 1
x_seconds_bucket{le="+Inf",process="b",stage="sign"} 1
x_seconds_sum{process="b",stage="sign"} 1.5
x_seconds_count{process="b",stage="sign"} 1
# TYPE y counter
y_total 7
"""


def test_the_servers_histograms_are_read_per_bucket() -> None:
    """Buckets are no more cumulative, processes are added up, the label is the key."""
    found = scrape.parse(EXPOSITION)
    assert found == {"x_seconds": {"sign": {"le": [1.0, 2.0], "count": [1, 3, 1], "sum": 11.0}}}
    more = {"x_seconds": {"sign": {"le": [1.0, 2.0], "count": [1, 5, 1], "sum": 14.0}}}
    gained = {"x_seconds": {"sign": {"le": [1.0, 2.0], "count": [0, 2, 0], "sum": 3.0}}}
    assert scrape.difference(found, more) == gained
    assert scrape.difference(more, found) == found  # it fell: the server began anew
    assert scrape.difference({}, more) == scrape.difference(found, {}) == {}
    twice = scrape.added([gained, gained])
    assert twice["x_seconds"]["sign"] == {"le": [1.0, 2.0], "count": [0, 4, 0], "sum": 6.0}


def test_nobody_at_the_admin_port_is_no_metrics(folder: Path) -> None:
    """Without an instance or an answer there is nothing to read, and no error."""
    assert scrape.metrics_url(folder) is None
    assert scrape.read_histograms(None) == {}
    assert scrape.read_histograms(f"http://127.0.0.1:{servers.free_port()}/metrics") == {}


@pytest.mark.parametrize(("share", "limit"), [(0.89, False), (0.91, True)])
def test_a_generator_that_is_the_limit_is_flagged(share: float, limit: bool) -> None:
    """Above nine tenths of a core the figures are the generator's own, and the report says so."""
    idle = MachineTime(idle_ticks=0, steal_ticks=0, total_ticks=0)
    tally = Tally(good=1, settled=1, seconds=[second(10)], busiest_share=share)
    measured = Measured(
        step=Step(count=1), tally=tally, seconds=1.0, uses=[], machine_before=idle, machine_after=idle,
        cpu=CpuSeries(), histograms={}, mismatched=0,
    )  # fmt: skip
    result = Result(began=datetime.now(UTC), headline=measured, steps=(measured,), tried=(), capacity=None)
    machine: Any = {}
    made = make_report(result, Scenario(), Origin(what="x", command="x", commit="", machine=machine))
    assert made.generator_was_limit is limit
    assert ("IT WAS A LIMIT" in as_table(made)) is limit


def test_the_aborts_are_kinds_of_a_mix() -> None:
    """Every way to leave has a name in a mix."""
    assert set(ABORTS) < set(mix.NAMES)
    assert set(ABORTS) > FAILED_HANDSHAKES
