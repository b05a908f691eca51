"""Clients that leave before they have asked anything: inside their ClientHello, or right after the handshake."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from contextlib import suppress

RESET_IN_HELLO = "reset_in_hello"
CLOSE_IN_HELLO = "close_in_hello"
CLOSE_AFTER_HANDSHAKE = "close_after_handshake"
ABORTS = (RESET_IN_HELLO, CLOSE_IN_HELLO, CLOSE_AFTER_HANDSHAKE)
FAILED_HANDSHAKES = frozenset({RESET_IN_HELLO, CLOSE_IN_HELLO})
"""Those that the server has to count as handshakes that failed."""

_LINGER_NOT = struct.pack("ii", 1, 0)  # closing sends RST, not FIN


def client_hello(context: ssl.SSLContext, server_name: str) -> bytes:
    """The first that a client of this context sends."""
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=server_name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


async def leave_in_hello(
    loop: asyncio.AbstractEventLoop, address: tuple[str, int], hello: bytes, *, reset: bool
) -> None:
    """Connects, sends half of the ClientHello and goes, by RST or by FIN. Raises OSError."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as client:
        client.setblocking(False)
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, hello[: len(hello) // 2])
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
