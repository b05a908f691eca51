"""JSON lines on standard error, written by a thread so that no request waits for whoever reads them.

A line is queued as a dict; the thread formats and writes what has gathered ten times a second. When nobody reads and
the queue is full, lines are dropped and counted, never waited for.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from functools import lru_cache
from typing import Any

from estd import metrics

_QUEUE_MAX = 10_000
_EVERY_SECONDS = 0.1
_encode = json.JSONEncoder(default=str).encode


def _stamp(when: float) -> str:
    return f"{_second(int(when))}.{int(when % 1 * 1000):03d}Z"


@lru_cache(maxsize=8)
def _second(when: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))


class Log:
    """The log of one process. Credentials and keys never go in."""

    def __init__(self, process: str, slot: metrics.Slot | None = None, descriptor: int = 2) -> None:
        self._process = process
        self._slot = slot
        self._descriptor = descriptor
        self._lines: deque[tuple[float, str, dict[str, Any]]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def __call__(self, event: str, **fields: Any) -> None:
        """Queue a line: `event` says what happened, the fields to whom."""
        if len(self._lines) < _QUEUE_MAX:
            self._lines.append((time.time(), event, fields))
        elif self._slot is not None:
            self._slot.count(metrics.LOGS_DROPPED.at)

    def _work(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        out: list[str] = []
        while self._lines:
            when, event, fields = self._lines.popleft()
            out.append(_encode({"time": _stamp(when), "process": self._process, "event": event, **fields}))
        data = "".join(line + "\n" for line in out).encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            return  # nobody is left to tell

    def close(self) -> None:
        """Write what is queued, and end."""
        self._stop.set()
        self._thread.join(timeout=2.0)  # no longer: a reader who does not come must not hold the end of a process
