"""Requests that wait for a person (R27, docs/approval.md): what becomes of one that policy has authorised.

    nothing open of its key   → it begins to wait, or is refused where too many do already
    pending                   → it goes on waiting
    approved                  → it goes down the line, once
    denied                    → a 403 with the reason that was given

What is open, the ledger knows; one that has expired is not open any more. Pure but for the jitter in a Retry-After.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from cryptography import x509

from estd import errors
from estd.errors import EstError, Forbidden, Reason, TooMany, Unavailable, retry_seconds
from estd.labels import Label
from estd.ledger_requests import NOTHING_HELD, Held, Standing, Waiting
from estd.policy import Authorised, Pending


class Requests(Protocol):
    """The seam to the ledger. Every call may raise LedgerError."""

    def find_open(self, keys: Collection[bytes], now_ms: int) -> Mapping[bytes, Standing]: ...
    def count_pending(self, label: str, identity: str | None, now_ms: int) -> int: ...
    def queue(self, now_ms: int) -> tuple[int, int]: ...


class Asked(NamedTuple):
    authorised: Authorised
    pending: Pending
    peer: str


class Verdict(NamedTuple):
    refusal: EstError | None
    """What the client is told; None where a person approved the request."""
    approved: int = 0
    """The number of the approved request."""
    waiting: Waiting | None = None
    """The request that begins to wait, to be recorded before the client is told so."""


def changes(approved: Mapping[bytes, Verdict], waiting: Sequence[Verdict | None]) -> Held:
    """What a batch's transaction changes: certificates by serial that a person approved, and who begins to wait."""
    if not approved and not waiting:
        return NOTHING_HELD
    return Held(
        [one.waiting for one in waiting if one is not None and one.waiting is not None],
        {serial: verdict.approved for serial, verdict in approved.items()},
    )


def judge(requests: Requests, asked: Sequence[Asked], now_ms: int) -> list[Verdict]:
    """A verdict on each: one question to the ledger for what is open; where there are new ones, one more for each
    client and each label of theirs."""
    found = requests.find_open([one.pending.key for one in asked], now_ms)
    queues = _Queues(requests, now_ms)
    return [_verdict(one, found.get(one.pending.key), queues, now_ms) for one in asked]


class _Queues:
    """How many wait in each label and of each client, with what the batch adds."""

    def __init__(self, requests: Requests, now_ms: int) -> None:
        self._requests = requests
        self._now_ms = now_ms
        self._counts: dict[tuple[str, str | None], int] = {}

    def count(self, label: str, identity: str | None) -> int:
        key = label, identity
        if key not in self._counts:
            self._counts[key] = self._requests.count_pending(label, identity, self._now_ms)
        return self._counts[key]

    def add(self, label: str, identity: str) -> None:
        """One more, after both were counted."""
        self._counts[label, None] += 1
        self._counts[label, identity] += 1


def _verdict(asked: Asked, found: Standing | None, queues: _Queues, now_ms: int) -> Verdict:
    label = asked.authorised.label
    if found is None:
        return _new(asked, queues, now_ms)
    if found.state == "approved":
        return Verdict(None, approved=found.id)
    if found.state == "denied":
        return Verdict(Forbidden(Reason.DENIED, f"The request was denied: {(found.reason or '').rstrip('.')}."))
    return Verdict(waits(label))


def waits(label: Label) -> EstError:
    """What a client is told whose request waits."""
    return errors.Waiting(
        Reason.WAITING,
        "The request waits for a person's approval; ask again later, with the same key and names.",
        retry_after=retry_seconds(label.approval.retry_seconds),
    )


def _new(asked: Asked, queues: _Queues, now_ms: int) -> Verdict:
    """A request that nobody has seen yet. A registration authority's count as its own, whoever they are for."""
    authorised, pending = asked.authorised, asked.pending
    label, identity = authorised.label, pending.asker
    retry = retry_seconds(label.approval.retry_seconds)
    own = queues.count(label.name, identity)
    if own >= label.approval.waiting_each:
        sentence = f"{own} requests of this client wait for approval already; ask again when they are decided."
        return Verdict(TooMany(Reason.TOO_MANY, sentence, retry_after=retry))
    if queues.count(label.name, None) >= label.approval.waiting:
        sentence = "This label has as many requests waiting for approval as it holds; ask again later."
        return Verdict(Unavailable(Reason.OVERLOADED, sentence, retry_after=retry))
    queues.add(label.name, identity)
    return Verdict(
        waits(label),
        waiting=Waiting(
            key=pending.key,
            label=label.name,
            profile=authorised.profile.name,
            renews=authorised.renews,
            identity=identity,
            peer=asked.peer,
            subject=authorised.names.text,
            names=json.dumps([_text(name) for name in authorised.names.san], ensure_ascii=False),
            key_kind="serverkeygen" if pending.asked_key else authorised.request.key_kind,
            spki_sha256=pending.asked_key or hashlib.sha256(authorised.request.spki_der).digest(),
            asked_at=now_ms,
            expires_at=now_ms + label.approval.window_seconds * 1000,
        ),
    )


_KINDS: dict[type[x509.GeneralName], str] = {
    x509.DNSName: "DNS", x509.IPAddress: "IP", x509.UniformResourceIdentifier: "URI", x509.RFC822Name: "email",
}  # fmt: skip


def _text(name: x509.GeneralName) -> str:
    kind = _KINDS.get(type(name))
    return f"{kind}:{name.value}" if kind else repr(name)
