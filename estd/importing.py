"""What `estd device import` does: read the whole file, and only when it is good, write it in parts.

The parts go to the ledger's one writer, a server that runs or this process, and are no devices until the last word:
so an import is seen whole or not at all, whatever ends it, and enrolments go on meanwhile.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from estd.device_file import Line, LineError
from estd.devices import Device, DeviceKey
from estd.ledger import LedgerError

PART = 500
"""Rows in one transaction: some milliseconds of the writer's time."""
PART_NAMES = 1 << 20
"""Characters of names in one: written as JSON they are twice as many at most, and a message has a bound."""
SECRET_BITS = 160
_SECRET = Device._fields.index("secret")


class Registry(Protocol):
    """The ledger's writer, near or far."""

    def find_devices(self, keys: Collection[DeviceKey]) -> dict[DeviceKey, Device]: ...
    def change_devices(self, message: dict[str, Any]) -> dict[str, Any]: ...


class Read(NamedTuple):
    """What the first reading found."""

    good: list[int]
    """Where the good lines are, in the order of their devices' keys: rows that are written in the order in which they
    lie touch each page of the ledger once."""
    bad: int
    problems: list[str]
    """The first bad lines, in words."""


def new_secret() -> tuple[str, bytes]:
    """A secret of 160 random bits, as text that fits a header and a person's eyes, and its SHA-256."""
    secret = base64.b32encode(secrets.token_bytes(SECRET_BITS // 8)).decode().lower()
    return secret, hashlib.sha256(secret.encode()).digest()


def parts(devices: Iterable[Device]) -> Iterator[list[Device]]:
    """The devices in parts, of which each fits into one message and one transaction."""
    part: list[Device] = []
    left = PART_NAMES
    for device in devices:
        left -= len(device.names)
        if len(part) == PART or (part and left < 0):
            yield part
            part, left = [], PART_NAMES - len(device.names)
        part.append(device)
    if part:
        yield part


def read(lines: Iterable[Line], registry: Registry, *, problems_max: int, step: Callable[[int], None]) -> Read:
    """Look at every line: what is wrong with it, and whether its device is there already, above or in the registry."""
    seen: set[int] = set()
    good: list[tuple[str, int]] = []
    problems: list[str] = []
    bad = 0
    coming = iter(lines)
    while part := list(islice(coming, PART)):
        errors = [line.found for line in part if isinstance(line.found, LineError)]
        keys = [(line, line.found.key) for line in part if isinstance(line.found, Device)]
        there = registry.find_devices([key for _, key in keys])
        for line, key in keys:
            if hash(key) in seen:
                errors.append(LineError(line.number, f"the device {key.serial_number!r} stands in an earlier line"))
            elif key in there:
                errors.append(LineError(line.number, f"the device {key.serial_number!r} is in the registry already"))
            else:
                seen.add(hash(key))
                good.append(("\0".join(key), line.offset))
        bad += len(errors)
        errors.sort(key=lambda error: error.line)
        problems += map(str, errors[: problems_max - len(problems)])
        step(len(part))
    good.sort()
    return Read([offset for _, offset in good], bad, problems)


def write(
    devices: Iterable[Device], registry: Registry, *, at: int, secrets_out: Path | None, secret_until: int,
    step: Callable[[int], None],
) -> int:  # fmt: skip
    """Add the devices, all or none; how many. Their secrets are on disk before the first can be used."""
    _sweep(registry)
    number = registry.change_devices({"change": "begin", "at": at})["id"]
    count = 0
    with new_file(secrets_out) as out:
        try:
            if out is not None:
                out.write("serial_number,manufacturer,label,secret\n")
            for part in parts(devices):
                whole = part
                if out is not None:
                    whole, lines = _with_secrets(part, secret_until)
                    out.write(lines)
                registry.change_devices({"change": "rows", "id": number, "rows": [_row(one) for one in whole]})
                count += len(whole)
                step(len(whole))
            if out is not None:
                out.flush()
                os.fsync(out.fileno())
        except BaseException:
            if secrets_out is not None:
                secrets_out.unlink()  # they are nobody's
            raise
        # From here on they may be valid, even where the answer to this is lost.
        registry.change_devices({"change": "done", "id": number})
    return count


def _row(device: Device) -> list[Any]:
    """The device as the writer takes it, its secret's hash in hexadecimal."""
    row: list[Any] = list(device)
    row[_SECRET] = device.secret.hex() if device.secret is not None else None
    return row


def _with_secrets(part: Sequence[Device], until: int) -> tuple[list[Device], str]:
    """The devices, each with the hash of a new secret, and the lines that show the secrets."""
    devices: list[Device] = []
    lines: list[str] = []
    for device in part:
        secret, sha256 = new_secret()
        devices.append(device._replace(secret=sha256, secret_until=until))
        lines.append(",".join(map(_cell, (device.serial_number, device.manufacturer, device.label, secret))) + "\n")
    return devices, "".join(lines)


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"') else text


def _sweep(registry: Registry) -> None:
    """Clear away what an import left that never came to its end."""
    after: Sequence[str] | None = ("", "", "")
    while after is not None:
        after = registry.change_devices({"change": "sweep", "after": list(after)})["next"]


@contextmanager
def new_file(path: Path | None) -> Iterator[IO[str] | None]:
    """A new file for its owner alone. What was written stays where something fails later: it may be the only copy of
    secrets that are valid."""
    if path is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise LedgerError(f"{path} exists; secrets are never written over a file, name a new one") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        yield file


@contextmanager
def one_at_a_time(ledger: Path) -> Iterator[None]:
    """Raises LedgerError while another import runs: it would sweep away the other's parts."""
    descriptor = os.open(ledger.with_name(ledger.name + ".import"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LedgerError("another import runs; wait for its end") from None
    finally:
        os.close(descriptor)
