"""A device as the registry knows it: its key, its row, and the one-time secret that lets it enrol once. Values only."""

from __future__ import annotations

import re
from typing import NamedTuple

_SERIAL_NUMBER = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?")
_IDENTITY = "device:"
SECRET_BYTES = 32
"""Octets of the SHA-256 that stands for a secret."""


class DeviceKey(NamedTuple):
    """A serial number is its manufacturer's, and a row lets into one label: together they are unique."""

    label: str
    manufacturer: str
    """Empty where nobody else's serial numbers are in the label."""
    serial_number: str

    @property
    def identity(self) -> str:
        """How logs and the ledger call the device. Certificates keep it when they are renewed, so that a device whose
        row is disabled is known by its certificate."""
        return f"{_IDENTITY}{self.label}/{self.manufacturer}/{self.serial_number}"

    def renewed_by(self, who: str) -> str:
        """The same, where another asked for the device; no serial number has a tab."""
        return f"{self.identity}\t{who}"


class Device(NamedTuple):
    """One row, in the order of the ledger's columns."""

    label: str
    manufacturer: str
    serial_number: str
    profile: str | None
    """None: the rule's."""
    names: str
    """The names that were given to it, as `given_names.pack` writes them; empty: the rule makes them."""
    enabled: bool
    secret: bytes | None
    """SHA-256 of its one-time secret."""
    secret_until: int | None
    """Seconds since 1970."""
    secret_used_ms: int | None
    """Milliseconds since 1970 at which a certificate was recorded for the secret."""
    added_at: int

    @property
    def key(self) -> DeviceKey:
        return DeviceKey(self.label, self.manufacturer, self.serial_number)


class Use(NamedTuple):
    """A one-time secret is used for a certificate: one transaction records both, or neither."""

    certificate: bytes
    """Its serial number."""
    key: DeviceKey
    secret: bytes
    at_ms: int


class Claim(NamedTuple):
    """A serial number and a secret that some device presents; nothing is checked yet."""

    serial_number: str
    secret: bytes
    """Its SHA-256."""
    by: str
    """"basic" or "otpChallenge"."""


def pack_claim(claim: Claim | None) -> bytes:
    """The claim as it travels from an edge to an issuer, which is told the way by the way it came."""
    return b"" if claim is None else claim.secret + claim.serial_number.encode()


def unpack_claim(data: bytes) -> Claim | None:
    """Raises UnicodeDecodeError where it is no claim."""
    if len(data) <= SECRET_BYTES:
        return None
    return Claim(data[SECRET_BYTES:].decode(), data[:SECRET_BYTES], "basic")


def key_of_identity(identity: str) -> DeviceKey | None:
    """The device that a certificate was issued to, None where it was issued to no device of the registry."""
    if not identity.startswith(_IDENTITY):
        return None
    label, _, rest = identity.removeprefix(_IDENTITY).partition("/")
    manufacturer, _, serial_number = rest.partition("\t")[0].partition("/")
    return DeviceKey(label, manufacturer, serial_number)


def is_serial_number(text: str) -> bool:
    """1 to 64 visible ASCII characters, spaces inside."""
    return _SERIAL_NUMBER.fullmatch(text) is not None


def is_manufacturer(text: str) -> bool:
    """Nothing, or as a serial number, without a slash."""
    return not text or (is_serial_number(text) and "/" not in text)
