"""R51: when a certificate had best be renewed (renewal-info): its identifier, its window, what an issuer answers and
what a fleet then does. The server over TLS is in test_renewal_info_served."""

from __future__ import annotations

import asyncio
import random
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from estd import frames, ledger, metrics, renewal_info
from estd.config import parse
from estd.devices import Device, DeviceKey
from estd.errors import REASONS, BadRequest, ConfigError, Reason
from estd.frames import Answer
from estd.issuance import CaCertificate, Issuer, serials
from estd.labels import RENEWAL_WINDOW
from estd.ledger import Row, Writer
from estd.renewal_info import CertId, Window
from estd.renewal_windows import RenewalWindows
from tests import make
from tests.make import Identity
from tests.test_config import FOLDER, problems, text
from tests.test_issuer_link import Issuer as OtherEnd
from tests.test_issuer_link import IssuerLink, run, until
from tests.test_issuer_link import request as enrolment

DAY = 86400
NOW = int(time.time())

KEY_IDS = st.binary(min_size=1, max_size=renewal_info.KEY_ID_MAX)
NUMBERS = st.integers(0, 2 ** (8 * (renewal_info.SERIAL_MAX - 1)) - 1)


def named(key_id: bytes, number: int) -> CertId:
    """By the standard's words: the DER of an INTEGER, without its tag and length."""
    content = number.to_bytes((number.bit_length() + 7) // 8 or 1, "big")
    return CertId(key_id, b"\0" + content if content[0] & 0x80 else content)


def test_R51_the_standards_example() -> None:
    """R51: RFC 9773 §4.1's certificate, whose serial number's first bit is set, is called as it says there."""
    key_id = bytes.fromhex("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")
    assert str(named(key_id, 0x87654321)) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
    assert renewal_info.read("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE") == named(key_id, 0x87654321)


@given(KEY_IDS, NUMBERS)
def test_R51_an_identifier_is_read_as_it_was_written(key_id: bytes, number: int) -> None:
    """R51: any key identifier with any serial number comes back; and it is one segment of a path."""
    told = str(named(key_id, number))
    assert renewal_info.read(told) == named(key_id, number)
    assert set(told) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_R51_a_certificate_without_a_key_identifier_has_no_name() -> None:
    """R51: a certificate that does not say which key signed it cannot be asked about."""
    found = make.certificate()
    assert renewal_info.cert_id(found.certificate).key_id == issuance_key_id(found)
    builder = x509.CertificateBuilder(
        found.certificate.issuer, found.certificate.subject, found.key.public_key(), 5,
        found.certificate.not_valid_before_utc, found.certificate.not_valid_after_utc,
    )  # fmt: skip
    bare = builder.sign(found.key, found.certificate.signature_hash_algorithm)
    nameless = builder.add_extension(x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(bare.issuer)], 5), False)
    for one in (bare, nameless.sign(found.key, found.certificate.signature_hash_algorithm)):
        with pytest.raises(ValueError, match="AuthorityKeyIdentifier"):
            renewal_info.cert_id(one)


def issuance_key_id(identity: Identity) -> bytes:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(identity.key.public_key()).key_identifier or b""


