"""Files that are written whole or not at all: what a full disk, or an end between two renames, leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from estd import credentials, durable

ROOT = Path(__file__).resolve().parent.parent


def test_a_full_disk_leaves_the_credentials_as_they_were(folder: Path) -> None:
    """`estd credential add` fails in words and takes nobody's credential; nothing lies beside the file."""
    path = folder / "credentials"
    lines = [credentials.line(f"user-{number}", "x", generated=True) for number in range(20)]
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    limited = 'ulimit -f 1; exec "$0" -m estd.cli credential add "$1" late'  # no file may grow beyond 1 KiB
    done = subprocess.run(
        ["bash", "-c", limited, sys.executable, str(path)], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("estd: ")
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [path]


def test_files_are_written_together(folder: Path) -> None:
    """A second file that cannot be written keeps the first from being replaced, and leaves nothing beside it."""
    first, second = folder / "first", folder / "second"
    first.write_bytes(b"old")
    with pytest.raises(OSError, match="nowhere"):
        durable.write_all([(first, b"new", 0o600), (folder / "nowhere" / "second", b"new", 0o600)])
    assert [(one, one.read_bytes()) for one in folder.iterdir()] == [(first, b"old")]
    first.chmod(0o644)
    durable.write_all([(first, b"new", 0o600), (second, b"new", 0o640)])
    assert {one.name: (one.read_bytes(), one.stat().st_mode & 0o777) for one in folder.iterdir()} == {
        "first": (b"new", 0o600), "second": (b"new", 0o640)
    }  # fmt: skip


def test_a_file_keeps_its_owner(folder: Path) -> None:
    """What root, who alone can give a file away, writes for the server's user stays the server's user's."""
    owner = (12345, 12346) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    path = folder / "credentials"
    path.write_bytes(b"old")
    os.chown(path, *owner)
    durable.write(path, b"new")
    found = path.stat()
    assert (path.read_bytes(), found.st_uid, found.st_gid) == (b"new", *owner)
