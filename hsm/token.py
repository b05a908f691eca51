"""One PKCS#11 token: its module loaded so that several threads may call it, one login, its keys found by CKA_ID.

The order at start-up is: take the start-up lock (SoftHSM's initialisation fails when four processes do it at once),
initialise, open a session, log in once and never again with a PIN that was wrong, open further sessions under that
login.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import Attribute, KeyType, ObjectClass, TokenFlag
from pkcs11 import exceptions as ckr
from pkcs11._pkcs11 import lib as _PythonPkcs11

from hsm.errors import TokenError, TokenRefused, classify

_CKF_OS_LOCKING_OK = 0x2
_CKR_CANT_LOCK = 0xA
_CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

CURVES: dict[bytes, ec.EllipticCurve] = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
}
"""By the DER of CKA_EC_PARAMS."""


class _InitializeArgs(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS (PKCS#11 §5.4): no mutex functions of ours, the flag that lets the module use the
    system's."""

    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class _FunctionList(ctypes.Structure):
    """The head of CK_FUNCTION_LIST, as far as it is needed."""

    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        ("C_Initialize", ctypes.c_void_p),
        ("between", ctypes.c_void_p * 8),  # C_Finalize to C_GetMechanismInfo
        ("C_InitToken", ctypes.c_void_p),
    )


