"""What the ledger knows of revocations in the order in which they came, and of each CA's last CRL.

A trigger copies each revocation into a table of its own, whoever recorded it, so that a CRL can go on from the last
one it considered. All SQL about them is here; the transactions are the ledger's.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

SCHEMA = """
    CREATE TABLE revocation (             -- in the order in which they were recorded, for CRLs
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        serial      BLOB NOT NULL,
        revoked_at  INTEGER NOT NULL,     -- seconds since 1970
        reason      INTEGER NOT NULL,
        not_after   INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE crl (
        ca           TEXT PRIMARY KEY,
        number       INTEGER NOT NULL,    -- cRLNumber of the last one
        this_update  INTEGER NOT NULL,
        next_update  INTEGER NOT NULL,
        scheduled_at INTEGER NOT NULL,    -- thisUpdate of the last one that was made because it was time
        last_id      INTEGER NOT NULL,    -- of the last revocation that it considers
        wanted       INTEGER NOT NULL     -- the number of the one after which another was asked for
    ) STRICT;
    INSERT INTO revocation (serial, revoked_at, reason, not_after)
        SELECT serial, revoked_at, coalesce(reason, 0), not_after FROM certificate
        WHERE revoked_at IS NOT NULL ORDER BY revoked_at, serial;
    CREATE TRIGGER certificate_revoked AFTER UPDATE OF revoked_at ON certificate
        WHEN OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL
        BEGIN
            INSERT INTO revocation (serial, revoked_at, reason, not_after)
                VALUES (NEW.serial, NEW.revoked_at, coalesce(NEW.reason, 0), NEW.not_after);
        END;
"""
STORE = (
    "INSERT INTO crl VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (ca) DO UPDATE SET number = excluded.number, "
    "this_update = excluded.this_update, next_update = excluded.next_update, scheduled_at = excluded.scheduled_at, "
    "last_id = excluded.last_id"
)
"""A CrlRecord, without touching what was asked for meanwhile."""
WANT = "UPDATE crl SET wanted = number WHERE ca = ?"


class Revocation(NamedTuple):
    """One revoked certificate."""

    id: int
    """Grows with each revocation."""
    serial: bytes
    revoked_at: int
    reason: int
    not_after: int
    certificate_der: bytes


class CrlRecord(NamedTuple):
    """The last CRL of a CA, in the order of the table's columns."""

    ca: str
    number: int
    this_update: int
    next_update: int
    scheduled_at: int
    last_id: int
    wanted: int = 0


class Crls:
    """Questions, to any connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def revocations(self, after: int, not_after: int, limit: int) -> list[Revocation]:
        """Those recorded after the one with that id, of certificates valid at or after `not_after`; oldest first."""
        query = (
            "SELECT id, r.serial, r.revoked_at, r.reason, r.not_after, certificate FROM revocation r "
            "JOIN certificate c ON c.serial = r.serial WHERE id > ? AND r.not_after >= ? ORDER BY id LIMIT ?"
        )
        return [Revocation(*found) for found in self._db.execute(query, (after, not_after, limit))]

    def last(self, ca: str) -> CrlRecord | None:
        found = self._db.execute("SELECT * FROM crl WHERE ca = ?", (ca,)).fetchone()
        return CrlRecord(*found) if found else None

    def highest(self, ca: str) -> int:
        """The highest number of a CRL of this CA, by whichever of its keys (see CrlSigner.name)."""
        query = "SELECT coalesce(max(number), 0) FROM crl WHERE ca = ?1 OR substr(ca, 1, length(?1) + 1) = ?1 || ' '"
        return int(self._db.execute(query, (ca,)).fetchone()[0])
