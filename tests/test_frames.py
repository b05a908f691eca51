"""Frames between edges and issuers, and the sockets that carry them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from estd import sockets
from estd.frames import (
    CANCEL,
    ENROLL,
    FRAME_MAX,
    RENEW,
    Answer,
    FrameError,
    Request,
    Splitter,
    pack_answer,
    pack_cancel,
    pack_request,
    unpack_answer,
    unpack_request,
)
from estd.sockets import Frame, FrameServer, Peer
from tests.servers import wait_for


def request(**changes: Any) -> Request:
    return Request(
        id=1, kind=ENROLL, label=0, deadline=12.5, user="factory", rule=1, binding=b"b" * 32, chain=b"chain",
        csr_der=b"csr", peer="192.0.2.7",
    )._replace(**changes)  # fmt: skip


REQUESTS = st.builds(
    Request,
    id=st.integers(1, 2**63),
    kind=st.sampled_from([ENROLL, RENEW]),
    label=st.integers(0, 255),
    deadline=st.floats(0, 1e9),
    user=st.none() | st.text(st.characters(codec="utf-8"), max_size=300),
    rule=st.integers(-1, 300),
    binding=st.binary(max_size=64),
    chain=st.binary(max_size=2000),
    csr_der=st.binary(max_size=2000),
    peer=st.text(st.characters(codec="ascii"), max_size=45),
    claim=st.binary(max_size=100),
    verdict=st.binary(max_size=500),
    revocation=st.binary(max_size=48),
    asked_key=st.just(b"") | st.binary(min_size=32, max_size=32),
)
ANSWERS = st.builds(
    Answer,
    id=st.integers(1, 2**63),
    status=st.sampled_from([200, 202, 400, 401, 403, 503]),
    reason=st.integers(0, 40),
    retry_after=st.integers(0, 600),
    identity=st.text(st.characters(codec="utf-8"), max_size=200),
    serial=st.binary(max_size=20),
    payload=st.binary(max_size=2000),
)


@given(REQUESTS)
@example(request(user=None))
@example(request(user=""))
@example(request(chain=b"", csr_der=b""))
def test_a_request_arrives_as_it_was_sent(sent: Request) -> None:
    """Every field survives, with no user told from the empty user."""
    data = b"before" + pack_request(sent, sent.id)
    assert unpack_request(data, 6, len(data)) == sent


@pytest.mark.parametrize("label", [256, 4000])
def test_an_instance_may_have_many_labels(label: int) -> None:
    """The configuration sets no limit to the number of labels, so a frame carries a label beyond the 256th."""
    data = pack_request(request(label=label), 1)
    assert unpack_request(data, 0, len(data)).label == label


@given(ANSWERS)
def test_an_answer_arrives_as_it_was_sent(sent: Answer) -> None:
    """Every field of an answer survives."""
    data = b"before" + pack_answer(sent)
    assert unpack_answer(data, 6, len(data)) == sent


def test_a_long_identity_is_cut_not_refused() -> None:
    """An identity beyond a kilobyte is cut, in the middle of a character if need be, and the payload stays whole."""
    got = unpack_answer(data := pack_answer(Answer(1, 200, 0, 0, "ß" * 2000, b"s", b"payload")), 0, len(data))
    assert got.identity.rstrip("�") == "ß" * len(got.identity.rstrip("�"))
    assert (got.serial, got.payload) == (b"s", b"payload")


def test_a_cancel_is_a_request_of_its_kind() -> None:
    """A cancel travels as a request with its number and nothing else."""
    got = unpack_request(data := pack_cancel(77), 0, len(data))
    assert (got.id, got.kind, got.chain, got.csr_der, got.user) == (77, CANCEL, b"", b"", None)


@given(frames=st.lists(REQUESTS, max_size=6), data=st.data())
def test_a_stream_is_cut_into_its_frames(frames: list[Request], data: st.DataObject) -> None:
    """However the stream is cut on its way, the same frames come out, in order."""
    stream = b"".join(pack_request(one, one.id) for one in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter = Splitter()
    got: list[Request] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += [unpack_request(*frame) for frame in splitter.feed(stream[start:end])]
    assert got == frames


def test_a_frame_that_is_too_long_is_a_broken_peer() -> None:
    """A length above the limit ends the connection before anything is gathered."""
    with pytest.raises(FrameError):
        list(Splitter().feed(struct.pack("<I", FRAME_MAX + 1)))


@given(sent=REQUESTS, data=st.data())
def test_a_broken_frame_is_a_frame_error(sent: Request, data: st.DataObject) -> None:
    """A frame that was cut or altered inside is read as some request or refused as FrameError: never another
    exception, which would end the issuer."""
    whole = bytearray(pack_request(sent, sent.id))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(4, len(whole)))])
    frame = struct.pack("<I", len(cut) - 4) + cut[4:]
    for one in Splitter().feed(frame):
        try:
            unpack_request(*one)
        except FrameError:
            continue


class _Room:
    """A FrameServer on a Unix socket that keeps what it is told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "door.sock"
        self.got: list[tuple[Peer, bytes]] = []
        self.gone: list[Peer] = []
        self.server = FrameServer(self._on_frames, self.gone.append)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.server.listen(self.listener, "requests")
        self._clients: list[socket.socket] = []

    def _on_frames(self, peer: Peer, arrived: Iterable[Frame]) -> None:
        for data, start, end in arrived:
            self.got.append((peer, data[start + 4 : end]))

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        self._clients.append(client)
        return client

    def until(self, condition: Callable[[], object]) -> None:
        def met() -> bool:
            self.server.poll(0.01)
            return bool(condition())

        wait_for(met, 20)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for peer in {peer for peer, _ in self.got}:
            self.server.drop(peer)
        self.listener.close()


