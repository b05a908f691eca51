"""serverkeygen (RFC 7030 §4.4) at an edge: the key is made here, and the client's request is rebuilt around it.

Of the client's request its subject and attributes count; its key says which kind is wanted, and its signature nothing
(R29). The issuer is asked first whether the client may have such a certificate at all, so that nobody makes an edge
compute keys without a credential. A key lives from its making to its answer, in this process alone: it is neither
stored nor logged. `KeyMaker` is the seam where a token that makes and wraps keys would stand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from estd import attributes, csr, der, device_keys, frames
from estd.errors import BadRequest, Reason
from estd.labels import Label, Profile, profiles_of
from estd.side_thread import SideThread

_DECRYPT_KEYS = {
    "1.2.840.113549.1.9.16.2.37": "DecryptKeyIdentifier",
    "1.2.840.113549.1.9.16.2.54": "AsymmetricDecryptKeyIdentifier",
}
_WAITING_MAX = 8
"""RSA keys of an edge that are being made or wait for it; one more is told 503."""
_SHA256_WITH_RSA = "1.2.840.113549.1.1.11"
"""The one signature whose algorithm has parameters, NULL (RFC 4055)."""


class Made(NamedTuple):
    """A new key, and the client's request rebuilt around it."""

    csr_der: bytes
    private_key: bytes
    """PKCS#8, DER, unencrypted."""


class KeyMaker(Protocol):
    """Makes keys of a kind. A 503 where it has too many to make."""

    async def make(self, kind: str, asked_der: bytes) -> Made: ...


class SoftwareKeys:
    """Keys made by OpenSSL in this process: RSA in a thread, the others, which take microseconds, at once."""

    def __init__(self) -> None:
        self._thread = SideThread("keygen", _WAITING_MAX, "The server has more keys to generate than it takes.")

    async def make(self, kind: str, asked_der: bytes) -> Made:
        if not kind.startswith("rsa-"):
            return _make(kind, asked_der)
        return await self._thread.run(_make, kind, asked_der)


def _make(kind: str, asked_der: bytes) -> Made:
    key = device_keys.generate(kind)
    return Made(rebuilt(asked_der, key), key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def rebuilt(asked_der: bytes, key: device_keys.Key) -> bytes:
    """A request with the subject and the attributes of another, for `key` and signed by it. DER that was `read`."""
    tbs = csr.with_key(asked_der, key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    oid = device_keys.signature_algorithm(key)
    algorithm = der.tlv(der.SEQUENCE, der.oid(oid) + (der.NULL if oid == _SHA256_WITH_RSA else b""))
    return der.tlv(der.SEQUENCE, tbs + algorithm + der.tlv(der.BIT_STRING, b"\0" + device_keys.sign(key, tbs)))


def kinds(label: Label, profiles: Mapping[str, Profile]) -> tuple[str, ...]:
    """The kinds of key that the label generates: of those it names, the ones that a profile of its rules takes. With a
    registry all of them, for a device's row may have another profile."""
    if any(rule.registry is not None for rule in label.allow):
        return label.serverkeygen
    taken: set[str] = set().union(*(profiles[name].keys for name in profiles_of(label)))
    return tuple(kind for kind in label.serverkeygen if kind in taken)


def wanted_kind(asked_der: bytes) -> str:
    """The kind of the request's own key; empty where estd certifies no such key.

    A 400 where the octets are no request, or where it asks for a key that is encrypted beyond TLS (R30, R31): CMS is
    not there yet.
    """
    request = csr.load(asked_der)
    try:
        named = [name for oid, name in _DECRYPT_KEYS.items() if attributes.values_of(asked_der, oid)]
    except attributes.UNREADABLE:
        raise BadRequest(Reason.BAD_CSR, "The request's attributes cannot be read.") from None
    if named:
        raise BadRequest(
            Reason.DECRYPT_KEY,
            f"The request names a decryption key ({named[0]}) that this server does not know: it returns keys "
            "protected by TLS alone.",
        )
    try:
        return csr.key_kind(request.public_key())
    except (BadRequest, *attributes.UNREADABLE):
        return ""


def choose(wanted: str, offered: Sequence[str], taken: Collection[str]) -> str:
    """The wanted kind where it is offered and the client's profile takes it, else the first that is. A 400 where none
    is."""
    possible = [kind for kind in offered if kind in taken]
    if not possible:
        raise BadRequest(
            Reason.KEY_REFUSED,
            f"The profile takes keys of {', '.join(sorted(taken))}; this label makes keys of {', '.join(offered)}.",
        )
    return wanted if wanted in possible else possible[0]


class KeyService:
    """What an edge does for a serverkeygen."""

    def __init__(self, maker: KeyMaker) -> None:
        self._maker = maker
        self._stand_in = device_keys.generate("ec-p256")

    async def serve(
        self, asked_der: bytes, offered: tuple[str, ...], ask: Callable[[int, bytes], Awaitable[frames.Answer]]
    ) -> tuple[frames.Answer, bytes]:
        """The issuer's answer with the certificate, and the private key (PKCS#8, DER); `ask` raises its refusals."""
        wanted = wanted_kind(asked_der)
        leave = await ask(frames.MAY, rebuilt(asked_der, self._stand_in))
        made = await self._maker.make(choose(wanted, offered, leave.payload.decode().split(",")), asked_der)
        return await ask(frames.KEYGEN, made.csr_der), made.private_key
