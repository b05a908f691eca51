"""The registry's tables in the ledger: one row a device, found by its key; what the ledger's one writer does to them.

An import is many transactions, so that enrolments go on meanwhile, and is seen at once when its last one marks it as
done; the rows of an import that never was are no devices, and the next import clears them away.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from estd.devices import Device, DeviceKey, Use

SCHEMA = """
    CREATE TABLE device (
        label         TEXT NOT NULL,
        manufacturer  TEXT NOT NULL,
        serial_number TEXT NOT NULL,      -- the device's
        profile       TEXT,
        names         TEXT NOT NULL,      -- JSON; empty without any
        enabled       INTEGER NOT NULL,
        secret        BLOB,               -- SHA-256 of the one-time secret
        secret_until  INTEGER,            -- seconds since 1970
        secret_used   INTEGER,            -- milliseconds since 1970
        added_at      INTEGER NOT NULL,   -- seconds since 1970
        import        INTEGER NOT NULL,
        PRIMARY KEY (label, manufacturer, serial_number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE device_import (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, done INTEGER NOT NULL) STRICT;
"""

_COLUMNS = ", ".join(Device._fields).replace("secret_used_ms", "secret_used")
_KEY = "label = ? AND manufacturer = ? AND serial_number = ?"
_SEEN = "(SELECT done FROM device_import WHERE id = import)"
_FIND = f"SELECT {_COLUMNS} FROM device WHERE {_KEY} AND {_SEEN}"
_INSERT = "INSERT OR IGNORE INTO device VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_USE = (
    f"UPDATE device SET secret_used = ? WHERE {_KEY} AND secret = ? AND secret_used IS NULL AND secret_until > ? "
    "AND enabled"
)
_GIVE_BACK = f"UPDATE device SET secret_used = NULL WHERE {_KEY} AND secret = ? AND secret_used = ?"
_SWEPT = 20_000
"""Rows that one sweep looks at: some milliseconds."""


class DeviceRefused(Exception):
    """The change cannot be made; nothing was changed, and the ledger is as well as before."""


def _device(found: Sequence[Any]) -> Device:
    label, manufacturer, serial_number, profile, names, enabled, *rest = found
    return Device(label, manufacturer, serial_number, profile, names, bool(enabled), *rest)


def find(connection: sqlite3.Connection, keys: Collection[DeviceKey]) -> dict[DeviceKey, Device]:
    """The rows that there are under these keys."""
    found: dict[DeviceKey, Device] = {}
    for key in keys:
        row = connection.execute(_FIND, key).fetchone()
        if row is not None:
            found[key] = _device(row)
    return found


def search(
    connection: sqlite3.Connection, *, label: str | None, manufacturer: str | None, part: str | None,
    enabled: bool | None, limit: int,
) -> Iterator[Device]:  # fmt: skip
    """Rows in the order of their keys; `part` is a part of the serial number."""
    where, values = [_SEEN], list[object]()
    for clause, value in (
        ("label = ?", label),
        ("manufacturer = ?", manufacturer),
        ("instr(lower(serial_number), lower(?)) > 0", part),
        ("enabled = ?", enabled),
    ):
        if value is not None:
            where.append(clause)
            values.append(value)
    query = (
        f"SELECT {_COLUMNS} FROM device WHERE {' AND '.join(where)} ORDER BY label, manufacturer, serial_number LIMIT ?"
    )
    for row in connection.execute(query, (*values, limit)):
        yield _device(row)


def use(connection: sqlite3.Connection, uses: Sequence[Use]) -> set[bytes]:
    """Mark the secrets as used, inside the caller's transaction. The serial numbers of the certificates that must not
    be recorded: their secret was used by another meanwhile, or changed, or its device was disabled."""
    lost: set[bytes] = set()
    for one in uses:
        done = connection.execute(_USE, (one.at_ms, *one.key, one.secret, one.at_ms // 1000))
        if done.rowcount != 1:
            lost.add(one.certificate)
    return lost


def give_back(connection: sqlite3.Connection, uses: Sequence[Use]) -> None:
    """Undo `use`, inside the same transaction, for certificates that are not recorded for another reason."""
    for one in uses:
        connection.execute(_GIVE_BACK, (*one.key, one.secret, one.at_ms))


def change(connection: sqlite3.Connection, message: dict[str, Any]) -> dict[str, Any]:
    """One change, inside the caller's transaction, as the command line sends it; blobs in hexadecimal. Raises
    DeviceRefused."""
    match message["change"]:
        case "begin":
            made = connection.execute("INSERT INTO device_import (at, done) VALUES (?, 0)", (message["at"],))
            return {"id": made.lastrowid}
        case "rows":
            return _add(connection, message["id"], message["rows"])
        case "done":
            connection.execute("UPDATE device_import SET done = 1 WHERE id = ?", (message["id"],))
            return {}
        case "sweep":
            return _sweep(connection, DeviceKey(*message["after"]))
        case "state":
            done = connection.execute(
                f"UPDATE device SET enabled = ? WHERE {_KEY} AND {_SEEN}", (message["enabled"], *message["key"])
            )
            return {"found": done.rowcount == 1}
        case "secret":
            done = connection.execute(
                f"UPDATE device SET secret = ?, secret_until = ?, secret_used = NULL WHERE {_KEY} AND {_SEEN}",
                (bytes.fromhex(message["secret"]), message["until"], *message["key"]),
            )
            return {"found": done.rowcount == 1}
    raise DeviceRefused(f"no change of the registry is called {message['change']!r}")


def _add(connection: sqlite3.Connection, number: int, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Rows of an import, each as `Device` has it, the secret in hexadecimal."""
    before = connection.total_changes
    connection.executemany(
        _INSERT, ((*row[:6], None if row[6] is None else bytes.fromhex(row[6]), *row[7:], number) for row in rows)
    )
    if connection.total_changes - before != len(rows):
        raise DeviceRefused("a device of this import is in the registry already; run the import again to see which")
    return {}


def _sweep(connection: sqlite3.Connection, after: DeviceKey) -> dict[str, Any]:
    """Delete rows of imports that never were done, among those that follow `after`; the last key that was looked at,
    or None at the end."""
    if connection.execute("SELECT count(*) FROM device_import WHERE NOT done").fetchone()[0] == 0:
        return {"next": None}
    last = connection.execute(
        "SELECT label, manufacturer, serial_number FROM device WHERE (label, manufacturer, serial_number) > (?, ?, ?) "
        "ORDER BY label, manufacturer, serial_number LIMIT 1 OFFSET ?",
        (*after, _SWEPT - 1),
    ).fetchone()
    end = " AND (label, manufacturer, serial_number) <= (?, ?, ?)" if last else ""
    connection.execute(
        f"DELETE FROM device WHERE (label, manufacturer, serial_number) > (?, ?, ?){end} AND NOT {_SEEN}",
        (*after, *(last or ())),
    )
    if last is None:
        connection.execute("DELETE FROM device_import WHERE NOT done")
    return {"next": last}
