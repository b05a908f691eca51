"""The CSV of devices: strict, each mistake told with its line.

The first line names the columns, in any order: serial_number is required; manufacturer, label, profile, subject, dns,
ip, uri and state are not. Cells of dns, ip and uri hold several names apart by spaces. Nothing is trimmed, guessed or
left out in silence.
"""

from __future__ import annotations

import csv
import os
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from estd import given_names
from estd.devices import Device, is_manufacturer, is_serial_number

COLUMNS = ("serial_number", "manufacturer", "label", "profile", "subject", "dns", "ip", "uri", "state")
LINE_MAX = 16_384
"""Bytes."""
_STATES = {"": True, "enabled": True, "disabled": False}


class LineError(ValueError):
    """What is wrong with one line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line


class FileError(ValueError):
    """The file as a whole is no list of devices."""


class Line(NamedTuple):
    """One line of the file, the first after its head being number 2."""

    number: int
    offset: int
    """Bytes before it."""
    found: Device | LineError


class DeviceFile:
    """A CSV of devices, read line by line, as often as one iterates. Raises FileError or OSError."""

    def __init__(
        self, path: Path, *, label: str, labels: Collection[str], profiles: Collection[str], added_at: int
    ) -> None:
        self.path = path
        self._label = label
        self._labels = labels
        self._profiles = profiles
        self._added_at = added_at
        self._seen: object = None

    def __iter__(self) -> Iterator[Line]:
        with self.path.open("rb") as file:
            self._seen = _state(file)
            head = file.readline(LINE_MAX)
            columns = self._columns(head)
            number, offset = 1, len(head)
            while line := file.readline(LINE_MAX):
                number += 1
                if len(line) == LINE_MAX and not line.endswith(b"\n"):
                    raise FileError(f"{self.path}: line {number} is longer than {LINE_MAX} bytes")
                yield Line(number, offset, self._found(number, line, columns))
                offset += len(line)

    def at(self, offsets: Iterable[int]) -> Iterator[Device]:
        """The devices of lines that were good. Raises FileError where they are not any more."""
        with self.path.open("rb") as file:
            columns = self._columns(file.readline(LINE_MAX))
            for offset in offsets:
                file.seek(offset)
                found = self._found(0, file.readline(LINE_MAX), columns, known=True)
                if isinstance(found, LineError) or _state(file) != self._seen:
                    raise FileError(f"{self.path} was changed while it was read; import it again")
                yield found

    def _found(self, number: int, line: bytes, columns: Sequence[str], *, known: bool = False) -> Device | LineError:
        try:
            cells = _cells(line)
            if len(cells) != len(columns):
                raise ValueError(f"has {len(cells)} cells where the first line names {len(columns)} columns")
            return self.device(dict(zip(columns, cells, strict=True)), known=known)
        except ValueError as error:
            return LineError(number, str(error))

    def _columns(self, head: bytes) -> tuple[str, ...]:
        try:
            columns = tuple(_cells(head.removeprefix(BOM_UTF8)))
        except ValueError:
            columns = ()
        if len(set(columns)) != len(columns) or "serial_number" not in columns or set(columns) - set(COLUMNS):
            raise FileError(
                f"{self.path}: the first line must name the columns, serial_number and any of "
                f"{', '.join(COLUMNS[1:])}, each once; it is {head[:120]!r}"
            )
        return columns

    def device(self, cells: dict[str, str], *, known: bool = False) -> Device:
        """The device of one line's cells. Raises ValueError; `known` names were looked at before."""
        serial_number = cells["serial_number"]
        if not is_serial_number(serial_number):
            raise ValueError(f"the serial number {serial_number[:64]!r} is not 1 to 64 visible ASCII characters")
        manufacturer = cells.get("manufacturer", "")
        if not is_manufacturer(manufacturer):
            raise ValueError(
                f"the manufacturer {manufacturer[:64]!r} is not up to 64 visible ASCII characters without a slash"
            )
        label = cells.get("label") or self._label
        if label not in self._labels:
            raise ValueError(f"there is no [label.{label}] in the configuration")
        profile = cells.get("profile") or None
        if profile is not None and profile not in self._profiles:
            raise ValueError(f"there is no [profile.{profile}] in the configuration")
        state = cells.get("state", "")
        if state not in _STATES:
            raise ValueError(f"the state {state[:64]!r} is neither enabled nor disabled")
        lists = [[one for one in cells.get(kind, "").split(" ") if one] for kind in ("dns", "ip", "uri")]
        return Device(
            label=label,
            manufacturer=manufacturer,
            serial_number=serial_number,
            profile=profile,
            names=given_names.pack(cells.get("subject", ""), *lists, known=known),
            enabled=_STATES[state],
            secret=None,
            secret_until=None,
            secret_used_ms=None,
            added_at=self._added_at,
        )


def _state(file: BinaryIO) -> object:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns


def _cells(line: bytes) -> list[str]:
    """Raises ValueError. A cell cannot span lines, or line numbers would lie."""
    try:
        text = line.decode("utf-8").rstrip("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    if "\0" in text or "\r" in text:
        raise ValueError("has a NUL or a lone carriage return")
    if '"' not in text:
        return text.split(",")
    try:
        (cells,) = csv.reader([text], strict=True)
    except csv.Error as error:
        raise ValueError(f"is not CSV: {error}") from None
    return cells
