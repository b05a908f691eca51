"""Reload without a stop: a new generation of processes serves, the old one answers what it accepted, nothing is lost;
and a bad configuration changes nothing but the log."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from estd import reload_report, turnover
from estd.config import Config, load
from estd.errors import Refused
from tests import make, servers
from tests.conftest import program
from tests.servers import Server, wait_for
from tests.test_kill import assert_nothing_is_lost
from tests.test_supervisor import Device, counters, ending, enrol, instance, log_text

ROOT = Path(__file__).resolve().parent.parent
RELOADS = int(os.environ.get("ESTD_DRILL_RELOADS", "4"))
"""D22 in full: ESTD_DRILL_RELOADS=100 python -m pytest tests/test_reload.py -k D22_reloads --timeout 1200."""
RATE_PER_SECOND = 500 if RELOADS >= 100 else 250
LOAD_SECONDS = 100 + 5 * RELOADS
"""More than the reloads need: the test ends the load after them, so that a slow machine has its time. What waits for a
connection there is late, and has not failed: only the server ends a request."""


def estd(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The command, which must end with that status."""
    command = [sys.executable, "-m", "estd.cli", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def reload(server: Server, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    return estd("reload", *options, server.config, status=status)


def change(server: Server, old: str, new: str) -> None:
    toml = server.config.read_text()
    assert toml.count(old) == 1, old
    server.config.write_text(toml.replace(old, new))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What waits for a process that is made anew waits as long as a busy machine takes for that."""
    with servers.running(instance(tmp_path_factory.mktemp("single") / "instance", deadline="60s")) as made:
        yield made


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.running(instance(tmp_path_factory.mktemp("double") / "instance", edges=2, issuers=2)) as made:
        yield made


def retired(server: Server) -> bool:
    """No generation is left but the one that serves."""
    lines = server.log_lines()
    started = sum(line["event"] == "reloaded" for line in lines)
    return started == sum(line["event"] == "generation_ended" for line in lines)


@pytest.mark.parametrize("shape", ["single", "double"])
def test_a_reload_serves_the_new_configuration(shape: str, request: pytest.FixtureRequest) -> None:
    """New processes with the new labels; every child but the ledger's has another pid, and no counter fell."""
    server: Server = request.getfixturevalue(shape)
    pids, before = server.pids(), counters(server)
    enrol(server)
    # A label before the others: their numbers change, and each generation's edges speak to their own issuers.
    change(server, "[label.default]\n", '[label.added]\nca = "root"\n\n[label.default]\n')
    said = json.loads(reload(server, "--json").stdout)
    assert said["ok"]
    assert said["problems"] == []
    wait_for(lambda: retired(server), 60, lambda: log_text(server))
    after = server.pids()
    assert {name for name in pids if pids[name] == after[name]} == {name for name in pids if name == "ledger-0"}
    assert said["file"] == str(server.config.resolve())
    assert json.loads(server.admin("/healthz")[1])["generation"] == said["generation"]
    assert server.metric("estd_generation") == said["generation"]
    with server.client(basic=True, label="added") as client, pytest.raises(Refused, match="401"):
        client.enroll(lambda _: make.csr())
    enrol(server)
    now = counters(server)
    assert {key: (value, now.get(key)) for key, value in before.items() if now.get(key, -1.0) < value} == {}
    count = sum(name.startswith("issuer") for name in after)
    wanted = {f"issuer-{index}.{said['generation']}.sock" for index in range(count)}
    # The old generation's are removed once the supervisor has seen its processes end.
    wait_for(lambda: {path.name for path in (server.folder / "run").glob("issuer-*.sock")} == wanted, 60)


def _no_toml(server: Server) -> None:
    change(server, "[server]\n", "[server\n")


def _unknown_key(server: Server) -> None:
    change(server, "[server]\n", "[server]\nlissten = 1\n")


def _no_anchors(server: Server) -> None:
    rule = '[[label.default.allow]]\nwho = "certificate"\nanchors = "demo/{}.pem"'
    change(server, rule.format("manufacturer"), rule.format("nowhere"))


def _wrong_ca(server: Server) -> None:
    (server.folder / "ca.pem").write_bytes(make.certificate(ca=True).pem)


def _wrong_tls_key(server: Server) -> None:
    (server.folder / "server.key").write_bytes(make.certificate().key_pem)


def _expired_tls_certificate(server: Server) -> None:
    path = server.folder / "server.pem"
    own_key = servers.identity_of(path, server.folder / "server.key").key
    path.write_bytes(make.certificate(own_key=own_key, starts=timedelta(days=-9), ends=timedelta(days=-1)).pem)


def _wrong_pin(server: Server) -> None:
    (server.folder / "token" / "pin").write_text("not-the-pin\n")


def _port(server: Server) -> None:
    change(server, f'listen = "127.0.0.1:{server.port}"', 'listen = "127.0.0.1:1"')


def _two_edges(server: Server) -> None:
    change(server, "# edges = 1 ", "edges = 2 ")


def _is_in_the_log(server: Server, told: str) -> bool:
    return any(line["event"] == "reload_refused" and told in str(line["problems"]) for line in server.log_lines())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_toml, "not TOML"),
        (_unknown_key, "server.lissten: is not a key that estd knows"),
        (_no_anchors, "label.default.allow[1]"),
        (_wrong_ca, "issuer-0: the key 01 in the token is not the key in the certificate of 'root'"),
        (_wrong_tls_key, "edge-0: server.tls_certificate, server.tls_key"),
        (_expired_tls_certificate, "server.tls_certificate: expired at"),
        (_wrong_pin, "issuer-0: logging in: the token answered PinIncorrect"),
        (_port, "server.listen: 127.0.0.1:1 needs a restart"),
        (_two_edges, "server.edges: 2 needs a restart; this server runs with 1"),
    ],
)
def test_D22_a_bad_configuration_keeps_the_old(single: Server, spoil: Any, told: str) -> None:
    """D22: whatever is wrong is said by the command and in the log, the exit status is 1, and the same processes go on
    serving."""
    files = [single.config, *(single.folder / one for one in ("ca.pem", "server.pem", "server.key", "token/pin"))]
    kept = {path: path.read_bytes() for path in files}
    pids, refused = single.pids(), single.metric("estd_reloads_refused_total")
    try:
        spoil(single)
        done = reload(single, status=1)
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    assert told in done.stderr
    assert "goes on with what it had" in done.stderr
    assert single.pids() == pids
    assert single.metric("estd_reloads_refused_total") == refused + 1
    wait_for(lambda: _is_in_the_log(single, told), 10)
    enrol(single)
    sockets = list((single.folder / "run").glob("issuer-*.sock"))
    assert len(sockets) == 1


