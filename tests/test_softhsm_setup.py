"""softhsm-setup.sh: a private token, the same one however often it is run."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import program

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "softhsm-setup.sh"

_OPEN = """
import os, sys
from pathlib import Path
from hsm.token import Token
pin = (Path(sys.argv[1]) / "pin").read_text().strip()
print(Token.open(module=Path(os.environ["PKCS11_MODULE"]), label=sys.argv[2], pin=pin, rw=True))
"""


def setup(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script's run, in an environment without any token's configuration."""
    program("softhsm2-util")
    clean = {key: value for key, value in os.environ.items() if key not in ("SOFTHSM2_CONF", "PKCS11_MODULE")}
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), *arguments], check=False, cwd=cwd, env={**clean, **environment}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip


def opened(exports: str, folder: Path, label: str) -> str:
    """The token that a login with the folder's PIN reaches, in a shell that has evaluated what the script printed."""
    shell = f'eval "$1" && PYTHONPATH={ROOT} exec {sys.executable} -c "$2" "$3" "$4"'
    return subprocess.run(
        ["sh", "-c", shell, "sh", exports, _OPEN, str(folder), label], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder that the script has made, and what it printed."""
    folder = tmp_path_factory.mktemp("setup")
    done = setup("mine", "fleet", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "mine", done.stdout


def test_the_pin_opens_the_token(made: tuple[Path, str]) -> None:
    """After eval of what the script prints, the token opens with the PIN in the folder's file."""
    folder, exports = made
    assert opened(exports, folder, "fleet").startswith("fleet (SoftHSM")


def test_only_exports_are_printed(made: tuple[Path, str]) -> None:
    """Standard output is two export lines, of a configuration inside the folder and of a module that exists."""
    folder, exports = made
    conf, module = (shlex.split(line) for line in exports.splitlines())
    assert conf == ["export", f"SOFTHSM2_CONF={folder}/softhsm2.conf"]
    assert module[0] == "export"
    assert Path(module[1].removeprefix("PKCS11_MODULE=")).exists()


def test_run_again_it_changes_nothing(made: tuple[Path, str]) -> None:
    """A second run prints the same, keeps every file and makes no second token."""
    folder, exports = made

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    before = contents()
    done = setup("mine", "fleet", cwd=folder.parent)
    assert (done.returncode, done.stdout) == (0, exports)
    assert contents() == before
    assert len(list((folder / "tokens").iterdir())) == 1


def test_every_file_is_private(made: tuple[Path, str]) -> None:
    """Nobody but the owner can read or enter anything that the script made."""
    folder, _ = made
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_no_pin_is_printed(made: tuple[Path, str]) -> None:
    """PIN and SO PIN are 128 random bits each, and the script does not show them."""
    folder, exports = made
    again = setup("mine", "fleet", cwd=folder.parent)
    pins = {(folder / name).read_text().strip() for name in ("pin", "so-pin")}
    assert len(pins) == 2
    for pin in pins:
        assert len(bytes.fromhex(pin)) == 16
        assert pin not in exports + again.stdout + again.stderr


def test_nothing_global_is_touched(made: tuple[Path, str], folder: Path) -> None:
    """The token is in its folder alone: without the folder's configuration nobody sees it."""
    listed = subprocess.run(
        ["softhsm2-util", "--show-slots"], check=False, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )  # fmt: skip
    assert "fleet" not in listed.stdout


def test_a_folder_with_a_space_works_too(folder: Path) -> None:
    """What is printed can be evaluated whatever the folder is called."""
    done = setup("my token", "fleet", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert opened(done.stdout, folder / "my token", "fleet").startswith("fleet")


def test_a_label_inside_another_is_another_token(folder: Path) -> None:
    """A token whose label begins with the one asked for is not taken for it."""
    assert setup("mine", "fleet-2", cwd=folder).returncode == 0
    done = setup("mine", "fleet", cwd=folder)
    assert done.stderr.endswith("made\n")
    assert opened(done.stdout, folder / "mine", "fleet").startswith("fleet (")


def test_without_softhsm_it_says_what_to_install(folder: Path) -> None:
    """Without softhsm2-util the script names the package and makes nothing."""
    done = setup("mine", cwd=folder, PATH=str(folder))
    assert done.returncode == 1
    assert "apt-get install softhsm2" in done.stderr
    assert list(folder.iterdir()) == []
