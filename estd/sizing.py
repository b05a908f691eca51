"""How large a deployment carries a fleet: processes, hosts, tokens, disk and memory for N devices that renew in time.

The rules of the model, which docs/sizing.md explains and tests/test_sizing.py holds against a measured round:

1. An edge, an issuer and the ledger's writer are a process each, and a process is at most one core.
2. An edge costs CPU alone. Edges share nothing, so their rate is their number's.
3. An issuer works on one batch of at most 32: while the disk makes it durable and a token outside of the process signs
   it, the issuer waits. Its enrolment takes its CPU, 1/32 of a commit's wait, and a signature's time / sessions. The
   CPU of a signature by SoftHSM2 is left standing for what such a token's library uses.
4. With one issuer that issuer writes the ledger. With several a ledger process does, for all of them: each issuer
   waits for it too, and its rate bounds the instance.
5. All processes together get no more than the share of a host's cores that a saturated server is seen to use.
6. An instance has one ledger and so one host. A renewal needs the ledger that holds the certificate, so a fleet on
   several hosts is divided among them once and for all.
7. The rate to be carried is the peak's at the utilisation that is planned, and where the whole fleet has to be let in
   within a time, that rate at full speed, on fresh connections.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from estd.costs import Costs

BATCH_ROWS = 32
"""The most that an issuer signs and records at once (estd.batch)."""
SESSIONS_MAX = 16
"""An issuer's on its token: the threads of more wait for each other."""
PROCESSES_MAX = 64
"""Of a kind, in the configuration."""
CONNECTIONS_MAX = 10_000
"""An edge's, by default."""
REPEATS_SECONDS = 2 * 600
"""For how long a request is remembered: two generations of the default `repeat_window`."""
YEAR_SECONDS = 365 * 86400
_HOSTS_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is to be carried, and on what. Shares are from 0 to 1."""

    devices: int
    validity_seconds: float
    renew_at: float
    """The share of its validity after which a device renews its certificate."""
    peak: float
    """The rate at the busiest hour over the average."""
    kept: float
    """The share of renewals that come on connections which are open already."""
    utilisation: float
    """How much of its full speed the deployment may need at the peak."""
    cores_per_host: int
    within_seconds: float | None
    """The time in which the whole fleet has to be let in, where it has to."""
    signature_us: float | None
    """How long a token outside of the issuer's process takes for one signature; None for one inside, as SoftHSM2."""
    signatures_per_second: float | None
    """The most that one token makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host with an instance on it. `sessions` are an issuer's on its token."""

    cores: int
    edges: int
    issuers: int
    sessions: int

    def toml(self) -> str:
        """The settings for estd.toml."""
        return f"[server]\nedges = {self.edges}\nissuers = {self.issuers}\n\n[token]\nsessions = {self.sessions}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Enrolments a second that each resource of the whole deployment allows, by its name."""

    limits: dict[str, float]

    @property
    def first(self) -> str:
        """What saturates first."""
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def per_second(self) -> float:
        return self.limits[self.first]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """The answer. Rates are of the whole deployment; `cores` and `memory_mib` are of one host."""

    average_per_second: float
    peak_per_second: float
    sized_per_second: float
    """What is to be carried at full speed."""
    hosts: int
    host: Host
    tokens: int | None
    """None where nothing was said of what a token makes."""
    cores: float
    """That `sized_per_second` takes."""
    renewals: Speed
    herd: Speed
    """Everybody on a fresh connection."""
    herd_seconds: float
    idle_seconds: float
    """How long an open connection may do nothing while a herd comes, or the edges' places run out."""
    slack_seconds: float
    """From a device's renewal to its certificate's end."""
    p99_ms: float
    """Of the time in the server at the planned utilisation, by queueing alone, on cores of its own."""
    rows_per_year: float
    ledger_bytes_per_year: float
    ledger_bytes_first: float
    """The rows of the first enrolments."""
    memory_mib: float
    memory_full_mib: float
    """At full speed for long, with as many connections open as the edges take."""


def limits(
    costs: Costs, host: Host, *, kept: float, signature_us: float | None, beside_us: float = 0.0
) -> dict[str, float]:
    """Enrolments a second at which each resource of a host has no more to give, by its name. `beside_us` is CPU that
    something else on the host uses for each enrolment, such as a load generator."""
    part, each = costs.part, costs.enrolment(kept=kept, issuers=host.issuers)
    commit_us = part.commit_wait_us / BATCH_ROWS
    issuer_us, waits_us = each.issuer_us, each.ledger_us + commit_us
    if signature_us is not None:
        issuer_us += part.hand_over_us if host.sessions > 1 else 0.0
        waits_us += signature_us / host.sessions
    all_us = each.edge_us + issuer_us + each.ledger_us + part.supervisor_us + beside_us
    found = {
        "edges": host.edges * 1e6 / each.edge_us,
        "issuers": host.issuers * 1e6 / (issuer_us + waits_us),
        "cores": host.cores * part.busy * 1e6 / all_us,
    }
    if host.issuers > 1:
        found["the ledger's writer"] = 1e6 / (each.ledger_us + commit_us)
    return found


