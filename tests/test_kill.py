"""D6, short: whichever process is killed under load, every certificate that a device holds is in the ledger.

The full form, a thousand kills, is a drill of its own.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estd.ledger import Reader
from tests.servers import Server, running, wait_for
from tests.test_supervisor import ending, enrol, instance, log_text

ROOT = Path(__file__).resolve().parent.parent
RATE_PER_SECOND = 300
BETWEEN_KILLS = 150
"""Enrolments that are recorded after one kill and before the next."""


@contextmanager
def fleet(server: Server, kept: Path, *, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Devices that enrol all the time, try again what was lost, and keep what they got in `kept`."""
    command = [
        sys.executable, "-m", "bench.fleet", server.url, "--instance", str(server.folder), "--retry", "--json",
        "--keep", str(kept), "--seconds", str(seconds), "--rate", str(RATE_PER_SECOND), "--connections", "32",
        "--timeout", "5",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)


def recorded(server: Server) -> int:
    reader = Reader(server.folder / "ledger.sqlite3")
    try:
        return reader.count()
    finally:
        reader.close()


def certificates(kept: Path) -> list[x509.Certificate]:
    """What the devices hold: each line is the body of an answer."""
    found: list[x509.Certificate] = []
    for line in kept.read_bytes().splitlines():
        found += pkcs7.load_der_pkcs7_certificates(base64.b64decode(line))
    return found


def assert_nothing_is_lost(server: Server, kept: Path, *, least: int) -> None:
    """Every certificate that a device holds is in the ledger byte for byte, and no serial stands for two."""
    held = certificates(kept)
    assert len(held) >= least
    ledger = {int.from_bytes(row.serial, "big"): row.certificate_der for row in server.rows()}
    assert len(ledger) == recorded(server)
    missing = [
        one.serial_number for one in held if ledger.get(one.serial_number) != one.public_bytes(Encoding.DER)
    ]  # fmt: skip
    assert missing == []


def kill(server: Server, victims: Sequence[str], load: subprocess.Popen[bytes]) -> None:
    """kill -9 of each in turn, each time with the service ready again and at work."""
    for name in victims:
        start = recorded(server)
        wait_for(
            lambda start=start, name=name: recorded(server) >= start + BETWEEN_KILLS and name in server.pids(), 60,
            lambda: log_text(server),
        )  # fmt: skip
        assert load.poll() is None, "the load ended before the kill"
        os.kill(server.pids()[name], signal.SIGKILL)


@pytest.mark.parametrize(
    ("settings", "victims"),
    [
        ({}, ["issuer-0", "edge-0", "issuer-0", "edge-0", "issuer-0"]),
        ({"edges": 2, "issuers": 2}, ["issuer-0", "ledger-0", "edge-1", "issuer-1", "edge-0", "ledger-0"]),
    ],
    ids=["one issuer", "two issuers"],
)
def test_D6_killed_children_lose_nothing(folder: Path, settings: dict[str, int], victims: list[str]) -> None:
    """D6: issuers, edges and the ledger's process killed under load: nothing that a device holds is unrecorded, and
    the service is ready again."""
    kept = folder / "kept"
    with running(instance(folder / "instance", **settings)) as server:
        with fleet(server, kept, seconds=12) as load:
            kill(server, victims, load)
            load.wait(timeout=120)
        wait_for(server.is_ready, 60, lambda: log_text(server))
        enrol(server)
        restarts = sum(server.metric("estd_process_restarts_total", process=name) for name in {*victims})
        assert restarts >= len(victims)
        assert_nothing_is_lost(server, kept, least=1000)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_D6_a_killed_supervisor_takes_its_children_along(folder: Path) -> None:
    """D6: after kill -9 of the supervisor no child is left behind, nothing is lost, and the instance is served
    again."""
    kept = folder / "kept"
    server = instance(folder / "instance")
    server.start()
    with ending(server), fleet(server, kept, seconds=4) as load:
        wait_for(lambda: recorded(server) >= BETWEEN_KILLS, 60)
        assert load.poll() is None
        children = server.pids().values()
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not any(map(_alive, children)), 60)
        with running(server):
            load.wait(timeout=120)
            enrol(server)
            assert_nothing_is_lost(server, kept, least=BETWEEN_KILLS)
