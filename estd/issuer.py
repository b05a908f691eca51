"""The issuer process: it owns the token's sessions and works through batches, one after the other.

One plain loop without an event loop: read whatever has arrived, take at most a batch of it, run the line, answer. So
an idle issuer answers at once and a busy one amortises. What it cannot trust any more (a fatal answer of the token, a
ledger that failed) ends the process with answers for everybody; the supervisor makes it anew.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from estd import frames, metrics
from estd.batch import BATCH_MAX, BatchLine, Fatal
from estd.config import Config
from estd.crl_keeper import CrlKeeper
from estd.crl_signers import CrlSigner
from estd.errors import EXIT_FATAL, EXIT_REFUSED
from estd.frames import Request
from estd.labels import with_registrars
from estd.ledger import LedgerError, Reader, Writer, wait_for_writer
from estd.ledger_link import LEDGER_DOOR, RemoteWriter, WriterService, frame
from estd.logs import Log
from estd.material import Material, load, read_pin
from estd.renewal_windows import TOGETHER_MAX, RenewalWindows
from estd.repeats import Repeats
from estd.sockets import Frame, FrameServer, Peer
from estd.starting import Exclusive, Turn, refused_pin
from estd.superseding import SIGHTINGS_MAX
from hsm.errors import TokenError
from hsm.pool import SessionPool
from hsm.session import Job, SigningKey
from hsm.token import Token, holds

_HEALTH_SECONDS = 2.0
_GATHER_SECONDS = 0.001
_GATHER_MAX = 4
"""Beyond this a commit is shared well enough, and to wait would cost more of the rate than it spares of the CPU."""
_TAKE_SECONDS = 5.0
"""For whoever writes the ledger to hand it over: the end of a batch, or of a command."""
_RECALL_OVERLAP_MS = 1000
_PROBE = b"estd health probe: not a certificate, a CRL or anything else\0"
"""No DER begins so: what is signed here is of use to nobody."""


def open_signer(config: Config, material: Material, *, refused: Path | None = None) -> SessionPool:
    """The token's sessions with every CA's key. Raises a TokenError. Those with one file `refused` try a wrong PIN once
    among them."""
    for name, value in config.token.environment:
        os.environ[name] = value
    token = Token.open(
        module=config.token.module,
        label=config.token.label,
        pin=read_pin(config),
        startup_lock=config.run / "token.lock",
        refused=refused,
    )
    keys = {
        name: SigningKey(key_id=material.key_ids[name], public_key=material.cas[name].public_key) for name in config.cas
    }
    for one in material.crls:
        if one.is_former and holds(token.login_session, one.key_id):
            keys[one.name] = SigningKey(key_id=one.key_id, public_key=one.ca.public_key)
    return SessionPool(token, keys, config.token.sessions)


def crls_of(material: Material, signer: SessionPool) -> list[CrlSigner]:
    """The CRLs that can be signed: a former key may have been destroyed meanwhile."""
    return [one for one in material.crls if one.name in signer.names]


class IssuerProcess:
    def __init__(
        self, *, config: Config, index: int, listeners: dict[str, socket.socket], slot: metrics.Slot, log: Log,
        turn: Turn, handing_over: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._config = config
        self._slot = slot
        self._log = log
        self._index = index
        self._handing_over = handing_over
        self._requests: deque[tuple[Peer, Request]] = deque()
        self._questions: deque[tuple[Peer, Request]] = deque()
        self._cancelled: set[tuple[Peer, int]] = set()
        self._sighted: deque[bytes] = deque(maxlen=SIGHTINGS_MAX)
        self._draining = False
        self._handed_over = False
        self._beside = 0
        """How many were being worked on or had arrived when the last batch was answered."""
        self._server = FrameServer(self._on_frames, self._on_gone)
        self._service: WriterService | None = None
        self._writer: Writer | None = None
        material = load(config)
        self._signer = open_signer(config, material, refused=refused_pin(config.run, turn.generation))
        self._holds = any(label.approval.held != "off" for label in config.labels.values())
        self._probe_ca = next(iter(config.cas))
        self._sign_probe(list(config.cas))
        self._recalled_ms = int(time.time() * 1000)
        with Reader(config.ledger) as reader:
            self._repeats = _recall(config, reader)
            turn.prepared()
            self._ledger: Writer | RemoteWriter = self._take_ledger(writes=turn.writes)
        # What a generation that retires issues to the last is answered again too. Its only issuer records through this
        # process (_answer_ledger); several record elsewhere, so the ledger is looked at from time to time.
        self._recall_more()
        several = turn.generation > 1 and config.server.issuers > 1
        self._recalls_until = time.monotonic() + 2 * config.server.drain_seconds if several else 0.0
        self._line = BatchLine(
            material=material,
            signer=self._signer,
            ledger=self._ledger,
            repeats=self._repeats,
            slot=slot,
            report=log,
        )
        self._keeps_crls = index == 0 and turn.writes and any(ca.crl.on for ca in config.cas.values())
        self._crl_turn = Exclusive(config.run / "crl.lock")
        self._crls: CrlKeeper | None = None
        self._material = material
        self._windows = RenewalWindows(config, log)
        self._keep_crls()
        for door, listener in listeners.items():
            if door != LEDGER_DOOR or turn.writes:
                self._server.listen(listener, door)
        self._listeners = listeners
        self._server.wake_on_signals()

    def _take_ledger(self, *, writes: bool) -> Writer | RemoteWriter:
        """The ledger to write: this process's own, as soon as whoever writes it now hands it over, or another's."""
        ledger: Writer | RemoteWriter
        if self._config.server.issuers > 1 or not writes:
            ledger = RemoteWriter(self._config.ledger, self._config.run / "ledger.sock")
        else:
            ledger = self._writer = wait_for_writer(self._config.ledger, _TAKE_SECONDS)
            self._service = WriterService(self._writer, self._slot)
        if writes and self._index == 0:
            ledger.index_subjects(with_registrars(self._config.labels))
        return ledger

    def _keep_crls(self) -> None:
        """Keep the CRLs, once no other generation does: two would give one number twice."""
        if not self._keeps_crls or self._crls is not None or not self._crl_turn.take():
            return
        self._crls = CrlKeeper(
            crls=crls_of(self._material, self._signer), ledger=self._ledger, signer=self._signer, slot=self._slot,
            report=self._log,
        )  # fmt: skip

    def _hand_over(self) -> None:
        """The next generation serves now: leave the CRLs to it, and the ledger where this process writes it."""
        self._handed_over = True
        self._keeps_crls, self._crls = False, None  # one that is half made is made anew, with the next number
        self._crl_turn.give()
        if self._writer is None:
            return
        remote = RemoteWriter(self._config.ledger, self._config.run / "ledger.sock")
        self._server.close_door(self._listeners[LEDGER_DOOR])
        self._writer.close()
        self._writer = None
        self._service = WriterService(remote)  # who asks here already is answered
        self._ledger = remote
        self._line.use(remote)
        self._log("ledger_handed_over")

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
            elif request.kind == frames.WHEN:
                self._questions.append((peer, request))
            else:
                self._requests.append((peer, request))

    def _answer_ledger(self, peer: Peer, message: dict[str, Any]) -> None:
        """The requests of the command line, and of a generation that retires, between batches."""
        if self._service is None:
            answer: dict[str, Any] = {"ok": False, "error": "this process does not write the ledger"}
        else:
            answer = self._service.answer([message])[0]
        if message.get("do") == "record" and answer["ok"]:
            left_out = answer.get("left_out", ())
            for row in message["rows"]:
                if base64.b64decode(row["serial"]).hex() in left_out:
                    continue
                self._repeats.add(base64.b64decode(row["repeat_key"]), row["issued_at_ms"])
        self._server.send(peer, frame(answer))

    def _on_gone(self, peer: Peer) -> None:
        """Nobody waits for these any more: what is not signed yet never will be."""
        self._requests = deque(one for one in self._requests if one[0] is not peer)
        self._questions = deque(one for one in self._questions if one[0] is not peer)
        self._cancelled = {one for one in self._cancelled if one[0] is not peer}

    def drain(self, *_: object) -> None:
        self._draining = True

    def run(self) -> int:
        """Until told to drain; returns the exit status."""
        health_at = 0.0
        making_crls = False
        while True:
            now = time.monotonic()
            if not self._handed_over and self._handing_over():
                self._hand_over()
            if now >= health_at:
                if (status := self._probe()) != 0:
                    return status
                health_at = now + _HEALTH_SECONDS
            until = health_at if self._crls is None else min(health_at, self._crls.look_at)
            at_work = self._requests or self._questions or making_crls
            self._server.poll(0 if at_work else max(0.0, until - time.monotonic()))
            if self._requests:
                self._gather()
                if (status := self._batch()) != 0:
                    return status
            elif self._draining and not self._questions and not self._server.has_unsent:
                return 0
            if self._questions:
                self._answer_questions()
            self._line.settle(self._sighted)
            self._sighted.clear()
            making_crls = self._crls is not None and self._crls.step()

    def _answer_questions(self) -> None:
        """Some of them, in one go, so that whoever enrolls waits for no more than these."""
        taken = [self._questions.popleft() for _ in range(min(len(self._questions), TOGETHER_MAX))]
        answers = self._windows.answer([question for _, question in taken], self._ledger)
        for (peer, _), given in zip(taken, answers, strict=True):
            self._server.send(peer, frames.pack_answer(given))

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
        status = 0
        self._slot.set(metrics.BUSY_SINCE.at, time.monotonic())
        try:
            answers = self._line.run([request for _, request in taken])
        except Fatal as fatal:
            answers = fatal.answers
            self._log("issuer_ends", why=str(fatal))
            status = EXIT_FATAL
        self._slot.set(metrics.BUSY_SINCE.at, 0.0)
        out: dict[Peer, list[bytes]] = {}
        for (peer, _), answer in zip(taken, answers, strict=True):
            out.setdefault(peer, []).append(frames.pack_answer(answer))
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
            self._sign_probe([self._probe_ca])
            if time.monotonic() < self._recalls_until:
                self._recall_more()
            self._ledger.store_health(self._index, time.time())
            if self._holds and self._index == 0:
                self._tell_waiting()
            self._keep_crls()
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

    def _sign_probe(self, cas: Sequence[str]) -> None:
        """Raises a TokenError where one of these CAs' keys does not sign."""
        for result in self._signer.sign_many([Job(ca, _PROBE + os.urandom(16)) for ca in cas]):
            if isinstance(result, TokenError):
                raise result

    def _recall_more(self) -> None:
        """What another generation's issuer has answered meanwhile."""
        since_ms, self._recalled_ms = self._recalled_ms - _RECALL_OVERLAP_MS, int(time.time() * 1000)
        for repeat_key, serial in self._ledger.repeat_keys_since(since_ms):
            self._repeats.add(repeat_key, int.from_bytes(serial[:6], "big"))


