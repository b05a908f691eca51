"""The server's own histograms: what they took in between two readings of its admin port."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from estd.config import load
from estd.errors import ConfigError

_TIMEOUT_SECONDS = 5.0

Histogram = dict[str, Any]
"""`le`, the upper bounds; `count`, what fell into each bucket and, last, above all of them; `sum` of the values."""
Histograms = dict[str, dict[str, Histogram]]
"""By name, and in it by the value of the label that is not the process; "" where there is none."""


def metrics_url(instance: Path) -> str | None:
    """Where the instance's supervisor shows its metrics; None where its configuration cannot be read."""
    try:
        return f"http://{load(instance / 'estd.toml').server.admin}/metrics"
    except ConfigError:
        return None


def read_histograms(url: str | None) -> Histograms:
    """The histograms at the URL, summed over the processes; empty where nobody answers there."""
    if url is None:
        return {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is here, no proxy leads to it
    try:
        with opener.open(url, timeout=_TIMEOUT_SECONDS) as answer:
            return parse(answer.read().decode())
    except OSError:
        return {}


def parse(text: str) -> Histograms:
    """The histograms of an exposition in Prometheus' text format."""
    cumulative: dict[tuple[str, str], dict[float, float]] = {}
    sums: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        if family.type != "histogram":
            continue
        for sample in family.samples:
            key = family.name, " ".join(v for k, v in sorted(sample.labels.items()) if k not in ("process", "le"))
            if sample.name.endswith("_bucket"):
                buckets = cumulative.setdefault(key, {})
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
            elif sample.name.endswith("_sum"):
                sums[key] = sums.get(key, 0.0) + sample.value
    found: Histograms = {}
    for (name, label), buckets in cumulative.items():
        bounds = sorted(buckets)
        totals = [buckets[bound] for bound in bounds]
        counts = [upper - lower for lower, upper in zip([0.0, *totals[:-1]], totals, strict=True)]
        found.setdefault(name, {})[label] = {"le": bounds[:-1], "count": counts, "sum": sums.get((name, label), 0.0)}
    return found


def difference(before: Histograms, after: Histograms) -> Histograms:
    """What came in between. Empty without both readings; a histogram that fell began anew, and counts whole."""
    if not before:
        return {}
    return {
        name: {label: _minus(one, before.get(name, {}).get(label)) for label, one in labels.items()}
        for name, labels in after.items()
    }


def _minus(after: Histogram, before: Histogram | None) -> Histogram:
    if before is None or before["le"] != after["le"]:
        return after
    counts = [late - early for late, early in zip(after["count"], before["count"], strict=True)]
    return after if min(counts) < 0 else {**after, "count": counts, "sum": after["sum"] - before["sum"]}


def added(parts: Iterable[Histograms]) -> Histograms:
    """The sum of the differences of several steps."""
    total: Histograms = {}
    for part in parts:
        for name, labels in part.items():
            known = total.setdefault(name, {})
            for label, one in labels.items():
                known[label] = _plus(known[label], one) if label in known else one
    return total


def _plus(one: Histogram, other: Histogram) -> Histogram:
    counts = [a + b for a, b in zip(one["count"], other["count"], strict=True)]
    return {**one, "count": counts, "sum": one["sum"] + other["sum"]}
