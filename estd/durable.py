"""Files that are there whole or not at all, also after a loss of power: written beside, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """The file holds `data` when this returns; until then, and where this raises, what it held before."""
    beside = path.with_name(path.name + ".new")
    try:
        _fill(beside, data, mode)
        rename(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _fill(beside: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fchmod(descriptor, mode)
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
