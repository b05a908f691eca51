"""The search for the highest rate that a server holds: which rate a ramp tries next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """From the first rate each step is `factor` times the last, at most `to_per_second`.

    A step that misses is repeated `repeats` times before it counts, since a neighbour on the machine can spoil a step.
    Between the highest rate that held and the lowest that did not the ramp halves its way to within `precision`.
    """

    to_per_second: float = 20_000.0
    factor: float = 1.5
    repeats: int = 1
    precision: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A step that was made, and whether its goals held."""

    rate_per_second: float
    held: bool


def highest_held(tried: Sequence[Tried]) -> float | None:
    """The highest rate that held at one of its tries; None where none did."""
    return max((one.rate_per_second for one in tried if one.held), default=None)


def next_rate(ramp: Ramp, first_per_second: float, tried: Sequence[Tried]) -> float | None:
    """The rate of the next step; None when the answer is known."""
    if not tried:
        return first_per_second
    last = tried[-1]
    low = highest_held(tried)
    times = sum(one.rate_per_second == last.rate_per_second for one in tried)
    if not last.held and times <= ramp.repeats:
        return last.rate_per_second
    if low is None:
        return None
    high = min((one.rate_per_second for one in tried if one.rate_per_second > low), default=None)
    if high is None:
        return None if low >= ramp.to_per_second else min(low * ramp.factor, ramp.to_per_second)
    return None if high <= low * (1 + ramp.precision) else math.sqrt(low * high)
