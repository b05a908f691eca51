"""One of a generator's connections over all its openings, with the one job it has at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from bench.aborts import CLOSE_AFTER_HANDSHAKE, RESET_IN_HELLO, leave_in_hello
from bench.plan import Job
from bench.supply import Supply
from bench.wire import Answer, AnswerError, Wire

if TYPE_CHECKING:
    from bench.load import Load


class Slot:
    """`failures` counts tries in a row that brought no answer; `device` is None when each opening is another's."""

    __slots__ = ("_load", "_opening", "_since", "_supply", "_wire", "device", "failures", "job", "retries")

    def __init__(self, load: Load, device: int | None, supply: Supply) -> None:
        self._load = load
        self._supply = supply
        self._wire: Wire | None = None
        self._since = 0.0
        self._opening: asyncio.Task[None] | None = None
        self.device = device
        self.job: Job | None = None
        self.failures = 0
        self.retries: deque[Job] = deque()

    def begin(self, job: Job) -> bool:
        """False when the job has nothing to send yet and there is nothing left for this slot."""
        if job.device < 0:
            work = next(self._supply[job.kind.name], None)
            if work is None:
                return False
            job.device, job.csr = work
        job.tries += 1
        self.job = job
        self._since = time.perf_counter()
        if job.kind.abort:
            self._opening = self._load.loop.create_task(self._leave(job))
        elif self._wire is None:
            self._opening = self._load.loop.create_task(self._open_and_send(job))
        else:
            self._wire.send(job.kind.request(job.csr))
        return True

    async def open(self, device: int) -> Exception | None:
        """Opens the connection for the next job, or returns why it could not."""
        load = self._load
        try:
            _, wire = await load.loop.create_connection(
                lambda: Wire(self),
                load.plan.address,
                load.plan.port,
                ssl=load.contexts[device],
                server_hostname=load.plan.server_name,
                ssl_handshake_timeout=load.plan.timeout_seconds,
            )
        except OSError as error:
            return error
        if wire.ended:
            return wire.end_reason or ConnectionResetError("closed right after the handshake")
        load.tally.events["connections opened"] += 1
        self._wire = wire
        return None

    async def _open_and_send(self, job: Job) -> None:
        error = await self.open(job.device if self.device is None else self.device)
        self._opening = None
        if self._wire is not None:
            self._wire.send(job.kind.request(job.csr))
        else:
            self._not_connected(error)

    async def _leave(self, job: Job) -> None:
        """A connection that ends before it is a request."""
        load = self._load
        error: Exception | None = None
        if job.kind.abort == CLOSE_AFTER_HANDSHAKE:
            error = await self.open(job.device)
            self.close()
        else:
            address = (load.plan.address, load.plan.port)
            try:
                await leave_in_hello(load.loop, address, load.hello, reset=job.kind.abort == RESET_IN_HELLO)
            except OSError as refused:
                error = refused
        self._opening = None
        if error is None:
            self.job, self.failures = None, 0
            load.succeeded(self, job)
        else:
            self._not_connected(error)

    def _not_connected(self, error: Exception | None) -> None:
        self._load.tally.events["connects failed"] += 1
        # Against a server that is down, the whole load would otherwise be gone in an instant.
        self._fail("connection", f"connecting: {error!r}", pause_seconds=min(0.05 * 2**self.failures, 1.0))

    def answered(self, wire: Wire, answer: Answer) -> None:
        job, self.job = self.job, None
        if job is None or wire is not self._wire:
            self._load.tally.events["answers nobody asked for"] += 1
            wire.abort()
            return
        self.failures = 0
        if self._load.plan.fresh or answer.closes():
            self.close()
        self._load.answered(self, job, answer)

    def spoiled(self, wire: Wire, error: AnswerError) -> None:
        wire.abort()
        if wire is self._wire:
            self._wire = None
            self._fail("protocol", str(error))

    def lost(self, wire: Wire, error: Exception | None) -> None:
        if wire is self._wire:
            self._wire = None
            self._load.tally.events["connections lost"] += 1
            self._fail("connection", f"lost: {error!r}")

    def expire(self, too_old: float) -> None:
        """Ends the present try when it began before `too_old`."""
        if self.job is None or self._since >= too_old:
            return
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
        self._fail("timeout", f"no answer within {self._load.plan.timeout_seconds:g} s")

    def close(self) -> None:
        """Ends the connection in good order."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _fail(self, kind: str, detail: str, *, pause_seconds: float = 0.0) -> None:
        job, self.job = self.job, None
        if job is not None:
            self.failures += 1
            self._load.failed(self, job, kind, detail, pause_seconds=pause_seconds)
