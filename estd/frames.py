"""What edges and issuers say to each other over a Unix socket: length-prefixed structs, many in one read.

A request carries the evidence of who asks, not a verdict; an answer carries a certificate or a refusal. Both ends are
of one generation and one configuration, so a label travels as its number. All integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

ENROLL, RENEW, CANCEL, SEEN, WHEN = 1, 2, 3, 4, 5
MAY, KEYGEN = 16, 17
"""serverkeygen: whether the client may have such a certificate, with a key that stands for the one to come; and the
request with the key that the edge made."""
MAY_ENROLL, MAY_RENEW = 18, 19
"""Whether the client may have such a certificate, before its edge hashes a revocationChallenge: the answer is the
certificate of the same request sent before, or has no serial number."""
RENEWALS = frozenset({RENEW, MAY_RENEW})
KEYGENS = frozenset({MAY, KEYGEN})
ASKS = frozenset({MAY, MAY_ENROLL, MAY_RENEW})
"""What an issuer answers without issuing."""

_REQUEST = struct.Struct("<IQBBHhdHBII")
_MORE = struct.Struct("<HBBB")
_ANSWER = struct.Struct("<IQHBHHB")
_LENGTH = struct.Struct("<I")
WHY = b"\xff"
"""No octet of UTF-8: a sentence ends before it."""
FRAME_MAX = 4 << 20
"""Bytes: above any body limit plus a certificate chain; a longer frame is a broken peer."""


class FrameError(Exception):
    """The peer sent what no peer of ours sends; its connection is closed."""


class Request(NamedTuple):
    kind: int
    label: int
    """Index in the configuration's labels."""
    deadline: float
    """CLOCK_MONOTONIC seconds: later than that nobody waits for the answer."""
    user: str | None
    rule: int
    """Which rule of the label the user's credential belongs to; -1 without one."""
    binding: bytes
    chain: bytes
    """The client's certificate and its intermediates, DER after DER; empty without one."""
    csr_der: bytes
    peer: str = ""
    """The client's address, where the label holds requests for a person; at most 255 octets."""
    claim: bytes = b""
    """A serial number and the SHA-256 of a one-time secret (`devices.pack_claim`), which the issuer judges."""
    verdict: bytes = b""
    """What the webhook said of this request (`verdicts.pack`); empty where none was asked."""
    revocation: bytes = b""
    """What is kept of its revocationChallenge (`revocation.hashed`), where the label takes one."""
    asked_key: bytes = b""
    """serverkeygen where the label holds requests for a person: the SHA-256 of the key in the client's own request."""
    id: int = 0
    """What its frame says: the number that its answer bears."""


_MORE_FROM = Request._fields.index("peer")
_NO_MORE = ("", b"", b"", b"", b"")
"""The last fields of most requests, before the id."""


class Answer(NamedTuple):
    id: int
    status: int
    reason: int
    """Index in errors.REASONS; 0 with a status of 200."""
    retry_after: int
    """Seconds; 0 for none."""
    identity: str
    serial: bytes
    payload: bytes
    """With a status of 200 the certificate's DER, or what a question asks for (ASKS: the kinds of key that its profile
    takes, apart by commas); else the refusal's sentence, and after WHY what only the log says."""


def pack_request(request: Request, number: int) -> bytes:
    """The frame, whose answer will bear `number`."""
    user = b"" if request.user is None else request.user.encode()
    more = b""
    if request[_MORE_FROM:-1] != _NO_MORE:
        peer = request.peer.encode()
        lengths = _MORE.pack(len(request.claim), len(peer), len(request.revocation), len(request.asked_key))
        more = b"".join((lengths, request.claim, peer, request.revocation, request.asked_key, request.verdict))
    tail = b"".join((user, request.binding, request.chain, more, request.csr_der))
    head = _REQUEST.pack(
        _REQUEST.size - 4 + len(tail), number, request.kind, request.user is not None, request.label,
        request.rule, request.deadline, len(user), len(request.binding), len(request.chain), len(more),
    )  # fmt: skip
    return head + tail


