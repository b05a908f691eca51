"""What was issued, durably: one SQLite file with one writer.

A batch is one transaction with synchronous=FULL on a write-ahead log: when `record` returns, its rows survive a loss
of power. At the first I/O error the writer refuses everything from then on (SQLite goes on acknowledging after a failed
fsync; the ledger does not): its process ends and a new one starts from what the disk holds. Who else wants to read
opens the file with `Reader`, read-only.

Rows lie in the order of their serials, which begin with the time, so that a batch touches the end of one tree and a
search by time is a range.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from estd import ledger_challenges, ledger_crls, ledger_devices, ledger_requests, ledger_subjects
from estd.devices import Device, DeviceKey, Use
from estd.issuance import serial_floor
from estd.ledger_crls import CrlRecord, Crls
from estd.ledger_requests import NOTHING_HELD, Decision, Held, Requests

NO_CHALLENGES: Mapping[bytes, bytes] = {}
LeftOut = Literal["withdrawn", "spent"]
"""Why a certificate was not recorded: its approval was withdrawn, or its one-time secret used by another."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE certificate (
        serial      BLOB NOT NULL PRIMARY KEY,  -- 16 octets: milliseconds, then random bits
        certificate BLOB NOT NULL,        -- DER
        csr_sha256  BLOB NOT NULL,
        repeat_key  BLOB NOT NULL,        -- equal for a request that is sent again
        identity    TEXT NOT NULL,        -- who asked
        subject     TEXT NOT NULL,        -- RFC 4514
        label       TEXT NOT NULL,
        profile     TEXT NOT NULL,
        not_before  INTEGER NOT NULL,     -- seconds since 1970
        not_after   INTEGER NOT NULL,
        issued_at   INTEGER NOT NULL,     -- milliseconds since 1970
        renews      BLOB,                 -- the serial of the certificate that this one renews
        revoked_at  INTEGER,              -- seconds since 1970
        reason      INTEGER               -- CRLReason (RFC 5280 §5.3.1)
    ) STRICT;
    CREATE TABLE health (slot INTEGER PRIMARY KEY, at REAL NOT NULL) STRICT;
    """,
    ledger_crls.SCHEMA,
    ledger_requests.SCHEMA,
    ledger_devices.SCHEMA,
    ledger_challenges.SCHEMA,
)
"""Numbered by their place; `PRAGMA user_version` says how many a file has had. Never edited once released."""

REVOCATION_REASONS = {
    "unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5,
    "privilegeWithdrawn": 9,
}  # fmt: skip

_TAKEN_STEP_SECONDS = 0.002
_INSERT = "INSERT INTO certificate VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_REVOKE = "UPDATE certificate SET revoked_at = ?, reason = ? WHERE serial = ? AND revoked_at IS NULL"


class LedgerError(Exception):
    """The ledger cannot be opened, read or written; the sentence says what to do."""


class LedgerBroken(LedgerError):
    """An I/O error: nothing this process says about the ledger counts any more."""


class LedgerTaken(LedgerError):
    """Another process writes the ledger now."""


class Row(NamedTuple):
    """One issued certificate, in the order of the table's columns."""

    serial: bytes
    certificate_der: bytes
    csr_sha256: bytes
    repeat_key: bytes
    identity: str
    subject: str
    label: str
    profile: str
    not_before: int
    not_after: int
    issued_at_ms: int
    renews: bytes | None
    revoked_at: int | None = None
    reason: int | None = None


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    if not path.exists():
        raise LedgerError(
            f"there is no ledger {path}: restore a copy, or where there is none make an empty one by estd ledger create"
        )
    try:
        connection = sqlite3.connect(f"file:{path}?mode={mode}", uri=True, isolation_level=None, timeout=5.0)
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger {path} cannot be opened: {error}") from error
    return connection


def create(path: Path) -> None:
    """An empty ledger, readable by its owner alone. Raises LedgerError where the file exists, where another process
    still writes one that is gone, or where its last rows lie beside: SQLite would delete these."""
    log = path.with_name(path.name + "-wal")
    if not path.exists() and log.exists() and log.stat().st_size:
        raise LedgerError(f"{log} holds rows of the ledger that was here: restore it with its ledger, or move it away")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise LedgerError(f"the ledger {path} cannot be made: {error.strerror}") from error
    try:
        Writer(path).close()
    except (LedgerError, OSError) as error:
        path.unlink()
        raise LedgerError(str(error)) from error


def _no_registry(error: sqlite3.Error) -> LedgerError:
    return LedgerError(f"the registry cannot be read ({error}); an old ledger gets one when it is served")


