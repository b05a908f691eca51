"""A revocationChallenge (RFC 7894 §3.2): what the ledger keeps of it, and whether a challenge fits that.

A person may have chosen it, so it is kept as salted scrypt. That takes 66 ms, which an issuer between two batches does
not have: an edge computes it in a thread, after an issuer has said that the client may have the certificate, so that
nobody makes an edge compute without a credential.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from estd.side_thread import SideThread

_SALT_BYTES = 16
_HASH_BYTES = 32
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": _HASH_BYTES}
_WAITING_MAX = 32
"""Challenges of an edge that are being hashed or wait for it; one more is told 503."""


def hashed(challenge: bytes, salt: bytes | None = None) -> bytes:
    """16 octets of salt, random where none is given, and 32 of scrypt; `challenge` is UTF-8."""
    salt = salt or os.urandom(_SALT_BYTES)
    return salt + hashlib.scrypt(challenge, salt=salt, **_SCRYPT)


def in_file(content: bytes) -> bytes:
    """The challenge that a file holds: the line's end after it does not count, all else does."""
    return content.removesuffix(b"\n").removesuffix(b"\r")


def prove(kept: bytes | None, given: bytes) -> None:
    """Raises ValueError unless `given`, a file's content, holds the challenge that was `hashed` to `kept`."""
    if kept is None:
        raise ValueError(
            "the certificate was issued without a revocationChallenge; nothing was revoked. Without --challenge-file "
            "it can be revoked all the same"
        )
    if not hmac.compare_digest(hashed(in_file(given), kept[:_SALT_BYTES]), kept):
        raise ValueError("the challenge does not fit the certificate's revocationChallenge; nothing was revoked")


class Hashing:
    """An edge's thread for it."""

    def __init__(self) -> None:
        self._thread = SideThread(
            "challenge", _WAITING_MAX, "The server has more revocation challenges to hash than it takes."
        )

    async def hashed(self, challenge: bytes) -> bytes:
        """As the function. A 503 where too many wait."""
        return await self._thread.run(hashed, challenge)