def unpack_request(data: bytes, at: int, end: int) -> Request:
    if end - at < _REQUEST.size:
        raise FrameError("a request shorter than its head")
    head = _REQUEST.unpack_from(data, at)
    _, number, kind, has_user, label, rule, deadline, user_len, binding_len, chain_len, more_len = head
    at += _REQUEST.size
    user_end = at + user_len
    binding_end = user_end + binding_len
    chain_end = binding_end + chain_len
    more_end = chain_end + more_len
    if more_end > end:
        raise FrameError("lengths inside a request exceed it")
    try:
        user = data[at:user_end].decode() if has_user else None
    except UnicodeDecodeError:
        raise FrameError("a user name that is not UTF-8") from None
    request = Request(
        kind, label, deadline, user, rule, data[user_end:binding_end], data[binding_end:chain_end],
        data[more_end:end], id=number,
    )  # fmt: skip
    return _with_more(request, data[chain_end:more_end]) if more_len else request


def _with_more(request: Request, more: bytes) -> Request:
    """The request with the evidence that few have."""
    if len(more) < _MORE.size:
        raise FrameError("a request's further evidence shorter than its head")
    claim_len, peer_len, revocation_len, key_len = _MORE.unpack_from(more)
    claim_end = _MORE.size + claim_len
    peer_end = claim_end + peer_len
    revocation_end = peer_end + revocation_len
    key_end = revocation_end + key_len
    if key_end > len(more):
        raise FrameError("lengths inside a request exceed it")
    try:
        peer = more[claim_end:peer_end].decode()
    except UnicodeDecodeError:
        raise FrameError("an address that is not UTF-8") from None
    return request._replace(
        claim=more[_MORE.size : claim_end], peer=peer, revocation=more[peer_end:revocation_end],
        asked_key=more[revocation_end:key_end], verdict=more[key_end:],
    )  # fmt: skip


def pack_cancel(number: int) -> bytes:
    return _REQUEST.pack(_REQUEST.size - 4, number, CANCEL, 0, 0, -1, 0.0, 0, 0, 0, 0)


def pack_seen(leaf_der: bytes) -> bytes:
    """A client's certificate that was seen without an enrolment; nothing is answered."""
    return pack_request(Request(SEEN, 0, 0.0, None, -1, b"", leaf_der, b""), 0)


def question(label: int, deadline: float, key_id: bytes, serial: bytes) -> Request:
    """When the certificate that these two name had best be renewed: answered with renewal-info's body."""
    return Request(WHEN, label, deadline, None, -1, key_id, serial, b"")


def pack_answer(answer: Answer) -> bytes:
    identity = answer.identity.encode()[:1024]
    tail = b"".join((identity, answer.serial, answer.payload))
    head = _ANSWER.pack(
        _ANSWER.size - 4 + len(tail), answer.id, answer.status, answer.reason, answer.retry_after, len(identity),
        len(answer.serial),
    )  # fmt: skip
    return head + tail


def unpack_answer(data: bytes, at: int, end: int) -> Answer:
    if end - at < _ANSWER.size:
        raise FrameError("an answer shorter than its head")
    _, number, status, reason, retry_after, identity_len, serial_len = _ANSWER.unpack_from(data, at)
    at += _ANSWER.size
    identity_end = at + identity_len
    serial_end = identity_end + serial_len
    if serial_end > end:
        raise FrameError("lengths inside an answer exceed it")
    return Answer(
        number, status, reason, retry_after, data[at:identity_end].decode(errors="replace"),
        data[identity_end:serial_end], data[serial_end:end],
    )  # fmt: skip


class Splitter:
    """Cuts a stream into frames; what is incomplete waits for the next read."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, int, int]]:
        """(buffer, start, end) of each whole frame, its length prefix included."""
        if self._left:
            data = self._left + data
        at, size = 0, len(data)
        while size - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > FRAME_MAX:
                raise FrameError(f"a frame of {length} bytes")
            end = at + 4 + length
            if end > size:
                break
            yield data, at, end
            at = end
        self._left = data[at:]