def size(costs: Costs, fleet: Fleet) -> Sizing:
    """The smallest deployment that carries the fleet: fewest hosts, on them fewest issuers, then sessions and edges.

    Raises ValueError with a sentence where there is none.
    """
    average = fleet.devices / (fleet.validity_seconds * fleet.renew_at)
    peak = average * fleet.peak
    needs = [(peak / fleet.utilisation, fleet.kept)]
    if fleet.within_seconds is not None:
        needs.append((fleet.devices / fleet.within_seconds, 0.0))
    hosts = 1 + bisect_left(
        range(1, _HOSTS_MAX), True, key=lambda number: _host(costs, fleet, needs, number) is not None
    )
    host = _host(costs, fleet, needs, hosts)
    if host is None:
        raise ValueError(f"no {_HOSTS_MAX:,} hosts carry that; look at the devices and at the times")
    sized = max(rate for rate, _ in needs)
    tokens = None
    if fleet.signatures_per_second is not None:
        tokens = math.ceil(sized / fleet.signatures_per_second)
    renewals, herd = (_speed(costs, fleet, hosts, host, tokens, kept) for kept in (fleet.kept, 0.0))
    rows = average * YEAR_SECONDS
    memory_mib, full_mib = _memory_mib(costs, host, herd.per_second / hosts)
    return Sizing(
        average_per_second=average,
        peak_per_second=peak,
        sized_per_second=sized,
        hosts=hosts,
        host=host,
        tokens=tokens,
        cores=max(rate / hosts * host.cores / _limits(costs, fleet, host, kept)["cores"] for rate, kept in needs),
        renewals=renewals,
        herd=herd,
        herd_seconds=fleet.devices / herd.per_second,
        idle_seconds=hosts * host.edges * CONNECTIONS_MAX / herd.per_second,
        slack_seconds=fleet.validity_seconds * (1 - fleet.renew_at),
        p99_ms=_p99_ms(costs, fleet, host),
        rows_per_year=rows,
        ledger_bytes_per_year=rows * costs.row_bytes,
        ledger_bytes_first=fleet.devices * costs.row_bytes,
        memory_mib=memory_mib,
        memory_full_mib=full_mib,
    )


def _memory_mib(costs: Costs, host: Host, per_second: float) -> tuple[float, float]:
    """A host's, by itself and at that rate with every place for a connection taken."""
    memory = costs.memory
    at_rest = memory.supervisor_mib + host.edges * memory.edge_mib + host.issuers * memory.issuer_mib
    at_rest += memory.ledger_mib if host.issuers > 1 else 0.0
    connections = host.edges * CONNECTIONS_MAX * memory.connection_kib / 1024
    return at_rest, at_rest + connections + per_second * REPEATS_SECONDS * memory.repeat_bytes / 2**20


def _limits(costs: Costs, fleet: Fleet, host: Host, kept: float) -> dict[str, float]:
    return limits(costs, host, kept=kept, signature_us=fleet.signature_us)


def _host(costs: Costs, fleet: Fleet, needs: list[tuple[float, float]], hosts: int) -> Host | None:
    """The smallest that carries its part of the needs (rate and share of kept connections), if one does."""
    every = range(1, SESSIONS_MAX + 1) if fleet.signature_us is not None else (1,)
    for issuers in range(1, PROCESSES_MAX + 1):
        edges_us = [(rate / hosts, costs.enrolment(kept=kept, issuers=issuers).edge_us) for rate, kept in needs]
        edges = max(1, *(math.ceil(rate * edge_us / 1e6) for rate, edge_us in edges_us))
        for sessions in every:
            host = Host(cores=fleet.cores_per_host, edges=edges, issuers=issuers, sessions=sessions)
            if edges <= PROCESSES_MAX and all(
                rate / hosts <= min(_limits(costs, fleet, host, kept).values()) * (1 + 1e-9) for rate, kept in needs
            ):
                return host
    return None


def _speed(costs: Costs, fleet: Fleet, hosts: int, host: Host, tokens: int | None, kept: float) -> Speed:
    found = {name: hosts * limit for name, limit in _limits(costs, fleet, host, kept).items()}
    if tokens is not None and fleet.signatures_per_second is not None:
        found["tokens"] = tokens * fleet.signatures_per_second
    return Speed(limits=found)


def _p99_ms(costs: Costs, fleet: Fleet, host: Host) -> float:
    """An estimate of the 99th percentile of the time in the server when it is as busy as planned.

    An edge serves one after the other for equal times: its wait falls off as exp(-2 (1 - u) t / service). An issuer
    takes what has come meanwhile: a batch lasts its fixed time / (1 - u), and who has just missed one waits for two.
    """
    each = costs.enrolment(kept=fleet.kept, issuers=host.issuers)
    idle = 1 - fleet.utilisation
    edge_us = each.edge_us * (1 + max(0.0, math.log(100 * fleet.utilisation)) / (2 * idle))
    fixed_us = costs.part.commit_wait_us + (fleet.signature_us or 0.0)
    return (edge_us + each.issuer_us + each.ledger_us + 2 * fixed_us / idle) / 1000
