"""The edge's connection to an issuer: bounded, and right about what it hands over again."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from estd import frames, metrics
from estd.errors import BadRequest, Reason, Refused, Unavailable
from estd.frames import Answer, Request, Splitter
from estd.issuer_link import IssuerLink
from tests import make, servers
from tests.servers import Server


class Issuer:
    """The other end: it keeps what it is asked, and says what the test tells it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.asked: list[Request] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Issuer:
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.die()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        splitter = Splitter()
        while data := await reader.read(65536):
            self.asked += [frames.unpack_request(*one) for one in splitter.feed(data)]

    def answer(self, number: int) -> None:
        self._writers[-1].write(frames.pack_answer(Answer(number, 200, 0, 0, "who", b"\1", b"certificate")))

    def die(self) -> None:
        """Close the connections, as the kernel does for a process that was killed."""
        for writer in self._writers:
            writer.close()


def request(deadline_seconds: float = 60.0) -> Request:
    return Request(frames.ENROLL, 0, time.monotonic() + deadline_seconds, None, -1, b"", b"", b"csr")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (the condition is another's list)
            await asyncio.sleep(0.005)


def run(
    folder: Path,
    act: Callable[[Issuer, IssuerLink], Awaitable[None]],
    *,
    queue: int = 8,
    validate: Callable[[bytes], None] = lambda _: None,
) -> metrics.Slot:
    """Run `act` with a link that is connected to an issuer; returns the metrics' slot."""
    slot = metrics.Block.create(1).slot(0)

    async def stage() -> None:
        path = folder / "issuer.sock"
        async with Issuer(path) as issuer:
            link = IssuerLink(path, validate=validate, queue=queue, slot=slot, loop=asyncio.get_running_loop())
            await link.connect()
            try:
                await act(issuer, link)
            finally:
                link.close()
                await asyncio.sleep(0)

    asyncio.run(stage())
    return slot


def test_a_full_queue_is_a_503_with_jitter(folder: Path) -> None:
    """What the queue does not hold is refused at once, each with a Retry-After of its own between 2 and 4 seconds."""
    told: list[int | None] = []

    async def act(issuer: Issuer, link: IssuerLink) -> None:
        waiting = [asyncio.ensure_future(link.ask(request())) for _ in range(4)]
        await until(lambda: len(issuer.asked) == 4)
        for _ in range(50):
            with pytest.raises(Unavailable) as refused:
                await link.ask(request())
            assert refused.value.reason is Reason.OVERLOADED
            told.append(refused.value.retry_after)
        for one in issuer.asked:
            issuer.answer(one.id)
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200] * 4

    slot = run(folder, act, queue=4)
    assert set(told) == {2, 3, 4}
    assert slot.get(metrics.QUEUE_DEPTH.at) == 0


def test_what_a_dead_issuer_left_is_handed_over_once_more(folder: Path) -> None:
    """A request that two issuers died over is a 503; a third does not see it."""

    async def act(issuer: Issuer, link: IssuerLink) -> None:
        asking = asyncio.ensure_future(link.ask(request()))
        await until(lambda: len(issuer.asked) == 1)
        issuer.die()
        await until(lambda: len(issuer.asked) == 2)
        issuer.die()
        with pytest.raises(Unavailable) as refused:
            await asking
        assert refused.value.reason is Reason.TOKEN_AWAY
        again = asyncio.ensure_future(link.ask(request()))
        await until(lambda: len(issuer.asked) == 3)
        assert issuer.asked[0].id == issuer.asked[1].id != issuer.asked[2].id
        issuer.answer(issuer.asked[2].id)
        assert (await again).status == 200

    assert run(folder, act).get(metrics.REDELIVERED.at) == 1


def test_what_nobody_answers_ends_with_its_deadline(folder: Path) -> None:
    """A request past its deadline is a 503, and its late answer is nobody's."""

    async def act(issuer: Issuer, link: IssuerLink) -> None:
        with pytest.raises(Unavailable) as refused:
            await link.ask(request(deadline_seconds=0.1))
        assert refused.value.reason is Reason.DEADLINE
        issuer.answer(issuer.asked[0].id)
        asking = asyncio.ensure_future(link.ask(request()))
        await until(lambda: len(issuer.asked) == 2)
        issuer.answer(issuer.asked[1].id)
        assert (await asking).payload == b"certificate"

    run(folder, act)


def test_a_client_that_left_is_cancelled(folder: Path) -> None:
    """The issuer is told of a client that has gone, so that it need not sign for nobody."""

    async def act(issuer: Issuer, link: IssuerLink) -> None:
        asking = asyncio.ensure_future(link.ask(request()))
        await until(lambda: len(issuer.asked) == 1)
        asking.cancel()
        await until(lambda: len(issuer.asked) == 2)
        assert issuer.asked[1].kind == frames.CANCEL
        assert issuer.asked[1].id == issuer.asked[0].id

    run(folder, act)


