"""Filling a ledger for the benches: rows of a real size that read as the issuer's do, and never beside a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estd import names
from estd.ledger import Reader, Row
from tests import make, servers
from tests.servers import Server, wait_for

ROOT = Path(__file__).resolve().parent.parent
DAY_MS = 86400 * 1000


def command(instance: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "bench.fill", str(instance), *options]


def fill(instance: Path, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """bench.fill, which must end with that status."""
    done = subprocess.run(
        command(instance, *options), check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return done


def report(instance: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fill(instance, "--json", *options).stdout)
    return found


@pytest.fixture
def stopped(folder: Path) -> Server:
    """A demonstration instance that nobody serves."""
    return servers.init(folder / "instance")


def test_the_rows_are_as_the_issuer_makes_them(stopped: Server) -> None:
    """As many rows as asked for, in ascending order over the time asked for; each certificate says what its row says,
    is the CA's by name and like no other, and the report fits them."""
    before_ms = int(time.time() * 1000)
    made = report(stopped.folder, "--rows", "1000", "--since", "10d")
    after_ms = int(time.time() * 1000)
    rows = stopped.rows()
    assert (made["rows"], len(rows)) == (1000, 1000)
    assert sorted({row.serial for row in rows}) == [row.serial for row in rows]
    assert [int.from_bytes(row.serial[:6], "big") for row in rows] == [row.issued_at_ms for row in rows]
    assert before_ms <= rows[0].issued_at_ms + 10 * DAY_MS <= after_ms
    assert after_ms - DAY_MS < rows[-1].issued_at_ms <= after_ms
    for row in rows:
        certificate = x509.load_der_x509_certificate(row.certificate_der)
        assert certificate.serial_number.to_bytes(16, "big") == row.serial
        assert names.shown(certificate.subject) == row.subject
        assert certificate.issuer == stopped.ca.subject
        assert (row.label, row.profile, row.identity) == ("default", "idevid", f"idevid:{row.subject}")
        assert row.not_after - row.not_before == 90 * 86400 + 3600 - 1
    assert {len(row.certificate_der) for row in rows} == {made["certificate_bytes"]}
    for column in ("subject", "csr_sha256", "repeat_key"):
        assert len({getattr(row, column) for row in rows}) == 1000
    assert made["rows_per_second"] == pytest.approx(1000 / made["seconds"])


def test_the_server_goes_on_after_a_fill(stopped: Server) -> None:
    """A filled instance serves; what it issues comes last, and is to the octet as large as the rows filled in for a
    device whose name is as long."""
    fill(stopped.folder, "--rows", "100")
    number = "0123456789abcdef"
    kinds = ((NameOID.COMMON_NAME, f"idevid-{number}"), (NameOID.SERIAL_NUMBER, number))
    subject = x509.Name([x509.NameAttribute(kind, value) for kind, value in kinds])
    device = make.certificate(stopped.manufacturer, subject=subject).write(stopped.folder, "device")
    with servers.running(stopped), stopped.client(cert=device) as client:
        issued = client.enroll(lambda _: make.csr(subject=subject))
    *filled, last = stopped.rows()
    assert len(filled) == 100
    assert last.certificate_der == issued.public_bytes(Encoding.DER)
    assert (last.label, last.profile) == (filled[0].label, filled[0].profile)
    like = [re.sub("[0-9a-f]{16}", "*", text) for text in (filled[0].subject, filled[0].identity)]
    assert [re.sub("[0-9a-f]{16}", "*", text) for text in (last.subject, last.identity)] == like
    assert _tbs_bytes(last) == _tbs_bytes(filled[0])


def _tbs_bytes(row: Row) -> int:
    """Without the signature, whose length varies."""
    return len(x509.load_der_x509_certificate(row.certificate_der).tbs_certificate_bytes)


def test_all_of_it_is_in_the_ledgers_file(stopped: Server) -> None:
    """Nothing stays behind in the write-ahead log."""
    made = report(stopped.folder, "--rows", "1000")
    ledger = stopped.folder / "ledger.sqlite3"
    assert not ledger.with_name("ledger.sqlite3-wal").exists()
    assert made["ledger_bytes"] == ledger.stat().st_size


def test_a_second_fill_goes_on_after_the_first(stopped: Server) -> None:
    """What is there stays as it is, and what is added comes after it."""
    fill(stopped.folder, "--rows", "100")
    first = stopped.rows()
    fill(stopped.folder, "--rows", "50")
    both = stopped.rows()
    assert both[:100] == first
    assert len(both) == 150
    assert both[100].issued_at_ms > first[-1].issued_at_ms


def test_a_fill_that_was_killed_is_gone_on_with(stopped: Server) -> None:
    """Whole transactions are there, and the next fill adds to them."""

    def count() -> int:
        with Reader(stopped.folder / "ledger.sqlite3") as reader:
            return reader.count()

    filling = subprocess.Popen(command(stopped.folder, "--rows", "1000000"), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: count() > 0, 30)
    finally:
        filling.kill()
        filling.wait()
    left = count()
    assert 0 < left < 1_000_000
    assert left % 10_000 == 0
    fill(stopped.folder, "--rows", "10")
    assert count() == left + 10


def test_a_ledger_that_is_served_is_left_alone(server: Server) -> None:
    """While the instance is served nothing is written, and a sentence says what to do."""
    before = server.rows()
    done = fill(server.folder, "--rows", "10", status=1)
    assert "one writer" in done.stderr
    assert "stop it first" in done.stderr
    assert server.rows() == before


def test_the_sentence_is_for_people(stopped: Server) -> None:
    """Without --json one sentence says the same."""
    done = fill(stopped.folder, "--rows", "20")
    assert done.stdout.startswith("20 certificates of ")
    assert "filling" in done.stderr


@pytest.mark.parametrize("options", [["--since", "90"], ["--since", "11y"], ["--rows", "0"]])
def test_a_wrong_command_line_is_told(stopped: Server, options: list[str]) -> None:
    """What makes no sense ends with 2, and the ledger stays empty."""
    fill(stopped.folder, *options, status=2)
    assert stopped.rows() == []