def test_sighup_reloads_too(single: Server) -> None:
    """SIGHUP to the supervisor is what the command sends."""
    pids = single.pids()
    assert single.process is not None
    single.process.send_signal(signal.SIGHUP)
    wait_for(lambda: single.pids()["edge-0"] != pids["edge-0"] and single.is_ready(), 60, lambda: log_text(single))
    enrol(single)


def test_who_is_not_served_is_told_so(folder: Path) -> None:
    """`estd reload` of an instance that nobody serves is a sentence and status 1."""
    made = instance(folder / "instance")
    assert "is not being served" in reload(made, status=1).stderr


def _reloads(server: Server) -> int:
    """Good or not; the command returns once the last one is told."""
    generation = json.loads(server.admin("/healthz")[1])["generation"]
    return int(generation + server.metric("estd_reloads_refused_total"))


def test_another_configuration_than_the_servers_is_refused(single: Server) -> None:
    """`estd reload` of another file in the instance's folder, good or not, or of none at all, sends no signal and says
    which one the server has."""
    other, missing, before = single.folder / "other.toml", single.folder / "missing.toml", _reloads(single)
    for text in (single.config.read_text(), "[[["):
        other.write_text(text)
        told = estd("reload", other, status=1).stderr
        assert told == (
            f"the server that runs here has the configuration {single.config.resolve()}, not {other.resolve()}: "
            "reload that one\n"
        )
    assert "missing.toml" in estd("reload", missing, status=2).stderr
    missing.symlink_to(single.config)
    estd("reload", missing)
    assert _reloads(single) == before + 1, "by its other name the server's own is taken"


def test_connections_stay_for_their_next_request(single: Server) -> None:
    """A connection that is open at a reload is answered once more, by the old generation, and told that it closes."""
    with single.client(basic=True) as client:
        client.cacerts()
        reload(single)
        response = client.request("GET", "cacerts")
        assert response.status == 200
        assert response.headers["Connection"] == "close"
        response.read()
        with pytest.raises(SSL.Error):
            client.connection.recv(1)
    wait_for(lambda: retired(single), 60, lambda: log_text(single))


