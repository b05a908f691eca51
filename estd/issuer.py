"""The issuer process: it owns the token's sessions and works through batches, one after the other.

One plain loop without an event loop: read whatever has arrived, take at most a batch of it, run the line, answer. So
an idle issuer answers at once and a busy one amortises. What it cannot trust any more (a fatal answer of the token, a
ledger that failed) ends the process with answers for everybody; the supervisor makes it anew.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable

from estd import frames, metrics
from estd.batch import BATCH_MAX, BatchLine, Fatal, Ledger
from estd.config import Config
from estd.crl_keeper import CrlKeeper
from estd.errors import EXIT_FATAL, EXIT_REFUSED
from estd.frames import Request
from estd.labels import with_registrars
from estd.ledger import LedgerError, Writer
from estd.ledger_link import LEDGER_DOOR, RemoteWriter, WriterService, frame
from estd.logs import Log
from estd.material import Material, load, read_pin
from estd.repeats import Repeats
from estd.sockets import Frame, FrameServer, Peer
from estd.superseding import SIGHTINGS_MAX
from hsm.errors import TokenError
from hsm.pool import SessionPool
from hsm.session import Job, SigningKey
from hsm.token import Token

_HEALTH_SECONDS = 2.0
_GATHER_SECONDS = 0.001
_GATHER_MAX = 4
"""Beyond this a commit is shared well enough, and to wait would cost more of the rate than it spares of the CPU."""
_PROBE = b"estd health probe: not a certificate, a CRL or anything else\0"
"""No DER begins so: what is signed here is of use to nobody."""


def open_signer(config: Config, material: Material) -> SessionPool:
    """The token's sessions with every CA's key. Raises a TokenError."""
    for name, value in config.token.environment:
        os.environ[name] = value
    token = Token.open(
        module=config.token.module,
        label=config.token.label,
        pin=read_pin(config),
        startup_lock=config.run / "token.lock",
    )
    keys = {
        name: SigningKey(key_id=ca.key_id, public_key=material.cas[name].public_key) for name, ca in config.cas.items()
    }
    return SessionPool(token, keys, config.token.sessions)


class IssuerProcess:
    def __init__(
        self, *, config: Config, index: int, listeners: dict[str, socket.socket], slot: metrics.Slot, log: Log
    ) -> None:
        self._slot = slot
        self._log = log
        self._index = index
        self._requests: deque[tuple[Peer, Request]] = deque()
        self._cancelled: set[tuple[Peer, int]] = set()
        self._sighted: deque[bytes] = deque(maxlen=SIGHTINGS_MAX)
        self._draining = False
        self._beside = 0
        """How many were being worked on or had arrived when the last batch was answered."""
        self._server = FrameServer(self._on_frames, self._on_gone)
        self._service: WriterService | None = None
        material = load(config)
        self._ledger: Writer | RemoteWriter
        if config.server.issuers == 1:
            writer = Writer(config.ledger)
            writer.index_subjects(with_registrars(config.labels))
            self._ledger = writer
            self._service = WriterService(writer, slot)
        else:
            self._ledger = RemoteWriter(config.ledger, config.run / "ledger.sock")
        self._signer = open_signer(config, material)
        self._holds = any(label.approval.held != "off" for label in config.labels.values())
        self._probe_ca = next(iter(config.cas))
        self._line = BatchLine(
            material=material,
            signer=self._signer,
            ledger=self._ledger,
            repeats=_recall(config, self._ledger),
            slot=slot,
            report=log,
        )
        self._crls = CrlKeeper(
            plans={name: ca.crl for name, ca in config.cas.items()} if index == 0 else {},
            cas=material.cas, ledger=self._ledger, signer=self._signer, slot=slot, report=log,
        )  # fmt: skip
        for door, listener in listeners.items():
            self._server.listen(listener, door)
        self._server.wake_on_signals()

    def _on_frames(self, peer: Peer, arrived: Iterable[Frame]) -> None:
        for data, start, end in arrived:
            if peer.door == LEDGER_DOOR:
                self._answer_ledger(peer, json.loads(data[start + 4 : end]))
                continue
            request = frames.unpack_request(data, start, end)
            if request.kind == frames.CANCEL:
                self._cancelled.add((peer, request.id))
            elif request.kind == frames.SEEN:
                self._sighted.append(request.chain)
            else:
                self._requests.append((peer, request))

    def _answer_ledger(self, peer: Peer, message: dict[str, object]) -> None:
        """The command line's requests, between batches."""
        if self._service is None:
            answer: dict[str, object] = {"ok": False, "error": "this process does not write the ledger"}
        else:
            answer = self._service.answer([message])[0]
        self._server.send(peer, frame(answer))

    def _on_gone(self, peer: Peer) -> None:
        """Nobody waits for these any more: what is not signed yet never will be."""
        self._requests = deque(one for one in self._requests if one[0] is not peer)
        self._cancelled = {one for one in self._cancelled if one[0] is not peer}

    def drain(self, *_: object) -> None:
        self._draining = True

    def run(self) -> int:
        """Until told to drain; returns the exit status."""
        health_at = 0.0
        has_crls, making_crls = bool(self._crls), False
        while True:
            now = time.monotonic()
            if now >= health_at:
                if (status := self._probe()) != 0:
                    return status
                health_at = now + _HEALTH_SECONDS
            until = min(health_at, self._crls.look_at) if has_crls else health_at
            self._server.poll(0 if self._requests or making_crls else max(0.0, until - time.monotonic()))
            if self._requests:
                self._gather()
                if (status := self._batch()) != 0:
                    return status
            elif self._draining and not self._server.has_unsent:
                return 0
            self._line.settle(self._sighted)
            self._sighted.clear()
            if has_crls:
                making_crls = self._crls.step()

    def _gather(self) -> None:
        """Wait a moment for as many as asked beside each other in the last batch: few clients then share a commit and
        a wake-up too, and one alone never waits."""
        until = time.monotonic() + _GATHER_SECONDS
        wanted = min(self._beside, _GATHER_MAX)
        while len(self._requests) < wanted and (left := until - time.monotonic()) > 0:
            self._server.poll(left)

    def _batch(self) -> int:
        taken: list[tuple[Peer, Request]] = []
        while self._requests and len(taken) < BATCH_MAX:
            peer, request = self._requests.popleft()
            if (peer, request.id) not in self._cancelled:
                taken.append((peer, request))
            else:
                self._cancelled.discard((peer, request.id))
        if not self._requests:
            self._cancelled.clear()
        if not taken:
            return 0
        # Numbered anew for the batch: two edges may use one number.
        renumbered = [request._replace(id=index) for index, (_, request) in enumerate(taken)]
        status = 0
        self._slot.set(metrics.BUSY_SINCE.at, time.monotonic())
        try:
            answers = self._line.run(renumbered)
        except Fatal as fatal:
            answers = fatal.answers
            self._log("issuer_ends", why=str(fatal))
            status = EXIT_FATAL
        self._slot.set(metrics.BUSY_SINCE.at, 0.0)
        out: dict[Peer, list[bytes]] = {}
        for answer in answers:
            peer, request = taken[answer.id]
            out.setdefault(peer, []).append(frames.pack_answer(answer._replace(id=request.id)))
        for peer, parts in out.items():
            self._server.send(peer, b"".join(parts))
        self._server.poll(0)
        self._beside = len(taken) + len(self._requests)
        if status:
            self._flush()
        return status

    def _flush(self) -> None:
        until = time.monotonic() + 1.0
        while self._server.has_unsent and time.monotonic() < until:
            self._server.poll(0.05)

    def _probe(self) -> int:
        """Sign and store something, so that ready means able (never a certificate: see _PROBE)."""
        self._slot.set(metrics.BUSY_SINCE.at, time.monotonic())
        try:
            (result,) = self._signer.sign_many([Job(self._probe_ca, _PROBE + os.urandom(16))])
            if isinstance(result, TokenError):
                raise result
            self._ledger.store_health(self._index, time.time())
            if self._holds and self._index == 0:
                self._tell_waiting()
        except Exception as error:
            self._log("issuer_ends", why=str(error))
            return EXIT_FATAL
        self._slot.set(metrics.BUSY_SINCE.at, 0.0)
        self._slot.set(metrics.READY_AT.at, time.time())
        return 0

    def _tell_waiting(self) -> None:
        """What waits for a person, for the metrics: one issuer tells for all."""
        now_ms = int(time.time() * 1000)
        count, oldest_ms = self._ledger.requests.queue(now_ms)
        self._slot.set(metrics.WAITING.at, count)
        self._slot.set(metrics.WAITING_SECONDS.at, (now_ms - oldest_ms) / 1000 if count else 0.0)


