"""Files that are there whole or not at all, also after a loss of power: written beside, synced, renamed."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """The file holds `data` when this returns; until then, and where this raises, what it held before. Mode, owner and
    group of a file that is there are kept, `mode` is for a new one; a link stays, and its target is written."""
    write_all([(path, data, mode)])


def write_all(files: Sequence[tuple[Path, bytes, int]]) -> None:
    """Paths, data and modes for new files: all are beside and synced before the first is renamed, and they are renamed
    in their order. A crash between two renames leaves the later ones whole beside their names. Raises OSError."""
    try:
        for path, data, mode in files:
            _fill(path, data, mode)
    except OSError:
        for path, _, _ in files:
            beside(path).unlink(missing_ok=True)
        raise
    for path, _, _ in files:
        take_place(path)


def beside(path: Path) -> Path:
    """Where a file is written before it has its name; of a link, its target."""
    target = path.resolve()
    return target.with_name(target.name + ".new")


def take_place(path: Path) -> None:
    """What is beside the file becomes the file."""
    rename(beside(path), path.resolve())


def _fill(path: Path, data: bytes, mode: int) -> None:
    """Beside `path`; for nobody else until it is as the file that it replaces."""
    descriptor = os.open(beside(path), os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        with suppress(FileNotFoundError):
            mode = _give(descriptor, path.stat())
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give(descriptor: int, found: os.stat_result) -> int:
    """Owner and group as found, as root may write for the server's user, and the mode for that. Who is not root keeps
    what it may not give away; then its own group may no more than everybody, as it is not the one that was found."""
    made, mode, is_root = os.fstat(descriptor), stat.S_IMODE(found.st_mode), os.geteuid() == 0
    if made.st_gid != found.st_gid:
        try:
            os.fchown(descriptor, -1, found.st_gid)
        except PermissionError:
            if is_root:
                raise
            mode &= ~(~mode << 3 & stat.S_IRWXG)
    if made.st_uid != found.st_uid and is_root:
        os.fchown(descriptor, found.st_uid, -1)
    return mode


def rename(old: Path, new: Path) -> None:
    """In one folder."""
    os.replace(old, new)
    _sync(new.parent)


def folder(path: Path) -> None:
    """For its owner alone; nothing where it is there already."""
    path.mkdir(mode=0o700, exist_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
