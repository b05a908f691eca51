"""What a generator has to do: all that a run gives to its processes."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stretch of load without a change: `count` requests, fewer where `seconds` end first.

    With a rate it is an open loop, whose requests go out by the clock; without one a connection waits for its answer.
    """

    count: int
    seconds: float | None = None
    rate_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """CSRs in a prepared directory, each of which is sent once.

    With `bound` CSR i can only be sent on connection i % connections, because it asks to renew the certificate that
    connection authenticates with.
    """

    directory: Path
    first: int
    count: int
    bound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of request, what it is sent with and what has to come back.

    With a pool it is an enrolment, and `head` goes up to the value of Content-Length; without one `head` is all that is
    sent. `devices` are the credentials it is sent with, `abort` names the way in which it ends before it is a request.
    """

    name: str
    head: bytes
    status: int
    devices: range
    weight: int = 1
    pool: Pool | None = None
    abort: str = ""

    def request(self, csr: bytes) -> bytes:
        """The request to send for a CSR in base64, which is empty without a pool."""
        return b"%b%d\r\n\r\n%b" % (self.head, len(csr), csr) if csr else self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The load of one of the generators.

    Connections, requests and CSRs are numbered over the whole run, and generator g of n has each n-th from g on.
    A credential is a PEM file with key and certificate, or None for a device that shows none to TLS.
    """

    generator: int
    generators: int
    address: str
    port: int
    server_name: str
    trust: Path
    tls: ssl.TLSVersion
    credentials: tuple[Path | None, ...]
    kinds: tuple[Kind, ...]
    step: Step
    connections: int
    fresh: bool
    tries: int
    timeout_seconds: float
    keep: Path | None

    def mine(self, count: int) -> range:
        """Which of `count` numbered things are this generator's."""
        return range(self.generator, count, self.generators)


@dataclass(slots=True)
class Job:
    """One request. It gets its CSR when it gets its connection; `start` is when it was meant to begin."""

    start: float
    kind: Kind
    csr: bytes = b""
    device: int = -1
    tries: int = 0


def interleave(weights: Sequence[int]) -> list[int]:
    """One period of a smooth weighted round robin: indexes of `weights`, each as often as its weight, evenly spread."""
    behind = [0] * len(weights)
    period = []
    for _ in range(sum(weights)):
        behind = [before + weight for before, weight in zip(behind, weights, strict=True)]
        chosen = max(range(len(weights)), key=behind.__getitem__)
        behind[chosen] -= sum(weights)
        period.append(chosen)
    return period


def often(weights: Sequence[int], requests: int) -> list[int]:
    """How often each index comes in the first so many of the endlessly repeated period."""
    period = interleave(weights)
    whole, rest = divmod(requests, len(period))
    return [
        whole * weight + sum(1 for chosen in itertools.islice(period, rest) if chosen == index)
        for index, weight in enumerate(weights)
    ]
