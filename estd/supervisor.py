"""The supervisor: binds the sockets, starts edges and issuers, replaces those that die, and drains them in order.

It reads no byte from the internet and holds no key. Sockets are bound here and inherited, so a replaced child goes on
with the connections that were queued meanwhile. A child that fails again and again is replaced at most once a second,
rising to once in 30; one whose token refused the PIN is not replaced at all, since tokens lock themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from estd import metrics
from estd.config import Config
from estd.errors import EXIT_REFUSED, ConfigError
from estd.logs import Log

_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each replacement in a row of quick deaths."""
_STEADY_SECONDS = 20.0
"""A child that lived so long starts the row anew."""
_WATCH_SECONDS = 0.5
_EDGE_OPENSSL = Path(__file__).with_name("templates") / "openssl-edge.cnf"
_BACKLOG = 4096


@dataclass(slots=True)
class Child:
    """One slot and whoever is in it."""

    role: str
    index: int
    listeners: dict[str, socket.socket]
    slot: metrics.Slot
    slot_number: int
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    refused: bool = False

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None


class Supervisor:
    def __init__(self, config: Config, toml: str, log: Log) -> None:
        self._config = config
        self._toml = toml
        self._log = log
        self._stopping = asyncio.Event()
        server = config.server
        _claim_port(server.listen.host, server.listen.port)
        names = [("issuer", server.issuers), ("edge", server.edges)]
        if server.issuers > 1:
            names.insert(0, ("ledger", 1))
        count = sum(number for _, number in names)
        self._block = metrics.Block.create(count)
        self._count = count
        self.children: list[Child] = []
        for role, number in names:
            for index in range(number):
                at = len(self.children)
                listeners = self._listeners(role, index)
                self.children.append(
                    Child(role=role, index=index, listeners=listeners, slot=self._block.slot(at), slot_number=at)
                )

    def _listeners(self, role: str, index: int) -> dict[str, socket.socket]:
        config = self._config
        if role == "edge":
            return {"est": _listen_tcp(config.server.listen.host, config.server.listen.port)}
        if role == "ledger":
            return {"ledger": _listen_unix(config.run / "ledger.sock")}
        listeners = {"requests": _listen_unix(config.run / f"issuer-{index}.sock")}
        if config.server.issuers == 1:
            listeners["ledger"] = _listen_unix(config.run / "ledger.sock")
        return listeners

    @property
    def slots(self) -> dict[str, metrics.Slot]:
        return {child.name: child.slot for child in self.children}

    def is_ready(self) -> bool:
        """An edge listens, and an issuer has signed a test message and stored a row in the last seconds."""
        fresh = time.time() - 3 * 2.0
        return any(c.alive for c in self.children if c.role == "edge") and any(
            c.alive and c.slot.get(metrics.READY_AT.at) >= fresh for c in self.children if c.role == "issuer"
        )

    async def run(self) -> None:
        """Until `drain` has ended everything."""
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(self._keep(child)) for child in self.children]
            watching = group.create_task(self._watch())
            await asyncio.wait(keeping)
            watching.cancel()

    async def _keep(self, child: Child) -> None:
        """Keep one slot filled until the drain."""
        quick = 0
        while not child.refused:
            await self._pause(_PAUSES[min(quick, len(_PAUSES) - 1)])
            if self._stopping.is_set():
                break
            began = time.monotonic()
            try:
                await self._start(child)
            except OSError as error:  # no memory or no process left: worth trying again, never worth ending for
                self._log("child_not_started", child=child.name, why=str(error))
                quick += 1
                continue
            assert child.process is not None
            if self._stopping.is_set():  # the drain came while the child was being started, and did not see it
                _signal(child, signal.SIGTERM)
                await self._gone_or_killed(child)
                break
            status = await child.process.wait()
            if self._stopping.is_set():
                break
            quick = 0 if time.monotonic() - began > _STEADY_SECONDS else quick + 1
            child.restarts += 1
            child.refused = status == EXIT_REFUSED
            self._log("child_died", child=child.name, pid=child.process.pid, status=status, refused=child.refused)

    async def _pause(self, seconds: float) -> None:
        """So long, or until the drain."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _start(self, child: Child) -> None:
        child.slot.set(metrics.BUSY_SINCE.at, 0.0)
        child.slot.set(metrics.READY_AT.at, 0.0)
        descriptors = {door: listener.fileno() for door, listener in child.listeners.items()}
        told = {
            "toml": self._toml,
            "folder": str(self._config.folder),
            "parent": os.getpid(),
            "metrics": self._block.descriptor,
            "slots": self._count,
            "slot": child.slot_number,
            "listeners": descriptors,
        }
        child.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "estd.child", child.role, str(child.index),
            stdin=asyncio.subprocess.PIPE, pass_fds=(self._block.descriptor, *descriptors.values()),
            env={**os.environ, "OPENSSL_CONF": str(_EDGE_OPENSSL)} if child.role == "edge" else None,
        )  # fmt: skip
        assert child.process.stdin is not None
        child.process.stdin.write(json.dumps(told).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await child.process.stdin.drain()
        child.process.stdin.close()
        self._log("child_started", child=child.name, pid=child.process.pid)

    async def _watch(self) -> None:
        """End a child that hangs in its token or its disk: nothing else can cancel such a call."""
        limit = self._config.token.timeout_seconds
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            for child in self.children:
                since = child.slot.get(metrics.BUSY_SINCE.at)
                if child.alive and since and time.monotonic() - since > limit:
                    self._log("child_hangs", child=child.name, seconds=limit)
                    _signal(child, signal.SIGKILL)

    async def drain(self) -> None:
        """Edges first, so that what they accepted is answered; then issuers; then the ledger's writer."""
        self._stopping.set()
        self._log("draining")
        for role in ("edge", "issuer", "ledger"):
            group = [child for child in self.children if child.role == role]
            for child in group:
                _signal(child, signal.SIGTERM)
            for child in group:
                await self._gone_or_killed(child)

    async def _gone_or_killed(self, child: Child) -> None:
        if child.process is None:
            return
        try:
            await asyncio.wait_for(child.process.wait(), self._config.server.drain_seconds + 2)
        except TimeoutError:
            self._log("child_killed", child=child.name)
            _signal(child, signal.SIGKILL)
            await child.process.wait()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.process is not None and child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(number)


def _claim_port(host: str, port: int) -> None:
    """Raises ConfigError where the port is taken: SO_REUSEPORT alone would share it with another instance's edges."""
    try:
        with _tcp_socket(host) as probe:
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError([f"server.listen: {host}:{port} cannot be bound: {error.strerror}"]) from error


def _tcp_socket(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _listen_tcp(host: str, port: int) -> socket.socket:
    listener = _tcp_socket(host)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # one queue per edge
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    listener.listen(256)
    listener.setblocking(False)
    return listener


def claim(config: Config) -> int:
    """Make the run folder and its pid file ours; returns the descriptor that holds the lock. Raises ConfigError where
    another supervisor serves this instance."""
    config.run.mkdir(mode=0o700, exist_ok=True)
    config.run.chmod(0o700)
    path = config.run / "estd.pid"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError([f"this instance is being served already (see {path})"]) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
