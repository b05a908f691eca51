"""docs/renewal.md tells the truth: its commands are run, and its settings are those of the demonstration."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests import docs
from tests.conftest import program
from tests.servers import Server

SETTINGS = docs.blocks("docs/renewal.md", "toml")


def in_it(part: Any, whole: Any) -> bool:
    """Whether every setting of the part is in the whole."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and in_it(part[key], whole[key]) for key in part)
    return bool(part == whole)


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_its_settings_are_the_demonstrations(number: int, renewal_server: Server) -> None:
    """What the page shows as configuration is what `make run` serves."""
    assert in_it(tomllib.loads(SETTINGS[number]), tomllib.loads(renewal_server.config.read_text()))


def test_its_commands_do_what_it_says(renewal_server: Server, folder: Path) -> None:
    """Each command of the page, in its order and with the demonstration's folder and address, succeeds; the renewed
    certificate is superseded and the gateway's machine is enrolled by it."""
    program("curl")
    shown = docs.Newcomer(renewal_server, folder).run("".join(docs.blocks("docs/renewal.md", "sh")))
    (renewal_server.folder / "ras.pem").write_bytes(b"")
    rows = renewal_server.rows()
    assert any(row.subject == "CN=pump-7" and row.reason == 4 for row in rows)
    assert any(row.identity.startswith("ra:") and row.identity.endswith(" for CN=machine-1") for row in rows)
    assert "machine-1" in shown
    assert '{"suggestedWindow":{"start":"' in shown
    assert "CN=pump-8" in shown
