"""The commands in docs/ are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import program
from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent
_SETTING = re.compile(r"^demo=\S+ url=\S+ estd=\S+$", re.MULTILINE)


def run(guide: str, server: Server, folder: Path) -> str:
    """All sh blocks of the guide as one script that ends at the first failure, in an empty folder: what it printed."""
    for name in ("curl", "openssl"):
        program(name)
    estd = folder / "estd"
    estd.write_text(f'#!/bin/sh\nexec {sys.executable} -m estd.cli "$@"\n')
    estd.chmod(0o755)
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / guide).read_text(), re.MULTILINE | re.DOTALL)
    script, settings = _SETTING.subn(f"demo={server.folder} url={server.url} estd={estd}", "".join(blocks))
    assert settings == 1, f"{guide} has the settings of its commands in one line"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], check=False, cwd=folder, capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


GUIDES = {
    "challenges.md": ("the caller is not the owner", "is revoked since", "again.pem"),
    "csrattrs.md": ("X509v3 Extended Key Usage", ":commonName", '"linked": false', '"subject": "CN=device-3"'),
    "serverkeygen.md": ("sensor.pem: OK", "the key fits", "subject=CN = sensor-2"),
}
"""Each guide with commands, and what they must print."""


@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_of_a_guide_do_what_it_says(guide: str, server: Server, folder: Path) -> None:
    """Every command succeeds and the output has what the text promises."""
    shown = run(guide, server, folder)
    for words in GUIDES[guide]:
        assert words in shown
