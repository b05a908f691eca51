"""How a process of a new generation begins: it says that it is prepared, and waits for the word.

A reload starts processes beside those that serve. Each loads its configuration, opens its token or its TLS key, and
tells the supervisor, in one line on an inherited pipe, that it is prepared or why it is not. Only when all are does the
supervisor give the word, in one line on their standard input; until then none has touched a connection or the ledger.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from dataclasses import dataclass
from pathlib import Path

PREPARED = "prepared"
GO = b"go\n"


def issuer_socket(run: Path, index: int, generation: int) -> Path:
    """Where the edges of a generation find its issuers: frames carry the numbers of its own labels."""
    return run / f"issuer-{index}.{generation}.sock"


def generations(run: Path) -> set[str]:
    """Those that have issuers: more than one while one comes or retires."""
    return {path.name.split(".")[1] for path in run.glob("issuer-*.sock")}


def refused_pin(run: Path, generation: int) -> Path:
    """There once the token has refused the PIN to an issuer of that generation: the others, and those that replace
    them, do not try it."""
    return run / f"pin-refused.{generation}"


@dataclass(slots=True, kw_only=True)
class Turn:
    """What a process is told of its place among the generations."""

    generation: int
    writes: bool
    """The only issuer writes the ledger; one of a generation that retires asks the one that writes now."""
    report: int | None
    """Descriptor on which it is said how the start went; None where nobody waits for that, and once it is said."""

    def prepared(self) -> None:
        """Say so, and wait for the word. Ends the process where the word does not come."""
        if self.report is None:
            return
        self._say(PREPARED)
        if sys.stdin.buffer.readline() != GO:
            sys.exit(0)

    def failed(self, why: str) -> None:
        """Say why this process cannot begin."""
        self._say(why.replace("\n", "; ") or "it failed without a reason")

    def _say(self, line: str) -> None:
        """Once: afterwards the descriptor's number may be another file's."""
        if self.report is None:
            return
        descriptor, self.report = self.report, None
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(descriptor, line.encode()[:4000])
        os.close(descriptor)


class Exclusive:
    """What one process of all generations may do at a time, held by a lock on a file; the end of a process frees it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def take(self) -> bool:
        """False while another process has it. Raises OSError."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def give(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
