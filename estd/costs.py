"""What an enrolment costs: the figures of costs.toml as checked values, and a round of one's own in their place.

µs are of CPU, in a server that is fully busy. A round of `python -m bench.round` measures one issuer; what it does not
measure (several issuers, memory, the ledger's size) is taken from the reference at the ratio of what it does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_CONNECTIONS = 64
_ROW = "a row of the ledger, batch of 32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """µs of CPU of each kind of process, those of a kind together."""

    edge_us: float
    issuer_us: float
    ledger_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """The cost of an enrolment on a connection that is kept, and with a handshake of its own."""

    kept: Enrolment
    fresh: Enrolment

    def mixed(self, kept: float) -> Enrolment:
        """The mean where that share of the enrolments, 0 to 1, comes on kept connections."""

        def mean(of_kept: float, of_fresh: float) -> float:
            return kept * of_kept + (1 - kept) * of_fresh

        return Enrolment(
            edge_us=mean(self.kept.edge_us, self.fresh.edge_us),
            issuer_us=mean(self.kept.issuer_us, self.fresh.issuer_us),
            ledger_us=mean(self.kept.ledger_us, self.fresh.ledger_us),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is the same for every enrolment; `costs.toml` says where each comes from."""

    supervisor_us: float
    row_us: float
    """Of the ledger, in a full batch; part of `issuer_us`."""
    hand_over_us: float
    """What a signature costs more where the token has several sessions, a thread each."""
    commit_wait_us: float
    """How long a transaction waits for the disk, without CPU."""
    busy: float
    """How much of all cores a saturated server and its load use, 0 to 1; the rest stays idle between batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    supervisor_mib: float
    edge_mib: float
    issuer_mib: float
    ledger_mib: float
    connection_kib: float
    repeat_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    measured: str
    one_issuer: Connections
    several_issuers: Connections
    """The ledger's writer is a process then, and batches are smaller."""
    part: Part
    row_bytes: float
    memory: Memory

    def enrolment(self, *, kept: float, issuers: int) -> Enrolment:
        return (self.one_issuer if issuers == 1 else self.several_issuers).mixed(kept)


def read(data: Mapping[str, Any]) -> Costs:
    """The figures of costs.toml."""
    return Costs(
        measured=data["measured"],
        one_issuer=_connections(data["one_issuer"]),
        several_issuers=_connections(data["several_issuers"]),
        part=Part(**data["part"]),
        row_bytes=data["ledger"]["row_bytes"],
        memory=Memory(**data["memory"]),
    )


def _connections(data: Mapping[str, Any]) -> Connections:
    return Connections(kept=Enrolment(**data["kept"]), fresh=Enrolment(**data["fresh"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturated:
    """A run of a round in which a closed loop kept the server as busy as it could."""

    fresh: bool
    """Each enrolment on a connection of its own."""
    rate_per_second: float
    supervisor_us: float
    cost: Enrolment
    generator_us: float
    cores: int
    commit_us: float | None
    """The mean of a transaction, with the wait for the disk; None where the server was not asked."""
    batch_rows: float | None

    @property
    def busy(self) -> float:
        """How much of all cores it used, 0 to 1."""
        server_us = self.supervisor_us + self.cost.edge_us + self.cost.issuer_us + self.cost.ledger_us
        return self.rate_per_second * (server_us + self.generator_us) / 1e6 / self.cores


def saturated(made: Any) -> list[Saturated]:
    """Of a round, as JSON has it, the runs that kept the server as busy as they could.

    Raises ValueError with a sentence where it is no round, has none on kept or none on fresh connections, or was
    measured with several issuers.
    """
    try:
        found = [_saturated(run) for run in made["runs"] if _saturates(run)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no round of python -m bench.round: {type(error).__name__} {error}") from None
    if len({one.fresh for one in found}) < 2:
        raise ValueError(f"it lacks a closed loop of simpleenroll over {_CONNECTIONS} connections, kept or fresh")
    return found


def _saturates(run: Any) -> bool:
    """Fewer connections than two batches leave the issuer waiting; in an open loop the load decides, not the server."""
    found = re.match(r"simpleenroll at .*, closed loop over (\d+) ", run["what"])
    return found is not None and int(found[1]) >= _CONNECTIONS and not run["scenario"]


def _saturated(run: Any) -> Saturated:
    used_us = {"supervisor": 0.0, "edge": 0.0, "issuer": 0.0}
    for process in run["processes"]:
        role = process["label"].partition(" ")[0]
        if role not in used_us:
            raise ValueError(f"it was measured with a process {role!r}: measure one issuer and one token")
        used_us[role] += process["cpu_us_per_enrolment"]
    if not all(0 < one < math.inf for one in (*used_us.values(), run["rate_per_second"], run["machine"]["cores"])):
        raise ValueError("the server's processes were not seen, or did nothing: measure on their host")
    return Saturated(
        fresh=run["events"].get("connections opened", 0) > run["enrolments"] / 2,
        rate_per_second=run["rate_per_second"],
        supervisor_us=used_us["supervisor"],
        cost=Enrolment(edge_us=used_us["edge"], issuer_us=used_us["issuer"], ledger_us=0.0),
        generator_us=run["generator_cpu_us_per_enrolment"],
        cores=run["machine"]["cores"],
        commit_us=_mean(run["metrics"].get("estd_commit_seconds"), 1e6),
        batch_rows=_mean(run["metrics"].get("estd_batch_size"), 1.0),
    )


def _mean(family: Any, unit: float) -> float | None:
    if not family or not sum(family[""]["count"]):
        return None
    return float(family[""]["sum"] / sum(family[""]["count"]) * unit)


def calibrated(costs: Costs, made: Any) -> Costs:
    """The costs of the machine of a round, by its first saturating runs. Raises ValueError, as `saturated` does."""
    runs = saturated(made)
    kept, fresh = (next(one for one in runs if one.fresh is wanted) for wanted in (False, True))
    try:
        row_us = float(made["floor"][_ROW])
        measured = f"{made['machine']['cpu']}, {made['began']}"
    except (KeyError, TypeError, ValueError):
        raise ValueError("its floor is missing or not whole; measure again with python -m bench.round") from None
    commit_wait_us = costs.part.commit_wait_us
    if kept.commit_us is not None and kept.batch_rows is not None:
        commit_wait_us = max(0.0, kept.commit_us - kept.batch_rows * row_us)
    ledger = row_us / costs.part.row_us
    reference, several = costs.one_issuer, costs.several_issuers
    return replace(
        costs,
        measured=measured,
        one_issuer=Connections(kept=kept.cost, fresh=fresh.cost),
        several_issuers=Connections(
            kept=_scaled(several.kept, kept.cost, reference.kept, ledger),
            fresh=_scaled(several.fresh, fresh.cost, reference.fresh, ledger),
        ),
        part=replace(
            costs.part,
            supervisor_us=kept.supervisor_us,
            row_us=row_us,
            commit_wait_us=commit_wait_us,
            busy=min(1.0, max(kept.busy, fresh.busy)),
        ),
    )


def _scaled(several: Enrolment, found: Enrolment, reference: Enrolment, ledger: float) -> Enrolment:
    """The cost with several issuers at the ratio of what was found with one to the reference."""
    return Enrolment(
        edge_us=several.edge_us * found.edge_us / reference.edge_us,
        issuer_us=several.issuer_us * found.issuer_us / reference.issuer_us,
        ledger_us=several.ledger_us * ledger,
    )
