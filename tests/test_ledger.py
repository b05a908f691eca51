"""The ledger: what `record` returned from is on disk, one process writes, and the first error is the last word."""

from __future__ import annotations

import json
import os
import resource
import socket
import sqlite3
import stat
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from estd import ledger, ledger_link
from estd.issuance import serials
from estd.ledger import LedgerBroken, LedgerError, Reader, Row, Writer
from estd.ledger_link import RemoteWriter, WriterService

NOW_MS = 1_800_000_000_000


@pytest.fixture
def path(folder: Path) -> Path:
    made = folder / "ledger.sqlite3"
    ledger.create(made)
    return made


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with closing(Writer(path)) as opened:
        yield opened


def row(at_ms: int = NOW_MS, **changes: Any) -> Row:
    """A row as the line makes it: a serial of that millisecond, a certificate of any bytes."""
    (serial,) = serials(1, at_ms)
    return Row(
        serial=serial, certificate_der=b"0\x82" + serial, csr_sha256=bytes(32), repeat_key=serial[::-1] * 2,
        identity="basic:factory", subject="CN=device-1", label="default", profile="factory",
        not_before=at_ms // 1000, not_after=at_ms // 1000 + 86400, issued_at_ms=at_ms, renews=None,
    )._replace(**changes)  # fmt: skip


def rows_of(path: Path) -> list[Row]:
    """What everybody else sees."""
    with closing(Reader(path)) as reader:
        return list(reader.search())


