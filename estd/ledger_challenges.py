"""What the ledger keeps of the revocationChallenges that certificates were issued with (docs/challenges.md)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

SCHEMA = """
    CREATE TABLE revocation_challenge (
        serial BLOB NOT NULL PRIMARY KEY,   -- the certificate's
        hash   BLOB NOT NULL                -- 16 octets of salt, 32 of scrypt (N 16384, r 8, p 1)
    ) STRICT, WITHOUT ROWID;
"""


def add(connection: sqlite3.Connection, challenges: Iterable[tuple[bytes, bytes]]) -> None:
    """Serial numbers with what `revocation.hashed` made, inside the caller's transaction."""
    connection.executemany("INSERT INTO revocation_challenge VALUES (?, ?)", challenges)


def find(connection: sqlite3.Connection, serial: bytes) -> bytes | None:
    """What was kept for a certificate; None where it was issued without a challenge."""
    found = connection.execute("SELECT hash FROM revocation_challenge WHERE serial = ?", (serial,)).fetchone()
    return bytes(found[0]) if found else None
