"""What the registry holds of the devices in a batch, asked once; and who has guessed wrong too often.

A label without registry rules costs a look into a tuple, and a certificate of ours that was issued to no device of the
registry the start of a string.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from estd import challenges, csr, names, registry
from estd.device_rules import RegistryRule
from estd.devices import Device, DeviceKey, key_of_identity, unpack_claim
from estd.errors import EstError, Reason
from estd.frames import Request
from estd.policy import Client, Evidence, LabelPolicy
from estd.registry import Told
from estd.verdicts import unpack

WRONG_MAX = 10
"""Wrong secrets for one serial number; then it has to wait."""
WINDOW_SECONDS = 60.0
_WATCHED_MAX = 4096
"""Serial numbers whose wrong secrets are counted; the one that was wrong first makes room for another."""


class WrongSecrets:
    """A small closed table: how often a wrong secret came for a serial number, known or not, in the last minute.

    With 160 random bits in a secret it is no shield against guessing, but against the work and the noise that guessing
    makes. What it costs: who knows a serial number can keep its device waiting (docs/devices.md).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[tuple[int, str], tuple[int, float]] = OrderedDict()

    def left(self, label: int, serial_number: str) -> int:
        """The seconds for which no secret is looked at, as there were too many; 0 where one is."""
        count, since = self._wrong.get((label, serial_number), (0, 0.0))
        left = since + WINDOW_SECONDS - self._clock()
        return int(left) + 1 if count >= WRONG_MAX and left > 0 else 0

    def add(self, label: int, serial_number: str) -> None:
        count, since = self._wrong.pop((label, serial_number), (0, 0.0))
        now = self._clock()
        self._wrong[label, serial_number] = (count + 1, since) if now - since < WINDOW_SECONDS else (1, now)
        if len(self._wrong) > _WATCHED_MAX:
            self._wrong.popitem(last=False)

    def __len__(self) -> int:
        return len(self._wrong)


class Devices(Protocol):
    """The seam to the registry's rows. Every call may raise LedgerError."""

    def find_devices(self, keys: Collection[DeviceKey]) -> Mapping[DeviceKey, Device]: ...


class Held(Protocol):
    """What the ledger holds of a certificate of ours."""

    @property
    def identity(self) -> str: ...


class Asking(Protocol):
    """A request on its way down the line."""

    request: Request
    evidence: Evidence | None
    csr: csr.CertificationRequest | None


T = TypeVar("T", bound=Asking)


class Enquiry:
    """One issuer's questions to the registry."""

    def __init__(self, ledger: Devices, policies: Collection[LabelPolicy], report: Callable[..., None]) -> None:
        self._ledger = ledger
        self._report = report
        self._rules: list[tuple[RegistryRule, ...]] = [
            tuple(rule.allow.registry for rule in one.rules if rule.allow.registry is not None) for one in policies
        ]
        self._by_otp = [any("otpChallenge" in rule.secrets for rule in rules) for rules in self._rules]
        self._concerned = [any(rule.allow.registry or rule.allow.hook for rule in one.rules) for one in policies]
        self.wrong = WrongSecrets()

    def use(self, ledger: Devices) -> None:
        """Go on with another ledger, from the next batch on."""
        self._ledger = ledger

    def told(self, item: Asking) -> Told | None:
        """What the request itself brings, None in a label that asks nobody; its rows come with `ask`. Where a one-time
        password stands in the CSR, that is parsed, for its names say whose it is. A 400 for what cannot be read."""
        request = item.request
        if not self._concerned[request.label]:
            return None
        challenge = challenges.OTP.read(request.csr_der) if self._by_otp[request.label] else None
        asked: names.Names | None = None
        if challenge is not None:
            item.csr = csr.parse(request.csr_der)
            asked = names.of_extensions(item.csr.subject, item.csr.extensions)
        told = Told(
            claim=unpack_claim(request.claim),
            otp_sha256=hashlib.sha256(challenge).digest() if challenge is not None else b"",
            asked=asked,
            devices={},
            verdict=unpack(request.verdict),
            throttled={},
        )
        waits = {number: self.wrong.left(request.label, number) for number in self._claimed(request.label, told)}
        return told._replace(throttled={number: left for number, left in waits.items() if left})

    def _claimed(self, label: int, told: Told) -> set[str]:
        claims = (registry.claim_by(rule, told) for rule in self._rules[label])
        return {claim.serial_number for claim in claims if claim is not None}

    def ask(self, items: Sequence[T], held: Mapping[bytes, Held]) -> list[T]:
        """Put the rows that concern them into the items' evidence, asked for in one go: by certificate, by claim, and
        by the device that a certificate of ours was issued to. Returns those to which the registry did not answer."""
        wanted: list[tuple[T, Evidence]] = []
        keys: set[DeviceKey] = set()
        for item in items:
            if not held and not self._rules[item.request.label]:
                continue  # in most batches nobody is known, and nobody asked
            assert item.evidence is not None
            found = self._keys(item.request.label, item.evidence, held)
            if found:
                wanted.append((item, item.evidence))
                keys |= found
        if not keys:
            return []
        try:
            devices = self._ledger.find_devices(keys)
        except Exception as error:
            self._report("step_failed", error=repr(error)[:500], step="find_devices")
            return [item for item, _ in wanted]
        for item, evidence in wanted:
            item.evidence = evidence._replace(told=evidence.told._replace(devices=devices))
        return []

    def _keys(self, label: int, evidence: Evidence, held: Mapping[bytes, Held]) -> set[DeviceKey]:
        wanted: set[DeviceKey | None] = set()
        certificate = evidence.certificate
        if certificate is not None and certificate.serial in held:
            wanted.add(key_of_identity(held[certificate.serial].identity))
        own = certificate.names if certificate is not None else None
        for rule in self._rules[label]:
            wanted.add(registry.key_by(rule, evidence.label, evidence.told, own))
        return {key for key in wanted if key is not None}

    def judged(self, label: int, evidence: Evidence, client: Client | None, refusals: Sequence[EstError]) -> None:
        """Count a wrong secret: one that a rule refused and none took, whatever else the client was let in by or
        told."""
        if client is not None and client.secret is not None:
            return
        if any(one.reason is Reason.WRONG_CREDENTIAL for one in refusals):
            for number in self._claimed(label, evidence.told):
                self.wrong.add(label, number)
