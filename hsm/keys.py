"""Make a CA's key in a token, list what is there, and let `cryptography` sign with it.

`signer` is for the few certificates that are not made by the thousand (a root, a server certificate): a private key
object whose `sign` asks the token, so that cryptography's own builders can be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from hsm.errors import TokenRefused, classify
from hsm.session import Job, Session, SigningKey
from hsm.token import PublicKey, Token, public_key_of

KeyKind = Literal["ec-p256", "ec-p384", "rsa-3072"]
_CURVE_NAMES = {"ec-p256": "secp256r1", "ec-p384": "secp384r1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A private key in the token."""

    key_id: bytes
    label: str
    public_key: PublicKey | None


def generate(token: Token, *, kind: KeyKind, key_id: bytes, label: str) -> PublicKey:
    """A new key pair, which never leaves the token (sensitive, not extractable). Raises TokenRefused where the CKA_ID
    is taken."""
    session = token.session(rw=True)
    if list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id})):
        raise TokenRefused("key_exists", f"the token already holds a key with CKA_ID {key_id.hex()}")
    private = {
        Attribute.SIGN: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.DECRYPT: False,
        Attribute.UNWRAP: False, Attribute.DERIVE: False,
    }  # fmt: skip
    public = {Attribute.VERIFY: True, Attribute.ENCRYPT: False, Attribute.WRAP: False, Attribute.DERIVE: False}
    try:
        if kind == "rsa-3072":
            session.generate_keypair(
                KeyType.RSA, 3072, id=key_id, label=label, store=True, private_template=private, public_template=public
            )
        else:
            curve = {Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVE_NAMES[kind])}
            parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
            parameters.generate_keypair(
                id=key_id, label=label, store=True, private_template=private, public_template=public
            )
    except Exception as error:
        raise classify(error, "making a key") from error
    made = public_key_of(session, key_id)
    session.close()
    assert made is not None
    return made


def list_keys(token: Token) -> list[StoredKey]:
    """The private keys in the token."""
    session = token.session()
    try:
        found = [
            (bytes(key[Attribute.ID]), str(key[Attribute.LABEL]))
            for key in session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})
        ]
    except Exception as error:
        raise classify(error, "listing the keys") from error
    return [StoredKey(key_id=key_id, label=label, public_key=public_key_of(session, key_id)) for key_id, label in found]


def remove_half(token: Token, key_id: bytes) -> bool:
    """Whether a whole pair with that CKA_ID is there. What an interrupted `generate` left of one is destroyed: a second
    public key with that CKA_ID would be taken for the new pair's. Raises a TokenError."""
    session = token.session(rw=True)
    try:
        found = {
            kind: list(session.get_objects({Attribute.CLASS: kind, Attribute.ID: key_id}))
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
        }
        if all(len(objects) == 1 for objects in found.values()):
            return True
        for one in [*found[ObjectClass.PRIVATE_KEY], *found[ObjectClass.PUBLIC_KEY]]:
            one.destroy()
        return False
    except Exception as error:
        raise classify(error, f"removing what is left of the key {key_id.hex()}") from error
    finally:
        session.close()


def signer(token: Token, key_id: bytes) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    """The token's key in the shape that cryptography's builders take. Raises TokenRefused where it is not there."""
    public_key = public_key_of(token.login_session, key_id)
    if public_key is None:
        raise TokenRefused("NoSuchKey", f"the token holds no public key with CKA_ID {key_id.hex()}")
    session = Session(token, {"key": SigningKey(key_id=key_id, public_key=public_key)})
    if isinstance(public_key, rsa.RSAPublicKey):
        return _TokenRsaKey(session, public_key)
    return _TokenEcKey(session, public_key)


class _InToken:
    """What a key that stays in its token cannot do."""

    def __init__(self, session: Session, public_key: Any) -> None:
        self._session = session
        self._public_key = public_key

    def public_key(self) -> Any:
        return self._public_key

    @property
    def key_size(self) -> int:
        return int(self._public_key.key_size)

    def _signed(self, data: bytes, algorithm: object) -> bytes:
        wanted = "sha384" if self.key_size == 384 else "sha256"
        if not isinstance(algorithm, hashes.HashAlgorithm) or algorithm.name != wanted:
            raise ValueError(f"this key signs with {wanted}")
        return self._session.sign(Job("key", bytes(data)))

    def _stays(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("the key stays in its token")

    private_bytes = private_numbers = exchange = decrypt = _stays

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class _TokenEcKey(_InToken, ec.EllipticCurvePrivateKey):
    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public_key.curve  # type: ignore[no-any-return]

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        return self._signed(data, signature_algorithm.algorithm)


class _TokenRsaKey(_InToken, rsa.RSAPrivateKey):
    def sign(self, data: Any, padding_: Any, algorithm: Any) -> bytes:
        if not isinstance(padding_, padding.PKCS1v15):
            raise ValueError("this key signs with PKCS #1 v1.5")
        return self._signed(data, algorithm)
