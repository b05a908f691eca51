"""HTTP for an edge: aiohttp's low-level server, and the one place where an answer or an error becomes a response.

The form of the answers follows what the clients in the field accept (docs/clients.md): exactly 200, always
Content-Length, always Content-Transfer-Encoding, an empty 401, plain sentences for everything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from estd.errors import EstError, MethodNotAllowed

_REALM = 'Basic realm="estd", charset="UTF-8"'
_SERVER = "estd"
_DRAIN_STEP_SECONDS = 0.02

# aiohttp tells its logger of every malformed request; the edge's own line says it.
_SILENT = logging.getLogger("estd.http")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


def respond(error: EstError) -> web.Response:
    """The response of a refusal: the status table of RFC 7030 §4.2.3 in one place."""
    headers = {"Server": _SERVER, "Estd-Error": header_text(error.sentence)}
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
    return web.Response(
        body=body,
        headers={"Server": _SERVER, "Content-Type": content_type, "Content-Transfer-Encoding": "base64"},
    )


class HttpConnection(RequestHandler):
    """aiohttp's protocol, with two differences: what is not HTTP gets a plain sentence, and a client that closes its
    sending side still gets the answer it waits for."""

    __slots__ = ()

    def eof_received(self) -> None:
        self.close_if_idle()
        if not self._force_close:
            self.close()

    def close_if_idle(self) -> None:
        """Close unless a request is on its way in or being answered."""
        if self._current_request is None and not self._messages:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp's parser refused before there was a request."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer is already sent")
        sentence = "The request is not HTTP/1.1 that this server accepts." if status == 400 else "The server failed."
        response = web.Response(
            status=status if status == 400 else 503,
            body=(sentence + "\n").encode(),
            headers={"Server": _SERVER, "Content-Type": "text/plain; charset=utf-8"},
        )
        response.force_close()
        return response


class HttpServer(web.Server):
    """The factory of HttpConnections, one per TLS connection."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], *, idle_seconds: float
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
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
            loop=self._loop,
            keepalive_timeout=self._idle_seconds,
            tcp_keepalive=False,  # the idle time-out ends dead connections
            logger=_SILENT,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            lingering_time=2.0,
            max_headers=64,
        )
