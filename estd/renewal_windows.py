"""What an issuer answers to renewal-info: many questions, one look into the ledger, no call to the token.

A label tells of its own CA's certificates alone; what is another's, or nobody's, is the same 404. A certificate that
lets nobody in any more (revoked, or its device's row is disabled or gone) is told a window that is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from cryptography import x509

from estd import renewal_info
from estd.config import Config
from estd.devices import Device, DeviceKey, key_of_identity
from estd.errors import EstError, NotFound, Reason, Unavailable, retry_seconds
from estd.frames import Answer, Request
from estd.issuance import SERIAL_BYTES
from estd.items import refusal
from estd.labels import RENEWAL_WINDOW
from estd.ledger import Row

TOGETHER_MAX = 32
"""Questions answered in one go; then a batch of enrolments has its turn."""


class Ledger(Protocol):
    """The seam to the ledger. Every call may raise LedgerError."""

    def find_many(self, serials: Collection[bytes]) -> Mapping[bytes, Row]: ...
    def find_devices(self, keys: Collection[DeviceKey]) -> Mapping[DeviceKey, Device]: ...


class RenewalWindows:
    """One issuer's answers."""

    def __init__(self, config: Config, report: Callable[..., None], clock: Callable[[], float] = time.time) -> None:
        self._profiles = config.profiles
        self._cas = [label.ca for label in config.labels.values()]
        self._ca_of = {label.name: label.ca for label in config.labels.values()}
        self._report = report
        self._clock = clock

    def answer(self, questions: Sequence[Request], ledger: Ledger) -> list[Answer]:
        """An answer for each, in their order."""
        now = self._clock()
        try:
            rows = ledger.find_many({_ledger_serial(one.chain) for one in questions})
            keys = {key for row in rows.values() if (key := key_of_identity(row.identity)) is not None}
            devices = ledger.find_devices(keys) if keys else {}
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step="renewal_windows")
            trouble = Unavailable(Reason.INTERNAL, "The ledger could not be asked; the server's log says why.")
            return [refusal(one.id, trouble) for one in questions]
        answers: list[Answer] = []
        for one in questions:
            try:
                answers.append(self._one(one, rows.get(_ledger_serial(one.chain)), devices, now))
            except EstError as error:
                answers.append(refusal(one.id, error))
        return answers

    def _one(self, question: Request, row: Row | None, devices: Mapping[DeviceKey, Device], now: float) -> Answer:
        if time.monotonic() > question.deadline:
            raise Unavailable(Reason.DEADLINE, "The request waited too long for its turn.")
        if row is None or question.label >= len(self._cas) or self._ca_of.get(row.label) != self._cas[question.label]:
            raise _unknown()
        asked = renewal_info.CertId(question.binding, question.chain)
        if renewal_info.cert_id(x509.load_der_x509_certificate(row.certificate_der)) != asked:
            raise _unknown()
        issued = row.issued_at_ms // 1000
        profile = self._profiles.get(row.profile)
        percents = profile.renewal_window if profile is not None else RENEWAL_WINDOW
        window = renewal_info.suggest(row.serial, issued, row.not_after, percents)
        if row.revoked_at is not None:
            window = renewal_info.at_once(window, min(row.revoked_at, now))
        elif _is_shut_out(row, devices):
            window = renewal_info.at_once(window, now)
        again = retry_seconds(renewal_info.ask_seconds(issued, row.not_after))
        return Answer(question.id, 200, 0, again, "", row.serial, renewal_info.body(window))


def _is_shut_out(row: Row, devices: Mapping[DeviceKey, Device]) -> bool:
    """Whether it was issued to a device of the registry whose row is disabled or gone."""
    key = key_of_identity(row.identity)
    if key is None:
        return False
    device = devices.get(key)
    return device is None or not device.enabled


def _unknown() -> NotFound:
    return NotFound(Reason.UNKNOWN_CERTIFICATE, "This CA has issued no such certificate, as far as this label tells.")


def _ledger_serial(content: bytes) -> bytes:
    """A serial number as the ledger has it."""
    return content.lstrip(b"\0").rjust(SERIAL_BYTES, b"\0")
