"""An edge's connection to an issuer: requests out, answers in, many of each in one write.

What one turn of the edge's loop brings is a batch: its CSRs are validated one after the other, while the code and the
tables of the verification are in the processor's cache, and the good ones go out together.

What is handed over waits in `pending` until its answer, its deadline or its client's end. When an issuer dies, what it
had not answered is handed to its replacement once, and no more: a request that kills issuers must not kill them all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from estd import frames, metrics
from estd.errors import Reason, Unavailable
from estd.frames import Answer, Request, Splitter

VALIDATED_MAX = 32
"""CSRs validated in one go; then the loop's other callbacks have their turn."""
_RECONNECT_SECONDS = 0.05
_SWEEP_SECONDS = 0.25
_VALIDATE = metrics.STAGE_SECONDS.series("validate")


class _Pending:
    __slots__ = ("answer", "csr_der", "deadline", "delivered", "frame", "validated")

    def __init__(self, request: Request, number: int, answer: asyncio.Future[Answer]) -> None:
        # Packed while nobody else's request is at stake: what cannot be raises where it is asked.
        self.frame = frames.pack_request(request, number)
        self.csr_der = request.csr_der
        self.deadline = request.deadline
        self.answer = answer
        self.validated = False
        self.delivered = 0


class IssuerLink(asyncio.Protocol):
    """One per issuer and edge. `ask` is all that the edge needs; `validate` raises what a bad CSR is refused with."""

    def __init__(
        self,
        path: Path,
        *,
        validate: Callable[[bytes], None],
        queue: int,
        slot: metrics.Slot,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._path = path
        self._validate = validate
        self._queue = queue
        self._slot = slot
        self._loop = loop
        self._transport: asyncio.WriteTransport | None = None
        self._pending: dict[int, _Pending] = {}
        self._arrived: deque[_Pending] = deque()
        self._outgoing: list[bytes] = []
        self._splitter = Splitter()
        self._next = 0
        self._closed = False
        self._connecting: asyncio.Task[None] | None = None
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)

    async def connect(self) -> None:
        """Connect, trying again until it succeeds: the socket belongs to the supervisor and outlives issuers."""
        while not self._closed:
            try:
                await self._loop.create_unix_connection(lambda: self, str(self._path))
            except OSError:
                await asyncio.sleep(_RECONNECT_SECONDS)
            else:
                return

    async def ask(self, request: Request) -> Answer:
        """The issuer's answer; the request's number is given here. A 400 where the CSR is not valid, a 503 where the
        queue is full, the deadline passes, or two issuers died over it."""
        pending = self._pending
        if len(pending) >= self._queue:
            raise Unavailable(Reason.OVERLOADED, "The server has more enrolments waiting than it takes.")
        self._next += 1
        number = self._next
        entry = _Pending(request, number, self._loop.create_future())
        pending[number] = entry
        self._slot.set(metrics.QUEUE_DEPTH.at, len(pending))
        if request.kind == frames.WHEN:  # no CSR to validate
            entry.validated = True
            if self._transport is not None:
                self._deliver(entry)
        else:
            if not self._arrived:
                self._loop.call_soon(self._work)
            self._arrived.append(entry)
        try:
            return await entry.answer
        except asyncio.CancelledError:
            # The client is gone: what is not signed yet need not be.
            if entry.delivered and self._transport is not None and request.kind != frames.WHEN:
                self._send(frames.pack_cancel(number))
            raise
        finally:
            pending.pop(number, None)
            self._slot.set(metrics.QUEUE_DEPTH.at, len(pending))

    @property
    def is_half_full(self) -> bool:
        """What can wait is told to, so that an enrolment finds room."""
        return 2 * len(self._pending) >= self._queue

    def tell_seen(self, leaf_der: bytes) -> None:
        """Hand on a client's certificate that was seen; forgotten where no issuer listens at the moment."""
        if self._transport is not None:
            self._send(frames.pack_seen(leaf_der))

    def _work(self) -> None:
        """Validate a batch of what has arrived, and hand on what is good."""
        began = time.perf_counter()
        for _ in range(min(len(self._arrived), VALIDATED_MAX)):
            entry = self._arrived.popleft()
            if entry.answer.done():
                continue  # its client has left
            try:
                self._validate(entry.csr_der)
            except Exception as refusal:
                entry.answer.set_exception(refusal)
                continue
            entry.validated = True
            if self._transport is not None:
                self._deliver(entry)
        self._slot.observe(metrics.STAGE_SECONDS, _VALIDATE, time.perf_counter() - began)
        if self._arrived:
            self._loop.call_soon(self._work)

    def _deliver(self, entry: _Pending) -> None:
        entry.delivered += 1
        self._send(entry.frame)

    def _send(self, frame: bytes) -> None:
        """Gather what this turn of the loop produces, and write it at once."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(frame)

    def _flush(self) -> None:
        out, self._outgoing = self._outgoing, []
        if self._transport is not None:
            self._transport.write(b"".join(out))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._splitter = Splitter()
        self._outgoing = []
        for entry in self._pending.values():
            if entry.delivered:
                self._slot.count(metrics.REDELIVERED.at)
            if entry.validated:
                self._deliver(entry)

    def data_received(self, data: bytes) -> None:
        for buffer, start, end in self._splitter.feed(data):
            answer = frames.unpack_answer(buffer, start, end)
            entry = self._pending.get(answer.id)
            if entry is not None and not entry.answer.done():
                entry.answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for entry in self._pending.values():
            if entry.delivered > 1 and not entry.answer.done():
                trouble = Unavailable(Reason.TOKEN_AWAY, "The CA's signing process ended twice over this request.")
                entry.answer.set_exception(trouble)
        if not self._closed:
            self._connecting = self._loop.create_task(self.connect())

    def _sweep(self) -> None:
        """End what nobody answers in time; the oldest stand first."""
        now = time.monotonic()
        for entry in self._pending.values():
            if entry.deadline > now:
                break
            if not entry.answer.done():
                trouble = Unavailable(Reason.DEADLINE, "The CA did not answer in time.")
                entry.answer.set_exception(trouble)
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def close(self) -> None:
        self._closed = True
        self._sweeper.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.close()
