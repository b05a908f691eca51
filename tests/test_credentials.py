"""Basic credentials: hashed in a file, compared in constant time, passwords that people choose off the loop."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estd import credentials
from estd.credentials import Credentials
from estd.errors import Reason, Unauthenticated, Unavailable

SECRET = credentials.generate()
PASSWORD = "correct horse: battery é"
LINES = {
    "factory": credentials.line("factory", SECRET, generated=True),
    "person": credentials.line("person", PASSWORD, generated=False),
    "": credentials.line("", SECRET, generated=True),
}


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_LOOK_AGAIN_SECONDS", 0.0)


@pytest.fixture
def path(folder: Path) -> Path:
    found = folder / "credentials"
    found.write_text("# the factory's\n\n" + "\n".join(LINES.values()) + "\n")
    return found


def reader(path: Path) -> Credentials:
    return Credentials(path, lambda *_, **__: None)


def right(found: Credentials, user: str, password: str | bytes) -> bool:
    given = password if isinstance(password, bytes) else password.encode()
    return asyncio.run(found.check(user, given))


def header(pair: bytes) -> str:
    return "Basic " + base64.b64encode(pair).decode()


CHECKS = {
    "a generated secret": ("factory", SECRET, True),
    "a person's password": ("person", PASSWORD, True),
    "R6 an empty user name": ("", SECRET, True),
    "a wrong secret": ("factory", SECRET[:-1], False),
    "a secret with more behind it": ("factory", SECRET + "x", False),
    "an empty secret": ("factory", "", False),
    "R6 an empty user name, a wrong secret": ("", "x", False),
    "a wrong password": ("person", PASSWORD + " ", False),
    "an unknown user": ("nobody", SECRET, False),
    "an unknown user with somebody's password": ("nobody", PASSWORD, False),
    "another's secret": ("person", SECRET, False),
    "the name in capitals": ("FACTORY", SECRET, False),
    "the hash as the secret": ("factory", LINES["factory"].rpartition("$")[2], False),
    "a name with a NUL": ("factory\0", SECRET, False),
}


@pytest.mark.parametrize("case", CHECKS)
def test_checks(case: str, path: Path) -> None:
    """A credential is right by its name and its whole secret, the empty name as any other (R6)."""
    user, password, expected = CHECKS[case]
    found = reader(path)
    assert right(found, user, password) is expected
    assert right(found, user, password) is expected, "and again, from what is remembered"


HEADERS = {
    "plain": (header(b"factory:secret"), ("factory", b"secret")),
    "R6 an empty user name": (header(b":secret"), ("", b"secret")),
    "an empty password": (header(b"factory:"), ("factory", b"")),
    "colons in the password": (header(b"factory:a:b:"), ("factory", b"a:b:")),
    "UTF-8": (header("é:ü".encode()), ("é", "ü".encode())),
    "a password that is no text": (header(b"factory:\xff\0"), ("factory", b"\xff\0")),
    "the scheme in capitals": (header(b"a:b").upper().replace("YTPI", "YTpi"), ("a", b"b")),
    "spaces": ("basic   " + header(b"a:b").split()[1] + " ", ("a", b"b")),
}
MALFORMED = {
    "nothing": "",
    "the scheme alone": "Basic",
    "the scheme and a space": "Basic ",
    "another scheme": "Bearer abc",
    "Digest": 'Digest username="factory"',
    "no base64": "Basic !!!!",
    "base64 with a character more": header(b"a:b") + "!",
    "base64 cut short": header(b"factory:secret")[:-1] + "*",
    "no colon": header(b"factory"),
    "a name that is no UTF-8": header(b"\xff:secret"),
    "outside ASCII": "Basic é",
    "surrogates, as undecodable octets come": "Basic \udcff",
}


@pytest.mark.parametrize("case", HEADERS)
def test_R5_reads_a_header(case: str) -> None:
    """R5: name and password are what stands before and behind the first colon (RFC 7617)."""
    given, expected = HEADERS[case]
    assert credentials.read_header(given) == expected


@pytest.mark.parametrize("case", MALFORMED)
def test_R5_a_malformed_header_is_a_401(case: str) -> None:
    """R5: an Authorization header that is not Basic, or holds no name and password, is a 401."""
    with pytest.raises(Unauthenticated) as caught:
        credentials.read_header(MALFORMED[case])
    assert (caught.value.status, caught.value.reason) == (401, Reason.WRONG_CREDENTIAL)


@given(
    text=st.one_of(st.text(max_size=60), st.binary(max_size=40).map(header), st.text(max_size=30).map("Basic ".__add__))
)
@settings(deadline=None, derandomize=True, max_examples=400)
def test_any_header_is_a_pair_or_a_401(text: str) -> None:
    """Any Authorization header is a name and a password or a 401, never another exception."""
    try:
        user, password = credentials.read_header(text)
    except Unauthenticated:
        return
    assert base64.b64decode(text.partition(" ")[2].strip()) == user.encode() + b":" + password


BAD_FILES = {
    "no hash": "factory:secret",
    "no colon": "factory",
    "another scheme": "factory:$md5$00",
    "no hexadecimal": "factory:$sha256$xyz",
    "scrypt without its salt": "factory:$scrypt$00",
    "sha256 with a salt": "factory:$sha256$00$00",
    "a colon in the name": "a:b:$sha256$00",
    "a hash that is cut short": LINES["factory"][:-1],
    "half a hash": LINES["factory"][:-32],
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_lets_nobody_in(case: str, path: Path) -> None:
    """A file with a line that cannot be read lets nobody in, not even by its other lines, and says which it is."""
    text = path.read_text() + BAD_FILES[case] + "\n"
    with pytest.raises(ValueError, match="line 6"):
        credentials.parse(text)
    path.write_text(text)
    assert not right(reader(path), "factory", SECRET)


def test_a_file_that_goes_bad_is_said_once(path: Path) -> None:
    """Whoever was let in by the file before is not any more, the log has one line a fault with the number of the file's
    line, and a good file lets in again."""
    said: list[dict[str, str]] = []
    found = Credentials(path, lambda event, **fields: said.append({"event": event, **fields}))
    assert right(found, "factory", SECRET)
    good = path.read_text()
    for _ in range(2):
        path.write_text(good[:-1])
        assert right(found, "factory", SECRET), "only the line's end is missing"
        path.write_text(good[:-2])
        for _ in range(3):
            assert not right(found, "factory", SECRET)
        path.write_text(good)
        assert right(found, "factory", SECRET)
    told = {"event": "credentials_unreadable", "file": str(path)}
    assert said == [{**told, "why": "line 5 is not NAME:$sha256$HEX or NAME:$scrypt$SALT$HASH"}] * 2


def test_a_missing_file_lets_nobody_in(folder: Path) -> None:
    """Without its file a rule lets nobody in, and fails on nothing."""
    found = reader(folder / "absent")
    assert not right(found, "factory", SECRET)
    assert not right(found, "", "")


def test_a_replaced_file_is_seen(path: Path, folder: Path) -> None:
    """A credential that is added lets in, one that is removed or changed no longer does, remembered or not."""
    found = reader(path)
    assert right(found, "person", PASSWORD)

    def replace(*lines: str) -> None:
        (folder / "new").write_text("\n".join(lines) + "\n")
        os.replace(folder / "new", path)

    replace(LINES["factory"])
    assert not right(found, "person", PASSWORD)
    assert right(found, "factory", SECRET)
    replace(credentials.line("person", "another", generated=False), credentials.line("new", "x", generated=True))
    assert not right(found, "person", PASSWORD)
    assert not right(found, "factory", SECRET)
    assert right(found, "person", "another")
    assert right(found, "new", "x")
    path.unlink()
    assert not right(found, "person", "another")
    replace(*LINES.values())
    assert right(found, "person", PASSWORD)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that secrets are held against from now on."""
    tried: list[str] = []
    matches = credentials._matches
    monkeypatch.setattr(
        credentials, "_matches", lambda secret, stored: (tried.append(stored), matches(secret, stored))[1]
    )
    return tried


