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
_ROOM_BYTES = 16384
"""What an outcome takes on the disk, however short it is."""
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
    file: str
    """The configuration that this server reads, a resolved path."""
    cas: dict[str, list[str]]
    """What serves now: of each CA the SHA-256 of cacerts' certificates, the one that issues first."""


def publish(run: Path, outcome: Outcome) -> None:
    """Written over the one before, in the room that it took: an outcome is told on a full disk too."""
    descriptor = os.open(run / _FILE, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(asdict(outcome)).encode().ljust(_ROOM_BYTES) + b"\n")
        file.truncate()


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


def check_served(file: Path) -> None:
    """Raises ConfigError where the server that runs in the folder of this configuration, a resolved path, reads another
    one."""
    run = file.parent / "run"
    told = last(run)
    if told is not None and told.file != str(file) and serving(run) is not None:
        raise ConfigError([f"the server that runs here has the configuration {told.file}, not {file}: reload that one"])


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
        with (run / _FILE).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            data = json.load(file)
        return Outcome(**{**data, "problems": tuple(data["problems"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
