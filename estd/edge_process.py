"""The edge process: its listening socket, its connections and its end; what is asked on them goes to `edge.Edge`."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import socket

import uvloop
from aiohttp import http_parser
from OpenSSL import SSL

from estd import csr, metrics, tls
from estd.config import Config
from estd.doors import Doors
from estd.edge import Edge
from estd.errors import EXIT_FATAL
from estd.http import HttpServer
from estd.issuer_link import IssuerLink
from estd.logs import Log
from estd.material import Material, load
from estd.starting import Turn, issuer_socket

_GIVE_BACK_SECONDS = 10.0
_HERD = 100
"""Connections; each had about 60 KB while it was open."""


async def serve(
    material: Material, context: SSL.Context, index: int, listener: socket.socket, slot: metrics.Slot, log: Log,
    turn: Turn,
) -> None:  # fmt: skip
    """One edge, until SIGTERM; then what was accepted is answered and the connections are closed. SIGUSR1 ends it more
    gently, for another generation serves now: connections stay for their next request, as long as a drain may take."""
    config = material.config
    loop = asyncio.get_running_loop()
    stop, retire, nobody = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, retire.set)
    links = [
        IssuerLink(
            issuer_socket(config.run, number, turn.generation), validate=csr.check, queue=config.server.queue,
            slot=slot, loop=loop,
        )
        for number in range(config.server.issuers)
    ]  # fmt: skip
    edge = Edge(config, material, links, slot, log)
    http = HttpServer(edge.handle, idle_seconds=config.server.idle_seconds, on_refusal=edge.refused)
    open_now = most_open = 0

    def begin() -> asyncio.Protocol:
        nonlocal open_now, most_open
        open_now += 1
        most_open = max(most_open, open_now)
        slot.count(metrics.CONNECTIONS.at)
        slot.set(metrics.CONNECTIONS_OPEN.at, open_now)
        if open_now >= config.server.max_connections:
            doors.close()
        return tls.TlsConnection(
            context, http, loop=loop, handshake_seconds=config.server.handshake_seconds, on_end=end
        )

    def end(succeeded: bool) -> None:
        nonlocal open_now
        open_now -= 1
        slot.set(metrics.CONNECTIONS_OPEN.at, open_now)
        if not open_now:
            nobody.set()
        if not succeeded:
            slot.count(metrics.HANDSHAKE_FAILURES.at)
        if open_now == config.server.max_connections - 1 and not (stop.is_set() or retire.is_set()):
            reopening.append(loop.create_task(doors.open()))
            del reopening[:-1]

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone

    def give_back() -> None:
        """After a herd its memory goes back to the kernel: glibc keeps what lies between the little that is in use."""
        nonlocal most_open
        if most_open > 2 * open_now + _HERD and trim is not None:
            trim(0)
        most_open = open_now
        loop.call_later(_GIVE_BACK_SECONDS, give_back)

    give_back()
    reopening: list[asyncio.Task[None]] = []
    doors = Doors(listener, begin)
    async with asyncio.TaskGroup() as connecting:
        for link in links:
            connecting.create_task(link.connect())
    await doors.open()
    log("edge_ready", index=index)
    await _first(stop, retire)
    edge.drain()
    doors.close()
    if open_now:
        nobody.clear()
        await _first(stop, nobody, seconds=config.server.drain_seconds)
    await http.drain(config.server.drain_seconds)
    for link in links:
        link.close()
    await edge.close()


async def _first(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Until one of the events, or that long."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()


def main(config: Config, index: int, listener: socket.socket, slot: metrics.Slot, log: Log, turn: Turn) -> int:
    """The child process `edge`."""
    if "HttpRequestParserC" not in dir(http_parser):
        raise SystemExit("aiohttp's C parser is missing; the one in Python is not safe enough: reinstall aiohttp")
    try:
        material = load(config)
        context = tls.server_context(config.server.tls_certificate, config.server.tls_key)
        turn.prepared()
        uvloop.run(serve(material, context, index, listener, slot, log, turn))
    except (SSL.Error, OSError) as error:
        log("edge_failed", why=repr(error))
        turn.failed(f"server.tls_certificate, server.tls_key: {error}")
        return EXIT_FATAL
    return 0