def test_an_old_connection_enrolls_while_the_new_generation_writes(single: Server) -> None:
    """The retiring issuer asks the new one to record: what an old connection gets is in the ledger, and what is asked
    again on a new one is the same certificate."""
    before = len(single.rows())
    csr_der = make.csr(subject=make.name("late"))
    with single.client(basic=True) as old:
        old.cacerts()
        reload(single)
        with single.client(basic=True) as new:
            new.enroll(lambda _: make.csr(subject=make.name("early")))
        got = old.enroll(lambda _: csr_der)
    wait_for(lambda: retired(single), 60, lambda: log_text(single))
    rows = single.rows()
    assert [row.subject for row in rows[before:]] == ["CN=early", "CN=late"]
    events = [line["event"] for line in single.log_lines()]
    assert "ledger_handed_over" in events
    with single.client(basic=True) as new:
        wait_for(single.is_ready, 10)
        assert new.enroll(lambda _: csr_der).serial_number == got.serial_number


def test_a_retiring_issuer_that_is_killed_is_replaced(single: Server) -> None:
    """kill -9 of the old generation's issuer, whose edge still has a connection: its replacement does not take the
    ledger back, and the connection is served."""
    with single.client(basic=True) as old:
        old.cacerts()
        pid = single.pids()["issuer-0"]
        reload(single)
        os.kill(pid, signal.SIGKILL)
        got = old.enroll(lambda _: make.csr(subject=make.name("still")))
    assert single.rows()[-1].serial == got.serial_number.to_bytes(16, "big")
    wait_for(lambda: retired(single), 60, lambda: log_text(single))
    enrol(single)


def revoke(server: Server, certificate: x509.Certificate) -> None:
    serial = certificate.serial_number.to_bytes(16, "big").hex()
    estd("cert", "revoke", "--config", server.config, serial)
    assert any(row.serial.hex() == serial and row.revoked_at is not None for row in server.rows())


@pytest.mark.parametrize("shape", ["single", "double"])
def test_the_command_line_writes_through_either_generation(shape: str, request: pytest.FixtureRequest) -> None:
    """`estd cert revoke` finds the ledger's writer while one generation retires and after."""
    server: Server = request.getfixturevalue(shape)
    certificates = [enrol(server, f"revoked-{number}") for number in range(2)]
    with server.client() as old:
        old.cacerts()
        reload(server)
        revoke(server, certificates[0])
    wait_for(lambda: retired(server), 60, lambda: log_text(server))
    revoke(server, certificates[1])


@pytest.mark.parametrize("settings", [{}, {"edges": 2, "issuers": 2}], ids=["one issuer", "two issuers"])
def test_D22_reloads_under_load_fail_no_request(folder: Path, settings: dict[str, int]) -> None:
    """D22: reloads, each with a TLS key, trust anchors and a label of its own, at 500 requests a second on kept and on
    fresh connections (fewer in the short form): not one request fails, and each certificate is in the ledger."""
    with servers.running(instance(folder / "instance", **settings)) as server:
        loads = [
            fleet(server, folder / "kept", "--rate", str(RATE_PER_SECOND * 0.8), "--connections", "24"),
            fleet(server, folder / "fresh", "--rate", str(RATE_PER_SECOND * 0.2), "--connections", "24", "--fresh"),
        ]
        try:
            # Both are at work: the kept connections are 24 devices.
            wait_for(lambda: len({row.identity for row in server.rows()}) > 100, 120)
            for number in range(RELOADS):
                # Not one right after the other: starting processes takes most of a core from those who serve.
                paced = 2 * RATE_PER_SECOND * number
                wait_for(lambda paced=paced: server.metric("estd_certificates_total") > paced, 120)  # type: ignore[misc]
                before = tls_certificate(server)
                change_everything(server, f"more-{number}")
                reload(server)
                assert tls_certificate(server) != before
                with server.client(label=f"more-{number}") as client:
                    assert client.cacerts()
            assert [load.poll() for load in loads] == [None, None]
            for load in loads:
                load.terminate()  # enough: what it has begun is answered and told
            reports = [json.loads(load.communicate(timeout=120)[0]) for load in loads]
        finally:
            for load in loads:
                if load.poll() is None:
                    load.terminate()
                load.wait(timeout=60)
        assert [report["errors"] for report in reports] == [{}, {}]
        assert server.metric("estd_generation") == RELOADS + 1
        wait_for(lambda: retired(server), 60, lambda: log_text(server))
        events = {line["event"] for line in server.log_lines()}
        assert events & {"child_died", "child_killed", "request_failed", "issuer_ends", "reload_refused"} == set()
        for kept in ("kept", "fresh"):
            assert_nothing_is_lost(server, folder / kept, least=200)


