"""The secrets in a request: challengePassword (RFC 2985), and RFC 7894's three attributes that end its overloading, one
purpose each.

Each holds one DirectoryString and is read by itself: several may stand in one request. Pure.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from estd import attributes, der
from estd.errors import BadRequest, Reason

_LENGTHS = range(1, 256)
"""Characters: ub-aa-otpChallenge, ub-aa-revocationChallenge, ub-aa-est-identity-linking."""
_STRINGS = {
    b"\x0c": "utf-8",  # UTF8String
    b"\x13": "ascii",  # PrintableString
    b"\x14": "latin-1",  # TeletexString, as it is written in practice
    b"\x16": "ascii",  # IA5String
    b"\x1c": "utf-32-be",  # UniversalString
    b"\x1e": "utf-16-be",  # BMPString
}
"""Tags, and how each string holds its characters."""
_DIRECTORY_STRINGS = frozenset(_STRINGS) - {b"\x16"}
"""RFC 5280 §4.1.2.4; clients in the field put a challengePassword into an IA5String, too."""


class Challenge(NamedTuple):
    """One of the attributes."""

    name: str
    oid: str
    oid_der: bytes
    defined: str
    tags: frozenset[bytes]
    lengths: range

    def may_be_in(self, csr_der: bytes) -> bool:
        """Whether the bytes may hold it: cheap enough for the edge, which does not parse."""
        return self.oid_der in csr_der

    def read(self, csr_der: bytes) -> bytes | None:
        """Its characters in UTF-8; None without one. A 400 where there are several, or it is no such string."""
        if self.oid_der not in csr_der:
            return None
        try:
            values = attributes.values_of(csr_der, self.oid)
        except attributes.UNREADABLE:
            raise self._refused("cannot be read, for the request's attributes cannot") from None
        if not values:
            return None
        if len(values) > 1 or len(values[0]) != 1:
            raise self._refused("has not one value, but none or several")
        tag = bytes(values[0][0].tag_bytes)
        if tag not in self.tags:
            raise self._refused("is not a DirectoryString")
        try:
            text = bytes(values[0][0].data).decode(_STRINGS[tag])
            encoded = text.encode()  # what is half a surrogate pair cannot be
        except UnicodeError:
            raise self._refused("has characters that its kind of string cannot have") from None
        if len(text) not in self.lengths:
            raise self._refused(f"has not {self.lengths[0]} to {self.lengths[-1]} characters")
        return encoded

    def _refused(self, how: str) -> BadRequest:
        return BadRequest(Reason.BAD_CSR, f"The request's {self.name} {how} ({self.defined}).")


def _challenge(
    name: str,
    oid: str,
    defined: str = "RFC 7894",
    tags: frozenset[bytes] = _DIRECTORY_STRINGS,
    lengths: range = _LENGTHS,
) -> Challenge:
    return Challenge(name, oid, der.oid(oid), defined, tags, lengths)


PASSWORD = _challenge(
    "challengePassword", "1.2.840.113549.1.9.7", "RFC 2985 §5.4.1", frozenset(_STRINGS), range(sys.maxsize)
)
"""The value that links the request to its TLS connection (RFC 7030 §3.5), or whatever the device likes."""
OTP = _challenge("otpChallenge", "1.2.840.113549.1.9.16.2.56")
"""A one-time password (§3.1)."""
REVOCATION = _challenge("revocationChallenge", "1.2.840.113549.1.9.16.2.57")
"""The secret by which its holder may later have the certificate revoked (§3.2)."""
IDENTITY_LINKING = _challenge("estIdentityLinking", "1.2.840.113549.1.9.16.2.58")
"""The value that links the request to its TLS connection (§3.3)."""
