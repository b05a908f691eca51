"""Sign on one session, and check each signature with the public key before anybody sees it.

A session belongs to one thread. What goes to the token is a digest of the right length: CKM_ECDSA on SoftHSM signs
anything from 0 to 200 bytes without a word.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from pkcs11 import Mechanism

from hsm.errors import TokenError, TokenFatal, TokenRefused, TokenTransient, classify
from hsm.token import PublicKey, Token, private_key_of, public_key_of

_TRIES = 3
_PAUSE_SECONDS = 0.02
_DIGEST_INFO_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")
"""The DER of a DigestInfo (RFC 8017 §9.2 note 1) up to the digest: CKM_RSA_PKCS signs a DigestInfo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A key in the token and the public key that its certificate states."""

    key_id: bytes
    public_key: PublicKey

    @property
    def hash_name(self) -> str:
        return "sha384" if self.public_key.key_size == 384 else "sha256"


class Job(NamedTuple):
    key: str
    """Name of the key, as given to Session."""
    data: bytes
    """What the signature is over."""


class _Ready(NamedTuple):
    private: Any
    public: PublicKey
    digest: Any
    prehashed: utils.Prehashed
    ecdsa: ec.ECDSA
    digest_bytes: int
    half_bytes: int
    """Length of r and of s; 0 for RSA."""


class Session:
    """One session with its keys. `sign` raises; `sign_many` gives each job its signature or its error."""

    def __init__(self, token: Token, keys: Mapping[str, SigningKey]) -> None:
        """Opens the session and finds the keys. Raises TokenRefused where one is missing or not its certificate's."""
        self._token = token
        self._keys = dict(keys)
        self._pid = os.getpid()
        self._open()

    def _open(self) -> None:
        self._session = self._token.session()
        self._ready = {name: self._find(name, key) for name, key in self._keys.items()}

    def _find(self, name: str, key: SigningKey) -> _Ready:
        stored = public_key_of(self._session, key.key_id)
        if stored is not None and stored.public_numbers() != key.public_key.public_numbers():
            raise TokenRefused(
                "wrong_key", f"the key {key.key_id.hex()} in the token is not the key in the certificate of {name!r}"
            )
        elliptic = isinstance(key.public_key, ec.EllipticCurvePublicKey)
        algorithm = hashes.SHA384() if key.hash_name == "sha384" else hashes.SHA256()
        return _Ready(
            private=private_key_of(self._session, key.key_id),
            public=key.public_key,
            digest=getattr(hashlib, key.hash_name),
            prehashed=utils.Prehashed(algorithm),
            ecdsa=ec.ECDSA(utils.Prehashed(algorithm)),
            digest_bytes=algorithm.digest_size,
            half_bytes=key.public_key.key_size // 8 if elliptic else 0,
        )

    def sign(self, job: Job) -> bytes:
        """A verified signature: DER ECDSA-Sig-Value or RSASSA-PKCS1-v1_5. Raises a TokenError; what may pass is tried
        three times on a new session, because an operation that failed may have left the old one busy."""
        for attempt in range(_TRIES):
            try:
                return self._sign_once(job)
            except TokenTransient:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(_PAUSE_SECONDS * 4**attempt)
                with suppress(Exception):
                    self._session.close()
                self._open()
        raise AssertionError

    def _sign_once(self, job: Job) -> bytes:
        if os.getpid() != self._pid:
            raise TokenRefused("forked", "this process was forked from the one that opened the session")
        key = self._ready[job.key]
        digest = key.digest(job.data).digest()
        assert len(digest) == key.digest_bytes
        try:
            if key.half_bytes:
                raw = key.private.sign(digest, mechanism=Mechanism.ECDSA)
            else:
                raw = key.private.sign(_DIGEST_INFO_SHA256 + digest, mechanism=Mechanism.RSA_PKCS)
        except Exception as error:
            raise classify(error, "signing") from error
        try:
            if key.half_bytes:
                signature = ecdsa_der(raw, key.half_bytes)
                key.public.verify(signature, digest, key.ecdsa)  # type: ignore[arg-type,call-arg]
            else:
                signature = raw
                key.public.verify(signature, digest, padding.PKCS1v15(), key.prehashed)  # type: ignore[arg-type,call-arg]
        except (InvalidSignature, ValueError):
            raise TokenFatal("bad_signature", "the token gave a signature that does not verify") from None
        return signature

    def sign_many(self, jobs: Sequence[Job]) -> list[bytes | TokenError]:
        """A signature or an error for each job, in their order. After a fatal error no further call is made: the rest
        get the same error, and the caller makes its process anew."""
        results: list[bytes | TokenError] = []
        for job in jobs:
            try:
                results.append(self.sign(job))
            except TokenTransient as error:
                results.append(error)
            except TokenError as error:
                results += [error] * (len(jobs) - len(results))
                break
        return results


def ecdsa_der(raw: bytes, half_bytes: int) -> bytes:
    """ECDSA-Sig-Value (RFC 3279 §2.2.3) from the token's r || s. Raises ValueError where the length is wrong."""
    if len(raw) != 2 * half_bytes:
        raise ValueError(f"a signature of {len(raw)} bytes, not {2 * half_bytes}")
    r, s = _uint(raw[:half_bytes]), _uint(raw[half_bytes:])
    return bytes((0x30, len(r) + len(s))) + r + s  # at most 2 × (2 + 49) octets, so the short form of the length


def _uint(octets: bytes) -> bytes:
    value = octets.lstrip(b"\0") or b"\0"
    if value[0] & 0x80:
        value = b"\0" + value
    return bytes((0x02, len(value))) + value