def fleet(server: Server, kept: Path, *options: str) -> subprocess.Popen[str]:
    """Devices that enroll at a rate, and never try again what failed."""
    command = [
        sys.executable, "-m", "bench.fleet", server.url, "--instance", str(server.folder), "--json", "--seconds",
        str(LOAD_SECONDS), "--keep", str(kept), "--timeout", str(2 * LOAD_SECONDS), *options,
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def tls_certificate(server: Server) -> bytes:
    """The one that a new connection is shown."""
    with server.client() as client:
        shown = client.connection.get_peer_certificate(as_cryptography=True)
    assert shown is not None
    return shown.public_bytes(Encoding.DER)


def change_everything(server: Server, label: str) -> None:
    """Another TLS key, whose certificate the server itself issues; one more trust anchor; one more label."""
    key = make.key()
    san = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    with server.client(basic=True) as client:
        made = client.enroll(lambda _: make.csr(key, subject=make.name("localhost"), san=san))
    make.Identity(made, key).write(server.folder, "server")
    with (server.folder / "demo" / "manufacturer.pem").open("ab") as anchors:
        anchors.write(make.certificate(ca=True, subject=make.name(label)).pem)
    change(server, "[label.default]\n", f'[label.{label}]\nca = "root"\n\n[label.default]\n')


def test_sigterm_during_a_reload_drains_both(folder: Path) -> None:
    """SIGTERM while a generation retires ends both, with status 0 and nothing lost."""
    made = instance(folder / "instance")
    with ending(made):
        made.start()
        devices = [Device(made.client(basic=True)) for _ in range(4)]
        for device in devices:
            device.start()
        wait_for(lambda: all(len(device.got) >= 5 for device in devices), 60)
        with made.client() as idle:
            idle.cacerts()
            reload(made)
            assert made.stop() == 0
    for device in devices:
        device.join(timeout=60)
    assert [device.refused for device in devices] == [[]] * 4
    issued = {int.from_bytes(row.serial, "big") for row in made.rows()}
    assert {serial for device in devices for serial in device.got} == issued


def test_a_terminal_that_goes_away_ends_the_server(folder: Path) -> None:
    """Started by hand, the server gets the same signal when its terminal is closed: it drains and ends."""
    program("setsid")
    made = instance(folder / "instance")
    ours, terminal = os.openpty()
    made.log_path = made.folder / "serve.log"
    with made.log_path.open("ab") as log:
        command = ["setsid", "--ctty", sys.executable, "-m", "estd.cli", "serve", str(made.config)]
        made.process = subprocess.Popen(command, stdin=terminal, stdout=log, stderr=log)
    os.close(terminal)
    with ending(made):
        wait_for(made.is_ready, 60, lambda: log_text(made))
        pids = made.pids()
        reload(made)
        assert made.pids() != pids
        os.close(ours)
        assert made.process is not None
        assert made.process.wait(timeout=60) == 0
    assert {"draining", "stopped"} <= {line["event"] for line in made.log_lines()}


class _Broken:
    """A supervisor with a fault that nobody foresaw."""

    reloads_refused = 0

    def __init__(self, config: Config) -> None:
        self.current = SimpleNamespace(config=config, number=7)

    async def prepare(self, *_: object) -> None:
        raise ZeroDivisionError


def test_whoever_waits_for_a_reload_is_told_of_a_fault_too(folder: Path) -> None:
    """An exception that nobody foresaw is an outcome: the old generation serves, and the command does not wait in
    vain."""
    made = servers.init(folder / "demo")
    config = load(made.config)
    config.run.mkdir(exist_ok=True)
    logged: list[str] = []
    supervisor: Any = _Broken(config)
    asyncio.run(turnover.reload(supervisor, made.config, lambda event, **_: logged.append(event)))
    found = reload_report.last(config.run)
    assert found is not None
    assert (found.generation, supervisor.reloads_refused, logged) == (7, 1, ["reloading", "reload_refused"])
    assert "ZeroDivisionError" in found.problems[0]


def test_an_outcome_takes_no_more_of_the_disk_than_the_one_before(folder: Path) -> None:
    """A reload on a full disk is told all the same: the file is the same one with the same blocks, and what it said
    before is gone, longer or shorter."""
    seen = set()
    for count in (0, 1, 100, 0):
        problems = tuple("the token refuses the PIN" for _ in range(count))
        outcome = reload_report.Outcome(began=1.5, generation=2, problems=problems, file="/estd.toml", cas={"a": []})
        reload_report.publish(folder, outcome)
        assert reload_report.last(folder) == outcome
        (path,) = folder.iterdir()
        found = path.stat()
        seen.add((found.st_ino, found.st_size, found.st_blocks))
    assert len(seen) == 1
    (folder / "reload.json").write_bytes(b'{"began": 1.5, "gener')
    assert reload_report.last(folder) is None
