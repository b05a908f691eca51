"""Which requests were answered in the last minutes, so that a device that lost its answer gets it again.

A fixed-cost index in memory over what the ledger holds: an open-addressing table of 64-bit words, 40 bits of the
request's hash beside 24 bits of when it was issued. A hit is a hint, which the ledger's row confirms; a miss is
certain. It costs a microsecond and eight bytes where an index in the ledger costs a page of its log for each request
(docs/decisions/0002-repeats.md). There is one writer for each key, so what the table says is what the ledger says;
after a start it is filled from the ledger's last window.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

_TIME_BITS = 24
_TIME_MASK = (1 << _TIME_BITS) - 1
_FIRST_SLOTS = 1 << 12
_SLACK_MS = 3600 * 1000
"""How far a clock may be set back before a new generation begins for it."""
WINDOW_MAX_SECONDS = 3 * 3600
"""What 24 bits of milliseconds hold, less the slack; the configuration allows no longer window."""


class _Generation:
    """Entries whose time is counted in milliseconds from `start_ms`: 24 bits hold 4.6 hours."""

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms
        self.count = 0
        self._mask = _FIRST_SLOTS - 1
        self._words = array("Q", bytes(8 * _FIRST_SLOTS))

    def add(self, key: int, when_ms: int) -> None:
        if self.count * 2 > self._mask:
            self._grow()
        self._put((key & ~_TIME_MASK) | (when_ms - self.start_ms))
        self.count += 1

    def _put(self, word: int) -> None:
        words, mask = self._words, self._mask
        slot = (word >> _TIME_BITS) & mask
        while words[slot]:
            slot = (slot + 1) & mask
        words[slot] = word

    def _grow(self) -> None:
        old = self._words
        self._mask = self._mask * 2 + 1
        self._words = array("Q", bytes(8 * (self._mask + 1)))
        for word in old:
            if word:
                self._put(word)

    def find(self, key: int) -> Iterator[int]:
        words, mask, tag = self._words, self._mask, key >> _TIME_BITS
        slot = tag & mask
        while word := words[slot]:
            if word >> _TIME_BITS == tag:
                yield self.start_ms + (word & _TIME_MASK)
            slot = (slot + 1) & mask


class Repeats:
    """When the requests of the last `window_ms` were issued, in two generations of that length."""

    def __init__(self, window_ms: int, now_ms: int) -> None:
        if window_ms > WINDOW_MAX_SECONDS * 1000:
            raise ValueError(f"a window of {window_ms} ms is longer than {WINDOW_MAX_SECONDS} s")
        self._window_ms = window_ms
        self._new = _Generation(now_ms - _SLACK_MS)
        self._old = _Generation(now_ms - _SLACK_MS)

    def add(self, repeat_key: bytes, when_ms: int) -> None:
        """Remember that a request was answered with a certificate whose serial begins with `when_ms`."""
        if not 0 <= when_ms - self._new.start_ms <= self._window_ms + _SLACK_MS:
            self._old, self._new = self._new, _Generation(when_ms - _SLACK_MS)
        self._new.add(_key(repeat_key), when_ms)

    def find(self, repeat_key: bytes, now_ms: int) -> Iterator[int]:
        """The milliseconds in which such a request may have been answered; the ledger's rows say whether it was."""
        key = _key(repeat_key)
        for generation in (self._new, self._old):
            for when_ms in generation.find(key):
                if now_ms - when_ms <= self._window_ms:
                    yield when_ms


def _key(repeat_key: bytes) -> int:
    """64 bits of the hash; never all zero above the time bits, since an empty slot is zero."""
    return int.from_bytes(repeat_key[:8], "big") | (1 << 63)
