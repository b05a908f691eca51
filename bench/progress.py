"""Progress on stderr: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

_TERMINAL_SECONDS = 0.2
_PLAIN_SECONDS = 5.0
_BAR_WIDTH = 30


class ProgressLine:
    """Shows how much of a known total is done; as a context manager it leaves the last state standing."""

    def __init__(self, what: str, total: float) -> None:
        self._what = what
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._interval_seconds = _TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS
        self._began = time.monotonic()
        self._shown = self._began - (self._interval_seconds if self._terminal else 0.0)
        self._last = ""

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last:
            self._write()
            if self._terminal:
                sys.stderr.write("\n")

    def update(self, done: float, note: str = "") -> None:
        """Takes in a new state; writes it only when it is time to."""
        part = min(1.0, done / self._total) if self._total else 1.0
        seconds = time.monotonic() - self._began
        if self._terminal:
            bar = "#" * round(part * _BAR_WIDTH)
            self._last = f"{self._what} [{bar:<{_BAR_WIDTH}}] {part:4.0%} {seconds:.0f} s {note}"
        else:
            self._last = f"{self._what}: {part:.0%} after {seconds:.0f} s {note}"
        if time.monotonic() - self._shown >= self._interval_seconds:
            self._write()

    def _write(self) -> None:
        self._shown = time.monotonic()
        line = self._last.rstrip()
        sys.stderr.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()
