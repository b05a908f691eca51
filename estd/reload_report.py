"""How a start or a reload went: what the supervisor says of it in `run/reload.json`, and the command that asks for a
reload and waits.

The command sends SIGHUP to the process that holds the lock of the pid file. An outcome answers it whose reload began
after that: one that was already under way may have read the files before they were changed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from estd.errors import ConfigError
from estd.starting import generations

_FILE = "reload.json"
_STEP_SECONDS = 0.05
_WAIT_SECONDS = 180.0
"""A reload waits for the end of the generation before, and for a slow token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    began: float
    """CLOCK_MONOTONIC seconds."""
    generation: int
    """The one that serves now."""
    problems: tuple[str, ...]
    """Why the configuration was not taken; empty where it was."""
    cas: dict[str, list[str]]
    """What serves now: of each CA the SHA-256 of cacerts' certificates, the one that issues first."""


def publish(run: Path, outcome: Outcome) -> None:
    """Whole or not at all."""
    made = run / f"{_FILE}.new"
    made.write_text(json.dumps(asdict(outcome)) + "\n", encoding="utf-8")
    made.replace(run / _FILE)


def serving(run: Path) -> int | None:
    """The pid of the supervisor, None where nobody serves the instance."""
    try:
        descriptor = os.open(run / "estd.pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return int(os.read(descriptor, 32) or b"0") or None
    finally:
        os.close(descriptor)
    return None


def ask(run: Path) -> Outcome:
    """Have the server of the instance reload, and wait for the outcome. Raises ConfigError where none serves it."""
    pid = serving(run)
    if pid is None:
        raise ConfigError(["this instance is not being served, so there is nothing to reload; start it: estd serve"])
    since = time.monotonic()
    os.kill(pid, signal.SIGHUP)
    while time.monotonic() < since + _WAIT_SECONDS:
        outcome = last(run)
        if outcome is not None and outcome.began >= since:
            return outcome
        if serving(run) != pid:
            raise ConfigError(["the server ended while it was to reload; its log says why"])
        time.sleep(_STEP_SECONDS)
    raise ConfigError([f"the server has not reloaded within {_WAIT_SECONDS:.0f} seconds; its log says what it does"])


def settle(run: Path) -> None:
    """Wait until no generation but the one that serves issues any more. Raises ConfigError where that takes long."""
    until = time.monotonic() + _WAIT_SECONDS
    while serving(run) is not None and len(generations(run)) > 1:
        if time.monotonic() >= until:
            raise ConfigError(["the generation before the last reload still answers its connections; try again later"])
        time.sleep(_STEP_SECONDS)


def last(run: Path) -> Outcome | None:
    """The last outcome of whoever serves, or served; None before the first."""
    try:
        data = json.loads((run / _FILE).read_text(encoding="utf-8"))
        return Outcome(**{**data, "problems": tuple(data["problems"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
