"""The CSV of devices: strict, each mistake told with its line.

The first line names the columns, in any order: serial_number is required; manufacturer, label, profile, subject, dns,
ip, uri and state are not. Cells of dns, ip and uri hold several names apart by spaces. Nothing is trimmed, guessed or
left out in silence.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from estd import given_names
from estd.devices import Device, is_manufacturer, is_serial_number

COLUMNS = ("serial_number", "manufacturer", "label", "profile", "subject", "dns", "ip", "uri", "state")
LINE_MAX = 16_384
"""Characters."""
_STATES = {"": True, "enabled": True, "disabled": False}


class LineError(ValueError):
    """What is wrong with one line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")


class FileError(ValueError):
    """The file as a whole is no list of devices."""


class DeviceFile:
    """A CSV of devices, read as often as one iterates. Yields (line, Device) or (line, LineError)."""

    def __init__(
        self, path: Path, *, label: str, labels: Collection[str], profiles: Collection[str], added_at: int
    ) -> None:
        self.path = path
        self._label = label
        self._labels = labels
        self._profiles = profiles
        self._added_at = added_at

    def __iter__(self) -> Iterator[tuple[int, Device | LineError]]:
        """Raises FileError or OSError."""
        # newline="" keeps what csv must see; a cell cannot span lines, or line numbers would lie.
        with self.path.open(encoding="utf-8", newline="") as file:
            try:
                head = file.readline(LINE_MAX)
                columns = self._columns(head)
                number = 1
                while line := file.readline(LINE_MAX):
                    number += 1
                    if not line.endswith("\n") and len(line) == LINE_MAX:
                        raise FileError(f"{self.path}: line {number} is longer than {LINE_MAX} characters")
                    try:
                        yield number, self._device(line.rstrip("\r\n"), columns)
                    except ValueError as error:
                        yield number, LineError(number, str(error))
            except UnicodeDecodeError:
                raise FileError(f"{self.path} is not text in UTF-8") from None

    def _columns(self, head: str) -> tuple[str, ...]:
        columns = tuple(_cells(head.rstrip("\r\n").removeprefix("\ufeff")))
        if len(set(columns)) != len(columns) or "serial_number" not in columns or set(columns) - set(COLUMNS):
            raise FileError(
                f"{self.path}: the first line must name the columns, serial_number and any of "
                f"{', '.join(COLUMNS[1:])}, each once; it is {head.strip()[:120]!r}"
            )
        return columns

    def _device(self, line: str, columns: Sequence[str]) -> Device:
        cells = _cells(line)
        if len(cells) != len(columns):
            raise ValueError(f"has {len(cells)} cells where the first line names {len(columns)} columns")
        return self.device(dict(zip(columns, cells, strict=True)))

    def device(self, cells: dict[str, str]) -> Device:
        """The device of one line's cells. Raises ValueError."""
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
        lists = [cells.get(kind, "").split() for kind in ("dns", "ip", "uri")]
        return Device(
            label=label,
            manufacturer=manufacturer,
            serial_number=serial_number,
            profile=profile,
            names=given_names.pack(cells.get("subject", ""), *lists),
            enabled=_STATES[state],
            secret=None,
            secret_until=None,
            secret_used_ms=None,
            added_at=self._added_at,
        )


def _cells(line: str) -> list[str]:
    """Raises ValueError."""
    if '"' not in line:
        if "\0" in line or "\r" in line:
            raise ValueError("has a NUL or a lone carriage return")
        return line.split(",")
    try:
        (cells,) = csv.reader([line], strict=True)
    except csv.Error as error:
        raise ValueError(f"is not CSV: {error}") from None
    return cells
