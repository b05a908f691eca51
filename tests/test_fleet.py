"""The load generator against the tests' server: the numbers that it prints are what was done."""

from __future__ import annotations

import base64
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from bench import machine
from tests.servers import Server, wait_for

ROOT = Path(__file__).resolve().parent.parent
COUNT = 200


def fleet(server: Server, *options: str, url: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    """bench.fleet, which must end with that status."""
    command = [sys.executable, "-m", "bench.fleet", url or server.url, "--instance", str(server.folder), *options]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return done


def report(server: Server, *options: str, status: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fleet(server, "--json", *options, status=status).stdout)
    return found


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ([], COUNT),
        (["--fresh"], 50),
        (["--auth", "basic"], COUNT),
        (["--operation", "simplereenroll"], COUNT),
        (["--tls", "1.2", "--fresh", "--auth", "basic"], 20),
        (["--rate", "500/s"], COUNT),
        (["--generators", "2"], COUNT),
    ],
    ids=["kept", "fresh", "basic", "renewals", "tls 1.2", "open loop", "two generators"],
)
def test_each_way_of_enrolling(server: Server, options: list[str], count: int) -> None:
    """Whatever the way, so many certificates were issued as the report says, none failed, and its figures fit
    together."""
    before = server.metric("estd_certificates_total")
    made = report(server, "--count", str(count), "--connections", "16", *options)
    assert (made["passed"], made["enrolments"], made["errors"], made["shed"]) == (True, count, {}, 0)
    own = 16 if "simplereenroll" in options else 0  # the certificates that the devices renew are enrolled first
    assert server.metric("estd_certificates_total") - before == count + own
    assert made["verified"] >= 1
    assert made["rate_per_second"] == pytest.approx(count / made["seconds"])
    latency = made["latency_us"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    connections = made["events"]["connections opened"]
    assert connections == (count if "--fresh" in options else 16)
    assert {row["label"] for row in made["processes"]} == {"supervisor", "edge 0", "issuer 0"}
    assert made["server_cpu_us_per_enrolment"] == pytest.approx(
        sum(row["cpu_us_per_enrolment"] for row in made["processes"])
    )
    assert all(0 < row["rss_bytes"] <= row["peak_rss_bytes"] for row in made["processes"])


def test_a_load_that_is_told_to_end_has_its_figures(server: Server) -> None:
    """SIGTERM: nothing more is begun, what was begun is answered, and the report is of that."""
    before = server.metric("estd_certificates_total")
    command = [
        sys.executable, "-m", "bench.fleet", server.url, "--instance", str(server.folder), "--json", "--rate", "50",
        "--connections", "4", "--seconds", "120", "--generators", "2",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as load:
        try:
            wait_for(lambda: server.metric("estd_certificates_total") >= before + 20, 60)
        finally:
            load.terminate()
        made = json.loads(load.communicate(timeout=60)[0])
    assert load.returncode == 0
    assert (made["passed"], made["errors"]) == (True, {})
    assert 20 <= made["enrolments"] < 50 * 120
    assert server.metric("estd_certificates_total") - before == made["enrolments"]


def test_the_json_says_where_it_comes_from(server: Server) -> None:
    """Command, time, commit and machine stand beside the figures, and the server's histograms are of this run."""
    options = ("--count", "20", "--connections", "4")
    made = report(server, *options)
    assert made["command"].startswith("python -m bench.fleet https://127.0.0.1:")
    assert made["command"].endswith("--json --count 20 --connections 4")
    assert datetime.fromisoformat(made["began"]).utcoffset() == timedelta(0)
    assert made["scenario"] == ""
    assert made["machine"].keys() == {"cpu", "cores", "kernel", "python", "openssl", "softhsm"}
    assert made["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert made["machine"]["python"] == platform.python_version()
    assert made["machine"]["openssl"].startswith("OpenSSL ")
    assert made["machine"]["softhsm"]
    assert (made["steps"], made["mix"], made["capacity"]) == ([], {}, None)
    assert sum(made["metrics"]["estd_sign_seconds"][""]["count"]) >= 20
    assert 0 < made["generator_share"] < 1.1


def test_what_cannot_be_asked_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a repository there is no commit, without a supervisor the Python is our own, and a program that is
    absent has no version."""
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    assert machine.commit() == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine.describe(None)
    assert (found["python"], found["softhsm"]) == (platform.python_version(), "")


def test_what_is_kept_is_what_was_issued(server: Server, folder: Path) -> None:
    """--keep holds the body of each answer, one a line, and each is a certificate of the ledger."""
    kept = folder / "kept"
    fleet(server, "--count", "50", "--connections", "4", "--keep", str(kept))
    lines = kept.read_bytes().splitlines()
    held = [pkcs7.load_der_pkcs7_certificates(base64.b64decode(line)) for line in lines]
    assert [len(one) for one in held] == [1] * 50
    ledger = {row.certificate_der for row in server.rows()}
    assert {one[0].public_bytes(Encoding.DER) for one in held} <= ledger
    assert len({one[0].serial_number for one in held}) == 50


def test_the_table_is_for_people(server: Server) -> None:
    """Without --json the same figures are a table."""
    out = fleet(server, "--count", "20", "--connections", "4").stdout
    assert "20" in out
    assert "p99" in out
    assert "issuer 0" in out


@pytest.mark.parametrize("goal", [["--goal", "1000000000/s"], ["--p99", "1us"]])
def test_a_goal_that_is_missed_is_the_exit_status(server: Server, goal: list[str]) -> None:
    """A run that is slower than its goal ends with 1 and says which."""
    made = report(server, "--count", "20", "--connections", "4", *goal, status=1)
    assert not made["passed"]
    assert len(made["missed"]) == 1
    assert made["enrolments"] == 20


def test_a_refusal_is_an_error_not_an_enrolment(server: Server) -> None:
    """What the server refuses is counted by its status and ends the run with 1."""
    made = report(server, "--count", "20", "--connections", "4", "--label", "closed", status=1)
    assert (made["enrolments"], made["errors"]) == (0, {"status 401": 20})


@pytest.mark.parametrize(
    ("options", "url"),
    [
        (["--rate", "fast"], ""),
        (["--generators", "2", "--connections", "1"], ""),
        (["--reuse"], ""),
        (["--pid", "4194304"], ""),
        ([], "http://localhost:1"),
    ],
)
def test_a_wrong_command_line_is_told(server: Server, options: list[str], url: str) -> None:
    """What makes no sense ends with 2 before anything is sent."""
    before = server.metric("estd_connections_total")
    fleet(server, "--count", "1", *options, url=url, status=2)
    assert server.metric("estd_connections_total") == before
