"""Latencies as an HDR histogram: three significant digits however many there are, and histograms can be added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

HIGHEST_US = 120_000_000
"""What takes longer than two minutes is recorded as two minutes."""
_DIGITS = 3
POINTS = (50.0, 90.0, 99.0, 99.9)


class Latencies:
    """Durations in µs. To record one costs about 0.7 µs; pickled it is the few kB of its encoding."""

    __slots__ = ("_histogram",)

    def __init__(self, encoded: bytes | None = None) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_US, _DIGITS) if encoded is None else HdrHistogram.decode(encoded)

    def __reduce__(self) -> tuple[type[Latencies], tuple[bytes]]:
        return Latencies, (self.encode(),)

    def record(self, duration_us: float) -> None:
        self._histogram.record_value(min(int(duration_us), HIGHEST_US))

    def add(self, other: Latencies) -> None:
        self._histogram.add(other._histogram)

    def encode(self) -> bytes:
        """The base64 text of HdrHistogram's V2 format, which every implementation of it reads."""
        encoded: bytes = self._histogram.encode()
        return encoded

    def count(self) -> int:
        """How many durations are in it."""
        return int(self._histogram.get_total_count())

    def percentiles(self, points: Sequence[float] = POINTS) -> dict[str, float]:
        """The percentiles in µs and the maximum by name; empty without values."""
        if not self.count():
            return {}
        largest = float(self._histogram.get_max_value())
        found = self._histogram.get_percentile_to_value_dict(points)
        # A percentile is the upper end of its bucket, which may lie above all that was recorded.
        return {f"p{point:g}": min(float(found[point]), largest) for point in points} | {"max": largest}


def merged(parts: Iterable[Latencies]) -> Latencies:
    """All parts in one."""
    total = Latencies()
    for part in parts:
        total.add(part)
    return total
