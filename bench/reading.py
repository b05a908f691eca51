"""Reads the JSON of bench.fleet and bench.round into checked values.

Runs of an earlier time have fewer keys: what is absent is empty here, and only what is wrong is an error.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from hdrh.codec import HdrCookieException, HdrLengthException  # type: ignore[import-untyped]
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from bench.runs import Histogram, Process, Round, Run, Series

_POINTS = ("p50", "p90", "p99", "p99.9", "max")
_STEP = ("rate_per_second", "good_per_second", "p50_us", "p99_us", "shed", "errors", "server_cpu_us_per_enrolment")
_MIX = ("sent", "expected", "shed", "unexpected", "p99_us")
_LARGEST = 1e15
"""No figure of a bench is larger, and drawing one that is would overflow."""
_CURVE_POINTS_MAX = 400
_NOT_HDR = (ValueError, RuntimeError, zlib.error, HdrCookieException, HdrLengthException)


class ResultError(Exception):
    """A file that holds no results, as a sentence with what to do."""


class _At:
    """A JSON object and where in its file it stands, so that an error can name the place."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            raise ResultError(f"{place} is not a JSON object")
        self.value: dict[str, Any] = value
        self.place = place

    def _wrong(self, key: str, wanted: str) -> NoReturn:
        raise ResultError(f"{self.place}: {key!r} is not {wanted}")

    def text(self, key: str) -> str:
        value = self.value.get(key, "")
        return value if isinstance(value, str) else self._wrong(key, "text")

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.value.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self._wrong(key, "a list of texts")
        return tuple(value)

    def optional(self, key: str) -> float | None:
        value = self.value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
            self._wrong(key, "a number")
        return float(value)

    def number(self, key: str) -> float:
        return self.optional(key) or 0.0

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.value.get(key, [])
        if not isinstance(value, list):
            self._wrong(key, "a list of numbers")
        found = _At({f"{key}[{index}]": one for index, one in enumerate(value)}, self.place)
        return tuple(math.nan if one is None else one for one in map(found.optional, found.value))

    def known(self, keys: Iterable[str]) -> dict[str, float]:
        """Those of `keys` that it has, as numbers by name; what is null is left out."""
        found = {key: self.optional(key) for key in keys}
        return {key: one for key, one in found.items() if one is not None}

    def named(self) -> dict[str, float]:
        """Itself as numbers by name."""
        return self.known(self.value)

    def object(self, key: str) -> _At:
        return _At(self.value.get(key) or {}, f"{self.place}: {key}")

    def objects(self, key: str) -> dict[str, _At]:
        inner = self.object(key)
        return {name: inner.object(name) for name in inner.value}

    def rows(self, key: str) -> list[_At]:
        value = self.value.get(key, [])
        if not isinstance(value, list):
            self._wrong(key, "a list")
        return [_At(one, f"{self.place}: {key}[{index}]") for index, one in enumerate(value)]


def _series(at: _At, names: tuple[str, ...] | None = None) -> Series:
    """Those of `names` that are there; all where none are named."""
    seconds = at.numbers("seconds")
    values = {name: at.numbers(name) for name in (at.value if names is None else names) if name in at.value}
    for name, row in values.items():
        if len(row) != len(seconds):
            raise ResultError(f"{at.place}: {name!r} has {len(row)} values for {len(seconds)} seconds")
    return Series(seconds=seconds, values=values)


def _cores(at: _At) -> Series:
    processes = at.object("processes")
    return _series(_At({**processes.value, "seconds": at.value.get("seconds", [])}, at.place), tuple(processes.value))


def _histogram(at: _At) -> Histogram:
    le, counts = at.numbers("le"), at.numbers("count")
    if len(counts) != len(le) + 1:
        raise ResultError(f"{at.place}: {len(counts)} counts do not fit {len(le)} bounds; there is one more, for +Inf")
    return Histogram(le=le, counts=counts, sum=at.number("sum"))


def percentile_curve(hdr: str) -> tuple[tuple[float, float], ...]:
    """(percentile, µs): so many percent of what an encoded HdrHistogram holds took at most so long.

    The greatest value stands half an answer below 100, which has no place on a scale of log(1 - p). ValueError when it
    is no HdrHistogram.
    """
    if not hdr:
        return ()
    points, through = [], 0
    try:
        histogram = HdrHistogram.decode(hdr.encode())
        total = histogram.get_total_count()
        for item in histogram.get_recorded_iterator():  # one object, changed at each turn
            through += item.count_added_in_this_iter_step
            points.append((100.0 * min(through, total - 0.5) / total, float(item.value_iterated_to)))
    except _NOT_HDR as error:
        raise ValueError(f"not an encoded HdrHistogram: {error}") from error
    return _thinned(points)


