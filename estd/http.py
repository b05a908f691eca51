"""HTTP for an edge: aiohttp's low-level server, and the one place where an answer or an error becomes a response.

The form of the answers follows what the clients in the field accept (docs/clients.md): exactly 200, always
Content-Length, always Content-Transfer-Encoding, an empty 401, plain sentences for everything else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Any, ClassVar, cast

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from estd.errors import BadRequest, EstError, MethodNotAllowed, Reason, Unavailable, retry_seconds

_REALM = 'Basic realm="estd", charset="UTF-8"'
_SERVER = "estd"
_DRAIN_STEP_SECONDS = 0.02
_PIECE_BYTES = 16384
"""What one TLS record holds; a client that does not read pins two of them."""
_LONG_BYTES_MAX = 256 * 2**20
"""Of the bodies of long answers that are being sent, each counted once: a slow client keeps the one that it began with,
which may be an old one by now."""
_ASK_LATER_SECONDS = 60

# aiohttp tells its logger of every malformed request; the edge's own line says it.
_SILENT = logging.getLogger("estd.http")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


def respond(error: EstError) -> web.Response:
    """The response of a refusal, or of a request that waits: the status table of RFC 7030 §4.2.3 in one place."""
    headers = {"Server": _SERVER}
    if error.status >= 400:
        headers["Estd-Error"] = header_text(error.sentence)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        # BouncyCastle's client fails on a 401 with a body; the sentence stands in the header alone.
        headers["WWW-Authenticate"] = _REALM
        return web.Response(status=401, headers=headers)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    headers["Content-Type"] = "text/plain; charset=utf-8"
    return web.Response(status=error.status, body=(error.sentence + "\n").encode(), headers=headers)


def header_text(sentence: str) -> str:
    """The sentence in what a header may hold: visible ASCII and spaces."""
    return "".join(char if " " <= char <= "~" else "?" for char in sentence)[:500]


def answer(body: bytes, content_type: str) -> web.Response:
    """A 200 as every client takes it."""
    return web.Response(body=body, headers=_base64(content_type))


def _base64(content_type: str) -> dict[str, str]:
    return {"Server": _SERVER, "Content-Type": content_type, "Content-Transfer-Encoding": "base64"}


def json_answer(body: bytes, retry_after: int) -> web.Response:
    """A 200 with JSON, which may be another after so many seconds."""
    headers = {"Server": _SERVER, "Content-Type": "application/json", "Retry-After": str(retry_after)}
    return web.Response(body=body, headers=headers)


def nothing() -> web.Response:
    """A 204."""
    return web.Response(status=204, headers={"Server": _SERVER})


class Answer(web.StreamResponse):
    """A 200 to a POST: what `answer` makes, but with a head made once. aiohttp's, from a dictionary of headers, is a
    seventh of what an edge does for an enrolment."""

    def __init__(self, body: bytes, head: bytes) -> None:
        super().__init__()
        self._head = head
        self._sent = body
        self._writer: AbstractStreamWriter | None = None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if self.keep_alive is None:
            self._keep_alive = request.keep_alive and request.version >= HttpVersion11
        self._writer = request.writer
        return self._writer

    async def write_eof(self, data: bytes = b"") -> None:
        assert self._writer is not None
        end = b"\r\n\r\n" if self.keep_alive else b"\r\nConnection: close\r\n\r\n"
        date = _date(int(time.time()))
        await self._writer.write_eof(b"%b%d\r\nDate: %b%b%b" % (self._head, len(self._sent), date, end, self._sent))


class LongAnswer(web.StreamResponse):
    """What `answer` makes for a body of megabytes: sent piece by piece, no faster than its client takes it. The
    connection of one that takes no piece within `seconds` is aborted."""

    under_way: ClassVar[dict[int, tuple[int, int]]] = {}
    """By the id of a body its length and how many are being sent it."""

    def __init__(self, body: bytes, content_type: str, *, seconds: float) -> None:
        """A 503 where too much is being sent already."""
        others = sum(length for key, (length, _) in LongAnswer.under_way.items() if key != id(body))
        if others >= _LONG_BYTES_MAX:
            raise Unavailable(
                Reason.OVERLOADED, "Many are fetching this already; ask again later.",
                retry_after=retry_seconds(_ASK_LATER_SECONDS),
            )  # fmt: skip
        super().__init__(headers={**_base64(content_type), "Content-Length": str(len(body))})
        self._sent = body
        self._seconds = seconds
        self._transport: asyncio.Transport | None = None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self._transport = request.transport
        if request.method == "HEAD":
            self._sent = b""
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        body = self._sent
        if self._transport is not None:
            self._transport.set_write_buffer_limits(_PIECE_BYTES)
        LongAnswer._count(body, 1)
        try:
            for at in range(0, len(body), _PIECE_BYTES):
                async with asyncio.timeout(self._seconds):
                    await self.write(body[at : at + _PIECE_BYTES])
                    assert self._payload_writer is not None
                    await self._payload_writer.drain()
                await asyncio.sleep(0)  # however fast this client reads, others have their turn
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()
            raise ConnectionError("the client takes nothing") from None
        finally:
            LongAnswer._count(body, -1)
        await super().write_eof()

    @classmethod
    def _count(cls, body: bytes, change: int) -> None:
        _, clients = cls.under_way.pop(id(body), (0, 0))
        if clients + change:
            cls.under_way[id(body)] = len(body), clients + change


def head(content_type: str, more: str = "Content-Transfer-Encoding: base64") -> bytes:
    """The head of an `Answer` up to the value of its Content-Length."""
    lines = ("HTTP/1.1 200 OK", f"Server: {_SERVER}", f"Content-Type: {content_type}", more, "Content-Length: ")
    return "\r\n".join(lines).encode()


@lru_cache(maxsize=2)
def _date(now: int) -> bytes:
    return formatdate(now, usegmt=True).encode()


class HttpConnection(RequestHandler):
    """aiohttp's protocol, with three differences: what is not HTTP is refused as everything else is, a body whose
    chunks break is known at once, and a client that closes its sending side still gets the answer it waits for."""

    __slots__ = ("_arriving", "_on_refusal")

    def __init__(self, server: HttpServer, on_refusal: Callable[[EstError], None], **settings: Any) -> None:
        super().__init__(server, **settings)
        self._on_refusal = on_refusal
        self._arriving: StreamReader | None = None
        """The body of the last request that began to arrive."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._messages:
            return
        message, body = self._messages[-1]
        if not isinstance(message, _ErrInfo):
            self._arriving = body
        elif self._arriving is not None and not self._arriving.is_eof():
            # aiohttp's parser gives the body up without telling who reads it.
            self._arriving.set_exception(web.RequestPayloadError("the body's encoding is broken"))

    def eof_received(self) -> None:
        self.close_if_idle()
        if self._arriving is not None and not self._arriving.is_eof():
            self._arriving.set_exception(web.RequestPayloadError("the client closed within its request"))
        if not self._force_close:
            self.close()

    def close_if_idle(self) -> None:
        """Close unless a request is on its way in or being answered."""
        waiting = self._waiter is not None and not self._waiter.done()
        if waiting or not self._request_count:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp's parser refused before there was a request, or a fault of ours that `Edge.handle` missed."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer is already sent")
        error: EstError = Unavailable(Reason.INTERNAL, "The server failed; its log says why.")
        if status == 400:
            error = BadRequest(Reason.BAD_HTTP, "The request is not HTTP/1.1 that this server accepts.")
        self._on_refusal(error)
        response = respond(error)
        response.force_close()
        return response


class HttpServer(web.Server):
    """The factory of HttpConnections, one per TLS connection."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        idle_seconds: float,
        on_refusal: Callable[[EstError], None],
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._on_refusal = on_refusal
        self._idle_seconds = idle_seconds

    async def drain(self, seconds: float) -> None:
        """Let what was accepted be answered, at most that long; whoever is idle is closed at once."""
        until = self._loop.time() + seconds
        while self.connections and self._loop.time() < until:
            for connection in self.connections:
                cast(HttpConnection, connection).close_if_idle()
            await asyncio.sleep(_DRAIN_STEP_SECONDS)
        await self.shutdown(0.1)

    def __call__(self) -> RequestHandler:
        return HttpConnection(
            self,
            self._on_refusal,
            loop=self._loop,
            keepalive_timeout=self._idle_seconds,
            tcp_keepalive=False,  # the idle time-out ends dead connections
            logger=_SILENT,
            access_log=None,
            auto_decompress=False,
            lingering_time=2.0,
            max_headers=64,
        )
