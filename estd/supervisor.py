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
import sys
import time
from pathlib import Path

from estd import generation, metrics, owner
from estd.config import Config
from estd.errors import EXIT_REFUSED, ConfigError
from estd.generation import BANKS, Child, Generation, listen_unix
from estd.logs import Log
from estd.starting import PREPARED

_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each replacement in a row of quick deaths."""
_STEADY_SECONDS = 20.0
"""A child that lived so long starts the row anew."""
_WATCH_SECONDS = 0.5
_PREPARE_SECONDS = 30
"""For a new generation's process to load what it needs, beside the token's time-out."""
_ASKED_SECONDS = 0.001
_EDGE_OPENSSL = Path(__file__).with_name("templates") / "openssl-edge.cnf"
_BACKLOG = 4096


class Supervisor:
    """Keeps the processes of the generation that serves. `turnover` asks it for the next one."""

    def __init__(self, config: Config, toml: str, log: Log) -> None:
        self._log = log
        self._stopping = asyncio.Event()
        server = config.server
        _claim_port(server.listen.host, server.listen.port)
        for left in config.run.glob("issuer-*.sock"):  # of a supervisor that was killed
            left.unlink()
        self._ledgers = 1 if server.issuers > 1 else 0
        self._slots = self._ledgers + server.issuers + server.edges
        self._block = metrics.Block.create(BANKS * self._slots)
        self._doors = [_listen_tcp(server.listen.host, server.listen.port) for _ in range(server.edges)]
        self._ledger_door = listen_unix(config.run / "ledger.sock")
        self._persistent = [
            Child(
                role="ledger", index=index, listeners={"ledger": self._ledger_door}, slot=self._block.slot(index),
                slot_number=index,
            )
            for index in range(self._ledgers)
        ]  # fmt: skip
        self._keepers: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._retiring: asyncio.Task[None] | None = None
        self.reloads_refused = 0
        self.generations = [self._generation(1, config, toml)]
        """Those that live, the one that serves last."""

    def _generation(self, number: int, config: Config, toml: str) -> Generation:
        return generation.make(
            number=number, config=config, toml=toml, block=self._block, first_slot=self._ledgers, slots=self._slots,
            doors=self._doors, ledger=self._ledger_door,
        )  # fmt: skip

    @property
    def current(self) -> Generation:
        return self.generations[-1]

    @property
    def children(self) -> list[Child]:
        """The processes that serve."""
        return [*self._persistent, *self.current.children]

    @property
    def slots(self) -> dict[str, metrics.Banks]:
        return {
            child.name: metrics.Banks(
                [self._block.slot(child.slot_number % self._slots + bank * self._slots) for bank in range(BANKS)]
            )
            for child in self.children
        }

    def _everybody(self) -> list[Child]:
        return [*self._persistent, *(child for one in self.generations for child in one.children)]

    def is_ready(self) -> bool:
        """An edge listens, and an issuer has signed a test message and stored a row in the last seconds."""
        fresh = time.time() - 3 * 2.0
        living = [child for child in self._everybody() if child.alive]
        return any(c.role == "edge" for c in living) and any(
            c.role == "issuer" and c.slot.get(metrics.READY_AT.at) >= fresh for c in living
        )

    async def run(self) -> None:
        """Until `drain` has ended everything."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for child in self.children:
                self._keeping(child)
            watching = group.create_task(self._watch())
            await self._stopping.wait()
            while self._keepers:
                await asyncio.wait(self._keepers)
            watching.cancel()

    def _keeping(self, child: Child) -> None:
        assert self._group is not None
        task = self._group.create_task(self._keep(child))
        self._keepers.add(task)
        task.add_done_callback(self._keepers.discard)

    async def _keep(self, child: Child) -> None:
        """Keep one slot filled until its end; a reload hands its processes over alive."""
        quick = 0
        while not child.refused:
            began = time.monotonic()
            if not child.alive:
                await self._pause(child, _PAUSES[min(quick, len(_PAUSES) - 1)])
                if child.ending.is_set():
                    break
                began = time.monotonic()
                try:
                    await self._start(child)
                except OSError as error:  # no memory or no process left: worth trying again, never worth ending for
                    self._log("child_not_started", child=child.name, why=str(error))
                    quick += 1
                    continue
                if child.ending.is_set():  # the end came while the child was being started, and did not see it
                    child.signal(signal.SIGTERM)
                    await self._gone_or_killed(child)
                    break
            assert child.process is not None
            status = await child.process.wait()
            if child.ending.is_set():
                break
            quick = 0 if time.monotonic() - began > _STEADY_SECONDS else quick + 1
            child.restarts += 1
            child.refused = status == EXIT_REFUSED
            self._log("child_died", child=child.name, pid=child.process.pid, status=status, refused=child.refused)

    async def _pause(self, child: Child, seconds: float) -> None:
        """So long, or until nobody is wanted in that slot any more."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.ending.wait(), seconds)

    async def _start(self, child: Child, report: int | None = None) -> None:
        """Start a process in the slot. With `report`, a descriptor, it waits for the word (see `starting`)."""
        child.slot.set(metrics.BUSY_SINCE.at, 0.0)
        child.slot.set(metrics.READY_AT.at, 0.0)
        own = child.generation or self.current
        descriptors = {door: listener.fileno() for door, listener in child.listeners.items()}
        told = {
            "toml": own.toml,
            "folder": str(own.config.folder),
            "parent": os.getpid(),
            "metrics": self._block.descriptor,
            "slots": BANKS * self._slots,
            "slot": child.slot_number,
            "listeners": descriptors,
            "generation": own.number,
            "writes": not own.retired,
            "report": report,
        }
        child.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "estd.child", child.role, str(child.index), stdin=asyncio.subprocess.PIPE,
            pass_fds=(self._block.descriptor, *descriptors.values(), *([] if report is None else [report])),
            env={**os.environ, "OPENSSL_CONF": str(_EDGE_OPENSSL)} if child.role == "edge" else None,
        )  # fmt: skip
        assert child.process.stdin is not None
        child.process.stdin.write(json.dumps(told).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await child.process.stdin.drain()
        if report is None:
            child.process.stdin.close()
        self._log("child_started", child=child.name, pid=child.process.pid, generation=own.number)

    async def _watch(self) -> None:
        """End a child that hangs in its token or its disk: nothing else can cancel such a call."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            for child in self._everybody():
                limit = (child.generation or self.current).config.token.timeout_seconds
                since = child.slot.get(metrics.BUSY_SINCE.at)
                if child.alive and since and time.monotonic() - since > limit:
                    self._log("child_hangs", child=child.name, seconds=limit)
                    child.signal(signal.SIGKILL)

    async def prepare(self, config: Config, toml: str) -> tuple[Generation, list[str]]:
        """The next generation, its processes started and prepared but waiting for the word; and what went wrong. Waits
        for the end of the generation before the one that serves."""
        if self._retiring is not None:
            await self._retiring
        made = self._generation(self.current.number + 1, config, toml)
        try:
            told = await asyncio.gather(*(self._prepared(child) for child in made.children))
        except BaseException:
            await self.discard(made)
            raise
        return made, [why for why in told if why]

    async def _prepared(self, child: Child) -> str:
        """Start it; nothing once it is prepared, else why it is not."""
        assert child.generation is not None
        reading, writing = os.pipe()
        try:
            await self._start(child, writing)
        except OSError as error:
            os.close(reading)
            return f"{child.name} cannot be started: {error}"
        finally:
            os.close(writing)
        seconds = _PREPARE_SECONDS + child.generation.config.token.timeout_seconds
        try:
            said = await asyncio.wait_for(_line(reading), seconds)
        except TimeoutError:
            return f"{child.name} was not prepared within {seconds} seconds"
        return "" if said == PREPARED else f"{child.name}: {said or 'it ended without saying why; see its lines above'}"

    def commit(self, made: Generation) -> None:
        """The new generation serves, and the one before it retires: it answers what it has accepted."""
        old = self.current
        old.retired = True
        self.generations.append(made)
        for child, before in zip(made.children, old.children, strict=True):
            child.restarts = before.restarts
            child.go()
            self._keeping(child)
        for child in old.of("issuer"):
            child.signal(signal.SIGUSR1)  # hand over what only one may do: the CRLs, and the ledger of an only issuer
        for child in old.of("edge"):
            child.ending.set()
            child.signal(signal.SIGUSR1)  # accept nobody more
        assert self._group is not None
        self._retiring = self._group.create_task(self._retire(old))

    async def discard(self, made: Generation) -> None:
        """End a generation that never served."""
        for child in made.children:
            child.signal(signal.SIGKILL)  # it waits, and holds nothing
        for child in made.children:
            await self._gone_or_killed(child)
        made.close()

    async def _retire(self, old: Generation) -> None:
        for child in old.of("edge"):
            await self._gone_or_killed(child, old.config.server.drain_seconds)
        for child in old.of("issuer"):
            child.ending.set()
            child.signal(signal.SIGTERM)
        for child in old.of("issuer"):
            await self._gone_or_killed(child)
        self.generations.remove(old)
        old.close()
        self._log("generation_ended", generation=old.number)

    async def drain(self) -> None:
        """Edges first, so that what they accepted is answered; then issuers, those of a retiring generation before
        those that write for them; then the ledger's writer."""
        self._stopping.set()
        self._log("draining")
        everybody = self._everybody()
        for child in everybody:
            child.ending.set()
        edges = [child for child in everybody if child.role == "edge"]
        issuers = [one.of("issuer") for one in self.generations]
        for group in (edges, *issuers, self._persistent):
            for child in group:
                child.signal(signal.SIGTERM)
            for child in group:
                await self._gone_or_killed(child)

    async def _gone_or_killed(self, child: Child, more_seconds: float = 0.0) -> None:
        if child.process is None:
            return
        seconds = (child.generation or self.current).config.server.drain_seconds + 2 + more_seconds
        try:
            await asyncio.wait_for(child.process.wait(), seconds)
        except TimeoutError:
            self._log("child_killed", child=child.name)
            child.signal(signal.SIGKILL)
            await child.process.wait()


async def _line(descriptor: int) -> str:
    """What is said on the pipe, "" where it ends in silence. Closes it."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    try:
        return (await reader.read(4096)).decode(errors="replace").strip()
    finally:
        transport.close()


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


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def claim(config: Config) -> int:
    """Make the run folder and its pid file ours; returns the descriptor that holds the lock. Raises ConfigError where
    another supervisor serves this instance, or this is not the server's user."""
    run = owner.run_folder(config)
    run.chmod(0o700)
    path = run / "estd.pid"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    while _locked(descriptor, fcntl.LOCK_SH):  # nobody serves it; who asks `reload_report.serving` may have it too
        os.ftruncate(descriptor, 0)  # before it is ours: nobody may read the pid of one that was killed
        if _locked(descriptor, fcntl.LOCK_EX):
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(_ASKED_SECONDS)
    os.close(descriptor)
    raise ConfigError([f"this instance is being served already (see {path})"])
