"""Long answers over TLS: sent as fast as their client takes them, and to nobody who takes nothing. The edge's own loop
and transport, with small buffers of the kernel's."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from aiohttp import web

from estd import http, tls
from estd.errors import Unavailable
from estd.http import HttpServer, LongAnswer
from tests import make

BODY = bytes(range(256)) * 2**13
"""Two megabytes."""
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = b"HEAD" + GET[3:]


class Recorded(tls.TlsConnection):
    """Remembers how much waited for its client at most."""

    __slots__ = ()
    most = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        Recorded.most = max(Recorded.most, self.get_write_buffer_size())


def over_tls(folder: Path, act: Callable[[socket.socket, asyncio.Event], Awaitable[None]], *, seconds: float) -> None:
    """Have a client act on a connection whose every request is answered by BODY; the event is the connection's end."""
    context = tls.server_context(*make.certificate().write(folder, "server"))

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        return LongAnswer(BODY, "text/plain", seconds=seconds)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        server = HttpServer(handle, idle_seconds=60, on_refusal=lambda error: None)
        Recorded.most = 0
        with socket.socket() as door, socket.socket() as client:
            door.bind(("127.0.0.1", 0))
            door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listening = await loop.create_server(
                lambda: Recorded(context, server, loop=loop, handshake_seconds=60, on_end=lambda _: over.set()),
                sock=door,
            )
            client.setblocking(False)
            await loop.sock_connect(client, door.getsockname())
            async with asyncio.timeout(60):
                await act(client, over)
            listening.close()

    uvloop.run(main())


async def connected(client: socket.socket) -> ssl.SSLSocket:
    """After the handshake; in a thread, since it waits."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client.settimeout(60)
    return await asyncio.to_thread(context.wrap_socket, client)


def answer(line: ssl.SSLSocket, *, head: bool = False) -> bytes:
    """The next answer's body."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += line.recv(65536)
    headers, _, body = got.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(BODY)}".encode() in headers
    while not head and len(body) < len(BODY):
        body += line.recv(65536)
    return body


def test_a_long_answer_waits_for_its_client(folder: Path) -> None:
    """The body arrives whole, and never does more of it wait in the server than a few pieces; HEAD has its length; the
    connection goes on to the next request."""

    async def act(client: socket.socket, _: asyncio.Event) -> None:
        with await connected(client) as line:
            for request, body in ((GET, BODY), (HEAD, b""), (GET, BODY)):
                await asyncio.to_thread(line.sendall, request)
                assert await asyncio.to_thread(answer, line, head=request is HEAD) == body

    over_tls(folder, act, seconds=60)
    assert 0 < Recorded.most < 4 * http._PIECE_BYTES
    assert not LongAnswer.under_way


def test_who_takes_nothing_is_left(folder: Path) -> None:
    """A client that asks and never reads: its connection ends, and meanwhile the server holds a few pieces for it."""

    async def act(client: socket.socket, over: asyncio.Event) -> None:
        with await connected(client) as line:
            await asyncio.to_thread(line.sendall, GET * 3)
            await over.wait()

    over_tls(folder, act, seconds=0.1)
    assert 0 < Recorded.most < 4 * http._PIECE_BYTES
    assert not LongAnswer.under_way


def test_too_many_long_answers_are_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bodies take that are being sent is bounded over all connections; how many one body goes to is not."""
    monkeypatch.setattr(http, "_LONG_BYTES_MAX", 100)
    first, second, third = (word * 60 for word in (b"1", b"2", b"3"))
    monkeypatch.setitem(LongAnswer.under_way, id(first), (len(first), 1000))
    LongAnswer(second, "text/plain", seconds=1)
    monkeypatch.setitem(LongAnswer.under_way, id(second), (len(second), 1))
    for _ in range(3):
        LongAnswer(first, "text/plain", seconds=1)
    with pytest.raises(Unavailable) as refused:
        LongAnswer(third, "text/plain", seconds=1)
    assert refused.value.retry_after is not None
