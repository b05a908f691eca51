"""Rates and durations as people write them, on the command line and in scenario files: "3000/s", "25ms"."""

from __future__ import annotations

import re


def _quantity(text: object, units: dict[str, float], example: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(\D*)", text.strip()) if isinstance(text, str) else None
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not like {example}")
    return float(match[1]) * units[match[2]]


def rate(text: object) -> float:
    """Per second. Raises ValueError."""
    return _quantity(text, {"": 1.0, "/s": 1.0}, "3000/s")


def microseconds(text: object) -> float:
    """Raises ValueError."""
    return _quantity(text, {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}, "25ms")


def seconds(text: object) -> float:
    """Raises ValueError."""
    return _quantity(text, {"ms": 1e-3, "s": 1.0, "m": 60.0}, "20s")


def part(value: object, most: float = 1.0) -> float:
    """A number above 0 and at most `most`. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise ValueError(f"{value!r} is not above 0 and at most {most:g}")
    return float(value)


def share(value: object) -> float:
    """A part of the capacity, which an overload exceeds. Raises ValueError."""
    return part(value, 10.0)
