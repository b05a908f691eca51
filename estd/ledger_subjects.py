"""Certificates by their subject: an index for those labels alone whose registration authorities renew by names.

An index on all subjects would cost each enrolment a page of the log; a partial one costs the rows of its label. Which
labels have one follows the configuration: the first issuer of each generation has it made, and filled by SQLite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from typing import Any

_PREFIX = "subjects of "
_FOUND_MAX = 64


def keep(db: sqlite3.Connection, labels: Collection[str]) -> None:
    """Have an index for each of these labels and for no other."""
    wanted = {_PREFIX + label: label for label in labels}
    query = "SELECT name FROM sqlite_master WHERE type = 'index' AND substr(name, 1, ?) = ?"
    there = {str(name) for (name,) in db.execute(query, (len(_PREFIX), _PREFIX))}
    for name in there - wanted.keys():
        db.execute(f'DROP INDEX "{name}"')
    for name in wanted.keys() - there:
        # A label's name has neither quotes nor anything else that SQL reads (labels.LABEL_NAME).
        db.execute(f"CREATE INDEX \"{name}\" ON certificate (lower(subject)) WHERE label = '{wanted[name]}'")


def find(db: sqlite3.Connection, label: str, subject: str) -> Iterator[tuple[Any, ...]]:
    """The newest rows of a label with that subject (RFC 4514), newest first; without its index it reads them all."""
    return db.execute(
        f"SELECT * FROM certificate WHERE label = '{label}' AND lower(subject) = lower(?) ORDER BY serial DESC LIMIT ?",
        (subject, _FOUND_MAX),
    )
