"""The index of what was answered: a hit is a hint, a miss is certain."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estd import config
from estd.errors import ConfigError
from estd.repeats import Repeats
from tests.test_config import text

WINDOW_MS = 10_000
START_MS = 1_800_000_000_000


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def found(repeats: Repeats, number: int, now_ms: int) -> list[int]:
    return sorted(repeats.find(key(number), now_ms))


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 7), st.one_of(st.just(0), st.integers(0, 3000), st.integers(0, 5 * WINDOW_MS))),
        max_size=60,
    )
)
def test_every_request_of_the_window_is_found(steps: list[tuple[int, int]]) -> None:
    """After any sequence of requests, exactly those of the last window are found, at the time they had."""
    repeats = Repeats(WINDOW_MS, START_MS)
    added: list[tuple[int, int]] = []
    now_ms = START_MS
    for number, later_ms in steps:
        now_ms += later_ms
        repeats.add(key(number), now_ms)
        added.append((number, now_ms))
        for asked in range(8):
            expected = sorted(when for one, when in added if one == asked and now_ms - when <= WINDOW_MS)
            assert found(repeats, asked, now_ms) == expected


def test_the_table_grows_and_loses_nothing() -> None:
    """Ten times as many requests as the table begins with are all found, and no other."""
    repeats = Repeats(WINDOW_MS, START_MS)
    for number in range(40_000):
        repeats.add(key(number), START_MS + number % WINDOW_MS)
    assert all(
        found(repeats, number, START_MS + WINDOW_MS) == [START_MS + number % WINDOW_MS] for number in range(40_000)
    )
    assert not any(found(repeats, number, START_MS + WINDOW_MS) for number in range(40_000, 80_000))


@pytest.mark.parametrize("extreme", [bytes(32), b"\xff" * 32], ids=["zeros", "ones"])
def test_every_hash_can_be_remembered(extreme: bytes) -> None:
    """A hash of nothing but zeros is not taken for an empty place, nor one of ones for more than its bits."""
    repeats = Repeats(WINDOW_MS, START_MS)
    assert repeats.find(extreme, START_MS) == []
    repeats.add(extreme, START_MS)
    assert repeats.find(extreme, START_MS) == [START_MS]


def test_a_clock_that_was_set_back_makes_no_miss() -> None:
    """A request answered after the clock was set back a little is found at the time its serial begins with."""
    repeats = Repeats(WINDOW_MS, START_MS)
    repeats.add(key(1), START_MS - 50)
    assert found(repeats, 1, START_MS - 40) == [START_MS - 50]


def _window_from_a_configuration() -> None:
    made = config.parse(text("label.default", 'repeat_window = "12h"'), Path("/nowhere"))
    Repeats(made.labels["default"].repeat_seconds * 1000, START_MS)


def test_a_window_that_the_table_cannot_hold_is_refused() -> None:
    """A label's window is honoured or refused, never cut without a word: times have 24 bits of milliseconds."""
    with pytest.raises((ConfigError, ValueError)):
        _window_from_a_configuration()
