"""When a certificate had best be renewed (R51, draft-ietf-lamps-est-renewal-info, which is RFC 9773 for EST): how it is
named in a path, which window it is told, and how that is written. Pure.

A profile's window is a part of its certificates' lives. Each certificate is told a share of that, at a place that its
serial number's random bits choose. So a fleet that was enrolled within a minute is spread evenly whatever its devices
do: draw a time once, as RFC 9773 has it, draw again each time they ask, or begin when the window does.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509

from estd.errors import BadRequest, Reason

KEY_ID_MAX = 64
SERIAL_MAX = 21
"""20 octets (RFC 5280 §4.1.2.2), and the 0 before a first bit that is set."""
SHARES = 8
"""A certificate's own window is so many times smaller than its profile's."""
ASK_PARTS = 12
"""A device asks so often in a certificate's life,"""
ASK_SECONDS = (60, 6 * 3600)
"""but no more and no less often than this; `retry_seconds` puts up to as much again on top."""

_PART = r"[A-Za-z0-9_-]"
_TEXT = re.compile(rf"({_PART}{{1,{KEY_ID_MAX * 4 // 3 + 1}}})\.({_PART}{{1,{SERIAL_MAX * 4 // 3}}})")


class CertId(NamedTuple):
    """How RFC 9773 §4.1 names a certificate."""

    key_id: bytes
    """The keyIdentifier of its AuthorityKeyIdentifier."""
    serial: bytes
    """The content octets of its serial number's DER: a first bit that is set has a 0 before it."""

    def __str__(self) -> str:
        return f"{_encoded(self.key_id)}.{_encoded(self.serial)}"


class Window(NamedTuple):
    """Seconds since 1970; the end is later than the start."""

    start: int
    end: int


def _encoded(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    """Raises ValueError unless this is how the octets are written."""
    octets = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _encoded(octets) != text:
        raise ValueError("it ends in bits that mean nothing")
    return octets


def read(text: str) -> CertId:
    """The certificate that a path names. A 400 where it names none."""
    found = _TEXT.fullmatch(text)
    try:
        if found is None:
            raise ValueError("there are not two such parts of a certificate's lengths")
        asked = CertId(_decoded(found[1]), _decoded(found[2]))
        number = int.from_bytes(asked.serial, "big", signed=True)
        if number < 0 or asked.serial != _content(number):
            raise ValueError("the serial number is not in DER")
    except (ValueError, binascii.Error) as error:
        raise BadRequest(
            Reason.BAD_CERT_ID,
            "renewal-info takes a certificate's identifier: the AuthorityKeyIdentifier's keyIdentifier and the serial "
            f"number, each base64url without padding, a dot between them (RFC 9773 §4.1); {error}.",
        ) from None
    return asked


def _content(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def cert_id(certificate: x509.Certificate) -> CertId:
    """How the certificate is named. Raises ValueError where it does not say which key signed it."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        raise ValueError("the certificate has no AuthorityKeyIdentifier, by which renewal-info knows it") from None
    if found.value.key_identifier is None:
        raise ValueError("the certificate's AuthorityKeyIdentifier has no keyIdentifier")
    return CertId(found.value.key_identifier, _content(certificate.serial_number))


def suggest(serial: bytes, issued: int, not_after: int, percents: tuple[int, int]) -> Window:
    """A certificate's own share of its profile's window, inside its life from `issued` to `not_after`.

    The life counts from when it was issued: notBefore lies before that (a profile's backdate), which is much for a
    certificate of hours.
    """
    life = not_after - issued
    first, last = (issued + life * percent // 100 for percent in percents)
    width = max(1, (last - first) // SHARES)
    place = int.from_bytes(serial[-4:], "big")
    start = first + (max(0, last - first - width) * place >> 32)
    return Window(start, start + width)


def at_once(suggested: Window, since: float) -> Window:
    """A window as long, which ended at `since`: for a certificate that is of no use any more."""
    return Window(int(since) - (suggested.end - suggested.start), int(since))


def ask_seconds(issued: int, not_after: int) -> int:
    """After how long it is asked for again at the earliest."""
    least, most = ASK_SECONDS
    return max(least, min(most, (not_after - issued) // ASK_PARTS))


def body(window: Window) -> bytes:
    """The answer (RFC 9773 §4.2)."""
    start, end = (datetime.fromtimestamp(one, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for one in window)
    return json.dumps({"suggestedWindow": {"start": start, "end": end}}, separators=(",", ":")).encode() + b"\n"


def read_body(content: bytes) -> Window:
    """What a server suggests. Raises ValueError where it is no such answer."""
    try:
        told = json.loads(content)["suggestedWindow"]
        times = [datetime.fromisoformat(told[name]) for name in ("start", "end")]
        window = Window(*(int(one.timestamp()) for one in times))
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"it has no suggestedWindow with start and end: {error!r}") from None
    if any(one.tzinfo is None for one in times) or window.end <= window.start:
        raise ValueError("its window is none: times have a zone, and the end is later than the start")
    return window
