"""README.md and docs/ as the tests read them: their blocks, run as they stand against a demonstration instance."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 240


def blocks(page: str, language: str, *, section: str = "") -> list[str]:
    """The fenced blocks of a page (a path in the repository), or of its section with that heading, in this language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def refusals(page: str) -> list[tuple[int, str]]:
    """Status and reason of each row in a page's tables of what a refusal says."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(int(row[1]), row[2]) for row in re.finditer(r"^\| (\d{3}) \| `(\w+)` \|", text, re.MULTILINE)]


@dataclass
class Newcomer:
    """Somebody who pastes commands in a folder of their own: demo/ is the server's instance, tools/ and
    .venv/bin/activate are there, and `estd` and `python` are this code's."""

    server: Server
    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "demo").symlink_to(self.server.folder)
        (self.folder / "tools").symlink_to(ROOT / "tools")
        binaries = self.folder / ".venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "activate").write_text("")
        for name, command in (("estd", "-m estd.cli"), ("python", "")):
            (binaries / name).write_text(f'#!/bin/sh\nexec {Path(sys.executable).absolute()} {command} "$@"\n')
            (binaries / name).chmod(0o755)

    def run(self, script: str, **variables: str) -> str:
        """What the script printed, run by bash up to its first failure, which fails the test. The demonstration's
        addresses are the server's."""
        settings = self.server.config.read_text() if self.server.config.exists() else ""
        if hook := re.search(r"http://(127\.0\.0\.1:(\d+))/who", settings):
            script = script.replace("127.0.0.1:9444", hook[1])
            script = script.replace("demo/inventory.secret &", f"demo/inventory.secret {hook[2]} &")
        script = script.replace("https://127.0.0.1:8443", self.server.url)
        script = script.replace("http://127.0.0.1:9443", f"http://127.0.0.1:{self.server.admin_port}")
        path = f"{self.folder / '.venv' / 'bin'}:{os.environ['PATH']}"
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, **variables}, process_group=0,
        )  # fmt: skip
        try:
            out, errors = shell.communicate(timeout=_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # whatever a command left behind
            shell.wait()
        assert shell.returncode == 0, f"{script}\n{out}\n{errors}"
        return out


def merged(under: Any, over: Any) -> Any:
    """Settings with others in them: tables by their keys, rules after those that are there, values in place."""
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {key: merged(under.get(key), value) for key, value in over.items()}
    if isinstance(under, list) and isinstance(over, list) and over and isinstance(over[0], dict):
        return under + over
    return over


def toml(table: dict[str, Any], path: str = "") -> str:
    """The table as TOML, which takes JSON's strings, numbers and arrays as its own."""
    plain = {key: value for key, value in table.items() if not _is_tables(value)}
    text = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in plain.items())
    for key, value in table.items():
        if _is_tables(value):
            name = f"{path}.{json.dumps(key)}" if path else json.dumps(key)
            for one in value if isinstance(value, list) else [value]:
                text += (f"\n[[{name}]]\n" if isinstance(value, list) else f"\n[{name}]\n") + toml(one, name)
    return text


def _is_tables(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
