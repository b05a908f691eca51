"""The ledger process: the one writer where there are several issuers. As greedy as they are: what has arrived while
the last transaction was being made durable goes into the next."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterable
from typing import Any

from estd import metrics
from estd.config import Config
from estd.errors import EXIT_FATAL
from estd.ledger import LedgerError, Writer
from estd.ledger_link import LEDGER_DOOR, WriterService, frame
from estd.logs import Log
from estd.sockets import Frame, FrameServer, Peer


class LedgerProcess:
    def __init__(self, *, config: Config, listener: socket.socket, slot: metrics.Slot, log: Log) -> None:
        self._service = WriterService(Writer(config.ledger), slot)
        self._log = log
        self._arrived: list[tuple[Peer, dict[str, Any]]] = []
        self._draining = False
        self._server = FrameServer(self._on_frames, self._on_gone)
        self._server.listen(listener, LEDGER_DOOR)
        self._server.wake_on_signals()

    def _on_frames(self, peer: Peer, arrived: Iterable[Frame]) -> None:
        self._arrived += [(peer, json.loads(data[start + 4 : end])) for data, start, end in arrived]

    def _on_gone(self, peer: Peer) -> None:
        """What a peer asked for before it died is written all the same: it may have been acknowledged elsewhere."""

    def drain(self, *_: object) -> None:
        self._draining = True

    def run(self) -> int:
        """Until told to drain; returns the exit status."""
        while not self._draining:
            self._server.poll(1.0)
            if self._arrived:
                arrived, self._arrived = self._arrived, []
                try:
                    answers = self._service.answer([message for _, message in arrived])
                except LedgerError as error:
                    self._log("ledger_ends", why=str(error))
                    return EXIT_FATAL
                for (peer, _), answer in zip(arrived, answers, strict=True):
                    self._server.send(peer, frame(answer))
        return 0


def main(config: Config, listener: socket.socket, slot: metrics.Slot, log: Log) -> int:
    """The child process `ledger`."""
    try:
        process = LedgerProcess(config=config, listener=listener, slot=slot, log=log)
    except LedgerError as error:
        log("ledger_start_failed", why=str(error))
        return EXIT_FATAL
    signal.signal(signal.SIGTERM, process.drain)
    log("ledger_ready")
    return process.run()
