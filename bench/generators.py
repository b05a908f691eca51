"""The generator processes: started with their plans, let off together, followed, and their tallies brought home."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection

import uvloop

from bench.load import Load
from bench.plan import Plan
from bench.tally import SHED, Tally

_READY_SECONDS = 300.0
_LOOK_SECONDS = 1.0
_ENOUGH = signal.SIGUSR1
"""To a generator: begin nothing more."""


class GeneratorError(Exception):
    """A generator broke down: the run has no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a generator, or all of them, came; what is expected but no enrolment is `settled` only."""

    settled: int = 0
    good: int = 0
    shed: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """The generator waits for the moment to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Broken:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run brought; both moments are of `time.perf_counter`."""

    tally: Tally
    seconds: float


async def _generate(pipe: connection.Connection, plan: Plan) -> Tally:
    loop = asyncio.get_running_loop()
    load = Load(plan, loop)
    loop.add_signal_handler(_ENOUGH, load.end)
    await load.open_connections()
    gc.collect()
    gc.freeze()  # else each full collection walks over all that was prepared
    pipe.send(_Ready())
    start = await loop.run_in_executor(None, pipe.recv)

    def tell(tally: Tally) -> None:
        shed = tally.failures[SHED]
        failed = tally.failures.total()
        pipe.send(Progress(settled=tally.settled, good=tally.good, shed=shed, errors=failed - shed))

    return await load.run(start, tell)


def _generator_main(pipe: connection.Connection, plan: Plan) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            pipe.send(runner.run(_generate(pipe, plan)))
    except Exception:
        pipe.send(_Broken(reason=traceback.format_exc()))


class _Generator:
    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=_generator_main, args=(far_end, plan), daemon=True)
        self.process.start()
        far_end.close()
        self.progress = Progress()

    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def receive(self) -> object:
        try:
            message: object = self.pipe.recv()
        except EOFError:
            self.process.join(5)
            raise GeneratorError(f"a generator ended with exit code {self.process.exitcode}") from None
        if isinstance(message, _Broken):
            raise GeneratorError(message.reason)
        return message

    def wait_ready(self) -> None:
        if not self.pipe.poll(_READY_SECONDS) or not isinstance(self.receive(), _Ready):
            raise GeneratorError(f"a generator was not ready within {_READY_SECONDS:g} s")


def _follow(
    generators: Sequence[_Generator],
    tell: Callable[[Progress], None],
    look: Callable[[], None],
    *,
    start: float,
    tally: Tally,
) -> None:
    """Until all have brought their tallies home; `look` is called each second."""
    running = {generator.pipe: generator for generator in generators}
    next_look = start + _LOOK_SECONDS
    while running:
        for pipe in connection.wait(list(running), timeout=max(0.0, next_look - time.perf_counter())):
            assert isinstance(pipe, connection.Connection)
            generator = running[pipe]
            message = generator.receive()
            if isinstance(message, Tally):
                tally.add(message)
                del running[pipe]
            elif isinstance(message, Progress):
                generator.progress = message
                parts = [each.progress for each in generators]
                tell(
                    Progress(
                        settled=sum(part.settled for part in parts),
                        good=sum(part.good for part in parts),
                        shed=sum(part.shed for part in parts),
                        errors=sum(part.errors for part in parts),
                    )
                )
        if time.perf_counter() >= next_look:
            look()
            next_look = max(next_look, time.perf_counter() - _LOOK_SECONDS) + _LOOK_SECONDS


@contextlib.contextmanager
def _ending_when_told(generators: Sequence[_Generator]) -> Iterator[None]:
    """SIGTERM ends the load, not its figures: what was begun is answered and counted."""

    def enough(*_: object) -> None:
        for generator in generators:
            with contextlib.suppress(ProcessLookupError):
                os.kill(generator.pid(), _ENOUGH)

    before = signal.signal(signal.SIGTERM, enough)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_generators(
    plans: Sequence[Plan],
    *,
    begin: Callable[[Sequence[int]], None] = lambda pids: None,
    tell: Callable[[Progress], None] = lambda progress: None,
    look: Callable[[], None] = lambda: None,
    ends_when_told: bool = False,
) -> Outcome:
    """Runs all plans at once, with `ends_when_told` until SIGTERM at the latest.

    `begin` is called between preparation and start with the generators' pids, `look` each second and at the end: they
    read what the processes cost.
    """
    generators: list[_Generator] = []
    tally = Tally()
    try:
        generators.extend(_Generator(plan) for plan in plans)
        for generator in generators:
            generator.wait_ready()
        begin([generator.pid() for generator in generators])
        start = time.perf_counter() + 0.05
        for generator in generators:
            generator.pipe.send(start)
        with _ending_when_told(generators) if ends_when_told else contextlib.nullcontext():
            _follow(generators, tell, look, start=start, tally=tally)
        look()
        for generator in generators:
            generator.process.join(10)
    finally:
        for generator in generators:
            generator.process.terminate()
    return Outcome(tally=tally, seconds=tally.finished - start)