class Reader:
    """Read-only questions; as many as wish may have one open."""

    def __init__(self, path: Path) -> None:
        self._db = _connect(path, "ro")
        try:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            self._db.close()
            raise LedgerError(f"{path} is not a ledger that can be read: {error}") from error
        if version > len(MIGRATIONS):
            self._db.close()
            raise LedgerError(f"the ledger {path} has schema {version}, newer than this estd; use the newer estd")
        self._schema = MIGRATIONS[:version]

    @property
    def crls(self) -> Crls:
        """Revocations in their order, and each CA's last CRL."""
        self._must_have(ledger_crls.SCHEMA)
        return Crls(self._db)

    @property
    def requests(self) -> Requests:
        """The requests that wait for a person, or waited."""
        self._must_have(ledger_requests.SCHEMA)
        return Requests(self._db)

    def _must_have(self, migration: str) -> None:
        if migration not in self._schema:
            raise LedgerError("the ledger is of an older estd; serve it once with this one, which brings it up to date")

    def find(self, serial: bytes) -> Row | None:
        found = self._db.execute("SELECT * FROM certificate WHERE serial = ?", (serial,)).fetchone()
        return Row(*found) if found else None

    def find_many(self, serials: Collection[bytes]) -> dict[bytes, Row]:
        """The rows that the ledger holds under these serial numbers, by serial number."""
        query = f"SELECT * FROM certificate WHERE serial IN ({', '.join('?' * len(serials))})"
        return {found[0]: Row(*found) for found in self._db.execute(query, tuple(serials))}

    def find_subject(self, label: str, subject: str) -> list[Row]:
        """What a label issued last for a subject (RFC 4514), newest first; see ledger_subjects."""
        return [Row(*found) for found in ledger_subjects.find(self._db, label, subject)]

    def revocation_challenge(self, serial: bytes) -> bytes | None:
        """What is kept of the revocationChallenge that a certificate was issued with (`revocation.hashed`)."""
        self._must_have(ledger_challenges.SCHEMA)
        return ledger_challenges.find(self._db, serial)

    def find_repeat(self, repeat_key: bytes, when_ms: int) -> Row | None:
        """The unrevoked certificate that was issued in that millisecond for a request with that key."""
        found = self._db.execute(
            "SELECT * FROM certificate WHERE serial >= ? AND serial < ? AND repeat_key = ? AND revoked_at IS NULL",
            (serial_floor(when_ms), serial_floor(when_ms + 1), repeat_key),
        ).fetchone()
        return Row(*found) if found else None

    def repeat_keys_since(self, when_ms: int) -> Iterator[tuple[bytes, bytes]]:
        """Repeat key and serial of what was issued since then, oldest first."""
        return self._db.execute(
            "SELECT repeat_key, serial FROM certificate WHERE serial >= ? ORDER BY serial", (serial_floor(when_ms),)
        )

    def search(
        self,
        *,
        serial: bytes | None = None,
        subject: str | None = None,
        identity: str | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        revoked: bool | None = None,
        limit: int = -1,
    ) -> Iterator[Row]:
        """Rows in the order of issuing. `subject` and `identity` are parts of the text; times bound the issuing."""
        where, values = ["1"], list[object]()
        for clause, value in (
            ("serial = ?", serial),
            ("serial >= ?", None if since_ms is None else serial_floor(since_ms)),
            ("serial < ?", None if until_ms is None else serial_floor(until_ms)),
            ("instr(lower(subject), lower(?)) > 0", subject),
            ("instr(lower(identity), lower(?)) > 0", identity),
        ):
            if value is not None:
                where.append(clause)
                values.append(value)
        if revoked is not None:
            where.append("revoked_at IS " + ("NOT NULL" if revoked else "NULL"))
        query = f"SELECT * FROM certificate WHERE {' AND '.join(where)} ORDER BY serial LIMIT ?"
        for found in self._db.execute(query, (*values, limit)):
            yield Row(*found)

    def unexpired(self, now: float) -> Iterator[bytes]:
        """The certificates (DER) that are neither expired nor revoked."""
        query = "SELECT certificate FROM certificate WHERE not_after >= ? AND revoked_at IS NULL"
        return (found[0] for found in self._db.execute(query, (int(now),)))

    def find_devices(self, keys: Collection[DeviceKey]) -> dict[DeviceKey, Device]:
        """The devices that the registry holds under these keys."""
        try:
            return ledger_devices.find(self._db, keys)
        except sqlite3.Error as error:
            raise _no_registry(error) from None

    def search_devices(self, **query: Any) -> Iterator[Device]:
        """The registry's devices, as `ledger_devices.search` has it."""
        try:
            yield from ledger_devices.search(self._db, **query)
        except sqlite3.Error as error:
            raise _no_registry(error) from None

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM certificate").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer(Reader):
    """The one process that writes. Raises LedgerError where another has the ledger open for writing."""

    def __init__(self, path: Path) -> None:
        self._broken = ""
        self._lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise LedgerTaken(f"another process writes the ledger {path}; a ledger has one writer") from None
        try:
            self._open(path)
        except sqlite3.Error as error:
            os.close(self._lock)
            raise LedgerError(f"the ledger {path} cannot be opened for writing: {error}") from error
        except LedgerError:
            os.close(self._lock)
            raise

    def _open(self, path: Path) -> None:
        with closing(_connect(path, "rw")) as connection:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise LedgerError(f"the ledger {path} is on a file system that cannot keep a write-ahead log")
            connection.execute("PRAGMA synchronous = FULL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            for number, script in enumerate(MIGRATIONS[version:], version + 1):
                connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
        super().__init__(path)
        self._db.close()
        self._db = _connect(path, "rw")
        self._db.execute("PRAGMA synchronous = FULL")
        # Checkpoints of 500 pages hold a batch up for 3 ms, SQLite's 1000 for 4 and 2000 for 10; all cost the same.
        self._db.execute("PRAGMA wal_autocheckpoint = 500")

    def index_subjects(self, labels: Collection[str]) -> None:
        """Have an index of subjects for these labels alone, which `find_subject` is asked for."""
        with self._transaction() as connection:
            ledger_subjects.keep(connection, labels)

    def record(
        self,
        rows: Sequence[Row],
        held: Held = NOTHING_HELD,
        uses: Sequence[Use] = (),
        challenges: Mapping[bytes, bytes] = NO_CHALLENGES,
    ) -> Mapping[bytes, LeftOut]:
        """All rows or none, on disk when it returns. Raises LedgerBroken, after which nothing more is written.

        `held` is what the batch changes about requests that wait for a person, `uses` the one-time secrets that it
        uses, `challenges` by serial what is kept of revocationChallenges. Returns the serials that were left out, each
        with why; for those nothing is changed."""
        left_out: dict[bytes, LeftOut] = {}
        with self._transaction() as connection:
            if uses:
                left_out.update(dict.fromkeys(ledger_devices.use(connection, uses), "spent"))
            if held is not NOTHING_HELD:
                withdrawn = ledger_requests.change(connection, held.without(left_out))
                ledger_devices.give_back(connection, [one for one in uses if one.certificate in withdrawn])
                left_out.update(dict.fromkeys(withdrawn, "withdrawn"))
            connection.executemany(_INSERT, [row for row in rows if row.serial not in left_out] if left_out else rows)
            if challenges:
                ledger_challenges.add(connection, [one for one in challenges.items() if one[0] not in left_out])
        return left_out

    def decide(self, number: int, seen: str, decision: Decision) -> bool:
        """Approve or deny a request that waits; False where it is not in the state `seen` any more."""
        with self._transaction() as connection:
            return ledger_requests.decide(connection, number, seen, decision)

    def change_devices(self, message: dict[str, Any]) -> dict[str, Any]:
        """A change of the registry (`ledger_devices.change`). Raises LedgerError where it cannot be made."""
        try:
            with self._transaction() as connection:
                return ledger_devices.change(connection, message)
        except ledger_devices.DeviceRefused as refused:
            raise LedgerError(str(refused)) from None

    def revoke(self, serial: bytes, when: int, reason: int) -> bool:
        """Revoke a certificate; False where the ledger does not hold it. A second revocation changes nothing."""
        self._write(_REVOKE, [(when, reason, serial)])
        return self.find(serial) is not None

    def supersede(self, serials: Sequence[bytes], when: int) -> None:
        """Revoke all of them as superseded; those that are revoked already stay as they are."""
        self._write(_REVOKE, [(when, REVOCATION_REASONS["superseded"], serial) for serial in serials])

    def store_crl(self, record: CrlRecord) -> None:
        """Take a number, before a CRL with it is signed: no number is given twice."""
        self._write(ledger_crls.STORE, [record])

    def want_crl(self, ca: str) -> None:
        """Ask for another CRL of that CA than its last."""
        self._write(ledger_crls.WANT, [(ca,)])

    def store_health(self, slot: int, at: float) -> None:
        """Prove that a row can be stored."""
        self._write("INSERT OR REPLACE INTO health VALUES (?, ?)", [(slot, at)])

    def _write(self, statement: str, values: Iterable[tuple[object, ...]]) -> None:
        with self._transaction() as connection:
            connection.executemany(statement, values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction, all of it or nothing."""
        if self._broken:
            raise LedgerBroken(self._broken)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._broken = f"the ledger cannot be written ({error}); restart once its disk is well"
            raise LedgerBroken(self._broken) from error
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Give the ledger up to the next writer."""
        super().close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def wait_for_writer(path: Path, seconds: float) -> Writer:
    """The writer, as soon as another one gives the ledger up. Raises LedgerTaken where none does in that time."""
    until = time.monotonic() + seconds
    while True:
        try:
            return Writer(path)
        except LedgerTaken:
            if time.monotonic() > until:
                raise
            time.sleep(_TAKEN_STEP_SECONDS)