class _Module(_PythonPkcs11):
    """python-pkcs11's library object, but initialised for several threads.

    python-pkcs11 calls C_Initialize(NULL), by which the caller promises that one thread alone will call the module,
    and yet releases the GIL in each call; SoftHSM then switches its mutexes off and crashes. Here the same function
    list's C_Initialize is called with CKF_OS_LOCKING_OK.
    """

    def __init__(self, so: str) -> None:
        self._path = so
        super().__init__(so)

    def initialize(self) -> None:
        call = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)(self._functions().C_Initialize)
        arguments = _InitializeArgs(flags=_CKF_OS_LOCKING_OK)
        code = call(ctypes.addressof(arguments))
        if code not in (0, _CKR_CRYPTOKI_ALREADY_INITIALIZED):
            why = "is what it reads there? SoftHSM's is the file in SOFTHSM2_CONF and the folder of tokens named there"
            if code == _CKR_CANT_LOCK:
                why = "it is not for several threads"
            raise TokenRefused("C_Initialize", f"{self._path} does not initialise ({code:#x}): {why}")

    def init_token(self, slot_id: int, label: str, so_pin: str) -> None:
        """C_InitToken, which python-pkcs11 does not offer."""
        types = (ctypes.c_ulong, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
        call = ctypes.CFUNCTYPE(*types)(self._functions().C_InitToken)
        pin = so_pin.encode()
        code = call(slot_id, pin, len(pin), label.encode().ljust(32))
        if code != 0:
            raise TokenRefused("C_InitToken", f"{self._path} does not make a token ({code:#x})")

    def _functions(self) -> _FunctionList:
        functions = ctypes.POINTER(_FunctionList)()
        get_list = ctypes.CDLL(self._path).C_GetFunctionList
        get_list.restype = ctypes.c_ulong
        if get_list(ctypes.byref(functions)) != 0 or not functions:
            raise TokenRefused("C_GetFunctionList", f"{self._path} is not a PKCS#11 module")
        return functions.contents


@contextmanager
def _alone(lock: Path | None) -> Iterator[None]:
    if lock is None:
        yield
        return
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Token:
    """A token with one login. The process that opens it must not fork afterwards: a child must not sign on a session
    that its parent opened, and `Token` refuses to."""

    def __init__(self, token: Any, login: Any) -> None:
        self._token = token
        self._login = login
        self._pid = os.getpid()

    @classmethod
    def open(
        cls, *, module: Path, label: str, pin: str, rw: bool = False, startup_lock: Path | None = None,
        refused: Path | None = None,
    ) -> Token:  # fmt: skip
        """Load, initialise, log in. Raises a TokenError; a wrong PIN is tried once (tokens lock themselves): by all
        that have the start-up lock in common once, where they have the file `refused` too, which is made then."""
        if not module.exists():
            raise TokenRefused("no_module", f"there is no PKCS#11 module {module}")
        with _alone(startup_lock):
            if refused is not None and refused.exists():
                raise TokenRefused("PinNotTried", "the token has refused the PIN already; it is not tried again")
            try:
                library = _Module(str(module))
                token = library.get_token(token_label=label)
            except TokenError:
                raise
            except ckr.NoSuchToken:
                raise TokenRefused("NoSuchToken", f"{module} has no token labelled {label!r}") from None
            except Exception as error:
                raise classify(error, "loading the module") from error
            try:
                login = token.open(rw=rw, user_pin=pin)
            except ckr.UserAlreadyLoggedIn:
                login = token.open(rw=rw)
            except Exception as error:
                told = classify(error, "logging in")
                if refused is not None and told.is_of_pin:
                    with suppress(OSError):  # a full disk, say; on another error the PIN would be tried again
                        refused.touch(mode=0o600)
                raise told from error
        return cls(token, login)

    @classmethod
    def initialise(cls, *, module: Path, label: str, pin: str, so_pin: str) -> None:
        """Make a new token in the module's first empty slot. Raises a TokenError."""
        try:
            library = _Module(str(module))
            empty = (one for one in library.get_slots() if TokenFlag.TOKEN_INITIALIZED not in one.get_token().flags)
            library.init_token(next(empty).slot_id, label, so_pin)
            # SoftHSM gives the new token another slot, so it is looked for by its label.
            session = library.get_token(token_label=label).open(rw=True, so_pin=so_pin)
            session.init_pin(pin)
            session.close()
        except StopIteration:
            raise TokenRefused("no_slot", f"{module} has no empty slot for a new token") from None
        except TokenError:
            raise
        except Exception as error:
            raise classify(error, "making a token") from error

    def session(self, *, rw: bool = False) -> Any:
        """A further session under the login, for one thread."""
        if os.getpid() != self._pid:
            raise TokenRefused("forked", "this process was forked after C_Initialize; it must open the token itself")
        try:
            return self._token.open(rw=rw)
        except Exception as error:
            raise classify(error, "opening a session") from error

    @property
    def slot_id(self) -> int:
        """CK_SLOT_ID of the token."""
        return int(self._token.slot.slot_id)

    @property
    def login_session(self) -> Any:
        """The session that holds the login; it signs nothing."""
        return self._login

    def __str__(self) -> str:
        return f"{self._token.label} ({self._token.manufacturer_id} {self._token.model})"


def public_key_of(session: Any, key_id: bytes) -> PublicKey | None:
    """The public key object with that CKA_ID, None where the token keeps none."""
    try:
        found = list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: key_id}))
        if not found:
            return None
        key = found[0]
        if key.key_type is KeyType.RSA:
            exponent = int.from_bytes(key[Attribute.PUBLIC_EXPONENT], "big")
            return rsa.RSAPublicNumbers(exponent, int.from_bytes(key[Attribute.MODULUS], "big")).public_key()
        curve = CURVES.get(bytes(key[Attribute.EC_PARAMS]))
        if curve is None:
            raise TokenRefused("curve", f"the key {key_id.hex()} is on a curve that estd does not sign with")
        point = bytes(key[Attribute.EC_POINT])
        # An OCTET STRING around the point, by the standard; some modules give the bare point.
        point = point[2:] if point[0] == 0x04 and point[1] == len(point) - 2 else point
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except TokenError:
        raise
    except Exception as error:
        raise classify(error, f"reading the public key {key_id.hex()}") from error


def holds(session: Any, key_id: bytes) -> bool:
    """Whether a private key with that CKA_ID is there."""
    try:
        return bool(list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id})))
    except Exception as error:
        raise classify(error, f"looking for the key {key_id.hex()}") from error


def private_key_of(session: Any, key_id: bytes) -> Any:
    """The private key object with that CKA_ID. Raises TokenRefused where there is not exactly one."""
    try:
        found = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id}))
    except Exception as error:
        raise classify(error, f"looking for the key {key_id.hex()}") from error
    if len(found) != 1:
        raise TokenRefused("NoSuchKey", f"the token holds {len(found)} private keys with CKA_ID {key_id.hex()}")
    return found[0]
