"""The requests that wait for a person, or waited, as the ledger holds them (docs/approval.md).

A request is found by its key, which is equal for the same client, public key and names, whatever CSR they come in
(RFC 7030 §4.2.3). At most one request of a key is open: pending, approved but not fetched, or denied; issued and
expired ones stay for the record, and each decision has a row of its own that nothing changes. All SQL about them is
here; the transactions are the ledger's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

SCHEMA = """
    CREATE TABLE request (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        key         BLOB NOT NULL,        -- equal for the same request, however its CSR was built
        state       TEXT NOT NULL,        -- pending, approved, denied, issued, expired
        label       TEXT NOT NULL,
        profile     TEXT NOT NULL,
        renews      BLOB,                 -- the serial of the certificate that would be renewed
        identity    TEXT NOT NULL,        -- who asks
        peer        TEXT NOT NULL,        -- the address that the first request came from
        subject     TEXT NOT NULL,        -- as it would be granted, RFC 4514
        names       TEXT NOT NULL,        -- subjectAltNames as they would be granted, a JSON array
        key_kind    TEXT NOT NULL,
        spki_sha256 BLOB NOT NULL,        -- of the SubjectPublicKeyInfo
        asked_at    INTEGER NOT NULL,     -- milliseconds since 1970, as all times here
        expires_at  INTEGER NOT NULL,
        decided_at  INTEGER,
        decided_by  TEXT,
        reason      TEXT,
        serial      BLOB                  -- of the certificate that came of it
    ) STRICT;
    CREATE UNIQUE INDEX request_open ON request (key) WHERE state IN ('pending', 'approved', 'denied');
    CREATE INDEX request_pending ON request (label, identity, expires_at, asked_at) WHERE state = 'pending';
    CREATE INDEX request_ends ON request (expires_at) WHERE state IN ('pending', 'approved', 'denied');
    CREATE TABLE decision (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        request INTEGER NOT NULL REFERENCES request (id),
        state   TEXT NOT NULL,            -- approved or denied
        at      INTEGER NOT NULL,
        by      TEXT NOT NULL,
        reason  TEXT NOT NULL
    ) STRICT;
    CREATE INDEX decision_request ON decision (request);
"""

STATES = ("pending", "approved", "denied", "issued", "expired")
REASON_MAX = 300
"""Characters of a decision's reason."""
DECISIONS = ("approved", "denied")
_OPEN = "state IN ('pending', 'approved', 'denied')"
_SHOWN = f"CASE WHEN {_OPEN} AND expires_at <= :now THEN 'expired' ELSE state END"
"""A request is expired from its time on, also before a sweep writes it down."""
_IN_STATE = {
    **{one: f"state = '{one}' AND expires_at > :now" for one in ("pending", "approved", "denied")},
    "issued": "state = 'issued'",
    "expired": f"(state = 'expired' OR {_OPEN} AND expires_at <= :now)",
}
"""The same as a condition, by which the indices of what is open are of use."""
_COLUMNS = f"""
    id, key, {_SHOWN} AS shown, label, profile, renews, identity, peer, subject, names, key_kind, spki_sha256, asked_at,
    expires_at, decided_at, decided_by, reason, serial
"""


class Waiting(NamedTuple):
    """A request that begins to wait: what a person needs to know to decide on it."""

    key: bytes
    label: str
    profile: str
    renews: bytes | None
    identity: str
    peer: str
    subject: str
    names: str
    """A JSON array of texts."""
    key_kind: str
    spki_sha256: bytes
    asked_at: int
    expires_at: int


class HeldRequest(NamedTuple):
    """One request, in the order of `_COLUMNS`; `state` is as of the time of asking."""

    id: int
    key: bytes
    state: str
    label: str
    profile: str
    renews: bytes | None
    identity: str
    peer: str
    subject: str
    names: tuple[str, ...]
    key_kind: str
    spki_sha256: bytes
    asked_at: int
    expires_at: int
    decided_at: int | None
    decided_by: str | None
    reason: str | None
    serial: bytes | None


class Decision(NamedTuple):
    state: str
    at: int
    by: str
    reason: str


class Standing(NamedTuple):
    """Where an open request stands."""

    id: int
    state: str
    reason: str | None


class Held(NamedTuple):
    """What a batch's transaction changes here."""

    waiting: Sequence[Waiting]
    issued: Mapping[bytes, int]
    """Serial of each certificate that a person approved, and the request's number."""

    def without(self, serials: Collection[bytes]) -> Held:
        """The same less these certificates."""
        if not serials:
            return self
        return self._replace(issued={one: number for one, number in self.issued.items() if one not in serials})


NOTHING_HELD = Held((), {})


