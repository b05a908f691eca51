"""Which requests were answered in the last minutes, so that a device that lost its answer gets it again.

A fixed-cost index in memory over what the ledger holds: 32 bits of the request's hash beside 24 bits of when it was
issued, in open-addressing tables that grow one at a time. A hit is a hint, which the ledger's row confirms; a miss is
certain. It costs a microsecond and ten bytes where an index in the ledger costs a page of its log for each request
(docs/decisions/0002-repeats.md). There is one writer for each key, so what the table says is what the ledger says;
after a start it is filled from the ledger's last window.
"""

from __future__ import annotations

import mmap

_TABLES = 256
_SLOT_BYTES = 7
_FIRST_SLOTS = mmap.PAGESIZE // _SLOT_BYTES
_SLACK_MS = 3600 * 1000
"""How far a clock may be set back before a new generation begins for it."""
WINDOW_MAX_SECONDS = 3 * 3600
"""What 24 bits of milliseconds hold, less the slack; the configuration allows no longer window."""


class _Table:
    """One of a generation's tables. An empty slot has a tag of zero; a time is in two parts of 16 and 8 bits.

    Its memory comes from the kernel and goes back there: tables that grow leave holes in a heap.
    """

    __slots__ = ("count", "highs", "lows", "tags")

    def __init__(self, slots: int) -> None:
        block = memoryview(mmap.mmap(-1, _SLOT_BYTES * slots))
        self.count = 0
        self.tags = block[: 4 * slots].cast("I")
        self.highs = block[4 * slots : 6 * slots].cast("H")
        self.lows = block[6 * slots :]

    def add(self, tag: int, high: int, low: int) -> None:
        tags = self.tags
        slots = len(tags)
        slot = tag % slots
        while tags[slot]:
            slot = (slot + 1) % slots
        tags[slot] = tag
        self.highs[slot] = high
        self.lows[slot] = low
        self.count += 1

    def grown(self) -> _Table:
        """The same entries in a quarter more slots."""
        made = _Table(len(self.tags) * 5 // 4)
        for tag, high, low in zip(self.tags, self.highs, self.lows, strict=True):
            if tag:
                made.add(tag, high, low)
        return made

    def find(self, tag: int) -> list[int]:
        tags = self.tags
        slots = len(tags)
        slot = tag % slots
        times: list[int] = []
        while found := tags[slot]:
            if found == tag:
                times.append(self.highs[slot] << 8 | self.lows[slot])
            slot = (slot + 1) % slots
        return times


class _Generation:
    """Entries whose time is counted in milliseconds from `start_ms`: 24 bits hold 4.6 hours."""

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms
        self._tables = [_Table(_FIRST_SLOTS) for _ in range(_TABLES)]

    def add(self, repeat_key: bytes, when_ms: int) -> None:
        number, tag = repeat_key[0], _tag(repeat_key)
        table = self._tables[number]
        if table.count * 4 >= len(table.tags) * 3:
            table = self._tables[number] = table.grown()
        table.add(tag, (when_ms - self.start_ms) >> 8, (when_ms - self.start_ms) & 0xFF)

    def find(self, repeat_key: bytes) -> list[int]:
        times = self._tables[repeat_key[0]].find(_tag(repeat_key))
        return [self.start_ms + since_ms for since_ms in times] if times else times


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
        self._new.add(repeat_key, when_ms)

    def find(self, repeat_key: bytes, now_ms: int) -> list[int]:
        """The milliseconds in which such a request may have been answered; the ledger's rows say whether it was."""
        found = self._new.find(repeat_key) + self._old.find(repeat_key)
        return [when_ms for when_ms in found if now_ms - when_ms <= self._window_ms] if found else found


def _tag(repeat_key: bytes) -> int:
    """32 bits of the hash, never zero."""
    return int.from_bytes(repeat_key[1:5], "big") or 1
