"""Framed Unix sockets for the processes that have no event loop: an issuer and the ledger's writer.

`FrameServer.poll` reads what has arrived, from everybody, and returns; what to do with it and for how long is the
caller's. That is what makes a batch: whatever came while the last one was being worked on. A peer of another user is
turned away (SO_PEERCRED).
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
from collections.abc import Callable, Iterable

from estd.frames import FrameError, Splitter

_READ_BYTES = 1 << 18
_CREDENTIALS = struct.Struct("3i")
_UNSENT_MAX = 64 << 20
"""Bytes that a peer may leave unread before its connection is given up."""

Frame = tuple[bytes, int, int]


class Peer:
    """One connection."""

    def __init__(self, sock: socket.socket, door: str) -> None:
        self.socket = sock
        self.door = door
        """The name of the listener that it came by."""
        self.splitter = Splitter()
        self.unsent = bytearray()


class FrameServer:
    """Listening sockets and their connections. `on_frames` gets a peer's whole frames, `on_gone` a peer that left."""

    def __init__(self, on_frames: Callable[[Peer, Iterable[Frame]], None], on_gone: Callable[[Peer], None]) -> None:
        self._on_frames = on_frames
        self._on_gone = on_gone
        self._selector = selectors.DefaultSelector()

    def listen(self, listener: socket.socket, door: str) -> None:
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, door)

    def close_door(self, listener: socket.socket) -> None:
        """Accept nobody more there; who is connected stays, and who waits is another process's to accept."""
        self._selector.unregister(listener)

    def watch(self, descriptor: int) -> None:
        """Make `poll` return when this becomes readable; whose it is reads it."""
        self._selector.register(descriptor, selectors.EVENT_READ, None)

    def poll(self, timeout_seconds: float) -> None:
        """Accept, read and send whatever can be, waiting at most that long for the first of it."""
        for key, mask in self._selector.select(timeout_seconds):
            if isinstance(key.data, str):
                self._accept(key.fileobj, key.data)  # type: ignore[arg-type]
            elif isinstance(key.data, Peer):
                if mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
                if mask & selectors.EVENT_READ:
                    self._read(key.data)
            else:
                os.read(key.fd, 512)

    def _accept(self, listener: socket.socket, door: str) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid():
            sock.close()
            return
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, Peer(sock, door))

    def _read(self, peer: Peer) -> None:
        if peer.socket.fileno() < 0:
            return
        try:
            data = peer.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(peer)
            return
        try:
            self._on_frames(peer, peer.splitter.feed(data))
        except FrameError:
            self.drop(peer)

    def send(self, peer: Peer, data: bytes) -> None:
        """Send now what the socket takes; the rest goes out in later polls."""
        if peer.socket.fileno() < 0:
            return
        peer.unsent += data
        self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        if peer.socket.fileno() < 0:
            return
        try:
            sent = peer.socket.send(peer.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop(peer)
            return
        del peer.unsent[:sent]
        if len(peer.unsent) > _UNSENT_MAX:
            self.drop(peer)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        if self._selector.get_key(peer.socket).events != wanted:
            self._selector.modify(peer.socket, wanted, peer)

    def drop(self, peer: Peer) -> None:
        if peer.socket.fileno() < 0:
            return
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self._on_gone(peer)

    def wake_on_signals(self) -> None:
        """Make `poll` return when a signal arrives, which select alone would sleep through."""
        ours, pythons = socket.socketpair()
        pythons.setblocking(False)
        self.watch(ours.detach())
        signal.set_wakeup_fd(pythons.detach(), warn_on_full_buffer=False)

    @property
    def has_unsent(self) -> bool:
        return any(isinstance(key.data, Peer) and key.data.unsent for key in self._selector.get_map().values())
