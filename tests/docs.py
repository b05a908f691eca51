"""README.md and docs/ as the tests read them: their blocks, run as they stand against a demonstration instance."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 240


def blocks(page: str, language: str, *, section: str = "") -> list[str]:
    """The fenced blocks of a page (a path in the repository), or of its section with that heading, in this language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def at_home(folder: Path, server: Server) -> dict[str, str]:
    """Make the folder what the pages' commands expect around them: demo/ is the server's instance, tools/ and
    .venv/bin/activate are there, and `estd` is this code. Returns the environment to run them in."""
    (folder / "demo").symlink_to(server.folder)
    (folder / "tools").symlink_to(ROOT / "tools")
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text("")
    (binaries / "estd").write_text(f'#!/bin/sh\nexec {sys.executable} -m estd.cli "$@"\n')
    (binaries / "estd").chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{binaries}:{os.environ['PATH']}"}


def run(script: str, server: Server, folder: Path, environment: dict[str, str]) -> str:
    """What the script printed, run by bash up to its first failure, which fails the test. The demonstration's
    addresses are the server's."""
    script = script.replace("https://127.0.0.1:8443", server.url)
    script = script.replace("http://127.0.0.1:9443", f"http://127.0.0.1:{server.admin_port}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], check=False, cwd=folder, capture_output=True, text=True,
        timeout=_SECONDS, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout
