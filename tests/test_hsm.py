"""The token: several threads on it, its keys by CKA_ID, what it lies about, and what a wrong PIN costs."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pkcs11
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import example, given
from hypothesis import strategies as st
from pkcs11 import Attribute, Mechanism, ObjectClass
from pkcs11 import exceptions as ckr

from estd.instance import softhsm_module
from hsm import keys, session
from hsm import token as token_room
from hsm.errors import TokenError, TokenFatal, TokenRefused, TokenTransient, classify
from hsm.pool import SessionPool
from hsm.session import Job, Session, SigningKey, ecdsa_der
from hsm.token import Token, public_key_of

T = TypeVar("T")

LABEL = "tests"
PIN = "correct-horse"
KINDS: tuple[keys.KeyKind, ...] = ("ec-p256", "ec-p384", "rsa-3072")
IDS: dict[str, bytes] = {"ec-p256": b"\x01", "ec-p384": b"\x02", "rsa-3072": b"\x03", "other": b"\x11"}
"""`other` is a second P-256 key, with the label of the first."""


@dataclass(frozen=True)
class Made:
    """The tests' token: logged in once, in this process."""

    module: Path
    token: Token

    def public_key(self, name: str) -> Any:
        return public_key_of(self.token.login_session, IDS[name])

    def signing_key(self, name: str = "ec-p256") -> SigningKey:
        return SigningKey(key_id=IDS[name], public_key=self.public_key(name))

    def session(self, *names: str) -> Session:
        return Session(self.token, {name: self.signing_key(name) for name in names or ("ec-p256",)})


def opened(pin: str = PIN) -> Token:
    return Token.open(module=softhsm_module(), label=LABEL, pin=pin)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A private token with a key of each kind. SoftHSM reads SOFTHSM2_CONF at C_Initialize alone, so what this process
    may have initialised before is finalised first, and this afterwards."""
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    conf = folder / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n")
    module = softhsm_module()
    kept = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(conf)
    finalize = ctypes.CDLL(str(module)).C_Finalize
    finalize(None)
    Token.initialise(module=module, label=LABEL, pin=PIN, so_pin="so-" + PIN)
    token = Token.open(module=module, label=LABEL, pin=PIN, rw=True)
    for kind in KINDS:
        keys.generate(token, kind=kind, key_id=IDS[kind], label="ca")
    keys.generate(token, kind="ec-p256", key_id=IDS["other"], label="ca")
    yield Made(module, token)
    finalize(None)
    if kept is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = kept


def apart(work: Callable[..., T], *args: object) -> T:
    """The result of `work` in a process of its own, which may crash."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result(timeout=120)


def verify(public_key: Any, signature: bytes, data: bytes) -> None:
    """By cryptography alone, over the data and not over a digest of ours."""
    if isinstance(public_key, rsa.RSAPublicKey):
        public_key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    else:
        wanted = hashes.SHA384() if public_key.key_size == 384 else hashes.SHA256()
        public_key.verify(signature, data, ec.ECDSA(wanted))


class Faulty:
    """The token's private key, but for what `fault` does with each call's answer."""

    def __init__(self, real: Any, fault: Callable[[int, bytes], bytes]) -> None:
        self._real = real
        self._fault = fault
        self.calls = 0

    def sign(self, data: bytes, **options: Any) -> bytes:
        self.calls += 1
        return self._fault(self.calls, self._real.sign(data, **options))


def with_fault(monkeypatch: pytest.MonkeyPatch, fault: Callable[[int, bytes], bytes]) -> list[Faulty]:
    """Every session opened from here on has such a key; the list holds one for each opening."""
    made: list[Faulty] = []
    real = token_room.private_key_of

    def faulty(opened_session: Any, key_id: bytes) -> Faulty:
        before = made[-1].calls if made else 0
        made.append(Faulty(real(opened_session, key_id), fault))
        made[-1].calls = before
        return made[-1]

    monkeypatch.setattr(session, "private_key_of", faulty)
    return made


def _sign_with_eight_threads(count: int) -> tuple[int, int]:
    token = opened()
    public_key = public_key_of(token.login_session, IDS["ec-p256"])
    assert public_key is not None
    pool = SessionPool(token, {"ca": SigningKey(key_id=IDS["ec-p256"], public_key=public_key)}, 8)
    jobs = [Job("ca", b"%d" % number) for number in range(count)]
    threads = sum(one.name.startswith("session-") for one in threading.enumerate())
    signatures = pool.sign_many(jobs)
    for job, signature in zip(jobs, signatures, strict=True):
        assert isinstance(signature, bytes), signature
        verify(public_key, signature, job.data)
    return threads, len({*signatures})


def test_D1_eight_threads_sign_on_their_own_sessions(made: Made) -> None:
    """D1: signatures from eight sessions at once are all good, and each belongs to the job in its place."""
    assert apart(_sign_with_eight_threads, 2400) == (8, 2400)


def _sign_as_python_pkcs11_initialises() -> None:
    token = pkcs11.lib(str(softhsm_module())).get_token(token_label=LABEL)
    login = token.open(user_pin=PIN)
    assert login is not None

    def work() -> None:
        try:
            own = token.open()
            key: Any
            (key,) = own.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: IDS["ec-p256"]})
            for _ in range(20_000):
                key.sign(bytes(32), mechanism=Mechanism.ECDSA)
        except Exception:
            os._exit(7)  # as good as a crash

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_D1_control_null_initialisation_does_not_survive_threads(made: Made) -> None:
    """D1, the control: python-pkcs11's own C_Initialize(NULL) fails under the load that ours survives."""
    process = get_context("spawn").Process(target=_sign_as_python_pkcs11_initialises)
    process.start()
    process.join(120)
    if process.exitcode is None:  # a module that nothing locks may as well turn round in its own broken lists
        process.kill()
        process.join()
    assert process.exitcode not in (0, 1), "the module survived: is its NULL initialisation safe now?"


def _initialised(code: int) -> list[token_room._InitializeArgs]:
    """What `_Module.initialize` gives to a C_Initialize that answers `code`."""
    given: list[token_room._InitializeArgs] = []

    def initialize(arguments: Any) -> int:
        given.append(token_room._InitializeArgs.from_buffer_copy(arguments.contents))
        return code

    callback = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.POINTER(token_room._InitializeArgs))(initialize)
    pointer = ctypes.cast(callback, ctypes.c_void_p).value
    library: Any = SimpleNamespace(_path="m.so", _functions=lambda: SimpleNamespace(C_Initialize=pointer))
    token_room._Module.initialize(library)
    return given


@pytest.mark.parametrize("code", [0, 0x191])
def test_initialisation_asks_for_the_systems_locks(code: int) -> None:
    """C_Initialize is told CKF_OS_LOCKING_OK and no mutex functions; CRYPTOKI_ALREADY_INITIALIZED is success."""
    (arguments,) = _initialised(code)
    assert arguments.flags == 2
    pointers = [name for name, _ in token_room._InitializeArgs._fields_ if name != "flags"]
    assert [getattr(arguments, name) for name in pointers] == [None] * 5


def test_a_module_without_locks_is_refused() -> None:
    """A module that answers CKR_CANT_LOCK is not used."""
    with pytest.raises(TokenRefused, match="several threads"):
        _initialised(0xA)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_key_signs(made: Made, kind: str) -> None:
    """P-256 signs with SHA-256, P-384 with SHA-384, RSA by PKCS #1 v1.5 with SHA-256, as cryptography verifies."""
    one = made.session(kind)
    for data in (b"", b"a", bytes(100_000)):
        verify(made.public_key(kind), one.sign(Job(kind, data)), data)


def test_keys_are_found_by_their_id(made: Made) -> None:
    """Two keys under one label are told apart by CKA_ID."""
    one = made.session("ec-p256", "other")
    verify(made.public_key("other"), one.sign(Job("other", b"data")), b"data")
    assert made.public_key("other") != made.public_key("ec-p256")


def test_a_key_that_is_not_the_certificates_is_refused(made: Made) -> None:
    """The key under the CKA_ID must be the one in the CA's certificate."""
    wrong = SigningKey(key_id=IDS["ec-p256"], public_key=made.public_key("other"))
    with pytest.raises(TokenRefused) as refused:
        Session(made.token, {"ca": wrong})
    assert refused.value.code == "wrong_key"


