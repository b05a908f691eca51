"""Files that are written whole or not at all: what a full disk, or an end between two renames, leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from estd import credentials, durable

ROOT = Path(__file__).resolve().parent.parent


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def somebody(user: int, group: int, groups: list[int]) -> Iterator[None]:
    """Root as another user meanwhile."""
    before = os.getgroups(), os.getegid()
    os.setgroups(groups)
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[1])
        os.setgroups(before[0])


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
    first.chmod(0o604)
    durable.write_all([(first, b"new", 0o600), (second, b"new", 0o640)])
    assert {one.name: (one.read_bytes(), mode(one)) for one in folder.iterdir()} == {
        "first": (b"new", 0o604), "second": (b"new", 0o640)
    }  # fmt: skip


def test_a_link_stays_and_its_target_is_written(folder: Path) -> None:
    """Also where the target is elsewhere, or not there yet; nothing lies beside either."""
    (folder / "store").mkdir()
    for name, old in (("there", b"old"), ("absent", None)):
        link, target = folder / name, folder / "store" / f"{name}.1"
        link.symlink_to(f"store/{name}.1")
        if old is not None:
            target.write_bytes(old)
        durable.write(link, b"new")
        assert (link.is_symlink(), target.read_bytes(), target.is_symlink()) == (True, b"new", False)
    assert sorted(one.name for one in folder.rglob("*")) == ["absent", "absent.1", "store", "there", "there.1"]


def test_a_file_keeps_its_owner(folder: Path) -> None:
    """What root, who alone can give a file away, writes for the server's user stays the server's user's, and its
    group's to read."""
    owner = (12345, 12346) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    path = folder / "credentials"
    path.write_bytes(b"old")
    os.chown(path, *owner)
    path.chmod(0o640)
    durable.write(path, b"new")
    found = path.stat()
    assert (path.read_bytes(), mode(path), found.st_uid, found.st_gid) == (b"new", 0o640, *owner)


@pytest.mark.parametrize(
    ("before", "groups", "after", "group"),
    [(0o640, [], 0o600, 12347), (0o664, [], 0o644, 12347), (0o640, [12346], 0o640, 12346)],
)
def test_a_file_of_somebody_else_is_replaced(before: int, groups: list[int], after: int, group: int) -> None:
    """Whoever may write into the folder and is not root replaces it: for its group, or where that is none of ours,
    without its rights for our own. Only root can set that up; with anybody else it is a file of their own."""
    with TemporaryDirectory() as name:  # its parents are open to others
        path = Path(name) / "server.key"
        path.write_bytes(b"old")
        path.chmod(before)
        as_who: AbstractContextManager[None] = nullcontext()
        user = os.geteuid()
        if user == 0:
            os.chown(path, 12344, 12346)
            os.chown(name, 12345, 12347)
            as_who, user = somebody(12345, 12347, groups), 12345
        else:
            after, group = before, os.getegid()
        with as_who:
            durable.write(path, b"new")
        found = path.stat()
        assert (path.read_bytes(), mode(path), found.st_uid, found.st_gid) == (b"new", after, user, group)
