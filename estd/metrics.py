"""Counters and histograms of all processes in one block of shared memory, exported by the supervisor on one port.

A process owns one slot, an array of doubles that it alone writes; whoever replaces it goes on in the same slot, so
counters never fall. To observe costs an addition (prometheus_client's own multiprocess mode: 1–2 µs). Every label has
a closed set of values, and none says which device it was.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from estd.errors import REASONS

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 64.0, 128.0)
OPERATIONS = ("cacerts", "csrattrs", "simpleenroll", "simplereenroll", "serverkeygen", "crls", "renewal-info", "other")
STATUSES = ("200", "202", "204", "400", "401", "403", "404", "405", "413", "415", "429", "500", "503")
DECIDED = ("approved", "denied")
STAGES = ("validate", "identify", "parse", "authorise", "prepare", "sign", "commit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric. `at` is where its first series begins in a slot; `width` is how many doubles a series takes."""

    kind: str
    name: str
    help: str
    labels: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    bounds: tuple[float, ...]
    at: int
    starts: dict[tuple[str, ...], int]
    """Where the series of each combination of label values begins."""

    @property
    def width(self) -> int:
        return len(self.bounds) + 2 if self.bounds else 1

    @property
    def end(self) -> int:
        return self.at + self.width * len(self.values)

    def series(self, *values: str) -> int:
        """Where the series with these label values begins."""
        return self.starts[values]


FAMILIES: list[Family] = []


def _family(kind: str, name: str, text: str, *, bounds: tuple[float, ...] = (), **labels: Sequence[str]) -> Family:
    at = FAMILIES[-1].end if FAMILIES else 0
    width = len(bounds) + 2 if bounds else 1
    values = tuple(product(*labels.values()))
    made = Family(
        kind=kind, name=name, help=text, labels=tuple(labels), values=values, bounds=bounds, at=at,
        starts={one: at + width * index for index, one in enumerate(values)},
    )  # fmt: skip
    FAMILIES.append(made)
    return made


REQUESTS = _family("counter", "estd_requests", "Requests answered.", operation=OPERATIONS, status=STATUSES)
REJECTIONS = _family(
    "counter", "estd_rejections", "Requests refused or held, by reason.", reason=[str(r) for r in REASONS]
)
REQUEST_SECONDS = _family(
    "histogram", "estd_request_seconds", "From a request's headers to its answer.", bounds=SECONDS, operation=OPERATIONS
)
CONNECTIONS = _family("counter", "estd_connections", "TCP connections accepted.")
HANDSHAKE_FAILURES = _family("counter", "estd_handshake_failures", "TLS handshakes that failed or took too long.")
CONNECTIONS_OPEN = _family("gauge", "estd_connections_open", "Connections that are open now.")
QUEUE_DEPTH = _family("gauge", "estd_queue_depth", "Requests that an edge has handed on and waits for.")
REDELIVERED = _family("counter", "estd_redelivered", "Enrolments handed to an issuer again after one died.")
CERTIFICATES = _family("counter", "estd_certificates", "Certificates signed and recorded.")
REPEATED = _family("counter", "estd_repeated", "Repeated requests answered from the ledger.")
SUPERSEDED = _family("counter", "estd_superseded", "Certificates revoked since their successor was seen.")
BATCH_SIZE = _family("histogram", "estd_batch_size", "Requests in a batch.", bounds=SIZES)
STAGE_SECONDS = _family(
    "histogram", "estd_batch_stage_seconds", "Time of a batch in each stage.", bounds=SECONDS, stage=STAGES
)
SIGN_SECONDS = _family("histogram", "estd_sign_seconds", "Signature and its check, per signature.", bounds=SECONDS)
COMMIT_SECONDS = _family("histogram", "estd_commit_seconds", "Durable transaction of a batch.", bounds=SECONDS)
TOKEN_ERRORS = _family("counter", "estd_token_errors", "Calls that the token refused.", severity=("fatal", "transient"))
READY_AT = _family("gauge", "estd_ready_timestamp_seconds", "When a test signature was last made and a row stored.")
BUSY_SINCE = _family("gauge", "estd_busy_since_seconds", "CLOCK_MONOTONIC at which the batch at work began; 0: idle.")
CRLS = _family("counter", "estd_crls_made", "CRLs signed and published.")
CRL_NEXT_UPDATE = _family("gauge", "estd_crl_next_update_timestamp_seconds", "When the first CRL to end ends; 0: none.")
CRL_THIS_UPDATE = _family("gauge", "estd_crl_this_update_timestamp_seconds", "When that CRL was made; 0: none.")
CRL_ENTRIES = _family("gauge", "estd_crl_entries", "Revoked certificates that the CRLs list.")
WAITING = _family("gauge", "estd_approvals_waiting", "Requests that wait for a person.")
WAITING_SECONDS = _family("gauge", "estd_approvals_oldest_wait_seconds", "How long the first of them has waited.")
DECISIONS = _family("counter", "estd_approval_decisions", "Requests decided on by a person.", decision=DECIDED)
WEBHOOK_SECONDS = _family(
    "histogram", "estd_webhook_seconds", "A POST to a webhook, by outcome.", bounds=SECONDS,
    outcome=("answered", "failed"),
)  # fmt: skip
LOGS_DROPPED = _family("counter", "estd_log_lines_dropped", "Log lines dropped since nobody took them.")

SLOT_DOUBLES = FAMILIES[-1].end
GAUGES = tuple(at for one in FAMILIES if one.kind == "gauge" for at in one.starts.values())
_LATEST = frozenset(GAUGES) - {CONNECTIONS_OPEN.at, QUEUE_DEPTH.at}
"""Gauges of which two generations of a process have one, not two that add up."""


class Slot:
    """One process's part of the block. Only its process writes it."""

    def __init__(self, view: memoryview[float]) -> None:
        self.values = view

    def count(self, series: int, by: float = 1.0) -> None:
        self.values[series] += by

    def set(self, series: int, value: float) -> None:
        self.values[series] = value

    def observe(self, family: Family, series: int, value: float) -> None:
        """Put `value` into its bucket; the sum stands behind the buckets."""
        self.values[series + bisect_left(family.bounds, value)] += 1
        self.values[series + len(family.bounds) + 1] += value

    def get(self, series: int) -> float:
        return float(self.values[series])


class Banks:
    """The slots of a process in its generations, read as one: what a retired generation counted stays counted."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots

    def get(self, series: int) -> float:
        values = [slot.get(series) for slot in self._slots]
        return max(values) if series in _LATEST else sum(values)


class Block:
    """The shared memory: made by the supervisor, inherited by its children as a descriptor."""

    def __init__(self, descriptor: int, slots: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, slots * SLOT_DOUBLES * 8)
        self._view = memoryview(self._map).cast("d")

    @classmethod
    def create(cls, slots: int) -> Block:
        descriptor = os.memfd_create("estd-metrics", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, slots * SLOT_DOUBLES * 8)
        return cls(descriptor, slots)

    def slot(self, index: int) -> Slot:
        return Slot(self._view[index * SLOT_DOUBLES : (index + 1) * SLOT_DOUBLES])
