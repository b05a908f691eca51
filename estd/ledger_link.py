"""The ledger's writer over a Unix socket: for issuers that are several, and for the command line.

There is one writer. With one issuer it is the issuer itself, with several a process of its own; either way it answers
on `run/ledger.sock`, one JSON object in a frame each way, blobs in base64. Reading needs nobody: every asker opens the
file read-only.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from estd.devices import DeviceKey, Use
from estd.ledger import LedgerBroken, LedgerError, Reader, Row, Writer

LEDGER_DOOR = "ledger"
"""The name of the listener on which the writer is asked."""
_LENGTH = struct.Struct("<I")
_TIMEOUT_SECONDS = 30.0
_BLOBS = ("serial", "certificate_der", "csr_sha256", "repeat_key", "renews")


def frame(message: dict[str, Any]) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


def _row_out(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = row._asdict()
    for name in _BLOBS:
        if out[name] is not None:
            out[name] = base64.b64encode(out[name]).decode()
    return out


def _row_in(data: dict[str, Any]) -> Row:
    blobs = {name: base64.b64decode(data[name]) for name in _BLOBS if data[name] is not None}
    return Row(**{**data, **blobs})


def _use_out(use: Use) -> list[Any]:
    return [use.certificate.hex(), list(use.key), use.secret.hex(), use.at_ms]


def _use_in(data: list[Any]) -> Use:
    return Use(bytes.fromhex(data[0]), DeviceKey(*data[1]), bytes.fromhex(data[2]), data[3])


class WriterService:
    """The writer's side. Messages that arrive together are written together."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def answer(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """An answer for each message. Raises LedgerBroken when the process must end, before any is acknowledged."""
        rows = [_row_in(row) for message in messages if message["do"] == "record" for row in message["rows"]]
        uses = [_use_in(use) for message in messages if message["do"] == "record" for use in message.get("uses", ())]
        lost = self._writer.record(rows, uses) if rows else set()
        return [self._one(message, lost) for message in messages]

    def _one(self, message: dict[str, Any], lost: set[bytes]) -> dict[str, Any]:
        match message["do"]:
            case "record":
                return {"ok": True, **({"lost": [one.hex() for one in lost]} if lost else {})}
            case "devices":
                try:
                    return {"ok": True, **self._writer.change_devices(message)}
                except LedgerBroken:
                    raise
                except LedgerError as refused:
                    return {"ok": False, "error": str(refused)}
            case "revoke":
                found = self._writer.revoke(bytes.fromhex(message["serial"]), message["when"], message["reason"])
                return {"ok": True, "found": found}
            case "health":
                self._writer.store_health(message["slot"], message["at"])
                return {"ok": True}
        return {"ok": False, "error": "unknown request"}


class RemoteWriter(Reader):
    """The ledger as seen from a process that does not write it: it reads the file and asks the writer to write.

    Blocking: its caller is an issuer between signing and answering, which has nothing else to do.
    """

    def __init__(self, ledger: Path, writer_socket: Path) -> None:
        super().__init__(ledger)
        self._path = writer_socket
        self._socket: socket.socket | None = None

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(_TIMEOUT_SECONDS)
                self._socket.connect(str(self._path))
            self._socket.sendall(frame(message))
            (length,) = _LENGTH.unpack(self._exactly(4))
            answer: dict[str, Any] = json.loads(self._exactly(length))
        except (OSError, ValueError) as error:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            raise LedgerBroken(f"the ledger's writer at {self._path} does not answer: {error}") from error
        if not answer["ok"]:
            raise LedgerError(answer["error"])
        return answer

    def _exactly(self, size: int) -> bytes:
        assert self._socket is not None
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise OSError("it closed the connection")
            data += part
        return bytes(data)

    def record(self, rows: Sequence[Row], uses: Sequence[Use] = ()) -> set[bytes]:
        asked = {"do": "record", "rows": [_row_out(row) for row in rows], "uses": [_use_out(use) for use in uses]}
        return {bytes.fromhex(one) for one in self._ask(asked).get("lost", ())}

    def change_devices(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._ask({"do": "devices", **message})

    def revoke(self, serial: bytes, when: int, reason: int) -> bool:
        return bool(self._ask({"do": "revoke", "serial": serial.hex(), "when": when, "reason": reason})["found"])

    def store_health(self, slot: int, at: float) -> None:
        self._ask({"do": "health", "slot": slot, "at": at})