def test_a_right_password_is_remembered_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right password costs its 66 ms once a minute; a wrong one, or one a minute old, is checked each time."""
    found, tried = reader(path), counted(monkeypatch)
    for _ in range(3):
        assert right(found, "person", PASSWORD)
    assert len(tried) == 1
    for _ in range(2):
        assert not right(found, "person", "wrong")
    assert len(tried) == 3
    monkeypatch.setattr(credentials, "_REMEMBER_SECONDS", 0.0)
    late = reader(path)
    for _ in range(2):
        assert right(late, "person", PASSWORD)
    assert len(tried) == 5


def test_what_is_remembered_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more passwords are remembered than the limit, the oldest is forgotten first."""
    monkeypatch.setattr(credentials, "_REMEMBER_MAX", 1)
    path.write_text("".join(credentials.line(user, "x", generated=False) + "\n" for user in "ab"))
    found, tried = reader(path), counted(monkeypatch)
    for user in "abba":
        assert right(found, user, "x")
    assert len(tried) == 3


def test_an_unknown_name_costs_as_much_as_a_wrong_password(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names cannot be told by the clock: an unknown one is held against a password too."""
    found, tried = reader(path), counted(monkeypatch)
    assert not right(found, "nobody", "x")
    assert [one.split("$")[1] for one in tried] == ["scrypt"]


def test_too_many_passwords_at_once_are_a_503(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue of passwords to check is bounded: one more is a 503 with Retry-After, and secrets still pass."""
    monkeypatch.setattr(credentials, "_WAITING_MAX", 2)
    found = reader(path)

    async def crowd() -> list[bool | BaseException]:
        checks = [found.check("person", b"wrong %d" % number) for number in range(4)]
        return await asyncio.gather(*checks, found.check("factory", SECRET.encode()), return_exceptions=True)

    outcomes = asyncio.run(crowd())
    assert outcomes[:2] == [False, False]
    for refusal in outcomes[2:4]:
        assert isinstance(refusal, Unavailable)
        assert refusal.reason is Reason.OVERLOADED
        assert refusal.retry_after is not None
    assert outcomes[4] is True
    assert right(found, "person", PASSWORD), "and the queue is empty again"


@pytest.mark.parametrize("user", ["a:b", "a\nb", "a\0b", "\u202e"])
def test_a_name_that_cannot_stand_in_a_file_is_refused(user: str) -> None:
    """A name with a colon or what is not printable is refused when its credential is made."""
    with pytest.raises(ValueError, match="colon"):
        credentials.line(user, "x", generated=True)


def test_generated_secrets_have_128_bits_and_no_pattern() -> None:
    """A generated secret holds 160 random bits in letters that fit any command line, and is hashed in the file."""
    made = {credentials.generate() for _ in range(100)}
    assert len(made) == 100
    assert all(len(one) == 32 and one.isalnum() and one.islower() for one in made if not one.isdigit())
    assert SECRET not in LINES["factory"]
    assert PASSWORD not in LINES["person"]
    salts = {credentials.line("person", PASSWORD, generated=False) for _ in range(2)}
    assert len(salts) == 2
