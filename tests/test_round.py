"""A round against a server of its own: it ends with figures, a page and no process, whatever failed on the way."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import demonstration, round
from bench.demonstration import Demonstration, ServerError, serving
from bench.round import FULL, SHORT, Part, Plan
from tests import rounds
from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent
TINY = Plan(
    name="tiny",
    floor_loops=8,
    parts=(
        Part.of("kept connections", "--count 200 --connections 8"),
        Part.of("too much asked", "--count 50 --connections 4 --goal 1000000000/s"),
        Part.of("no such load", "--scenario absent"),
    ),
)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for an instance, whose sockets have room in the 108 bytes of a path."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def test_a_round_is_completed(
    folder: Path, short_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that misses its goal and one that cannot run are told, and the others' figures are there; the page
    compares with the round before, the server is gone, and so is its instance."""
    out = folder / "out"
    out.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    before = rounds.round_of([rounds.run("kept connections")]) | {"plan": TINY.name}
    (out / "round-20260101T000000Z.json").write_text(json.dumps(before))
    assert round.make(TINY, out) is False
    said = capfd.readouterr()

    (path,) = (one for one in out.glob("round-*.json") if "20260101" not in one.name)
    made: dict[str, Any] = json.loads(path.read_text())
    assert [(run["name"], run["enrolments"], run["passed"]) for run in made["runs"]] == [
        ("kept connections", 200, True),
        ("too much asked", 50, False),
    ]
    assert len(made["failures"]) == 1
    assert "no such load" in made["failures"][0]
    assert made["plan"] == "tiny"
    assert min(made["floor"].values()) > 0
    assert min(made["core"].values()) > 0
    first = made["runs"][0]
    assert made["machine"] == first["machine"]
    assert first["command"] == (
        "python -m bench.fleet --count 200 --connections 8 --instance demo https://127.0.0.1:8443"
    )
    assert sum(first["series"]["good"]) == 200
    assert sum(first["metrics"]["estd_sign_seconds"][""]["count"]) == 200

    assert "[4/6] kept connections" in said.err
    assert "too much asked failed" in said.out
    assert str(out / "page.html") in said.out
    table = [line for line in said.out.splitlines() if line.startswith("| 1 ")]
    assert f"{first['rate_per_second']:,.0f}" in table[0]
    page = (out / "page.html").read_text()
    assert 'id="changes"' in page
    for drawing in ("throughput-1", "percentiles-1", "cores-1", "batch-1", "stages-2", "roof", "steps"):
        assert f'id="{drawing}"' in page

    gone = [int(row["pid"]) for run in made["runs"] for row in run["processes"]]
    assert len(gone) >= 6
    assert not [pid for pid in gone if _is_estd(pid)]
    assert list(short_folder.iterdir()) == []


def _is_estd(pid: int) -> bool:
    try:
        return b"estd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_the_round_before_is_of_the_same_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The latest round of that plan; others, and files that are no rounds, are passed over."""
    assert round.previous(folder, "short") == []
    for name, plan in (("1", "short"), ("2", "short"), ("3", "full")):
        made = rounds.round_of([rounds.run("kept")]) | {"plan": plan, "commit": name}
        (folder / f"round-{name}.json").write_text(json.dumps(made))
    (folder / "round-4.json").write_text("{")
    (found,) = round.previous(folder, "short")
    assert found.commit == "2"
    assert "round-4.json" in capsys.readouterr().err


@pytest.mark.parametrize("plan", [SHORT, FULL], ids=["short", "full"])
def test_a_plan_has_each_load_once(plan: Plan) -> None:
    """Both plans name the same parts, so that a reader finds his way from one to the other."""
    names = [part.name for part in plan.parts]
    assert names == [
        "kept connections", "fresh connections", "steady", "ramp", "herd", "renewals", "mixed",
    ]  # fmt: skip


def test_a_server_that_does_not_start_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its port is taken there is no server to measure, and its own words are told."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(demonstration, "_free_ports", lambda number: [port, free_port()])
        with pytest.raises(ServerError, match=str(port)), serving(folder / "instance"):
            pytest.fail("it was served on a port that is taken")


def test_an_instance_that_cannot_be_made_is_a_sentence(folder: Path) -> None:
    """A folder that is not empty stays as it is."""
    (folder / "mine").write_text("mine")
    with pytest.raises(ServerError, match="estd init failed"), serving(folder):
        pytest.fail("it was served")
    assert [one.name for one in folder.iterdir()] == ["mine"]


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


def started(folder: Path, script: str) -> Demonstration:
    """A process in the server's place."""
    log = folder / "log"
    log.write_text("its last words")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    return Demonstration(folder=folder, url="", ready_url="", log=log, process=process)


def test_a_server_that_does_not_end_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its pid, and it is told."""
    monkeypatch.setattr(demonstration, "_END_SECONDS", 0.1)
    server = started(folder, STUBBORN)
    assert server.process.stdout is not None
    with server.process.stdout as out:
        assert out.readline() == b"ready\n"
        assert "was killed" in server.end()
    assert server.process.returncode == -signal.SIGKILL


def test_a_server_that_ended_by_itself_is_told(folder: Path) -> None:
    """With its status and the end of its log."""
    server = started(folder, "raise SystemExit(3)")
    assert server.process.stdout is not None
    with server.process.stdout as out:
        assert out.read() == b""
    server.process.wait()
    assert server.end() == "the server ended with 3: its last words"
    with pytest.raises(ServerError, match="its last words"):
        server.is_ready()


@pytest.mark.parametrize(
    ("options", "outcome", "status", "plan"),
    [
        ([], True, 0, SHORT),
        (["--short"], False, 1, SHORT),
        (["--full"], True, 0, FULL),
        (["--full"], ServerError("no server"), 1, FULL),
        (["--long"], True, 2, None),
    ],
)
def test_the_exit_status(
    options: list[str], outcome: bool | ServerError, status: int, plan: Plan | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 when all passed, 1 when something failed or there was no server, 2 for a wrong command line."""
    asked = []

    def make(which: Plan, out: Path) -> bool:
        asked.append(which)
        assert out == Path("bench-out")
        if isinstance(outcome, ServerError):
            raise outcome
        return outcome

    monkeypatch.setattr(round, "make", make)
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = CliRunner().invoke(round.main, options)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.exit_code == status
    assert asked == ([plan] if plan else [])


ENDED = """
import signal, sys, time
from pathlib import Path
from bench.demonstration import serving
from bench.round import _end
signal.signal(signal.SIGTERM, _end)
with serving(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def test_a_round_that_is_ended_takes_its_server_along(folder: Path) -> None:
    """After SIGTERM to the round its server is ended, not orphaned."""
    command = [sys.executable, "-c", ENDED, str(folder / "instance")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as ended:
        assert ended.stdout is not None
        server = int(ended.stdout.readline())
        assert _is_estd(server)
        ended.terminate()
        assert ended.wait(60) == 128 + signal.SIGTERM
    assert not _is_estd(server)
