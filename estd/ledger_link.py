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
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from estd import metrics
from estd.devices import DeviceKey, Use
from estd.ledger import NO_CHALLENGES, LedgerBroken, LedgerError, LeftOut, Reader, Row, Writer
from estd.ledger_crls import CrlRecord
from estd.ledger_requests import DECISIONS, NOTHING_HELD, Decision, Held, Waiting

LEDGER_DOOR = "ledger"
"""The name of the listener on which the writer is asked."""
_LENGTH = struct.Struct("<I")
_TIMEOUT_SECONDS = 30.0
_INDEX_SECONDS = 600.0
"""An index over millions of rows is read from a disk once."""
_BLOBS = ("serial", "certificate_der", "csr_sha256", "repeat_key", "renews")
_HELD_BLOBS = ("key", "renews", "spki_sha256")


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


def _held_out(held: Held) -> dict[str, Any]:
    waiting = [one._asdict() for one in held.waiting]
    for one in waiting:
        one.update({name: base64.b64encode(one[name]).decode() for name in _HELD_BLOBS if one[name] is not None})
    return {"waiting": waiting, "issued": {serial.hex(): number for serial, number in held.issued.items()}}


def _held_in(messages: Sequence[dict[str, Any]]) -> Held:
    """What several batches change, as one change."""
    told = [message["held"] for message in messages if message.get("held")]
    if not told:
        return NOTHING_HELD
    waiting = [
        Waiting(**{**one, **{name: base64.b64decode(one[name]) for name in _HELD_BLOBS if one[name] is not None}})
        for held in told
        for one in held["waiting"]
    ]
    return Held(waiting, {bytes.fromhex(one): number for held in told for one, number in held["issued"].items()})


def _use_out(use: Use) -> list[Any]:
    return [use.certificate.hex(), list(use.key), use.secret.hex(), use.at_ms]


def _use_in(data: list[Any]) -> Use:
    return Use(bytes.fromhex(data[0]), DeviceKey(*data[1]), bytes.fromhex(data[2]), data[3])


class WriterService:
    """The writer's side. Messages that arrive together are written together. Decisions are counted in `slot`."""

    def __init__(self, writer: Writer | RemoteWriter, slot: metrics.Slot | None = None) -> None:
        self._writer = writer
        self._slot = slot

    def answer(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """An answer for each message. Raises LedgerBroken when the process must end, before any is acknowledged."""
        batches = [message for message in messages if message["do"] == "record"]
        rows = [_row_in(row) for message in batches for row in message["rows"]]
        held = _held_in(batches)
        uses = [_use_in(use) for message in batches for use in message.get("uses", ())]
        kept = {serial: one for message in batches for serial, one in message.get("challenges", {}).items()}
        challenges = {bytes.fromhex(serial): bytes.fromhex(one) for serial, one in kept.items()}
        left_out = self._writer.record(rows, held, uses, challenges) if rows or held is not NOTHING_HELD else {}
        recorded: dict[str, Any] = {"ok": True}
        if left_out:
            recorded["left_out"] = {serial.hex(): why for serial, why in left_out.items()}
        return [recorded if message["do"] == "record" else self._one(message) for message in messages]

    def _decide(self, message: dict[str, Any]) -> bool:
        decision = Decision(message["state"], message["at"], message["by"], message["reason"])
        done = self._writer.decide(message["request"], message["seen"], decision)
        if done and self._slot is not None:
            self._slot.count(metrics.DECISIONS.series(decision.state))
        return done

    def _one(self, message: dict[str, Any]) -> dict[str, Any]:
        """What cannot be done with one message is that message's answer alone: its transaction is rolled back."""
        try:
            return self._done(message)
        except LedgerBroken:
            raise
        except LedgerError as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:
            return {"ok": False, "error": f"the ledger's writer failed: {error!r}"[:500]}

    def _done(self, message: dict[str, Any]) -> dict[str, Any]:
        match message["do"]:
            case "decide" if message["state"] in DECISIONS:
                return {"ok": True, "done": self._decide(message)}
            case "devices":
                return {"ok": True, **self._writer.change_devices(message)}
            case "revoke":
                found = self._writer.revoke(bytes.fromhex(message["serial"]), message["when"], message["reason"])
                return {"ok": True, "found": found}
            case "supersede":
                self._writer.supersede([bytes.fromhex(one) for one in message["serials"]], message["when"])
                return {"ok": True}
            case "crl":
                self._writer.store_crl(CrlRecord(*message["record"]))
                return {"ok": True}
            case "want_crl":
                self._writer.want_crl(message["ca"])
                return {"ok": True}
            case "index_subjects":
                self._writer.index_subjects(message["labels"])
                return {"ok": True}
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

    def _ask(self, message: dict[str, Any], seconds: float = _TIMEOUT_SECONDS) -> dict[str, Any]:
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(_TIMEOUT_SECONDS)
                self._socket.connect(str(self._path))
            self._socket.settimeout(seconds)
            self._socket.sendall(frame(message))
            (length,) = _LENGTH.unpack(self._exactly(4))
            answer: dict[str, Any] = json.loads(self._exactly(length))
        except (OSError, ValueError) as error:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            why = str(error)
            if isinstance(error, FileNotFoundError | ConnectionRefusedError):
                why = "nobody is there; where an instance in another folder serves this ledger, name its configuration"
            raise LedgerBroken(f"the ledger's writer at {self._path} does not answer: {why}") from error
        if not answer["ok"]:
            raise LedgerError(answer["error"])
        return answer

    def close(self) -> None:
        super().close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exactly(self, size: int) -> bytes:
        assert self._socket is not None
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise OSError("it closed the connection")
            data += part
        return bytes(data)

    def record(
        self,
        rows: Sequence[Row],
        held: Held = NOTHING_HELD,
        uses: Sequence[Use] = (),
        challenges: Mapping[bytes, bytes] = NO_CHALLENGES,
    ) -> Mapping[bytes, LeftOut]:
        message: dict[str, Any] = {"do": "record", "rows": [_row_out(row) for row in rows]}
        if held is not NOTHING_HELD:
            message["held"] = _held_out(held)
        if uses:
            message["uses"] = [_use_out(use) for use in uses]
        if challenges:
            message["challenges"] = {serial.hex(): one.hex() for serial, one in challenges.items()}
        return {bytes.fromhex(serial): why for serial, why in self._ask(message).get("left_out", {}).items()}

    def decide(self, number: int, seen: str, decision: Decision) -> bool:
        return bool(self._ask({"do": "decide", "request": number, "seen": seen, **decision._asdict()})["done"])

    def change_devices(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._ask({"do": "devices", **message})

    def revoke(self, serial: bytes, when: int, reason: int) -> bool:
        return bool(self._ask({"do": "revoke", "serial": serial.hex(), "when": when, "reason": reason})["found"])

    def supersede(self, serials: Sequence[bytes], when: int) -> None:
        self._ask({"do": "supersede", "serials": [one.hex() for one in serials], "when": when})

    def store_crl(self, record: CrlRecord) -> None:
        self._ask({"do": "crl", "record": list(record)})

    def want_crl(self, ca: str) -> None:
        self._ask({"do": "want_crl", "ca": ca})

    def index_subjects(self, labels: Collection[str]) -> None:
        self._ask({"do": "index_subjects", "labels": sorted(labels)}, _INDEX_SECONDS)

    def store_health(self, slot: int, at: float) -> None:
        self._ask({"do": "health", "slot": slot, "at": at})