def b64(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


KEY = b64(b"k" * 20)
SERIAL = b64(b"\1" + bytes(15))
HOSTILE: dict[str, str] = {
    "nothing": "",
    "a dot": ".",
    "no dot": KEY,
    "no key": f".{SERIAL}",
    "no serial": f"{KEY}.",
    "two dots": f"{KEY}..{SERIAL}",
    "three parts": f"{KEY}.{SERIAL}.{SERIAL}",
    "padding": f"{KEY}=.{SERIAL}==",
    "plain base64": f"{KEY[:-1]}+.{SERIAL}",
    "a slash": f"{KEY[:-1]}%2F.{SERIAL}",
    "an escaped dot": f"{KEY}%2E{SERIAL}",
    "no octets": f"A.{SERIAL}",
    "five characters": f"{KEY}.AAAAA",
    "bits that mean nothing": f"{KEY}.AQB",
    "a negative serial": f"{KEY}.{b64(bytes([0x80]) + bytes(15))}",
    "a serial that is not minimal": f"{KEY}.{b64(bytes(2))}",
    "a serial with a needless zero": f"{KEY}.{b64(bytes([0, 1]))}",
    "a serial of 22 octets": f"{KEY}.{b64(b'1' * 22)}",
    "a key identifier of 65 octets": f"{b64(b'k' * 65)}.{SERIAL}",
    "a giant key": f"{'k' * 6000}.{SERIAL}",
    "a giant serial": f"{KEY}.{'k' * 6000}",
    "dots": "." * 6000,
    "hexadecimal": "00:11.01:02",
    "not ASCII": "schl\u00fcssel.serial",
    "a line's end": f"{KEY}.{SERIAL}\n",
    "a zero octet": f"{KEY}.{SERIAL}\0",
    "an operation": "simpleenroll",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_R51_what_is_no_identifier_is_a_400(case: str) -> None:
    """R51: a 400 that says what is wanted, for whatever else stands in the path."""
    with pytest.raises(BadRequest) as caught:
        renewal_info.read(HOSTILE[case])
    assert caught.value.reason is Reason.BAD_CERT_ID
    assert "base64url without padding" in caught.value.sentence
    assert len(caught.value.sentence) < 400


@given(st.text())
def test_R51_no_text_does_more_than_be_refused(given_text: str) -> None:
    """R51: an identifier is read back octet for octet, or it is a 400."""
    with suppress(BadRequest):
        assert str(renewal_info.read(given_text)) == given_text


# --- The window ---

PERCENTS = st.tuples(st.integers(1, 98), st.integers(1, 98)).map(lambda pair: (min(pair), max(pair) + 1))
LIVES = st.integers(60, 100 * 365 * DAY)


@given(st.binary(min_size=16, max_size=16), LIVES, PERCENTS)
def test_R51_a_window_lies_inside_its_profiles(serial: bytes, life: int, percents: tuple[int, int]) -> None:
    """R51: a certificate's window is its profile's part of its life, or in it; never empty, never past its end."""
    suggested = renewal_info.suggest(serial, NOW, NOW + life, percents)
    assert NOW <= suggested.start < suggested.end <= NOW + life
    assert suggested.start >= NOW + life * percents[0] // 100
    assert suggested.end <= max(NOW + life * percents[1] // 100, suggested.start + 1)
    assert renewal_info.read_body(renewal_info.body(suggested)) == suggested
    past = renewal_info.at_once(suggested, NOW)
    assert past.end == NOW
    assert past.end - past.start == suggested.end - suggested.start


def test_R51_every_place_of_the_profiles_window_is_somebodys() -> None:
    """R51: the serial numbers' last bits choose among the window's shares from its first second to its last."""
    first = renewal_info.suggest(bytes(16), NOW, NOW + 100 * DAY, (60, 80))
    last = renewal_info.suggest(b"\xff" * 16, NOW, NOW + 100 * DAY, (60, 80))
    assert first == (NOW + 60 * DAY, NOW + 60 * DAY + 20 * DAY // 8)
    assert last == pytest.approx((NOW + 80 * DAY - 20 * DAY // 8, NOW + 80 * DAY), abs=1)


def test_R51_hours_count_from_the_issuing() -> None:
    """R51: with a validity of ten minutes and an hour's backdate nothing is due when it is issued."""
    assert renewal_info.suggest(bytes(16), NOW, NOW + 599, (60, 80)).start == NOW + 359


@pytest.mark.parametrize(("life", "again"), [(600, 60), (DAY, 7200), (90 * DAY, 21600), (10 * 365 * DAY, 21600)])
def test_R51_a_device_asks_a_few_times_in_a_life(life: int, again: int) -> None:
    """R51: the shorter the life the sooner it is asked again, between a minute and six hours."""
    assert renewal_info.ask_seconds(NOW, NOW + life) == again


@pytest.mark.parametrize("days_left", [400, 90, 10, 1])
def test_R51_R19_a_window_ends_before_the_root_does(days_left: int) -> None:
    """R51, R19: in a root's last days certificates end with it, so that their windows, whatever the serial number, end
    before: what was issued under an old key is renewed, onto the new one, while the old root is valid."""
    root = make.certificate(ca=True, ends=make.timedelta(days=days_left))
    ends = int(root.certificate.not_valid_after_utc.timestamp())
    profile = parse(text("profile.device", 'validity = "90d"'), FOLDER).profiles["device"]
    prepared = Issuer(CaCertificate.of(root.certificate, ()), profile).prepare(
        serial=b"\xff" * 16, now=NOW, subject_der=b"\x30\x00", san_der=b"", spki_der=b"", key_bits=b"",
    )  # fmt: skip
    assert renewal_info.suggest(prepared.serial, NOW, prepared.not_after, profile.renewal_window).end < ends


ANSWERS = [
    b"", b"{}", b"[]", b"null", b'{"suggestedWindow": 1}', b'{"suggestedWindow": {"start": "2026-01-01T00:00:00Z"}}',
    b'{"suggestedWindow": {"start": "2026-01-01T00:00:00", "end": "2026-01-02T00:00:00"}}',
    b'{"suggestedWindow": {"start": "2026-01-02T00:00:00Z", "end": "2026-01-02T00:00:00Z"}}',
    b'{"suggestedWindow": {"start": "2026-01-03T00:00:00Z", "end": "2026-01-02T00:00:00Z"}}',
    b'{"suggestedWindow": {"start": 1, "end": 2}}', b'{"suggestedWindow": {"start": "", "end": ""}}', b"\xff\xfe\xfd",
]  # fmt: skip


@pytest.mark.parametrize("content", ANSWERS)
def test_R51_our_client_believes_no_broken_answer(content: bytes) -> None:
    """R51: an answer without a window, or with one that is none, is a ValueError (RFC 9773 §4.2)."""
    with pytest.raises(ValueError, match=r"."):
        renewal_info.read_body(content)


def test_R51_times_of_another_zone_are_the_same_times() -> None:
    """R51: a server may write its times with an offset and parts of seconds (RFC 3339)."""
    content = b'{"suggestedWindow": {"start": "2026-01-01T01:00:00.5+01:00", "end": "2026-01-01T00:00:09Z"}}'
    assert renewal_info.read_body(content) == Window(1767225600, 1767225609)


# --- What a fleet does with it ---


def once(device: random.Random, window: Window, _asks: Callable[[], int], _enrolled: int) -> float:
    """RFC 9773 §4.3.1 for a device with a timer: a random time in the window."""
    return device.uniform(*window)


def each_time(device: random.Random, window: Window, asks: Callable[[], int], enrolled: int) -> float:
    """The same for one that only wakes up to ask: it draws anew, and renews where that is before it would wake."""
    now = float(enrolled)
    while True:
        drawn, wakes = device.uniform(*window), now + asks()
        if drawn < wakes:
            return max(now, drawn)
        now = wakes


def at_its_start(_device: random.Random, window: Window, _asks: Callable[[], int], _enrolled: int) -> float:
    """One that draws nothing."""
    return float(window.start)


@pytest.mark.parametrize("device", [once, each_time, at_its_start])
@pytest.mark.parametrize("life", [DAY, 90 * DAY])
def test_R51_a_fleet_of_one_minute_is_spread_over_the_window(device: Callable[..., float], life: int) -> None:
    """R51: 20,000 devices are enrolled within one minute. They renew over the whole window of their profile, at no more
    than 8/7 of N/(width·L) a second (and the noise of a draw), however each chooses its time; a bin is a 36th of the
    window, and the busiest would have them all if each renewed at a fixed part of its life."""
    count, bins = 20_000, 36
    noise = random.Random(51)
    low, high = RENEWAL_WINDOW
    width = life * (high - low) // 100
    asks = renewal_info.ask_seconds(NOW, NOW + life)
    times: Counter[int] = Counter()
    for enrolled_ms in sorted(noise.randrange(60_000) for _ in range(count)):
        issued = NOW + enrolled_ms // 1000
        serial = serials(1, issued * 1000)[0][:6] + noise.randbytes(10)
        window = renewal_info.suggest(serial, issued, issued + life - 1, RENEWAL_WINDOW)
        renews = device(noise, window, lambda: asks + noise.randrange(asks + 1), issued)
        times[int((renews - NOW - life * low // 100) * bins / width)] += 1
    # A device that wakes seldom is early by the time that it would have slept, never late.
    assert -1 - 2 * asks * bins / width <= min(times)
    assert max(times) <= bins
    fair = count / bins
    assert max(times.values()) < 1.15 * fair * renewal_info.SHARES / (renewal_info.SHARES - 1)
    inner = [times[one] for one in range(bins // renewal_info.SHARES + 1, bins - bins // renewal_info.SHARES - 1)]
    assert min(inner) > 0.8 * fair


# --- What an issuer answers ---

CA, OTHER_CA = make.certificate(ca=True), make.certificate(ca=True)
SETTINGS = (
    text("profile.device", 'renewal_window = ["50%", "75%"]')
    + """
[ca.other]
certificate = "other.pem"
key_id = "02"
[label.beside]
ca = "root"
[label.elsewhere]
ca = "other"
"""
)
LABELS = {"default": 0, "beside": 1, "elsewhere": 2}
LIFE = 40 * DAY


class Counting(Writer):
    """The ledger, with how often it was asked."""

    asked = 0

    def find_many(self, serials: Any) -> dict[bytes, Row]:
        self.asked += 1
        return super().find_many(serials)


class Scene:
    """One issuer with a ledger of its own."""

    def __init__(self, folder: Path) -> None:
        ledger.create(folder / "ledger.sqlite3")
        self.ledger = Counting(folder / "ledger.sqlite3")
        self.reported: list[str] = []
        self.windows = RenewalWindows(parse(SETTINGS, FOLDER), lambda event, **_: self.reported.append(event))

    def add(self, ca: Identity = CA, **changes: Any) -> Identity:
        """A certificate that the ledger holds, issued under the label default unless it is said otherwise."""
        found = make.certificate(ca)
        row = Row(
            serial=found.certificate.serial_number.to_bytes(20, "big").lstrip(b"\0").rjust(16, b"\0"),
            certificate_der=found.der, csr_sha256=bytes(32), repeat_key=bytes(32), identity="basic:factory",
            subject="CN=x", label="default", profile="device", not_before=NOW - 3600, not_after=NOW + LIFE,
            issued_at_ms=NOW * 1000, renews=None,
        )._replace(**changes)  # fmt: skip
        self.ledger.record([row])
        return found

    def ask(self, *certificates: Identity | CertId, label: str = "default", deadline: float = 10.0) -> list[Answer]:
        """The answers, in order, whose window is checked."""
        questions = []
        for number, one in enumerate(certificates):
            asked = one if isinstance(one, CertId) else renewal_info.cert_id(one.certificate)
            made = frames.question(LABELS[label], time.monotonic() + deadline, asked.key_id, asked.serial)
            data = frames.pack_request(made, number)
            questions.append(frames.unpack_request(data, 0, len(data)))
        answers = self.windows.answer(questions, self.ledger)
        assert [one.id for one in answers] == list(range(len(certificates)))
        return [frames.unpack_answer(data, 0, len(data)) for data in map(frames.pack_answer, answers)]

    def window(self, certificate: Identity, **options: Any) -> Window:
        (given_,) = self.ask(certificate, **options)
        assert given_.status == 200, given_.payload
        return renewal_info.read_body(given_.payload)

    def refused(self, certificate: Identity | CertId, **options: Any) -> tuple[int, Reason]:
        (given_,) = self.ask(certificate, **options)
        return given_.status, REASONS[given_.reason]


@pytest.fixture
def scene(folder: Path) -> Scene:
    return Scene(folder)


def test_R51_a_certificate_is_told_its_profiles_window(scene: Scene) -> None:
    """R51: what the ledger holds is told a window inside its profile's percentages, always the same one, its serial
    number for the log, and to ask again within one to two times the pause."""
    device = scene.add()
    window = scene.window(device)
    assert NOW + LIFE // 2 <= window.start < window.end <= NOW + LIFE * 3 // 4
    answers = scene.ask(*[device] * 50)
    assert {renewal_info.read_body(one.payload) for one in answers} == {window}
    assert {one.serial for one in answers} == {device.certificate.serial_number.to_bytes(20, "big").lstrip(b"\0")}
    pauses = {one.retry_after for one in answers}
    assert 21600 <= min(pauses) < max(pauses) <= 43200


def test_R51_a_profile_that_is_gone_has_the_usual_window(scene: Scene) -> None:
    """R51: a certificate of a profile that is not in the configuration any more is still told when to renew."""
    window = scene.window(scene.add(profile="of-old"))
    assert NOW + LIFE * 6 // 10 <= window.start < window.end <= NOW + LIFE * 8 // 10


def test_R51_many_questions_are_one_look_into_the_ledger(scene: Scene) -> None:
    """R51: a batch of questions, of known and unknown certificates, asks the ledger once."""
    devices = [scene.add() for _ in range(8)]
    answers = scene.ask(*devices, *(CertId(b"k", bytes([one])) for one in range(24)))
    assert [one.status for one in answers] == [200] * 8 + [404] * 24
    assert scene.ledger.asked == 1


def test_R51_a_label_tells_of_its_own_ca_alone(scene: Scene) -> None:
    """R51: another label of the same CA tells too; one of another CA does not, nor any of a certificate whose label
    is gone; and each 404 says the same as one for a certificate that never was."""
    device, elsewhere, gone = scene.add(), scene.add(OTHER_CA, label="elsewhere"), scene.add(label="of-old")
    assert scene.window(device) == scene.window(device, label="beside")
    assert scene.window(elsewhere, label="elsewhere")
    refused = [
        *scene.ask(device, label="elsewhere"), *scene.ask(elsewhere, gone, make.certificate(CA)),
    ]  # fmt: skip
    assert {(one.status, REASONS[one.reason]) for one in refused} == {(404, Reason.UNKNOWN_CERTIFICATE)}
    assert len({one.payload for one in refused}) == 1


def test_R51_both_halves_of_an_identifier_count(scene: Scene) -> None:
    """R51: a serial number of ours beside another key's identifier names no certificate."""
    device = scene.add()
    serial = renewal_info.cert_id(device.certificate).serial
    for key_id in (b"k" * 20, renewal_info.cert_id(OTHER_CA.certificate).key_id, b"\0"):
        assert scene.refused(CertId(key_id, serial)) == (404, Reason.UNKNOWN_CERTIFICATE)


def test_R51_a_revoked_certificate_is_to_be_renewed_at_once(scene: Scene) -> None:
    """R51: its window ended when it was revoked, whatever its window was; and was never later than now, by whatever
    clock it was revoked."""
    for revoked_at in (NOW - 30, NOW - 5000 * DAY, NOW + 3600):
        window = scene.window(scene.add(revoked_at=revoked_at, reason=1))
        assert window.end == pytest.approx(min(revoked_at, time.time()), abs=60)
        assert window.start < window.end <= time.time()


def test_R51_an_expired_certificate_has_a_window_that_is_over(scene: Scene) -> None:
    """R51: a device that slept past its certificate's end comes at once, as its label's expired_window may let it."""
    window = scene.window(scene.add(issued_at_ms=(NOW - 2 * LIFE) * 1000, not_after=NOW - LIFE))
    assert window.end <= NOW - LIFE


def test_R51_a_device_that_is_disabled_is_to_come_at_once(scene: Scene) -> None:
    """R51: with its row disabled, or gone, its certificate renews nothing any more, which it hears when it comes."""
    key = DeviceKey("default", "", "SN-1")
    devices = [scene.add(identity=key.identity), scene.add(identity=key.renewed_by("ra:01 CN=gateway"))]

    def due() -> list[bool]:
        return [scene.window(device).end <= time.time() for device in devices]

    assert due() == [True, True], "no row"
    number = scene.ledger.change_devices({"change": "begin", "at": NOW})["id"]
    row = Device(*key, profile=None, names="", enabled=True, secret=None, secret_until=None, secret_used_ms=None,
                 added_at=NOW)  # fmt: skip
    scene.ledger.change_devices({"change": "rows", "id": number, "rows": [list(row)]})
    scene.ledger.change_devices({"change": "done", "id": number})
    assert due() == [False, False]
    scene.ledger.change_devices({"change": "state", "key": list(key), "enabled": False})
    assert due() == [True, True], "disabled"


def test_R51_a_ledger_that_fails_is_a_503(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """R51: where the ledger cannot be read each question has its answer, and the log says why."""

    def fail(_serials: object) -> dict[bytes, Row]:
        raise OSError("the disk is away")

    device = scene.add()
    monkeypatch.setattr(scene.ledger, "find_many", fail)
    answers = scene.ask(device, device)
    assert [(one.status, REASONS[one.reason], one.retry_after > 0) for one in answers] == [
        (503, Reason.INTERNAL, True)
    ] * 2
    assert scene.reported == ["step_failed"]


def test_R51_a_question_that_waited_too_long_is_a_503(scene: Scene) -> None:
    """R51: nobody waits for it any more."""
    assert scene.refused(scene.add(), deadline=-1.0) == (503, Reason.DEADLINE)


# --- On the way to an issuer ---


def test_R51_a_question_is_handed_on_without_a_csr(folder: Path) -> None:
    """R51: it is validated by nobody, told to no other once its client has left, and handed over again like others."""
    asked = frames.question(3, time.monotonic() + 60, b"key", b"serial")

    def never(_csr: bytes) -> None:
        raise AssertionError("a question has no CSR")

    async def act(issuer: OtherEnd, link: IssuerLink) -> None:
        gone = asyncio.ensure_future(link.ask(asked))
        await until(lambda: len(issuer.asked) == 1)
        gone.cancel()
        waiting = asyncio.ensure_future(link.ask(asked))
        await until(lambda: len(issuer.asked) == 2)
        assert [one._replace(id=0) for one in issuer.asked] == [asked] * 2
        issuer.die()
        await until(lambda: len(issuer.asked) == 3)
        issuer.answer(issuer.asked[2].id)
        assert (await waiting).status == 200

    assert run(folder, act, validate=never).get(metrics.REDELIVERED.at) == 1


def test_R51_half_of_the_queue_is_for_enrolments(folder: Path) -> None:
    """R51: once half of the places are taken a question has none, and an enrolment still has."""

    async def act(issuer: OtherEnd, link: IssuerLink) -> None:
        waiting = [asyncio.ensure_future(link.ask(enrolment())) for _ in range(3)]
        await until(lambda: len(issuer.asked) == 3)
        assert not link.is_half_full
        waiting.append(asyncio.ensure_future(link.ask(enrolment())))
        await until(lambda: len(issuer.asked) == 4)
        assert link.is_half_full
        for one in issuer.asked:
            issuer.answer(one.id)
        await asyncio.gather(*waiting)
        assert not link.is_half_full

    run(folder, act, queue=8)


# --- The configuration ---


@pytest.mark.parametrize(
    "value",
    ['"60%"', '["60%"]', '["80%", "60%"]', '["60%", "60%"]', '["0%", "60%"]', '["60%", "100%"]', '["60", "80"]',
     "[60, 80]", '["60%", "70%", "80%"]', '["-1%", "80%"]', '["6 %", "80%"]', "[]", '["60%", "8\u0660%"]'],
)  # fmt: skip
def test_R51_a_window_that_is_none_is_refused(value: str) -> None:
    """R51: a profile's window is two percentages of its certificates' lives, the smaller first."""
    (told,) = problems(text("profile.device", f"renewal_window = {value}"))
    assert told.startswith("profile.device.renewal_window: ")
    assert "two percentages" in told


def test_R51_it_is_on_unless_a_label_says_otherwise() -> None:
    """R51: the switch's default is on, and no label may have the operation's name."""
    assert parse(text(), FOLDER).labels["default"].renewal_info
    assert not parse(text("label.default", "renewal_info = false"), FOLDER).labels["default"].renewal_info
    with pytest.raises(ConfigError, match="name of an operation"):
        parse(text() + '[label.renewal-info]\nca = "root"\n', FOLDER)