def test_a_wrong_key_without_a_public_object_signs_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the token keeps no public key to compare with, the check of each signature refuses the wrong key."""
    wrong = SigningKey(key_id=IDS["ec-p256"], public_key=made.public_key("other"))
    monkeypatch.setattr(session, "public_key_of", lambda *_: None)
    one = Session(made.token, {"ca": wrong})
    with pytest.raises(TokenFatal):
        one.sign(Job("ca", b"data"))


def test_a_missing_key_is_refused(made: Made) -> None:
    """A CKA_ID that the token does not hold refuses the start."""
    with pytest.raises(TokenRefused, match="0 private keys"):
        Session(made.token, {"ca": SigningKey(key_id=b"\x99", public_key=made.public_key("ec-p256"))})


def _flipped(_call: int, signature: bytes) -> bytes:
    return signature[:-1] + bytes((signature[-1] ^ 1,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "lie", [_flipped, lambda _, raw: raw[:-1], lambda _, raw: b"", lambda _, raw: bytes(len(raw))],
    ids=["bit", "short", "empty", "zero"],
)  # fmt: skip
def test_D5_a_token_that_lies_is_fatal(
    made: Made, monkeypatch: pytest.MonkeyPatch, kind: str, lie: Callable[[int, bytes], bytes]
) -> None:
    """D5: a signature that does not verify never leaves, and nothing more is asked of that token."""
    opened = with_fault(monkeypatch, lie)
    results = made.session(kind).sign_many([Job(kind, b"1"), Job(kind, b"2")])
    assert [type(one) for one in results] == [TokenFatal, TokenFatal]
    assert opened[-1].calls == 1


def test_a_transient_refusal_is_tried_three_times(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """FUNCTION_FAILED is tried three times, each on a new session, then it is the job's answer alone."""

    def fault(call: int, signature: bytes) -> bytes:
        if call <= 3:
            raise ckr.FunctionFailed
        return signature

    opened = with_fault(monkeypatch, fault)
    one = made.session()
    first, second = one.sign_many([Job("ec-p256", b"1"), Job("ec-p256", b"2")])
    assert isinstance(first, TokenTransient)
    assert first.code == "FunctionFailed"
    assert isinstance(second, bytes)
    assert opened[-1].calls == 4
    assert len(opened) == 3


