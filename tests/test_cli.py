"""The command `estd`, as an operator uses it: what holds for all of it, and its credentials."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from estd import __version__, cli
from estd.errors import Refused
from estd.ledger import Writer
from tests import make
from tests.command import ROOT, contents, estd, mode
from tests.servers import Server, wait_for
from tests.test_ledger import row


def commands(command: click.Command = cli.main, *words: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command and group: its words and what it says of itself."""
    yield words, command.help or ""
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from commands(one, *words, name)


@pytest.mark.parametrize(("words", "said"), [pytest.param(*one, id=" ".join(("estd", *one[0]))) for one in commands()])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(words: tuple[str, ...], said: str, option: str) -> None:
    """--help of every command exits with 0 and says in a sentence what it does."""
    result = CliRunner().invoke(cli.main, [*words, option])
    assert result.exit_code == 0
    assert said.strip().endswith(".")
    assert " ".join(said.split()[:3]) in result.output


def test_the_version_is_the_packages() -> None:
    """--version tells the version that /healthz and estd_build_info tell."""
    assert estd("--version").out == f"estd, version {__version__}\n"


_SOMEBODY_ELSE = "import os; os.geteuid = lambda: 54321; from estd.cli import main; main()"


@pytest.mark.parametrize(
    "words",
    [
        ["check"],
        ["serve"],
        ["crl", "renew", "--config"],
        ["ca", "rollover", "prepare", "--config"],
        ["ca", "rollover", "finish", "--config"],
        ["device", "add", "pump-1", "--label", "registry", "--config"],
    ],
    ids=" ".join,
)
def test_another_user_than_the_servers_changes_nothing(bare: Server, words: list[str]) -> None:
    """Root, say: what it makes in an instance of somebody else's the server could not use. It hears whom to be."""
    shutil.rmtree(bare.folder / "run", ignore_errors=True)

    def written() -> dict[Path, bytes]:
        # Without what SQLite, for root as well, makes in the name of the ledger's owner.
        return {path: data for path, data in contents(bare.folder).items() if "sqlite3-" not in path.name}

    before = written()
    done = subprocess.run(
        [sys.executable, "-c", _SOMEBODY_ELSE, *words, str(bare.config)], check=False, cwd=ROOT, timeout=60,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"the instance in \S+ is another user's \(uid \d+\), .*: sudo -u '\S+' estd ...\n", done.stderr)
    assert written() == before
    assert not (bare.folder / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["init", "new", "--host", "bad_host!"], "'bad_host!' is neither a DNS name nor an address"),
        (["init", "new", "--key-id", "zz"], "'zz' is not a CKA_ID in hexadecimal"),
        (
            ["ca", "rollover", "prepare", "--config", __file__, "--key-id", "0x01"],
            "'0x01' is not a CKA_ID in hexadecimal",
        ),
        (["enroll", "https://127.0.0.1:1", "--wait", "5x"], "a duration such as"),
    ],
)
def test_an_option_that_cannot_be_read_is_a_wrong_command_line(
    monkeypatch: pytest.MonkeyPatch, folder: Path, words: list[str], told: str
) -> None:
    """It is said in words before anything is done."""
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli.main, words)
    assert (result.exit_code, list(folder.iterdir())) == (2, [])
    assert told in " ".join(result.output.split())


def test_who_has_read_enough_is_told_nothing(copy: Server) -> None:
    """`estd cert list | head -1` ends in silence."""
    with closing(Writer(copy.folder / "ledger.sqlite3")) as writer:
        writer.record([row()])
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "estd.cli", "cert", "list", "--json", "--config", copy.config], check=False, cwd=ROOT,
        stdout=writing, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_configuration_that_is_missing_is_a_sentence(folder: Path, command: str) -> None:
    """Without its file a command says so and ends with 1."""
    assert "nowhere.toml" in estd(command, folder / "nowhere.toml", status=1).err


def test_a_credential_lets_in_within_a_second(server: Server, folder: Path) -> None:
    """A generated password is shown once, kept as a hash, and the running server takes it; added again, the old one
    is worth nothing."""
    path = server.folder / "credentials"
    before = path.read_text()
    passwords = [estd("credential", "add", path, "cli-user").out.strip() for _ in range(2)]
    stored = path.read_text()
    assert stored.startswith(before.rstrip("\n"))
    assert stored.count("cli-user:") == 1
    assert not any(one.partition(":")[2] in stored for one in passwords)
    assert mode(path) == 0o600

    def taken(pair: str) -> bool:
        user, _, password = pair.partition(":")
        try:
            with server.client(user=user, password=password) as client:
                client.enroll(lambda _: make.csr())
        except Refused:
            return False
        return True

    wait_for(lambda: taken(passwords[1]), 20)
    assert not taken(passwords[0])


def test_a_credentials_file_keeps_what_else_is_in_it(folder: Path) -> None:
    """Comments and other names stay; a password of one's own is kept as scrypt and not shown."""
    path = folder / "credentials"
    path.write_text("# factory in Graz\nother:$sha256$00\n")
    (folder / "password").write_text("correct horse\n")
    done = estd("credential", "add", path, "me", "--password-file", folder / "password")
    assert "horse" not in done.out
    first, second, third = path.read_text().splitlines()
    assert [first, second] == ["# factory in Graz", "other:$sha256$00"]
    assert third.startswith("me:$scrypt$")


@pytest.mark.parametrize("user", ["a:b", "a\nb"])
def test_a_name_that_cannot_stand_in_a_credential_is_refused(folder: Path, user: str) -> None:
    """A colon or a line's end in a name would make another credential of it (RFC 7617)."""
    assert "user name" in estd("credential", "add", folder / "credentials", user, status=1).err
    assert not (folder / "credentials").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["requests", "deny", "1", "--reason", os.fsdecode(b"Gr\xf6\xdfe")],
        ["device", "disable", os.fsdecode(b"\xe9")],
        ["device", "add", "1", "--dns", os.fsdecode(b"\xe9.example.com")],
        ["cert", "list", "--subject", os.fsdecode(b"\xff")],
    ],
    ids=" ".join,
)
def test_words_that_are_not_UTF_8_are_a_sentence(server: Server, words: list[str]) -> None:
    """What a shell of another encoding hands on is refused before anybody else hears it; the server goes on."""
    pids = server.pids()
    assert "is not UTF-8" in estd(*words, "--config", server.config, status=1).err
    assert server.pids() == pids
