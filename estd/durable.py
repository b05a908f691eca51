"""Files that are there whole or not at all, also after a loss of power: written beside, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """The file holds `data` when this returns; until then, and where this raises, what it held before."""
    write_all([(path, data, mode)])


def write_all(files: Sequence[tuple[Path, bytes, int]]) -> None:
    """Paths, data and modes of files of one folder: all are beside and synced before the first is renamed, and they are
    renamed in their order. A crash between two renames leaves the later ones whole beside their names."""
    try:
        for path, data, mode in files:
            _fill(path, data, mode)
    except OSError:
        for path, _, _ in files:
            beside(path).unlink(missing_ok=True)
        raise
    for path, _, _ in files:
        rename(beside(path), path)


def beside(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(path.name + ".new")


def _fill(path: Path, data: bytes, mode: int) -> None:
    """Beside `path`, for the owner of the file that it replaces: root may write for the server's user."""
    descriptor = os.open(beside(path), os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fchmod(descriptor, mode)
        with suppress(FileNotFoundError):
            found = path.stat()
            os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
