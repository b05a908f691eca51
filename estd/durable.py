"""Files that are there whole or not at all, also after a loss of power: written beside, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """The file holds `data` when this returns; until then what it held before."""
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    rename(beside, path)


def rename(old: Path, new: Path) -> None:
    """In one folder."""
    os.replace(old, new)
    folder = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
