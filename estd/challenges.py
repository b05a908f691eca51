"""RFC 7894's attributes of a request: three that end the overloading of challengePassword, one purpose each.

Each holds one DirectoryString of 1 to 255 characters and is read by itself: several may stand in one request, beside a
challengePassword too. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from estd import attributes, der
from estd.errors import BadRequest, Reason

_MAX = 255
"""Characters: ub-aa-otpChallenge, ub-aa-revocationChallenge, ub-aa-est-identity-linking."""
_STRINGS = {
    b"\x0c": "utf-8",  # UTF8String
    b"\x13": "ascii",  # PrintableString
    b"\x14": "latin-1",  # TeletexString, as it is written in practice
    b"\x1c": "utf-32-be",  # UniversalString
    b"\x1e": "utf-16-be",  # BMPString
}
"""The tags of a DirectoryString (RFC 5280 §4.1.2.4), and how each holds its characters."""


class Challenge(NamedTuple):
    """One of the attributes."""

    name: str
    oid: str
    oid_der: bytes

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
        coding = _STRINGS.get(bytes(values[0][0].tag_bytes))
        if coding is None:
            raise self._refused("is not a DirectoryString")
        try:
            text = bytes(values[0][0].data).decode(coding)
            encoded = text.encode()  # what is half a surrogate pair cannot be
        except UnicodeError:
            raise self._refused("has characters that its kind of string cannot have") from None
        if not 1 <= len(text) <= _MAX:
            raise self._refused(f"has not 1 to {_MAX} characters")
        return encoded

    def _refused(self, how: str) -> BadRequest:
        return BadRequest(Reason.BAD_CSR, f"The request's {self.name} {how} (RFC 7894).")


def _challenge(name: str, oid: str) -> Challenge:
    return Challenge(name, oid, der.oid(oid))


OTP = _challenge("otpChallenge", "1.2.840.113549.1.9.16.2.56")
"""A one-time password (§3.1)."""
REVOCATION = _challenge("revocationChallenge", "1.2.840.113549.1.9.16.2.57")
"""The secret by which its holder may later have the certificate revoked (§3.2)."""
IDENTITY_LINKING = _challenge("estIdentityLinking", "1.2.840.113549.1.9.16.2.58")
"""The value that links the request to its TLS connection (§3.3)."""
