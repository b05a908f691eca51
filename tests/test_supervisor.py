"""The supervisor: it replaces who dies, asks a wrong PIN once, kills what hangs, and drains without a loss."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import SSL
from prometheus_client.parser import text_string_to_metric_families

from estd import config, supervisor
from estd.client import EstClient
from estd.errors import ClientError, ConfigError, Refused
from tests import make, servers
from tests.command import estd
from tests.servers import Server, wait_for
from tests.test_config import text


def instance(folder: Path, **settings: str | int) -> Server:
    """A demonstration instance with these keys of its configuration set instead of their commented defaults."""
    made = servers.init(folder)
    toml = made.config.read_text()
    for key, value in settings.items():
        toml, found = re.subn(rf"^# {key} = .*$", f"{key} = {json.dumps(value)}", toml, flags=re.MULTILINE)
        assert found == 1, key
    made.config.write_text(toml)
    return made


@contextmanager
def ending(server: Server) -> Iterator[Server]:
    """Whatever the test comes to, nothing of the server is left afterwards."""
    try:
        yield server
    finally:
        if server.process is not None:
            if server.process.poll() is None:
                server.process.terminate()
            server.process.wait(timeout=60)


@contextmanager
def launched(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """Serve, without waiting for anything."""
    server.log_path = server.folder / "serve.log"
    with server.log_path.open("ab") as log:
        command = [sys.executable, "-m", "estd.cli", "serve", str(server.config)]
        server.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with ending(server):
        yield server.process


def log_text(server: Server) -> str:
    return server.log_path.read_text()[-4000:]


def enrol(server: Server, subject: str = "device-1") -> x509.Certificate:
    with server.client(basic=True) as client:
        return client.enroll(lambda _: make.csr(subject=make.name(subject)))


def health(server: Server) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(server.admin("/healthz")[1])["processes"]
    return found


def counters(server: Server) -> dict[str, float]:
    """Every sample of /metrics that may never fall, by its name and labels."""
    return {
        f"{sample.name} {sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(server.admin("/metrics")[1])
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


def replaced(server: Server, name: str, number: int) -> int:
    """Send the signal to that child and wait until another is in its place and the service can issue."""
    before = server.pids()[name]
    os.kill(before, number)
    wait_for(lambda: server.pids().get(name, before) != before and server.is_ready(), 60, lambda: log_text(server))
    return server.pids()[name]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One edge, one issuer."""
    with servers.running(instance(tmp_path_factory.mktemp("single") / "instance")) as made:
        yield made


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two edges, two issuers and the ledger's own process."""
    with servers.running(instance(tmp_path_factory.mktemp("double") / "instance", edges=2, issuers=2)) as made:
        yield made


def test_a_served_instance_is_ready_and_healthy(server: Server) -> None:
    """/readyz is 200 once it can issue; /healthz names each process with its pid."""
    assert server.admin("/readyz") == (200, "ready\n")
    status, body = server.admin("/healthz")
    assert status == 200
    assert set(json.loads(body)) == {"version", "up_seconds", "generation", "processes"}
    assert set(health(server)) == {"issuer-0", "edge-0"}
    for one in health(server).values():
        assert one["alive"]
        os.kill(one["pid"], 0)
    assert server.admin("/nothing")[0] == 404


def test_what_runs_is_private(server: Server) -> None:
    """The folder of sockets is entered by the server's user alone, and so is each socket."""
    run = server.folder / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    names = {path.name for path in run.iterdir() if path.is_socket()}
    assert names == {"issuer-0.1.sock", "ledger.sock"}
    assert all(stat.S_IMODE((run / name).stat().st_mode) == 0o600 for name in names)


@pytest.mark.parametrize("name", ["issuer-0", "edge-0"])
def test_a_killed_child_is_replaced_and_no_counter_falls(single: Server, name: str) -> None:
    """After kill -9 another process goes on in the slot, with the same listeners and counters."""
    enrol(single)
    before, restarts = counters(single), health(single)[name]["restarts"]
    replaced(single, name, signal.SIGKILL)
    enrol(single)
    after = counters(single)
    assert {key: (value, after.get(key)) for key, value in before.items() if after.get(key, -1.0) < value} == {}
    assert health(single)[name]["restarts"] == restarts + 1
    assert single.metric("estd_process_restarts_total", process=name) == restarts + 1
    assert single.metric("estd_certificates_total") >= 2


@pytest.fixture
def strict(folder: Path) -> Iterator[Server]:
    """Whose token may hang for a second, and the machine too."""
    with servers.running(instance(folder / "instance", timeout="1s")) as made:
        yield made