@pytest.fixture
def room(folder: Path) -> Iterator[_Room]:
    made = _Room(folder)
    yield made
    made.close()


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def test_a_server_reads_whole_frames_of_many_peers(room: _Room) -> None:
    """What several peers sent is told with its peer and its door; half a frame waits for its rest."""
    one, other = room.connect(), room.connect()
    one.sendall(framed(b"a") + framed(b"bb")[:3])
    other.sendall(framed(b"x"))
    room.until(lambda: len(room.got) == 2)
    one.sendall(framed(b"bb")[3:])
    room.until(lambda: len(room.got) == 3)
    assert sorted(data for _, data in room.got) == [b"a", b"bb", b"x"]
    assert len({peer for peer, _ in room.got}) == 2
    assert {peer.door for peer, _ in room.got} == {"requests"}


def test_a_peer_that_leaves_is_told_once(room: _Room) -> None:
    """The end of a connection is told, and what is sent to it afterwards is dropped."""
    client = room.connect()
    client.sendall(framed(b"a"))
    room.until(lambda: room.got)
    client.close()
    room.until(lambda: room.gone)
    (peer,) = room.gone
    room.server.send(peer, b"late")
    room.server.drop(peer)
    assert room.gone == [peer]


def test_a_peer_that_breaks_the_frames_is_dropped(room: _Room) -> None:
    """A length beyond the limit closes that connection; another goes on."""
    bad, good = room.connect(), room.connect()
    bad.sendall(struct.pack("<I", FRAME_MAX + 1))
    room.until(lambda: room.gone)
    assert bad.recv(1) == b""
    good.sendall(framed(b"a"))
    room.until(lambda: room.got)


def test_what_a_slow_peer_does_not_take_goes_out_later(room: _Room) -> None:
    """An answer larger than the socket's buffer is sent in later polls, whole and in order."""
    client = room.connect()
    client.sendall(framed(b"a"))
    room.until(lambda: room.got)
    big = os.urandom(1 << 22)
    room.server.send(room.got[0][0], big)
    room.server.send(room.got[0][0], b"end")
    assert room.server.has_unsent
    received = bytearray()
    client.setblocking(False)

    def all_there() -> bool:
        with contextlib.suppress(BlockingIOError):
            received.extend(client.recv(1 << 20))
        return len(received) == len(big) + 3

    room.until(all_there)
    assert bytes(received) == big + b"end"
    assert not room.server.has_unsent


def test_a_peer_that_never_reads_is_given_up(room: _Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of unread bytes a connection is dropped, so that it cannot fill the memory."""
    monkeypatch.setattr(sockets, "_UNSENT_MAX", 1 << 16)
    client = room.connect()
    client.sendall(framed(b"a"))
    room.until(lambda: room.got)
    room.server.send(room.got[0][0], bytes(1 << 22))
    assert room.gone == [room.got[0][0]]


def test_another_user_is_turned_away(room: _Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """SO_PEERCRED: a connection of another user is closed before it is read."""
    uid = os.getuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    client = room.connect()
    client.setblocking(False)
    ends: list[bytes] = []

    def turned_away() -> bool:
        with contextlib.suppress(BlockingIOError):
            ends.append(client.recv(1))
        return bool(ends)

    room.until(turned_away)
    assert ends == [b""]


def test_a_signal_ends_the_wait(room: _Room) -> None:
    """A signal makes `poll` return, though nothing arrives: a drain is not slept through."""
    seen: list[int] = []
    kept = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        room.server.wake_on_signals()
        thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
        thread.start()
        while not seen:
            room.server.poll(3600.0)
        thread.join()
    finally:
        os.close(signal.set_wakeup_fd(-1))
        signal.signal(signal.SIGUSR1, kept)
    assert seen == [signal.SIGUSR1]