def test_only_what_is_valid_goes_out(folder: Path) -> None:
    """A bad CSR is refused with what its validation raised, and its place in the queue is free again."""
    bad = {3, 17, 40}
    seen: list[bytes] = []

    def validate(csr_der: bytes) -> None:
        seen.append(csr_der)
        if int(csr_der) in bad:
            raise BadRequest(Reason.BAD_SIGNATURE, csr_der.decode())

    async def act(issuer: Issuer, link: IssuerLink) -> None:
        asking = [
            asyncio.ensure_future(link.ask(request()._replace(csr_der=str(number).encode()))) for number in range(50)
        ]
        await until(lambda: len(issuer.asked) == 47)
        for one in issuer.asked:
            issuer.answer(one.id)
        given = await asyncio.gather(*asking, return_exceptions=True)
        assert {n for n, one in enumerate(given) if isinstance(one, BadRequest) and str(n) == one.sentence} == bad
        assert [one.status for one in given if isinstance(one, Answer)] == [200] * 47

    slot = run(folder, act, queue=50, validate=validate)
    assert seen == [str(number).encode() for number in range(50)], "each once, in their order"
    assert slot.get(metrics.QUEUE_DEPTH.at) == 0
    stage = metrics.STAGE_SECONDS.series("validate")
    assert sum(slot.get(stage + bucket) for bucket in range(len(metrics.SECONDS) + 1)) == 2, "32 and 18"


def test_what_is_not_validated_yet_is_never_handed_over(folder: Path) -> None:
    """Neither an issuer that comes back nor a full queue gets, or costs, a validation ahead of its turn."""
    seen: list[bytes] = []

    async def act(issuer: Issuer, link: IssuerLink) -> None:
        asking = [asyncio.ensure_future(link.ask(request())) for _ in range(40)]
        await asyncio.sleep(0)  # they have arrived, and nothing of them is validated
        with pytest.raises(Unavailable):
            await link.ask(request())
        assert seen == []
        link.connection_made(link._transport)  # type: ignore[arg-type]
        assert link._outgoing == []
        await until(lambda: len(issuer.asked) == 40)
        for one in issuer.asked:
            issuer.answer(one.id)
        await asyncio.gather(*asking)

    run(folder, act, queue=40, validate=seen.append)
    assert len(seen) == 40


def test_a_fault_of_the_validation_hurts_its_request_alone(folder: Path) -> None:
    """An unforeseen exception is raised where its request waits."""

    def validate(csr_der: bytes) -> None:
        if csr_der == b"odd":
            raise ZeroDivisionError

    async def act(issuer: Issuer, link: IssuerLink) -> None:
        asking = [asyncio.ensure_future(link.ask(request()._replace(csr_der=one))) for one in (b"odd", b"even")]
        await until(lambda: len(issuer.asked) == 1)
        issuer.answer(issuer.asked[0].id)
        odd, even = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(odd, ZeroDivisionError)
        assert isinstance(even, Answer)

    run(folder, act, validate=validate)


@pytest.mark.parametrize("peer", ["x" * 300, "\udcff"], ids=["too long", "no UTF-8"])
def test_what_fits_into_no_frame_hurts_its_request_alone(folder: Path, peer: str) -> None:
    """A request that cannot be packed is an exception where it is asked; those before and behind it are handed over,
    and once more to the next issuer."""

    async def act(issuer: Issuer, link: IssuerLink) -> None:
        peers = ("", peer, "192.0.2.7")
        asking = [asyncio.ensure_future(link.ask(request()._replace(peer=one))) for one in peers]
        await until(lambda: len(issuer.asked) == 2)
        issuer.die()
        await until(lambda: len(issuer.asked) == 4)
        for one in issuer.asked[2:]:
            issuer.answer(one.id)
        first, odd, last = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(odd, struct.error | UnicodeEncodeError)
        assert isinstance(first, Answer)
        assert isinstance(last, Answer)

    assert run(folder, act).get(metrics.QUEUE_DEPTH.at) == 0


def test_overload_is_answered_over_tls(folder: Path) -> None:
    """A server whose queue is full answers 503 with Retry-After, and serves the one it had accepted."""
    made: Server = servers.init(folder / "instance")
    made.config.write_text(made.config.read_text().replace("# queue = 1024", "queue = 1"))
    with servers.running(made):
        issuer = made.pids()["issuer-0"]
        with (
            made.client(basic=True) as first,
            made.client(basic=True) as second,
            ThreadPoolExecutor(1) as thread,
        ):
            os.kill(issuer, signal.SIGSTOP)
            try:
                accepted = thread.submit(first.enroll, lambda _: make.csr())
                servers.wait_for(lambda: made.metric("estd_queue_depth") == 1, 10)
                with pytest.raises(Refused) as refused:
                    second.enroll(lambda _: make.csr())
            finally:
                os.kill(issuer, signal.SIGCONT)
            assert refused.value.status == 503
            assert refused.value.retry_after in {"2", "3", "4"}
            accepted.result(timeout=30).verify_directly_issued_by(made.ca)
        assert made.metric("estd_rejections_total", reason="overloaded") == 1
