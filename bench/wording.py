"""Figures as people read them: as many digits as they are worth, with their unit where it changes."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def count(value: float) -> str:
    """Whole, with thousands apart; small rates keep a digit."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10 else f"{value:,.1f}"


def figure(value: float) -> str:
    """Three digits that count, or all before the point."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def milliseconds(us: float) -> str:
    """A latency given in µs."""
    return f"{figure(us / 1e3)} ms"


def seconds_of(seconds: float) -> str:
    """A duration in seconds, in the unit that suits it."""
    if seconds < 1e-3:
        return f"{figure(seconds * 1e6)} µs"
    return f"{figure(seconds * 1e3)} ms" if seconds < 1 else f"{figure(seconds)} s"


def moment(text: str) -> str:
    """A moment in ISO 8601 to the minute; any other text as it is."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at.tzinfo else f"{at:%Y-%m-%d %H:%M}"


def percent_change(ratio: float) -> str:
    """A ratio as a change with its sign: 1.12 is +12 %."""
    change = 100 * (ratio - 1)
    return "±0 %" if round(change, 1) == 0 else f"{change:+.1f} %" if abs(change) < 10 else f"{change:+.0f} %"
