"""One TOML table, read key by key: each read says what the key must be, problems are collected instead of raised, and
what nobody asked for is unknown. Durations and sizes carry their units."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")
S = TypeVar("S", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Table:
    """Reads one TOML table and collects what is wrong; each read takes its key, so what is left over is unknown."""

    def __init__(self, data: object, path: str, problems: list[str], folder: Path) -> None:
        if not isinstance(data, dict):
            problems.append(f"{path}: must be a table")
            data = {}
        self.left: dict[str, Any] = dict(data)
        self.path = path
        self.problems = problems
        self.folder = folder

    def where(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def wrong(self, key: str, what: str) -> None:
        self.problems.append(f"{self.where(key)}: {what}")

    def take(self, key: str, kind: Callable[[Any], T], default: T | None, needs: str) -> T:
        """The key's value through `kind`; `default` None means that the key is required."""
        if key not in self.left:
            if default is None:
                self.wrong(key, f"is missing (needs {needs})")
                return cast(T, None)
            return default
        value = self.left.pop(key)
        try:
            return kind(value)
        except (ValueError, TypeError) as error:
            self.wrong(key, f"{value!r} is not {needs}" + (f": {error}" if str(error) else ""))
            return cast(T, default)

    def string(self, key: str, default: str | None = None) -> str:
        return self.take(key, string, default, "a string")

    def flag(self, key: str, default: bool) -> bool:
        return self.take(key, flag, default, "true or false")

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        def kind(value: Any) -> int:
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError
            return value

        return self.take(key, kind, default, f"a whole number from {low} to {high}")

    def seconds(self, key: str, default: str, most: str = "100y") -> int:
        def kind(value: Any) -> int:
            if duration(value) > duration(most):
                raise ValueError(f"at most {most}")
            return duration(value)

        return self.take(key, kind, duration(default), 'a duration such as "90d", "10m", "30s"')

    def size(self, key: str, default: str, most: str) -> int:
        def kind(value: Any) -> int:
            if size(value) > size(most):
                raise ValueError(f"at most {most}")
            return size(value)

        return self.take(key, kind, size(default), 'a size such as "64KiB"')

    def file(self, key: str, default: str | None = None) -> Path:
        fallback = None if default is None else self.folder / default
        return self.take(key, lambda v: self.folder / string(v), fallback, "a path")

    def optional_file(self, key: str) -> Path | None:
        return self.file(key) if key in self.left else None

    def choice(self, key: str, default: str, options: tuple[S, ...]) -> S:
        def kind(value: Any) -> S:
            if value not in options:
                raise ValueError
            return cast(S, value)

        return self.take(key, kind, cast(S, default), "one of " + ", ".join(options))

    def strings(self, key: str, default: tuple[str, ...], options: tuple[str, ...] | None = None) -> tuple[str, ...]:
        def kind(value: Any) -> tuple[str, ...]:
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise ValueError
            if options is not None and (odd := [one for one in value if one not in options]):
                raise ValueError(f"does not know {', '.join(odd)}")
            return tuple(value)

        needs = "a list of strings" if options is None else "a list of " + ", ".join(options)
        return self.take(key, kind, default, needs)

    def tables(self, key: str) -> dict[str, Table]:
        return {
            name: Table(value, f"{self.where(key)}.{name}", self.problems, self.folder)
            for name, value in self.table(key).left.items()
        }

    def table(self, key: str) -> Table:
        return Table(self.left.pop(key, {}), self.where(key), self.problems, self.folder)

    def done(self) -> None:
        for key in self.left:
            self.wrong(key, "is not a key that estd knows")


def string(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def duration(text: Any) -> int:
    """Seconds of "30s", "10m", "12h", "90d", "2y" (a year has 365 days)."""
    found = re.fullmatch(r"(\d{1,9})([smhdy])", text) if isinstance(text, str) else None
    if not found:
        raise ValueError
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "y": 365 * 86400}[found[2]]


def size(text: Any) -> int:
    """Bytes of "512B", "64KiB", "1MiB"."""
    found = re.fullmatch(r"(\d{1,9})(B|KiB|MiB)", text) if isinstance(text, str) else None
    if not found:
        raise ValueError
    return int(found[1]) * {"B": 1, "KiB": 1024, "MiB": 1024 * 1024}[found[2]]


def hexadecimal(text: Any) -> bytes:
    """Octets of "01ab"."""
    if not isinstance(text, str) or not re.fullmatch(r"([0-9A-Fa-f]{2})+", text):
        raise ValueError
    return bytes.fromhex(text)


def address(text: Any) -> Address:
    """Host and port of "127.0.0.1:8443" or "[::1]:8443"."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):(\d{1,5})", text) if isinstance(text, str) else None
    if not found or int(found[3]) > 65535:
        raise ValueError
    return Address(host=found[1] or found[2], port=int(found[3]))
