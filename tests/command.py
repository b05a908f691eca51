"""The command `estd`, as the tests run it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def estd(*arguments: str | Path, cwd: Path | None = None, status: int = 0, **environment: str) -> Done:
    """Run the command, which must end with that status and never in a traceback."""
    clean = {key: value for key, value in os.environ.items() if key != "SOFTHSM2_CONF"}
    done = subprocess.run(
        [sys.executable, "-m", "estd.cli", *map(str, arguments)], check=False, cwd=cwd or ROOT, timeout=60,
        env={**clean, "PYTHONPATH": str(ROOT), **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def enrolled(server: Server, folder: Path, *options: str | Path, status: int = 0, out: str = "device") -> Done:
    """`estd enroll` with the demonstration's Basic credential unless options name another identity."""
    identity: list[str | Path] = [] if "--cert" in options else ["--credential", server.folder / "demo" / "basic"]
    return estd(
        "enroll", server.url, "--cacert", server.folder / "ca.pem", "--out", out, "--json", *identity, *options,
        cwd=folder, status=status,
    )  # fmt: skip