def _thinned(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most so many points, evenly spread on the scale on which they are drawn, log(1 - p), first and last kept."""
    if len(points) <= _CURVE_POINTS_MAX:
        return tuple(points)
    step = -math.log(1 - points[-1][0] / 100) / (_CURVE_POINTS_MAX - 2)
    kept, due = [], 0.0
    for point in points[:-1]:
        at = -math.log(1 - point[0] / 100)
        if at >= due:
            kept.append(point)
            due = at + step
    return (*kept, points[-1])


def _run(at: _At) -> Run:
    what = at.text("what")
    try:
        curve = percentile_curve(at.text("hdr"))
    except ValueError as error:
        raise ResultError(f"{at.place}: 'hdr' is {error}") from error
    return Run(
        name=at.text("name") or at.text("scenario") or re.sub(r" at \S+", "", what) or "run",
        what=what,
        command=at.text("command"),
        began=at.text("began"),
        passed=at.value.get("passed") is True,
        missed=at.texts("missed"),
        enrolments=at.number("enrolments"),
        requests=at.number("requests"),
        seconds=at.number("seconds"),
        rate_per_second=at.number("rate_per_second"),
        latency_us=at.object("latency_us").known(_POINTS),
        late_us=at.object("late_us").known(_POINTS),
        shed=at.number("shed"),
        errors=at.object("errors").named(),
        events=at.object("events").named(),
        verified=at.number("verified"),
        server_cpu_us_per_enrolment=at.optional("server_cpu_us_per_enrolment"),
        generator_cpu_us_per_enrolment=at.optional("generator_cpu_us_per_enrolment"),
        generator_share=at.optional("generator_share"),
        generator_was_limit=at.value.get("generator_was_limit") is True,
        machine_idle_percent=at.number("machine_idle_percent"),
        machine_steal_percent=at.number("machine_steal_percent"),
        processes=tuple(
            Process(
                label=row.text("label"),
                cpu_us_per_enrolment=row.number("cpu_us_per_enrolment"),
                cpu_seconds=row.number("cpu_seconds"),
                peak_rss_bytes=row.number("peak_rss_bytes"),
            )
            for row in at.rows("processes")
        ),
        curve=curve,
        series=_series(at.object("series"), ("good", "shed", "errors", "p50_us", "p99_us")),
        cores=_cores(at.object("cpu_series")),
        metrics={
            family: {label: _histogram(one) for label, one in at.object("metrics").objects(family).items()}
            for family in at.object("metrics").value
        },
        steps=tuple(row.known(_STEP) | {"held": float(row.value.get("held") is not False)} for row in at.rows("steps")),
        mix={kind: one.known(_MIX) for kind, one in at.objects("mix").items()},
    )


def _round(at: _At, path: Path) -> Round:
    runs = tuple(map(_run, at.rows("runs")))
    machine = at.object("machine").value
    return Round(
        path=str(path),
        began=at.text("began"),
        commit=at.text("commit"),
        plan=at.text("plan"),
        machine={key: str(value) for key, value in machine.items() if value not in ("", None)},
        floor=at.object("floor").named(),
        core=at.object("core").named(),
        runs=runs,
        failures=at.texts("failures"),
    )


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def read(path: Path) -> Round:
    """A file of a round, of one run, or of several runs, one a line. Raises ResultError with the file's name."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ResultError(f"{path} cannot be read: {reason}. `python -m bench.round` makes such a file") from None
    try:
        parts = _parts(text)
    except (ValueError, RecursionError) as error:
        raise ResultError(
            f"{path} is not JSON of bench.round or bench.fleet --json ({error}); was it cut off? Measure again"
        ) from None
    try:
        if len(parts) == 1 and "runs" in parts[0]:
            return _round(_At(parts[0], "the round"), path)
        if not all("enrolments" in part for part in parts):
            raise ResultError("it holds neither a round nor a run")
        shared: dict[str, Any] = {key: parts[0][key] for key in ("began", "commit", "machine") if key in parts[0]}
        return _round(_At(shared | {"runs": parts}, "the file"), path)
    except ResultError as error:
        raise ResultError(f"{path}: {error}. Give a file of bench.round or bench.fleet --json") from None


def _parts(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a file: the whole of it is one, or else each line is."""
    try:
        found = [json.loads(text, parse_constant=_no_constant)]
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        found = [json.loads(line, parse_constant=_no_constant) for line in lines]
    if not all(isinstance(one, dict) for one in found):
        raise ValueError("there is something else than an object")
    return found
