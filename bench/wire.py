"""HTTP/1.1 as little as a generator needs: requests are bytes made beforehand, answers are parsed strictly."""

from __future__ import annotations

import asyncio
import email.utils
import time
from dataclasses import dataclass
from typing import Protocol, cast

_MAX_ANSWER_BYTES = 1 << 20


class AnswerError(Exception):
    """What came is no answer as the server has to give it."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """One complete answer. Header names are in lower case.

    A server that could not read the request's version answers as HTTP/1.0, and closes.
    """

    status: int
    old: bool
    headers: dict[bytes, bytes]
    body: bytes

    def closes(self) -> bool:
        """Whether the server ends the connection with this answer."""
        return self.old or self.headers.get(b"connection", b"").lower() == b"close"

    def holds_certificates(self) -> bool:
        """Whether it calls itself PKCS#7 and has a body."""
        content_type = self.headers.get(b"content-type", b"")
        return content_type.partition(b";")[0].lower() == b"application/pkcs7-mime" and bool(self.body)

    def retry_after_seconds(self) -> float | None:
        """What Retry-After tells, in seconds or as a date; None without it."""
        value = self.headers.get(b"retry-after")
        if value is None:
            return None
        if value.isdigit():
            return float(value)
        try:
            moment = email.utils.parsedate_to_datetime(value.decode("ascii", errors="replace"))
        except ValueError:
            return None
        return max(0.0, moment.timestamp() - time.time())


def parse_answer(data: bytes) -> Answer | None:
    """None while the answer is incomplete. What goes beyond one answer is an error: there is no pipelining."""
    if len(data) > _MAX_ANSWER_BYTES:
        raise AnswerError("the answer is too long")
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    lines = data[:head_end].split(b"\r\n")
    status = lines[0][9:12]
    if not lines[0].startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or not status.isdigit() or lines[0][12:13] != b" ":
        raise AnswerError(f"the status line is {lines[0][:80]!r}")
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or not name or (name == b"content-length" and name in headers):
            raise AnswerError(f"the header line is {line[:80]!r}")
        headers[name] = value.strip()
    length = headers.get(b"content-length", b"0" if status == b"204" else b"")
    if not length.isdigit() or b"transfer-encoding" in headers:
        raise AnswerError(f"the answer with status {status.decode()} has no Content-Length")
    body_start = head_end + 4
    body_end = body_start + int(length)
    if len(data) < body_end:
        return None
    if len(data) > body_end:
        raise AnswerError("more bytes came than the answer has")
    return Answer(status=int(status), old=lines[0].startswith(b"HTTP/1.0"), headers=headers, body=data[body_start:])


class Listener(Protocol):
    """Who is told what happens on a wire."""

    def answered(self, wire: Wire, answer: Answer) -> None: ...

    def spoiled(self, wire: Wire, error: AnswerError) -> None: ...

    def lost(self, wire: Wire, error: Exception | None) -> None: ...


class Wire(asyncio.Protocol):
    """One TLS connection with at most one request on it."""

    __slots__ = ("_buffer", "_listener", "_transport", "end_reason", "ended")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.ended = False
        self.end_reason: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self._transport.write(request)

    def close(self) -> None:
        """Ends it as TLS wants it, in the background."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends it at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        try:
            answer = parse_answer(data)
        except AnswerError as error:
            self._listener.spoiled(self, error)
            return
        if answer is None:
            self._buffer = data
            return
        self._buffer = b""
        self._listener.answered(self, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.end_reason = exc
        self._listener.lost(self, exc)
