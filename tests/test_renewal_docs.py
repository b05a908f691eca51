"""docs/renewal.md tells the truth: its commands are run, and its settings are those of the demonstration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import program
from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "renewal.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def in_it(part: Any, whole: Any) -> bool:
    """Whether every setting of the part is in the whole."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and in_it(part[key], whole[key]) for key in part)
    return bool(part == whole)


@pytest.mark.parametrize("number", range(len(blocks("toml"))))
def test_its_settings_are_the_demonstrations(number: int, renewal_server: Server) -> None:
    """What the page shows as configuration is what `make run` serves."""
    assert in_it(tomllib.loads(blocks("toml")[number]), tomllib.loads(renewal_server.config.read_text()))


def test_its_commands_do_what_it_says(renewal_server: Server, folder: Path) -> None:
    """Each command of the page, in its order and with the demonstration's folder and address, succeeds; the renewed
    certificate is superseded and the gateway's machine is enrolled by it."""
    program("curl")
    (folder / "demo").symlink_to(renewal_server.folder)
    estd = folder / "estd"
    estd.write_text(f'#!/bin/sh\nexec {sys.executable} -m estd.cli "$@"\n')
    estd.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder}:{os.environ['PATH']}"}
    shown = ""
    for block in blocks("sh"):
        script = block.replace("https://127.0.0.1:8443", renewal_server.url)
        done = subprocess.run(
            ["sh", "-ec", script], check=False, cwd=folder, capture_output=True, text=True, timeout=120, env=environment
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        shown += done.stdout
    (renewal_server.folder / "ras.pem").write_bytes(b"")
    rows = renewal_server.rows()
    assert any(row.subject == "CN=pump-7" and row.reason == 4 for row in rows)
    assert any(row.identity.startswith("ra:") and row.identity.endswith(" for CN=machine-1") for row in rows)
    assert "machine-1" in shown
    assert '{"suggestedWindow":{"start":"' in shown