def _recall(config: Config, ledger: Ledger) -> Repeats:
    """What was answered in the last window, by the ledger: a device that lost its answer to a crash gets it again."""
    now_ms = int(time.time() * 1000)
    window_ms = max(label.repeat_seconds for label in config.labels.values()) * 1000
    repeats = Repeats(window_ms, now_ms - window_ms)
    for repeat_key, serial in ledger.repeat_keys_since(now_ms - window_ms):
        repeats.add(repeat_key, int.from_bytes(serial[:6], "big"))
    return repeats


def main(config: Config, index: int, listeners: dict[str, socket.socket], slot: metrics.Slot, log: Log) -> int:
    """The child process `issuer`."""
    try:
        process = IssuerProcess(config=config, index=index, listeners=listeners, slot=slot, log=log)
    except TokenError as error:
        log("issuer_start_failed", why=str(error))
        return EXIT_REFUSED if error.code.startswith("Pin") else EXIT_FATAL
    except Exception as error:
        log("issuer_start_failed", why=str(error))
        return EXIT_FATAL
    signal.signal(signal.SIGTERM, process.drain)
    log("issuer_ready", index=index, python=sys.version.split()[0])
    try:
        return process.run()
    except (LedgerError, TokenError) as error:  # at a revocation or a CRL; batches and probes say theirs themselves
        log("issuer_ends", why=str(error))
        return EXIT_FATAL
