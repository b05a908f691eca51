"""The supervisor with processes that are none: their starts, their ends and their order."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from estd import config, metrics, supervisor
from estd.errors import EXIT_FATAL, EXIT_REFUSED
from estd.supervisor import Child, Supervisor
from tests import servers
from tests.test_config import text


class FakeProcess:
    """A child that lives until it is told otherwise."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.signals: list[int] = []
        self._ended = asyncio.Event()
        self.stdin = self
        self.deaf = False
        self.on_end: Callable[[], object] = lambda: None

    def write(self, data: bytes) -> None:
        self.told = json.loads(data)

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass

    def end(self, status: int) -> None:
        self.returncode = status
        self.on_end()
        self._ended.set()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL or not self.deaf:
            self.end(-number)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode


class Stage:
    """A supervisor whose children are fakes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
        made = config.parse(text("server", f'listen = "127.0.0.1:{servers.free_port()}"', *lines), folder)
        made.run.mkdir()
        self.lines: list[tuple[str, dict[str, Any]]] = []
        log: Any = lambda event, **fields: self.lines.append((event, fields))  # noqa: E731
        self.supervisor = Supervisor(made, "toml", log)
        self.started: list[FakeProcess] = []
        self.on_start: Callable[[FakeProcess], object] = lambda process: None
        self.gate: asyncio.Event | None = None
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self._create)

    async def _create(self, *command: object, **_: object) -> FakeProcess:
        process = FakeProcess(1000 + len(self.started))
        self.started.append(process)
        if self.gate is not None:
            await self.gate.wait()
        self.on_start(process)
        return process

    def child(self, name: str) -> Child:
        return next(child for child in self.supervisor.children if child.name == name)

    def close(self) -> None:
        for child in self.supervisor.children:
            for listener in child.listeners.values():
                listener.close()


@pytest.fixture
def stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(folder, monkeypatch)
    yield made
    made.close()


async def met(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (the fakes move only when the loop turns)
            await asyncio.sleep(0)


def test_each_child_is_told_the_same_configuration(stage: Stage) -> None:
    """A child gets the configuration's text, its slot and its listeners; the sockets stay the supervisor's own."""

    async def act() -> None:
        running = asyncio.create_task(stage.supervisor.run())
        await met(lambda: len(stage.started) == 2 and all(hasattr(one, "told") for one in stage.started))
        await stage.supervisor.drain()
        await running

    asyncio.run(act())
    told = [one.told for one in stage.started]
    assert {one["toml"] for one in told} == {"toml"}
    assert [one["slot"] for one in told] == [0, 1]
    assert [set(one["listeners"]) for one in told] == [{"requests", "ledger"}, {"est"}]
    assert all(child.listeners[door].fileno() >= 0 for child in stage.supervisor.children for door in child.listeners)


def test_sigterm_while_a_child_starts_ends_that_child_too(stage: Stage) -> None:
    """A drain that comes while a child is being spawned does not leave it running, nor wait for it for ever."""

    async def act() -> None:
        stage.gate = asyncio.Event()
        running = asyncio.create_task(stage.supervisor.run())
        await met(lambda: len(stage.started) == 2)
        draining = asyncio.create_task(stage.supervisor.drain())
        for _ in range(10):
            await asyncio.sleep(0)
        stage.gate.set()
        async with asyncio.timeout(5):
            await draining
            await running

    asyncio.run(act())
    assert all(one.signals for one in stage.started)


def test_sigterm_while_a_replacement_is_put_off_does_not_wait(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain ends a pause between two replacements: the service stops now, and starts nobody more."""
    monkeypatch.setattr(supervisor, "_PAUSES", (0.0, 3600.0))
    stage.on_start = lambda process: process.end(EXIT_FATAL)

    async def act() -> None:
        running = asyncio.create_task(stage.supervisor.run())
        await met(lambda: sum(child.restarts for child in stage.supervisor.children) == 2)
        await stage.supervisor.drain()
        async with asyncio.timeout(5):
            await running

    asyncio.run(act())
    assert len(stage.started) == 2


def test_a_child_that_dies_at_once_is_replaced_ever_more_slowly(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses rise from one second to thirty; a child that lived long enough starts the row anew."""
    slept: list[float] = []

    async def pause(_child: Child, seconds: float) -> None:
        slept.append(seconds)

    issuer = stage.child("issuer-0")
    monkeypatch.setattr(stage.supervisor, "_pause", pause)

    async def act() -> None:
        keeping = asyncio.create_task(stage.supervisor._keep(issuer))
        for number in range(10):
            await met(lambda: issuer.alive and len(stage.started) == issuer.restarts + 1)
            if number == 8:
                monkeypatch.setattr(supervisor, "_STEADY_SECONDS", -1.0)
            stage.started[number].end(EXIT_FATAL if number < 9 else EXIT_REFUSED)
        await keeping

    asyncio.run(act())
    assert slept == [0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0, 0.0]
    assert issuer.refused
    assert issuer.restarts == 10


def test_a_child_that_is_busy_too_long_is_killed(stage: Stage) -> None:
    """A child whose work began longer ago than the token's time-out is killed; an idle one and a quick one are not."""

    async def act() -> None:
        running = asyncio.create_task(stage.supervisor.run())
        issuer, edge = stage.child("issuer-0"), stage.child("edge-0")
        await met(lambda: issuer.alive and edge.alive)
        issuer.slot.set(metrics.BUSY_SINCE.at, time.monotonic() - 16.0)
        edge.slot.set(metrics.BUSY_SINCE.at, time.monotonic() - 1.0)
        await met(lambda: len(stage.started) == 3 and issuer.alive)
        assert issuer.slot.get(metrics.BUSY_SINCE.at) == 0.0
        assert stage.started[0].signals == [signal.SIGKILL]
        assert edge.restarts == 0
        await stage.supervisor.drain()
        await running

    asyncio.run(act())


def test_a_drain_goes_from_the_edges_inwards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges end first, so that what they accepted is answered; then issuers; then the ledger. Who does not listen is
    killed."""
    stage = Stage(folder, monkeypatch, "issuers = 2", "edges = 2", 'drain = "0s"')
    ended: list[str] = []

    async def act() -> None:
        running = asyncio.create_task(stage.supervisor.run())
        await met(lambda: all(child.alive for child in stage.supervisor.children))
        for child in stage.supervisor.children:
            process: Any = child.process
            process.deaf = child.name == "edge-1"
            process.on_end = partial(ended.append, child.name)
        await stage.supervisor.drain()
        await running

    asyncio.run(act())
    stage.close()
    assert ended == ["edge-0", "edge-1", "issuer-0", "issuer-1", "ledger-0"]
    deaf: Any = stage.child("edge-1").process
    assert deaf.signals == [signal.SIGTERM, signal.SIGKILL]