def test_a_transient_refusal_that_passes_is_forgotten(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose third try succeeds gets its signature."""

    def fault(call: int, signature: bytes) -> bytes:
        if call < 3:
            raise ckr.DeviceMemory
        return signature

    opened = with_fault(monkeypatch, fault)
    verify(made.public_key("ec-p256"), made.session().sign(Job("ec-p256", b"data")), b"data")
    assert opened[-1].calls == 3


def test_after_a_fatal_answer_no_call_is_made(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """DEVICE_ERROR is not tried again: the rest of the jobs get the same error without a call."""

    def fault(call: int, signature: bytes) -> bytes:
        if call == 2:
            raise ckr.DeviceError
        return signature

    opened = with_fault(monkeypatch, fault)
    results = made.session().sign_many([Job("ec-p256", b"%d" % number) for number in range(4)])
    assert [type(one) for one in results] == [bytes, TokenFatal, TokenFatal, TokenFatal]
    assert opened[-1].calls == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ckr.GeneralError, TokenFatal),
        (ckr.DeviceError, TokenFatal),
        (ckr.DeviceRemoved, TokenFatal),
        (ckr.TokenNotPresent, TokenFatal),
        (ckr.TokenNotRecognised, TokenFatal),
        (ckr.SessionHandleInvalid, TokenFatal),
        (ckr.SessionClosed, TokenFatal),
        (ckr.KeyHandleInvalid, TokenFatal),
        (ckr.OperationActive, TokenFatal),
        (RuntimeError, TokenFatal),
        (ckr.FunctionFailed, TokenTransient),
        (ckr.DeviceMemory, TokenTransient),
        (ckr.HostMemory, TokenTransient),
        (ckr.PinIncorrect, TokenRefused),
        (ckr.PinLocked, TokenRefused),
        (ckr.PinExpired, TokenRefused),
        (ckr.NoSuchKey, TokenRefused),
    ],
)
def test_each_code_says_what_to_do(error: type[Exception], kind: type[TokenError]) -> None:
    """What is not known to be harmless is fatal; the error keeps the code's name."""
    made = classify(error(), "signing")
    assert type(made) is kind
    assert made.code == error.__name__


def _open_counted(pin: str) -> tuple[int, str, str]:
    """How often a session was opened with a PIN, and what came of it."""
    logins: list[str] = []
    real = token_room._Module.get_token

    class Counted:
        def __init__(self, token: Any) -> None:
            self._token = token

        def open(self, **options: Any) -> Any:
            logins.append(options.get("user_pin", ""))
            return self._token.open(**options)

    def get_token(self: Any, **options: Any) -> Counted:
        return Counted(real(self, **options))

    setattr(token_room._Module, "get_token", get_token)  # noqa: B010
    try:
        opened(pin)
    except TokenError as error:
        return len(logins), type(error).__name__, error.code
    return len(logins), "", ""


def test_a_wrong_pin_is_tried_once(made: Made) -> None:
    """A wrong PIN is TokenRefused after one login: tokens lock themselves."""
    assert apart(_open_counted, "wrong-pin") == (1, "TokenRefused", "PinIncorrect")
    assert apart(_open_counted, PIN) == (1, "", "")


def _refused_without_a_place(place: str) -> tuple[str, bool]:
    """What is told of a wrong PIN where that cannot be written down."""
    try:
        Token.open(module=softhsm_module(), label=LABEL, pin="wrong-pin", refused=Path(place))
    except TokenError as error:
        return error.code, error.is_of_pin
    return "", False


def test_a_wrong_pin_is_told_where_it_cannot_be_written_down(made: Made, folder: Path) -> None:
    """A full disk, say: the PIN's error goes out, on which no process is made anew, and not the disk's."""
    assert apart(_refused_without_a_place, str(folder / "nowhere" / "refused")) == ("PinIncorrect", True)
    assert apart(_open_counted, PIN) == (1, "", "")  # which resets the token's count


def test_a_login_that_is_there_already_is_success(made: Made) -> None:
    """USER_ALREADY_LOGGED_IN is success: the session under the other login signs."""
    second = Token.open(module=made.module, label=LABEL, pin=PIN)
    one = Session(second, {"ca": made.signing_key()})
    verify(made.public_key("ec-p256"), one.sign(Job("ca", b"data")), b"data")


@pytest.mark.parametrize(
    ("change", "code"),
    [({"module": Path("/nowhere.so")}, "no_module"), ({"label": "nobody's"}, "NoSuchToken")],
    ids=["module", "label"],
)
def test_what_is_not_there_is_refused(made: Made, change: dict[str, Any], code: str) -> None:
    """A module or a token that is not there is said as such, not as a code."""
    with pytest.raises(TokenRefused) as refused:
        Token.open(**{"module": made.module, "label": LABEL, "pin": PIN, **change})
    assert refused.value.code == code


def _fork_after_login() -> dict[str, str]:
    """What a forked child is told by each way to a signature."""
    token = opened()
    public_key = public_key_of(token.login_session, IDS["ec-p256"])
    assert public_key is not None
    signing_key = SigningKey(key_id=IDS["ec-p256"], public_key=public_key)
    one = Session(token, {"ca": signing_key})
    told: dict[str, str] = {}
    for name, act in (
        ("session", lambda: Session(token, {"ca": signing_key})),
        ("sign", lambda: one.sign(Job("ca", b"data"))),
    ):
        act()
        receiver, sender = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                act()
                os.write(sender, b"signed")
            except TokenError as error:
                os.write(sender, error.code.encode())
            os._exit(0)
        os.close(sender)
        told[name] = os.read(receiver, 100).decode()
        os.waitpid(pid, 0)
    return told


@pytest.fixture(scope="module")
def forked(made: Made) -> dict[str, str]:
    return apart(_fork_after_login)


def test_D2_a_forked_child_opens_no_session(forked: dict[str, str]) -> None:
    """D2: a process that was forked after C_Initialize gets no new session."""
    assert forked["session"] == "forked"


def test_D2_a_forked_child_does_not_sign_on_its_parents_session(forked: dict[str, str]) -> None:
    """D2: nor does it sign on a session that its parent opened."""
    assert forked["sign"] == "forked"


_HALVES = st.sampled_from([32, 48])


@given(half=_HALVES, data=st.data())
def test_ecdsa_der_is_cryptographys(half: int, data: st.DataObject) -> None:
    """r || s becomes the same ECDSA-Sig-Value as cryptography writes, short and high-bit integers included."""
    integers = st.one_of(
        st.integers(0, 2 ** (8 * half) - 1), st.integers(0, 255), st.integers(0, half * 8 - 1).map(lambda bit: 1 << bit)
    )
    r, s = data.draw(integers), data.draw(integers)
    raw = r.to_bytes(half, "big") + s.to_bytes(half, "big")
    assert ecdsa_der(raw, half) == encode_dss_signature(r, s)


@given(raw=st.binary(max_size=200), half=_HALVES)
@example(raw=bytes(63), half=32)
@example(raw=bytes(65), half=32)
@example(raw=b"", half=48)
def test_ecdsa_der_takes_one_length(raw: bytes, half: int) -> None:
    """A signature of any length but two halves is refused."""
    if len(raw) == 2 * half:
        ecdsa_der(raw, half)
        return
    with pytest.raises(ValueError, match="bytes"):
        ecdsa_der(raw, half)


def test_a_key_id_is_given_once(made: Made) -> None:
    """A CKA_ID that is taken is refused, and the key that has it stays."""
    before = made.public_key("ec-p256")
    with pytest.raises(TokenRefused) as refused:
        keys.generate(made.token, kind="ec-p256", key_id=IDS["ec-p256"], label="again")
    assert refused.value.code == "key_exists"
    assert made.public_key("ec-p256") == before


def test_keys_never_leave_the_token(made: Made) -> None:
    """A CA's key is sensitive, not extractable, and only signs."""
    one = made.token.session()
    for key in one.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}):
        assert key[Attribute.SENSITIVE]
        assert not key[Attribute.EXTRACTABLE]
        assert key[Attribute.SIGN]
        for other_use in (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE):
            assert not key[other_use]
    assert {stored.key_id for stored in keys.list_keys(made.token)} == set(IDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_cryptographys_builder_signs_with_the_token(made: Made, kind: str) -> None:
    """`signer` makes certificates through cryptography's own builder, with the key's one hash and no other."""
    key = keys.signer(made.token, IDS[kind])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    wanted = hashes.SHA384() if kind == "ec-p384" else hashes.SHA256()
    certificate = builder.sign(key, wanted)
    certificate.verify_directly_issued_by(certificate)
    with pytest.raises(ValueError, match="this key signs with"):
        builder.sign(key, hashes.SHA512())
    with pytest.raises(TypeError, match="stays in its token"):
        key.private_numbers()


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_a_pool_answers_each_job_in_its_place(made: Made, sessions: int, count: int) -> None:
    """With any number of sessions and jobs, the answers stand in the order of the jobs."""
    pool = SessionPool(made.token, {"ca": made.signing_key()}, sessions)
    jobs = [Job("ca", b"%d" % number) for number in range(count)]
    for job, signature in zip(jobs, pool.sign_many(jobs), strict=True):
        assert isinstance(signature, bytes)
        verify(made.public_key("ec-p256"), signature, job.data)


def test_a_signing_thread_that_fails_is_fatal(made: Made) -> None:
    """An exception in a session's thread reaches the caller as TokenFatal; nobody waits for ever."""
    pool = SessionPool(made.token, {"ca": made.signing_key()}, 2)
    with pytest.raises(TokenFatal, match="a signing thread failed"):
        pool.sign_many([Job("nobody", b"data")])


def test_what_is_signed_is_a_digest(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is given the digest as bytes, of the hash's length: SoftHSM would sign anything."""
    seen: list[Any] = []

    class Watched:
        def __init__(self, real: Any) -> None:
            self._real = real

        def sign(self, data: Any, **options: Any) -> bytes:
            seen.append(data)
            return bytes(self._real.sign(data, **options))

    real = token_room.private_key_of
    monkeypatch.setattr(session, "private_key_of", lambda *args: Watched(real(*args)))
    made.session("ec-p384").sign(Job("ec-p384", b"data"))
    assert seen == [hashlib.sha384(b"data").digest()]
    assert type(seen[0]) is bytes