def test_an_issuer_that_hangs_at_work_is_killed(strict: Server) -> None:
    """A call that does not return within [token] timeout cannot be cancelled: its process is killed and made anew."""
    pid = strict.pids()["issuer-0"]
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            with suppress(ClientError), strict.client(basic=True) as client:
                while not stop.is_set():
                    client.enroll(lambda _: make.csr())

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()

    def caught_at_work() -> bool:
        nonlocal pid
        pid = strict.pids().get("issuer-0", pid)  # another one, where the machine itself stood still for a second
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            if strict.metric("estd_busy_since_seconds", process="issuer-0") > 0:
                return True
            os.kill(pid, signal.SIGCONT)
        return False

    try:
        wait_for(caught_at_work, 60)
        wait_for(lambda: strict.pids().get("issuer-0", pid) != pid and strict.is_ready(), 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert any(line["event"] == "child_hangs" and line["child"] == "issuer-0" for line in strict.log_lines())
    enrol(strict)


def test_several_processes_enrol_renew_and_revoke(double: Server, folder: Path) -> None:
    """With two edges, two issuers and a ledger process, every key gets its certificate from one of the issuers, a
    renewal finds it whoever serves it, and a revocation is seen by all."""
    assert set(double.pids()) == {"ledger-0", "issuer-0", "issuer-1", "edge-0", "edge-1"}
    devices = []
    for number in range(16):
        key = make.key()
        with double.client(basic=True) as client:
            certificate = client.enroll(lambda _, key=key, n=number: make.csr(key, subject=make.name(f"d-{n}")))  # type: ignore[misc]
        files = make.Identity(certificate, key).write(folder, f"d-{number}")
        devices.append((certificate, files))
    for name in ("issuer-0", "issuer-1", "edge-0", "edge-1"):
        wanted = "estd_certificates_total" if name.startswith("issuer") else "estd_connections_total"
        assert double.metric(wanted, process=name) > 0
    for certificate, files in devices:
        with double.client(cert=files) as client:
            renewed = client.enroll(lambda _, one=certificate: make.csr(subject=one.subject), renew=True)  # type: ignore[misc]
            assert renewed.subject == certificate.subject
            assert renewed.serial_number != certificate.serial_number
    assert len(double.rows()) == 32
    for certificate, _ in devices[:4]:
        serial = certificate.serial_number.to_bytes(16, "big").hex()
        command = [sys.executable, "-m", "estd.cli", "cert", "revoke", "--config", str(double.config), serial]
        subprocess.run(command, check=True, capture_output=True)
    for number, (certificate, files) in enumerate(devices):
        with double.client(cert=files) as client:
            if number < 4:
                with pytest.raises(Refused, match="revoked"):
                    client.enroll(lambda _, one=certificate: make.csr(subject=one.subject), renew=True)  # type: ignore[misc]
            else:
                client.enroll(lambda _, one=certificate: make.csr(subject=one.subject), renew=True)  # type: ignore[misc]


def test_edges_that_use_one_number_get_their_own_answers(double: Server) -> None:
    """Each edge counts its requests from 1, and an issuer works on those of both together."""
    command = [
        sys.executable, "-m", "bench.fleet", double.url, "--instance", str(double.folder), "--json", "--count", "600",
        "--connections", "32", "--timeout", "5",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False, timeout=120)
    assert (done.returncode, json.loads(done.stdout)["errors"]) == (0, {}), done.stderr


def test_a_repeat_meets_its_first_in_one_issuer(double: Server) -> None:
    """The same request by other connections, and so by other edges, gets the one certificate."""
    csr_der = make.csr(subject=make.name("again"))
    got = []
    for _ in range(8):
        with double.client(basic=True) as client:
            got.append(client.enroll(lambda _: csr_der).serial_number)
    assert len(set(got)) == 1


@pytest.mark.parametrize("name", ["ledger-0", "issuer-1"])
def test_with_several_issuers_each_child_is_replaced(double: Server, name: str) -> None:
    """The ledger's process too is replaced, its issuers with it, and enrolments go on."""
    replaced(double, name, signal.SIGKILL)
    refusals: list[Refused] = []

    def enrolled(subject: str) -> bool:
        try:
            enrol(double, subject)
        except Refused as refused:
            refusals.append(refused)
            return False
        return True

    for number in range(8):
        wait_for(partial(enrolled, f"after-{number}"), 60)
    assert {(one.status, one.retry_after is not None) for one in refusals} <= {(503, True)}


class Device(threading.Thread):
    """Enrols one after the other on one connection, until the server closes it; keeps what it got."""

    def __init__(self, client: EstClient) -> None:
        super().__init__()
        self._client = client
        self.got: list[int] = []
        self.refused: list[Refused] = []

    def run(self) -> None:
        with suppress(ClientError), self._client:
            try:
                while True:
                    self.got.append(self._client.enroll(lambda _: make.csr()).serial_number)
            except Refused as refused:
                self.refused.append(refused)


def test_D23_sigterm_drains_without_a_loss(folder: Path) -> None:
    """D23: under load SIGTERM ends the service with status 0, and whatever was issued reached its device."""
    made = instance(folder / "instance")
    with ending(made):
        made.start()
        devices = [Device(made.client(basic=True)) for _ in range(8)]
        for device in devices:
            device.start()
        wait_for(lambda: all(len(device.got) >= 5 for device in devices), 60)
        assert made.stop() == 0
    for device in devices:
        device.join(timeout=60)
        assert not device.is_alive()
    assert [device.refused for device in devices] == [[]] * 8
    issued = {int.from_bytes(row.serial, "big") for row in made.rows()}
    assert {serial for device in devices for serial in device.got} == issued
    events = {line["event"] for line in made.log_lines()}
    assert {"draining", "stopped"} <= events
    assert events & {"client_left", "request_failed", "child_killed", "child_died"} == set()


def test_D23_a_request_whose_body_is_on_its_way_is_answered(folder: Path) -> None:
    """D23: a request whose headers the edge has read before SIGTERM, and whose body comes after it, gets its
    certificate."""
    made = instance(folder / "instance")
    answer = b""
    body = make.body(make.csr(subject=make.name("half-way")))
    pair = base64.b64encode(":".join(made.basic).encode()).decode()
    head = (
        "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
        f"Authorization: Basic {pair}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    made.start()
    with ending(made), suppress(SSL.Error), made.client(basic=True) as idle, made.client() as client:
        client.connection.sendall(head.encode())
        idle.cacerts()  # answered by the same loop after it has read that head
        assert made.process is not None
        made.process.send_signal(signal.SIGTERM)
        with pytest.raises(SSL.Error):
            idle.connection.recv(1)  # the edge has begun to drain: it closes who is idle
        client.connection.sendall(body)
        answer = client.connection.recv(65536)
    assert made.process is not None
    assert made.process.returncode == 0
    assert answer.partition(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert [row.subject for row in made.rows()] == ["CN=half-way"]


def serve(made: Server, status: int = 1) -> str:
    """What `estd serve` says when it cannot."""
    command = [sys.executable, "-m", "estd.cli", "serve", str(made.config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    return done.stderr


def test_an_instance_is_served_once(server: Server) -> None:
    """A second `estd serve` of the same instance is refused with a sentence, and the first goes on."""
    pids = server.pids()
    assert "this instance is being served already" in serve(server)
    assert server.pids() == pids
    enrol(server)


def test_whoever_asks_whether_it_is_served_does_not_keep_it_from_being_served(folder: Path) -> None:
    """A command that looks at the pid file in the very moment of a start does not end it; a server does."""
    made = config.parse(text("server"), folder)
    made.run.mkdir()
    (made.run / "estd.pid").write_text("")
    asking = os.open(made.run / "estd.pid", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)  # as `reload_report.serving` does
    threading.Timer(0.2, os.close, [asking]).start()
    held = supervisor.claim(made)
    with pytest.raises(ConfigError, match="is being served already"):
        supervisor.claim(made)
    os.close(held)


@pytest.mark.parametrize("taken", ["port", "admin_port"])
def test_a_port_that_is_taken_is_a_sentence(server: Server, folder: Path, taken: str) -> None:
    """Another instance on the same port would take half of the devices: it is refused."""
    made = instance(folder / "instance")
    toml = made.config.read_text()
    made.config.write_text(toml.replace(f":{getattr(made, taken)}", f":{getattr(server, taken)}"))
    with launched(made) as process:
        wait_for(lambda: process.poll() is not None, 60, lambda: "it serves beside the other instance")
    assert process.returncode == 1
    assert "cannot be bound" in log_text(made)


def test_a_wrong_pin_is_asked_once(folder: Path) -> None:
    """With a wrong PIN the service says that it is not ready and why, and no issuer is started again: tokens lock
    themselves. However many issuers there are, a start and a reload try it once each; the right one is taken by a
    reload."""
    made = instance(folder / "instance", issuers=3)
    pin = made.folder / "token" / "pin"
    kept = pin.read_text()
    pin.write_text("not-the-pin\n")

    def refused() -> bool:
        with suppress(OSError):
            return all(one["refused"] for name, one in health(made).items() if name.startswith("issuer"))
        return False

    with launched(made):
        wait_for(refused, 60, lambda: log_text(made))
        status, body = made.admin("/readyz")
        assert status == 503
        assert body.startswith("not ready")
        assert made.metric("estd_ready") == 0
        wait_for(lambda: json.loads(made.admin("/healthz")[1])["up_seconds"] >= 4, 60)  # the pause would be a second
        lines = [line for line in made.log_lines() if "issuer" in f"{line.get('child')} {line['process']}"]
        again = estd("reload", made.config, status=1)
        pin.write_text(kept)
        estd("reload", made.config)
        wait_for(made.is_ready, 60, lambda: log_text(made))
        assert made.stop() == 0
    events = ["child_died", "child_started", "issuer_start_failed"]
    assert sorted(line["event"] for line in lines) == sorted(events * 3)
    for said in ("".join(line.get("why", "") for line in lines), again.err):
        assert (said.count("PinIncorrect"), said.count("it is not tried again")) == (1, 2)