def test_a_new_ledger_is_its_owners_alone(path: Path) -> None:
    """The file is readable by its owner only, and is never made over an old one."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(LedgerError, match="cannot be made"):
        ledger.create(path)


def test_a_ledger_that_cannot_be_made_whole_is_not_there(folder: Path) -> None:
    """Where its lock cannot be had the empty file goes again, so that the next try is not told that it exists."""
    (folder / "new.sqlite3.lock").mkdir()
    with pytest.raises(LedgerError):
        ledger.create(folder / "new.sqlite3")
    assert not (folder / "new.sqlite3").exists()


def test_what_was_recorded_is_found(writer: Writer, path: Path) -> None:
    """Every column comes back as it went in, for the writer and for a reader of the file."""
    one, other = row(), row(renews=b"\x01" * 16, revoked_at=5, reason=1)
    writer.record([one, other])
    assert [writer.find(one.serial), writer.find(other.serial)] == [one, other]
    assert sorted(rows_of(path)) == sorted([one, other])
    assert writer.find(b"\x00" * 16) is None
    assert writer.count() == 2


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [0, 1, 2]),
        ({"limit": 2}, [0, 1]),
        ({"subject": "DEVICE-1"}, [0]),
        ({"subject": "%"}, []),
        ({"identity": "factory"}, [0, 2]),
        ({"since_ms": NOW_MS + 1000}, [1, 2]),
        ({"until_ms": NOW_MS + 1000}, [0]),
        ({"since_ms": NOW_MS + 1000, "until_ms": NOW_MS + 1001}, [1]),
        ({"revoked": True}, [1]),
        ({"revoked": False}, [0, 2]),
        ({"revoked": False, "identity": "basic", "since_ms": NOW_MS + 1}, [2]),
    ],
)
def test_search_finds_by_part_and_time(writer: Writer, query: dict[str, Any], found: list[int]) -> None:
    """Texts match by part whatever their case, times bound the issuing, and rows come in the order of issuing."""
    rows = [
        row(),
        row(NOW_MS + 1000, subject="CN=device-2", identity="idevid:CN=x", revoked_at=7, reason=4),
        row(NOW_MS + 2000, subject="CN=device-3"),
    ]
    writer.record(rows[::-1])
    assert list(writer.search(**query)) == [rows[index] for index in found]


def test_a_revocation_is_kept_as_it_was_first_made(writer: Writer) -> None:
    """A second revocation changes neither time nor reason; what the ledger does not hold is not revoked."""
    one = row()
    writer.record([one])
    assert writer.revoke(one.serial, 100, 1)
    assert writer.revoke(one.serial, 200, 4)
    assert writer.find(one.serial) == one._replace(revoked_at=100, reason=1)
    assert not writer.revoke(b"\x01" * 16, 100, 1)


def test_a_repeat_is_found_by_its_key_and_millisecond(writer: Writer) -> None:
    """`find_repeat` answers the row of that key and that millisecond, unless it is revoked."""
    one, twin = row(), row(NOW_MS + 1, repeat_key=b"k" * 32)
    writer.record([one, twin])
    assert writer.find_repeat(b"k" * 32, NOW_MS + 1) == twin
    assert writer.find_repeat(b"k" * 32, NOW_MS) is None
    assert writer.find_repeat(b"x" * 32, NOW_MS + 1) is None
    writer.revoke(twin.serial, 100, 1)
    assert writer.find_repeat(b"k" * 32, NOW_MS + 1) is None


def test_the_last_window_is_told_oldest_first(writer: Writer) -> None:
    """After a start the repeats are filled from the rows of the last window, and from no older one."""
    rows = [row(NOW_MS + number) for number in range(3)]
    writer.record(rows)
    assert list(writer.repeat_keys_since(NOW_MS + 1)) == [(one.repeat_key, one.serial) for one in rows[1:]]


def test_durability_is_really_set(writer: Writer) -> None:
    """The connection that writes has a write-ahead log and synchronous=FULL, as SQLite itself says."""
    assert writer._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_ledger_has_one_writer(path: Path) -> None:
    """A second writer is refused while the first lives, and let in after it."""
    with closing(Writer(path)), pytest.raises(LedgerError, match="one writer"):
        Writer(path)
    Writer(path).close()


def test_a_reader_cannot_write(writer: Writer, path: Path) -> None:
    """What a reader opens is read-only for SQLite too, and sees what is recorded after it was opened."""
    with closing(Reader(path)) as reader:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.execute("DELETE FROM certificate")
        writer.record([row()])
        assert reader.count() == 1


def test_a_batch_is_recorded_whole_or_not_at_all(path: Path) -> None:
    """A serial that is there already leaves none of its batch, and ends the writer."""
    old, fresh = row(), row(NOW_MS + 1)
    with closing(Writer(path)) as writer:
        writer.record([old])
        with pytest.raises(LedgerBroken):
            writer.record([fresh, row(serial=old.serial)])
        assert rows_of(path) == [old]
        with pytest.raises(LedgerBroken):
            writer.record([row(NOW_MS + 2)])
    assert rows_of(path) == [old]


def test_the_same_serial_twice_in_one_batch_is_refused(writer: Writer, path: Path) -> None:
    """Two rows of one batch cannot share a serial."""
    one = row()
    with pytest.raises(LedgerBroken):
        writer.record([one, one])
    assert rows_of(path) == []


def _fill_the_disk(path: Path) -> tuple[list[bytes], list[str]]:
    """Record until a file may grow no more, then lift the limit and try each way of writing again."""
    writer = Writer(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    acknowledged: list[bytes] = []
    try:
        for number in range(10_000):
            one = row(NOW_MS + number, certificate_der=os.urandom(1000))
            writer.record([one])
            acknowledged.append(one.serial)
    except LedgerBroken as error:
        told = [str(error)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for again in (
        lambda: writer.record([row(NOW_MS + 99_999)]),
        lambda: writer.revoke(acknowledged[0], 1, 1),
        lambda: writer.store_health(0, 1.0),
    ):
        try:
            again()
        except LedgerBroken as error:
            told.append(str(error))
    return acknowledged, told


def test_D7_the_first_io_error_is_the_last_word(path: Path) -> None:
    """After one failed write nothing is acknowledged, even when the disk is well again; a new process finds exactly
    what was."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        acknowledged, told = pool.submit(_fill_the_disk, path).result(timeout=60)
    assert acknowledged
    assert len(told) == 4
    assert len({*told}) == 1
    with closing(Writer(path)) as writer:
        assert [one.serial for one in writer.search()] == acknowledged
        writer.record([row(NOW_MS + 99_999)])


