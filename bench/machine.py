"""What a figure was measured on: the machine, the versions and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TypedDict

from cryptography.hazmat.backends.openssl import backend

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_SECONDS = 10.0


class Machine(TypedDict):
    """`openssl` is the one that the server's TLS and its checks of signatures use."""

    cpu: str
    cores: int
    kernel: str
    python: str
    openssl: str
    softhsm: str


def _output(*command: str) -> str:
    """What a command says; empty where it is absent or fails."""
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def server_python(supervisor: int | None) -> str:
    """The version of the Python that the supervisor runs; this process's own where it cannot be asked."""
    told = _output(f"/proc/{supervisor}/exe", "-I", "-c", "import platform; print(platform.python_version())")
    return told if supervisor is not None and told else platform.python_version()


def describe(supervisor: int | None) -> Machine:
    """The machine; `supervisor` is the pid of the server's."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=server_python(supervisor),
        openssl=backend.openssl_version_text(),
        softhsm=_output("softhsm2-util", "--version"),
    )


def commit() -> str:
    """The commit's short hash, with -dirty after changes; empty outside of a repository."""
    found = _output("git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD")
    if not found:
        return ""
    # Without the locks git does not write its index, and disturbs nobody who works in the same tree.
    changed = _output("git", "--no-optional-locks", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{found}-dirty" if changed else found