class Requests:
    """Questions about requests, on a connection of the ledger's."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def find_open(self, keys: Collection[bytes], now_ms: int) -> dict[bytes, Standing]:
        """The open requests with these keys that have not expired."""
        query = (
            f"SELECT key, id, state, reason FROM request WHERE key IN ({', '.join('?' * len(keys))}) AND {_OPEN} "
            "AND expires_at > ?"
        )
        return {key: Standing(*found) for key, *found in self._db.execute(query, (*keys, now_ms))}

    def count_pending(self, label: str, identity: str | None, now_ms: int) -> int:
        """How many of a label wait; with `identity`, of that client's alone."""
        query = "SELECT count(*) FROM request WHERE state = 'pending' AND label = ? AND expires_at > ?"
        values: tuple[object, ...] = (label, now_ms)
        if identity is not None:
            query, values = f"{query} AND identity = ?", (*values, identity)
        return int(self._db.execute(query, values).fetchone()[0])

    def queue(self, now_ms: int) -> tuple[int, int]:
        """How many wait, and since when the first of them (0 where none does)."""
        query = "SELECT count(*), coalesce(min(asked_at), 0) FROM request WHERE state = 'pending' AND expires_at > ?"
        count, oldest = self._db.execute(query, (now_ms,)).fetchone()
        return int(count), int(oldest)

    def find(self, number: int, now_ms: int) -> HeldRequest | None:
        found = self._db.execute(f"SELECT {_COLUMNS} FROM request WHERE id = :id", {"id": number, "now": now_ms})
        row = found.fetchone()
        return _held(row) if row else None

    def search(
        self, now_ms: int, *, state: str | None = None, text: str = "", before: int | None = None, limit: int = -1
    ) -> Iterator[HeldRequest]:
        """Newest first. `text` is part of the subject, a name, who asks, the peer, the label or the key's
        fingerprint; `before` is the number that a page goes on from."""
        query = f"""
            SELECT {_COLUMNS} FROM request
            WHERE {_IN_STATE[state] if state else "1"} AND (:before IS NULL OR id < :before)
              AND (:text = '' OR instr(lower(subject || char(10) || names || char(10) || identity || char(10) || peer
                   || char(10) || label || char(10) || hex(spki_sha256)), lower(:text)) > 0
                   OR length(replace(:text, ':', '')) >= 8
                   AND instr(lower(hex(spki_sha256)), lower(replace(:text, ':', ''))) > 0)
            ORDER BY id DESC LIMIT :limit
        """
        values = {"now": now_ms, "before": before, "text": text, "limit": limit}
        for row in self._db.execute(query, values):
            yield _held(row)

    def decisions(self, number: int) -> list[Decision]:
        """What was decided on a request, in that order."""
        query = "SELECT state, at, by, reason FROM decision WHERE request = ? ORDER BY id"
        return [Decision(*row) for row in self._db.execute(query, (number,))]


def plain_text(text: str) -> str:
    """What a client chose, for a person's eyes: without characters that control a terminal or turn the text round."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _held(row: tuple[object, ...]) -> HeldRequest:
    found = HeldRequest(*row)  # type: ignore[arg-type]
    return found._replace(names=tuple(json.loads(str(found.names))))


def change(db: sqlite3.Connection, held: Held) -> frozenset[bytes]:
    """A batch's changes, inside its transaction. Returns the serials whose approval is not there any more: their
    certificates must not be recorded."""
    withdrawn: set[bytes] = set()
    for serial, number in held.issued.items():
        done = db.execute(
            "UPDATE request SET state = 'issued', serial = ? WHERE id = ? AND state = 'approved'", (serial, number)
        )
        if done.rowcount != 1:
            withdrawn.add(serial)
    if held.waiting:
        # What ran out makes way, for the same request asked again too.
        now_ms = max(one.asked_at for one in held.waiting)
        db.execute(f"UPDATE request SET state = 'expired' WHERE {_OPEN} AND expires_at <= ?", (now_ms,))
        marks = ", ".join("?" * len(Waiting._fields))
        db.executemany(
            f"INSERT INTO request (state, {', '.join(Waiting._fields)}) VALUES ('pending', {marks}) "
            "ON CONFLICT DO NOTHING",  # another issuer has just stored it
            held.waiting,
        )
    return frozenset(withdrawn)


def decide(db: sqlite3.Connection, number: int, seen: str, decision: Decision) -> bool:
    """Write a decision down, inside a transaction; False where the request is not in the state that its judge saw.

    It holds for as long as the request could have waited: an approval to be fetched, a denial to be told."""
    done = db.execute(
        f"""
        UPDATE request SET state = ?, decided_at = ?, decided_by = ?, reason = ?,
            expires_at = ? + (expires_at - coalesce(decided_at, asked_at))
        WHERE id = ? AND state = ? AND state <> ? AND {_OPEN} AND expires_at > ?
        """,
        (
            decision.state, decision.at, decision.by, decision.reason, decision.at, number, seen, decision.state,
            decision.at,
        ),
    )  # fmt: skip
    if done.rowcount != 1:
        return False
    db.execute("INSERT INTO decision (request, state, at, by, reason) VALUES (?, ?, ?, ?, ?)", (number, *decision))
    return True
