"""Where an edge's connections arrive."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable


class Doors:
    """The listening socket of one edge. Closed to pause: the supervisor holds the socket too, so that the kernel's
    queue keeps who arrives meanwhile."""

    def __init__(self, listener: socket.socket, factory: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._factory = factory
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._factory, sock=self._listener.dup(), backlog=4096)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
