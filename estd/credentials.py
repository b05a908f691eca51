"""Basic credentials (RFC 7617 over TLS only, RFC 7030 §3.2.3): a file of names and hashes, and the check.

One line a credential, `NAME:$sha256$HEX` for a generated secret of 128 bits or more, `NAME:$scrypt$SALT$HASH` for a
password that a person chose. The name may be empty (R6). Passwords cost 66 ms of scrypt, so they are checked off the
loop, a few at a time, and a right one is remembered for a minute as its keyed hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from estd.errors import Reason, Unauthenticated
from estd.side_thread import SideThread

_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}
_WAITING_MAX = 32
_REMEMBER_SECONDS = 60.0
_REMEMBER_MAX = 4096
_LOOK_AGAIN_SECONDS = 1.0
_STORED = re.compile(r"\$sha256\$[0-9A-Fa-f]{64}|\$scrypt\$(?:[0-9A-Fa-f]{2})+\$[0-9A-Fa-f]{64}")


def generate() -> str:
    """A secret of 160 random bits, as text that fits a command line."""
    return base64.b32encode(secrets.token_bytes(20)).decode().lower()


def line(user: str, secret: str, *, generated: bool) -> str:
    """The credential as its line in the file. Raises ValueError where the name cannot stand in one."""
    if ":" in user or not (user.isprintable() or not user):
        raise ValueError("a user name has no colon and only printable characters (RFC 7617)")
    if generated:
        return f"{user}:$sha256${hashlib.sha256(secret.encode()).hexdigest()}"
    salt = os.urandom(16)
    return f"{user}:$scrypt${salt.hex()}${hashlib.scrypt(secret.encode(), salt=salt, **_SCRYPT).hex()}"


def parse(text: str) -> dict[str, str]:
    """Names and hashes in a credentials file. Raises ValueError that names the line."""
    found: dict[str, str] = {}
    for number, one in enumerate(text.splitlines(), 1):
        if not one.strip() or one.startswith("#"):
            continue
        user, _, stored = one.partition(":")
        if not _STORED.fullmatch(stored.strip()):
            raise ValueError(f"line {number} is not NAME:$sha256$HEX or NAME:$scrypt$SALT$HASH")
        found[user] = stored.strip()
    return found


def _matches(secret: bytes, stored: str) -> bool:
    words = stored.split("$")
    if words[1] == "sha256":
        return hmac.compare_digest(hashlib.sha256(secret).hexdigest(), words[2].lower())
    made = hashlib.scrypt(secret, salt=bytes.fromhex(words[2]), **_SCRYPT)
    return hmac.compare_digest(made.hex(), words[3].lower())


def read_header(authorization: str) -> tuple[str, bytes]:
    """User name and password of an Authorization header. A 401 where it is not Basic."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise Unauthenticated(Reason.WRONG_CREDENTIAL, "The Authorization header is not of the scheme Basic.")
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).partition(b":")
        if not colon:
            raise ValueError
        return user.decode("utf-8"), password
    except (binascii.Error, ValueError):
        raise Unauthenticated(Reason.WRONG_CREDENTIAL, "The Basic credential is not base64 of name:password.") from None


class Credentials:
    """One credentials file; changes are seen within a second. By a file that cannot be read nobody gets in, for it may
    have been changed to keep somebody out; `report` hears so once."""

    def __init__(self, path: Path, report: Callable[..., None]) -> None:
        self._path = path
        self._report = report
        self._fault = ""
        self._stamp: object = None
        self._stored: dict[str, str] = {}
        self._look_again = 0.0
        self._key = os.urandom(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()
        self._thread = SideThread("scrypt", _WAITING_MAX, "Too many passwords are being checked; come back later.")

    async def check(self, user: str, password: bytes) -> bool:
        """Whether the password is the user's. A 503 where too many passwords are being checked."""
        self._refresh()
        stored = self._stored.get(user)
        if stored is None:
            # As slow as a wrong password where people's are kept, so that the clock does not tell their names.
            stored = next((one for one in self._stored.values() if "$scrypt$" in one), "$sha256$")
        if stored.startswith("$sha256$"):
            return _matches(password, stored) and user in self._stored
        remembered = hmac.digest(self._key, b"\0".join((user.encode(), stored.encode(), password)), "sha256")
        if self._right.get(remembered, 0.0) > time.monotonic():
            return True
        if not await self._thread.run(_matches, password, stored) or user not in self._stored:
            return False
        self._right[remembered] = time.monotonic() + _REMEMBER_SECONDS
        if len(self._right) > _REMEMBER_MAX:
            self._right.popitem(last=False)
        return True

    def _refresh(self) -> None:
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_AGAIN_SECONDS
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._stamp:
                self._stored = parse(self._path.read_text(encoding="utf-8"))
                self._stamp = stamp
                self._fault = ""
        except (OSError, ValueError) as error:
            self._stored = {}
            self._stamp = None
            if self._fault != str(error):
                self._fault = str(error)
                self._report("credentials_unreadable", file=str(self._path), why=self._fault)