def test_migrations_are_numbered_and_run_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old ledger is brought up step by step with its rows kept, and opening it again changes nothing."""
    with closing(Writer(path)) as writer:
        writer.record([row()])
    more = (*ledger.MIGRATIONS, "CREATE TABLE second (a)", "CREATE TABLE third (a)")
    monkeypatch.setattr(ledger, "MIGRATIONS", more)
    for _ in range(2):
        with closing(Writer(path)) as writer:
            assert writer._db.execute("PRAGMA user_version").fetchone() == (len(more),)
            assert writer._db.execute("SELECT count(*) FROM second, third").fetchone() == (0,)
            assert writer.count() == 1


def test_a_migration_that_fails_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is one transaction: half of it is never kept, nor its number."""
    released = ledger.MIGRATIONS
    monkeypatch.setattr(ledger, "MIGRATIONS", (*released, "CREATE TABLE half (a); INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(LedgerError, match="nowhere"):
        Writer(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (len(released),)
        assert other.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall() == []


@pytest.mark.parametrize("opener", [Reader, Writer])
def test_a_newer_schema_is_refused(path: Path, opener: type[Reader]) -> None:
    """A ledger that a newer estd has migrated is not touched by this one."""
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {len(ledger.MIGRATIONS) + 1}")
    with pytest.raises(LedgerError, match="newer"):
        opener(path)
    with pytest.raises(LedgerError, match="newer"):  # and not: another process writes it
        opener(path)


@pytest.mark.parametrize("opener", [Reader, Writer])
def test_a_ledger_that_is_missing_is_not_made(folder: Path, opener: type[Reader]) -> None:
    """A path that leads nowhere is an error, never a new and empty ledger."""
    with pytest.raises(LedgerError, match=r"there is no ledger .* estd ledger create"):
        opener(folder / "elsewhere.sqlite3")
    assert not (folder / "elsewhere.sqlite3").exists()


@pytest.mark.parametrize("opener", [Reader, Writer])
def test_a_file_that_is_no_ledger_is_said_to_be_none(folder: Path, opener: type[Reader]) -> None:
    """A file of another kind is a LedgerError with a sentence, not SQLite's own exception."""
    path = folder / "ledger.sqlite3"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(LedgerError):
        opener(path)


class _Service:
    """The writer behind its socket, in a thread: what the ledger process does, one peer after the other."""

    def __init__(self, writer: Path, door: Path) -> None:
        self._ledger = writer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(door))
        self._listener.listen()
        self.messages: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        with closing(Writer(self._ledger)) as writer:
            service = WriterService(writer)
            peer, _ = self._listener.accept()
            with peer:
                while head := peer.recv(4, socket.MSG_WAITALL):
                    (length,) = struct.unpack("<I", head)
                    message = json.loads(peer.recv(length, socket.MSG_WAITALL))
                    self.messages.append(message)
                    peer.sendall(ledger_link.frame(service.answer([message])[0]))

    def close(self) -> None:
        self._thread.join(timeout=30)
        self._listener.close()


def test_the_writer_is_asked_over_its_socket(path: Path) -> None:
    """Rows, revocations and health go through the writer's socket unchanged; the asker reads the file itself."""
    door = path.with_name("ledger.sock")
    service = _Service(path, door)
    remote = RemoteWriter(path, door)
    one = row(renews=b"\x01" * 16, subject="CN=Gerät\n")
    remote.record([one])
    assert remote.find(one.serial) == one
    assert remote.revoke(one.serial, 100, 1)
    assert not remote.revoke(b"\x02" * 16, 100, 1)
    remote.store_health(3, 1.5)
    with pytest.raises(LedgerError, match="unknown request"):
        remote._ask({"do": "drop"})
    assert [message["do"] for message in service.messages] == ["record", "revoke", "revoke", "health", "drop"]
    assert remote._socket is not None
    remote._socket.close()
    remote.close()
    service.close()
    assert rows_of(path) == [one._replace(revoked_at=100, reason=1)]


def test_a_writer_that_is_gone_is_a_broken_ledger(path: Path) -> None:
    """Nobody knows what a writer that went away had written, so its asker must end too."""
    door = path.with_name("ledger.sock")
    with closing(RemoteWriter(path, door)) as remote, pytest.raises(LedgerBroken, match="does not answer"):
        remote.record([row()])
    with socket.socket(socket.AF_UNIX) as listener, closing(RemoteWriter(path, door)) as remote:
        listener.bind(str(door))
        listener.listen()

        def hang_up() -> None:
            peer, _ = listener.accept()
            peer.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(LedgerBroken, match="does not answer"):
            remote.record([row()])
        thread.join()


def test_messages_that_come_together_are_one_transaction(writer: Writer, path: Path) -> None:
    """What several issuers sent is written whole or not at all, and nobody is told before it is on disk."""
    service = WriterService(writer)
    messages = [{"do": "record", "rows": [ledger_link._row_out(row(NOW_MS + number))]} for number in range(3)]
    assert service.answer(messages) == [{"ok": True}] * 3
    assert len(rows_of(path)) == 3
    again = [{"do": "record", "rows": [ledger_link._row_out(row(NOW_MS + 9))]}, messages[0]]
    with pytest.raises(LedgerBroken):
        service.answer(again)
    assert len(rows_of(path)) == 3