def _recall(config: Config, ledger: Reader) -> Repeats:
    """What was answered in the last window, by the ledger: a device that lost its answer to a crash gets it again."""
    now_ms = int(time.time() * 1000)
    window_ms = max(label.repeat_seconds for label in config.labels.values()) * 1000
    repeats = Repeats(window_ms, now_ms - window_ms)
    for repeat_key, serial in ledger.repeat_keys_since(now_ms - window_ms):
        repeats.add(repeat_key, int.from_bytes(serial[:6], "big"))
    return repeats


def main(
    config: Config, index: int, listeners: dict[str, socket.socket], slot: metrics.Slot, log: Log, turn: Turn
) -> int:
    """The child process `issuer`."""
    hand_over = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: hand_over.set())
    try:
        process = IssuerProcess(
            config=config, index=index, listeners=listeners, slot=slot, log=log, turn=turn,
            handing_over=hand_over.is_set,
        )  # fmt: skip
    except Exception as error:
        log("issuer_start_failed", why=str(error))
        turn.failed(str(error))
        return EXIT_REFUSED if isinstance(error, TokenError) and error.is_of_pin else EXIT_FATAL
    signal.signal(signal.SIGTERM, process.drain)
    log("issuer_ready", index=index, python=sys.version.split()[0])
    try:
        return process.run()
    except (LedgerError, TokenError) as error:  # at a revocation or a CRL; batches and probes say theirs themselves
        log("issuer_ends", why=str(error))
        return EXIT_FATAL
