"""The line of a batch, stepped: a software key for the token, a dictionary for the ledger, a clock that stands still.

After each act the whole invariant is checked: every request has one answer, and every certificate that left is in the
ledger.
"""

from __future__ import annotations

import sqlite3
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from estd import batch, config, csr, frames, labels, ledger_requests, material, metrics
from estd.batch import BatchLine, Fatal
from estd.devices import Use
from estd.errors import REASONS, Reason
from estd.frames import Answer, Request
from estd.issuance import serial_floor
from estd.ledger import LedgerBroken, LeftOut, Row
from estd.ledger_requests import Held, Requests
from estd.material import Material
from estd.repeats import Repeats
from hsm.errors import TokenError, TokenFatal, TokenTransient
from hsm.session import Job
from tests import make
from tests.test_config import text

NOW = float(int(time.time()))
WINDOW_SECONDS = 600
FATAL = TokenFatal("DeviceError", "the token is gone")
TRANSIENT = TokenTransient("FunctionFailed", "not now")

SETTINGS = (
    text("profile.device", 'subject = "csr"', 'dns = "csr"', 'keys = ["ec-p256"]')
    + """
[[label.default.allow]]
who = "issued"
[[label.default.allow]]
who = "basic"
credentials = "credentials"
profile = "device"
[label.other]
ca = "root"
repeat_window = "1m"
[[label.other.allow]]
who = "basic"
credentials = "credentials"
profile = "device"
"""
)
BASIC_RULE = {0: 1, 1: 0}
"""Which of a label's rules is the Basic one."""


class SoftToken:
    """The token as a key in memory. `fault` may refuse a job, by its place in the batch, or the whole call."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.fault: Callable[[int], TokenError | None] = lambda index: None
        self.signed: list[Job] = []

    def sign_many(self, jobs: Sequence[Job]) -> list[bytes | TokenError]:
        results: list[bytes | TokenError] = []
        for index, job in enumerate(jobs):
            error = self.fault(index)
            if isinstance(error, TokenFatal):
                return results + [error] * (len(jobs) - index)
            if error is None:
                self.signed.append(job)
            results.append(error or self._key.sign(job.data, ec.ECDSA(hashes.SHA256())))
        return results


class DictLedger:
    """The ledger as a dictionary, with callbacks that may raise before and after a batch is written."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.finding: Callable[[], None] = lambda: None
        self.records = 0
        self.challenges: dict[bytes, bytes] = {}
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.executescript(ledger_requests.SCHEMA)

    def find_many(self, serials: Collection[bytes]) -> dict[bytes, Row]:
        self.finding()
        return {serial: self.rows[serial] for serial in serials if serial in self.rows}

    def find_subject(self, label: str, subject: str) -> list[Row]:
        rows = [row for _, row in sorted(self.rows.items(), reverse=True)]
        return [row for row in rows if row.label == label and row.subject.lower() == subject.lower()]

    def find_repeat(self, repeat_key: bytes, when_ms: int) -> Row | None:
        low, high = serial_floor(when_ms), serial_floor(when_ms + 1)
        return next(
            (
                row for serial, row in self.rows.items()
                if low <= serial < high and row.repeat_key == repeat_key and row.revoked_at is None
            ),
            None,
        )  # fmt: skip

    def repeat_keys_since(self, when_ms: int) -> Iterator[tuple[bytes, bytes]]:
        return (
            (row.repeat_key, serial) for serial, row in sorted(self.rows.items()) if serial >= serial_floor(when_ms)
        )

    @property
    def requests(self) -> Requests:
        return Requests(self.db)

    def record(
        self, rows: Sequence[Row], held: Held, uses: Sequence[Use], challenges: Mapping[bytes, bytes]
    ) -> Mapping[bytes, LeftOut]:
        assert not uses  # nobody here has a one-time secret
        assert not challenges.keys() - {row.serial for row in rows}
        self.challenges |= challenges
        self.records += 1
        self.before()
        withdrawn = ledger_requests.change(self.db, held)
        rows = [row for row in rows if row.serial not in withdrawn]
        assert not {row.serial for row in rows} & set(self.rows)
        assert len({row.serial for row in rows}) == len(rows)
        self.rows |= {row.serial: row for row in rows}
        self.after()
        return dict.fromkeys(withdrawn, "withdrawn")

    def supersede(self, serials: Sequence[bytes], when: int) -> None:
        raise AssertionError("no profile of these tests supersedes")

    def store_health(self, slot: int, at: float) -> None:
        raise AssertionError("no batch stores health")


@dataclass
class Scene:
    """One issuer's line with all that it is given."""

    ca: make.Identity
    material: Material
    token: SoftToken
    ledger: DictLedger = field(default_factory=DictLedger)
    now: float = NOW
    why: str = ""
    """Why the last act ended the process; empty where it did not."""
    reported: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slot = metrics.Slot(memoryview(array("d", bytes(8 * metrics.SLOT_DOUBLES))))
        self.restart()

    def restart(self) -> None:
        """A new process: its line is new, its repeats are what the ledger remembers."""
        repeats = Repeats(WINDOW_SECONDS * 1000, int(self.now * 1000) - WINDOW_SECONDS * 1000)
        for repeat_key, serial in self.ledger.repeat_keys_since(int(self.now * 1000) - WINDOW_SECONDS * 1000):
            repeats.add(repeat_key, int.from_bytes(serial[:6], "big"))
        self.line = BatchLine(
            material=self.material, signer=self.token, ledger=self.ledger, repeats=repeats, slot=self.slot,
            report=lambda event, **fields: self.reported.append({"event": event, **fields}), clock=lambda: self.now,
        )  # fmt: skip

    def act(self, *requests: Request) -> list[Answer]:
        """The answers in the order of the requests, after the invariant was checked."""
        numbered = [request._replace(id=number) for number, request in enumerate(requests)]
        self.why = ""
        try:
            answers = self.line.run(numbered)
        except Fatal as fatal:
            answers, self.why = fatal.answers, str(fatal)
            assert self.why
        assert [answer.id for answer in answers] == list(range(len(requests)))
        for answer in answers:
            self._check(answer)
        return answers

    def _check(self, answer: Answer) -> None:
        if answer.status == 200:
            if not answer.serial:  # the leave to make a key
                assert set(answer.payload.decode().split(",")) <= set(labels.KEY_KINDS)
                return
            row = self.ledger.rows[answer.serial]
            assert row.certificate_der == answer.payload
            assert row.revoked_at is None
            certificate = x509.load_der_x509_certificate(answer.payload)
            certificate.verify_directly_issued_by(self.ca.certificate)
            assert certificate.serial_number == int.from_bytes(answer.serial, "big")
            return
        assert not answer.serial
        assert answer.payload.decode().endswith(".")
        assert (answer.retry_after > 0) == (answer.status in (202, 429, 503))

    def count(self, family: metrics.Family, *labels: str) -> float:
        return self.slot.get(family.series(*labels))


@pytest.fixture(scope="module")
def ca() -> make.Identity:
    return make.certificate(ca=True)


@pytest.fixture(scope="module")
def loaded(ca: make.Identity, tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("batch")
    (folder / "ca.pem").write_bytes(ca.pem)
    return material.load(config.parse(SETTINGS, Path(folder)))


@pytest.fixture
def scene(ca: make.Identity, loaded: Material) -> Scene:
    return Scene(ca=ca, material=loaded, token=SoftToken(ca.key))


def asks(csr_der: bytes | None = None, **changes: Any) -> Request:
    """An enrolment by Basic credential of a new device."""
    changes = {"label": 0, **changes}
    return Request(
        kind=frames.ENROLL, deadline=float("inf"), user="factory", rule=BASIC_RULE[changes["label"]], binding=b"",
        chain=b"", csr_der=make.csr() if csr_der is None else csr_der, label=0,
    )._replace(**changes)  # fmt: skip


def refused(*answers: Answer) -> list[tuple[int, str]]:
    return [(answer.status, REASONS[answer.reason] if answer.status != 200 else "") for answer in answers]


GOOD = (200, "")
TOKEN_AWAY = (503, Reason.TOKEN_AWAY)
LEDGER_AWAY = (503, Reason.LEDGER_AWAY)


def test_an_enrolment_is_signed_and_recorded(scene: Scene) -> None:
    """A good request costs one signature and one transaction, and its row says who, what and when."""
    key = make.key()
    (answer,) = scene.act(asks(csr_der := make.csr(key, subject=make.name("device-9"))))
    assert refused(answer) == [GOOD]
    row = scene.ledger.rows[answer.serial]
    assert (row.identity, row.subject, row.label, row.profile) == ("basic:factory", "CN=device-9", "default", "device")
    assert row.issued_at_ms == int(NOW * 1000) == int.from_bytes(answer.serial[:6], "big")
    assert row.csr_sha256 == csr.parse(csr_der).sha256
    assert row.not_before <= NOW < row.not_after
    assert row.renews is None
    assert (len(scene.token.signed), scene.ledger.records) == (1, 1)
    assert x509.load_der_x509_certificate(answer.payload).public_key() == key.public_key()


def test_a_batch_is_one_transaction(scene: Scene) -> None:
    """A whole batch of different devices is recorded at once, each under a serial of its own."""
    answers = scene.act(*(asks() for _ in range(batch.BATCH_MAX)))
    assert refused(*answers) == [GOOD] * batch.BATCH_MAX
    assert scene.ledger.records == 1
    assert len({answer.serial for answer in answers}) == batch.BATCH_MAX
    assert scene.count(metrics.CERTIFICATES) == batch.BATCH_MAX
    assert scene.count(metrics.REPEATED) == 0


def test_a_fatal_token_ends_the_process_with_answers_for_all(scene: Scene) -> None:
    """What was signed before the token failed is recorded and leaves; the rest are told 503 and when to come back."""
    scene.token.fault = lambda index: FATAL if index == 2 else None
    answers = scene.act(*(asks() for _ in range(5)))
    assert refused(*answers) == [GOOD, GOOD, TOKEN_AWAY, TOKEN_AWAY, TOKEN_AWAY]
    assert scene.why == str(FATAL)
    assert scene.count(metrics.TOKEN_ERRORS, "fatal") == 3


def test_a_token_that_is_away_altogether_is_answered_too(scene: Scene) -> None:
    """An error of the whole call is everybody's 503, and the end of the process."""

    def fail(_index: int) -> None:
        raise FATAL

    scene.token.fault = fail
    assert refused(*scene.act(asks(), asks())) == [TOKEN_AWAY] * 2
    assert scene.why
    assert scene.ledger.records == 0


def test_a_transient_refusal_is_its_requests_alone(scene: Scene) -> None:
    """A job that the token refused for now is a 503; the others get their certificates and the process goes on."""
    scene.token.fault = lambda index: TRANSIENT if index == 1 else None
    again = asks()
    assert refused(*scene.act(asks(), again, asks())) == [GOOD, TOKEN_AWAY, GOOD]
    assert scene.why == ""
    scene.token.fault = lambda index: None
    assert refused(*scene.act(again)) == [GOOD]


def _broken() -> None:
    raise LedgerBroken("the disk is full")


def _bug() -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("fault", [_broken, _bug])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_ledger_that_fails_lets_nobody_have_a_certificate(
    scene: Scene, moment: str, fault: Callable[[], None]
) -> None:
    """Whatever the ledger raised, before or after its rows were written, no certificate of the batch leaves and the
    process ends; what was written is what a repeated request gets."""
    requests = [asks() for _ in range(3)]
    setattr(scene.ledger, moment, fault)
    assert refused(*scene.act(*requests)) == [LEDGER_AWAY] * 3
    assert scene.why
    setattr(scene.ledger, moment, lambda: None)
    scene.restart()
    signatures = len(scene.token.signed)
    assert refused(*scene.act(*requests)) == [GOOD] * 3
    assert len(scene.ledger.rows) == 3
    assert len(scene.token.signed) - signatures == (3 if moment == "before" else 0)


def test_twins_in_a_batch_get_one_certificate(scene: Scene) -> None:
    """The same request several times in one batch is signed once, and each of them gets that certificate."""
    key = make.key()
    first, other, second, third = scene.act(asks(make.csr(key)), asks(), asks(make.csr(key)), asks(make.csr(key)))
    assert first.serial == second.serial == third.serial != other.serial
    assert first.payload == second.payload
    assert len(scene.token.signed) == len(scene.ledger.rows) == 2


def test_answers_stand_where_their_requests_stood(scene: Scene) -> None:
    """Whatever the requests' ids are, for two edges may use one, and whatever becomes of those between them."""
    requests = [asks(), asks()._replace(label=99), asks(user=None), asks(), asks()]
    answers = scene.line.run([request._replace(id=7) for request in requests])
    assert [(one.id, one.status) for one in answers] == [(7, 200), (7, 404), (7, 401), (7, 200), (7, 200)]
    for index in (0, 3, 4):
        key = x509.load_der_x509_certificate(answers[index].payload).public_key()
        assert key == x509.load_der_x509_csr(requests[index].csr_der).public_key()


def test_twins_share_their_fate(scene: Scene) -> None:
    """Where the one was refused by the token, so is its twin."""
    scene.token.fault = lambda index: TRANSIENT if index == 0 else None
    twin = asks()
    assert refused(*scene.act(twin, asks(), twin)) == [TOKEN_AWAY, GOOD, TOKEN_AWAY]


def test_a_repeat_costs_no_signature(scene: Scene) -> None:
    """Inside the window the same request gets the certificate that it was given, also from a new process."""
    request = asks()
    (first,) = scene.act(request)
    for later in (0.0, 1.0, WINDOW_SECONDS - 1.0):
        scene.now = NOW + later
        scene.restart()
        (again,) = scene.act(request)
        assert (again.serial, again.payload) == (first.serial, first.payload)
    assert len(scene.token.signed) == 1
    assert scene.ledger.records == 1
    assert scene.count(metrics.REPEATED) == 3


def test_R44_what_is_asked_first_issues_nothing(scene: Scene) -> None:
    """R44: before a revocationChallenge is hashed the issuer says who may not, at no cost of the token's; then the hash
    is recorded with the certificate, and the same request is answered with that one when it is asked first again."""
    request = asks()
    first = request._replace(kind=frames.MAY_ENROLL)
    assert [one[1:] for one in scene.line.run([first])] == [(200, 0, 0, "basic:factory", b"", b"ec-p256")]
    assert refused(*scene.act(first._replace(user=None))) == [(401, Reason.NO_CREDENTIAL)]
    assert (scene.token.signed, scene.ledger.records) == ([], 0)
    (given,) = scene.act(request._replace(revocation=b"hash"))
    assert scene.ledger.challenges == {given.serial: b"hash"}
    assert scene.act(first) == [given]
    scene.act(asks())
    assert scene.ledger.challenges == {given.serial: b"hash"}
    assert refused(*scene.act(first._replace(kind=frames.MAY_RENEW))) == [(403, Reason.NOT_ISSUED)]


def test_a_repeat_after_its_window_is_a_new_request(scene: Scene) -> None:
    """Once the label's window is over, the same request is signed anew."""
    request = asks()
    (first,) = scene.act(request)
    scene.now = NOW + WINDOW_SECONDS + 1
    (second,) = scene.act(request)
    assert first.serial != second.serial


@pytest.mark.parametrize(("label", "repeated"), [(0, True), (1, False)])
def test_each_label_has_its_own_window(scene: Scene, label: int, repeated: bool) -> None:
    """A label with a shorter window than another's does not repeat what is older than its own."""
    request = asks(label=label)
    (first,) = scene.act(request)
    scene.now = NOW + 61
    (second,) = scene.act(request)
    assert (first.serial == second.serial) is repeated


def test_a_revoked_certificate_is_never_repeated(scene: Scene) -> None:
    """A request whose certificate was revoked meanwhile gets another one."""
    request = asks()
    (first,) = scene.act(request)
    scene.ledger.rows[first.serial] = scene.ledger.rows[first.serial]._replace(revoked_at=int(NOW), reason=1)
    (second,) = scene.act(request)
    assert first.serial != second.serial


_KEY = make.key()


@pytest.mark.parametrize(
    "other",
    [
        asks(make.csr(_KEY), user="another"),
        asks(make.csr(_KEY), label=1),
        asks(make.csr(_KEY, subject=make.name("device-2"))),
        asks(make.csr(_KEY, san=[x509.DNSName("a.example.com")])),
        asks(make.csr(make.key())),
    ],
    ids=["credential", "label", "subject", "san", "key"],
)
def test_what_differs_is_no_repeat(scene: Scene, other: Request) -> None:
    """Another credential, label, name or key is another request, in one batch and after it."""
    request = asks(make.csr(_KEY))
    first, second = scene.act(request, other)
    (third,) = scene.act(other)
    assert first.serial != second.serial
    assert second.serial == third.serial


def test_a_request_that_waited_too_long_is_not_signed(scene: Scene) -> None:
    """Past its deadline nobody waits for it any more: 503, no token call, no row."""
    late, good = scene.act(asks(deadline=0.0), asks())
    assert refused(late, good) == [(503, Reason.DEADLINE), GOOD]
    assert len(scene.token.signed) == 1


@pytest.mark.parametrize("room", ["csr.parse", "admission.identify", "policy.authorise"])
def test_a_bug_hurts_its_request_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch, room: str) -> None:
    """An unforeseen exception over one request is its own 503 and a line in the log; the rest of the batch goes on."""
    module, _, name = room.partition(".")
    real = getattr(getattr(batch, module), name)
    calls = iter(range(3))

    def fail_once(*args: object) -> object:
        if next(calls) == 1:
            raise ZeroDivisionError
        return real(*args)

    monkeypatch.setattr(getattr(batch, module), name, fail_once)
    assert refused(*scene.act(asks(), asks(), asks())) == [GOOD, (503, Reason.INTERNAL), GOOD]
    assert [line["event"] for line in scene.reported] == ["step_failed"]
    assert scene.why == ""


def test_a_bug_in_preparing_hurts_its_request_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds after the serials were given: the others keep theirs."""
    issuer = scene.material.issuers["root", "device"]
    real, calls = issuer.prepare, iter(range(3))

    def fail_once(**given_: Any) -> Any:
        if next(calls) == 0:
            raise ZeroDivisionError
        return real(**given_)

    monkeypatch.setattr(issuer, "prepare", fail_once)
    assert refused(*scene.act(asks(), asks(), asks())) == [(503, Reason.INTERNAL), GOOD, GOOD]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (asks(b"\x30\x00"), (400, Reason.NOT_DER)),
        (asks(user=None, rule=-1), (401, Reason.NO_CREDENTIAL)),
        (asks(rule=0), (401, Reason.CERT_UNKNOWN)),
        (asks(kind=frames.RENEW), (403, Reason.NOT_ISSUED)),
        (asks(make.csr(subject=make.name(ORGANIZATION_NAME="Acme"))), (403, Reason.NAME_REFUSED)),
        (asks(make.csr(ec.generate_private_key(ec.SECP384R1()))), (400, Reason.KEY_REFUSED)),
        (asks(make.csr(challenge_password=b"x")), (400, Reason.LINKING)),
        (asks(chain=b"\x30\x03abc", user=None, rule=-1), None),
        (asks(chain=b"\x30", user=None, rule=-1), None),
    ],
    ids=["der", "nobody", "rule", "renewal", "names", "key", "linking", "chain", "half a chain"],
)
def test_D20_a_refusal_makes_no_token_call(scene: Scene, request_: Request, expected: tuple[int, str] | None) -> None:
    """D20: what is refused costs neither a signature nor a transaction, and takes nothing from its neighbours."""
    first, second = refused(*scene.act(request_, request_))
    assert first == second == (expected or first)
    assert first != GOOD
    assert (scene.token.signed, scene.ledger.records) == ([], 0)
    assert refused(*scene.act(request_, asks()))[1] == GOOD


def test_a_renewal_names_what_it_renews(scene: Scene) -> None:
    """simplereenroll with a certificate of the ledger gets its names again; the row says which one it renewed."""
    (first,) = scene.act(asks())
    renewal = asks(make.csr(), kind=frames.RENEW, user=None, rule=-1, chain=first.payload)
    (second,) = scene.act(renewal)
    assert scene.ledger.rows[second.serial].renews == first.serial
    assert scene.ledger.rows[second.serial].subject == "CN=device-1"


def test_a_revoked_client_is_refused(scene: Scene) -> None:
    """A certificate that the ledger holds as revoked opens nothing, and costs nothing."""
    (first,) = scene.act(asks())
    scene.ledger.rows[first.serial] = scene.ledger.rows[first.serial]._replace(revoked_at=int(NOW), reason=1)
    renewal = asks(kind=frames.RENEW, user=None, rule=-1, chain=first.payload)
    assert refused(*scene.act(renewal)) == [(403, Reason.REVOKED)]
    assert len(scene.token.signed) == 1


def test_a_ledger_that_cannot_be_read_admits_nobody_by_it(scene: Scene) -> None:
    """A client whose certificate cannot be looked up is told 503; others in the batch go on."""
    (first,) = scene.act(asks())
    scene.ledger.finding = _bug
    renewal = asks(kind=frames.RENEW, user=None, rule=-1, chain=first.payload)
    assert refused(*scene.act(renewal, asks())) == [(503, Reason.INTERNAL), GOOD]


def test_an_empty_batch_has_no_answers(scene: Scene) -> None:
    """Nothing in, nothing out, and nobody is asked anything."""
    assert scene.act() == []
    assert (scene.token.signed, scene.ledger.records) == ([], 0)


def test_every_stage_is_measured(scene: Scene) -> None:
    """A batch is observed once in each stage, and by its size."""
    scene.act(asks(), asks(), asks())
    for stage in set(metrics.STAGES) - {"validate"}:  # the edge's
        at = metrics.STAGE_SECONDS.series(stage)
        assert sum(scene.slot.get(at + bucket) for bucket in range(len(metrics.SECONDS) + 1)) == 1
    assert scene.slot.get(metrics.BATCH_SIZE.at + metrics.SIZES.index(4.0)) == 1
    assert scene.slot.get(metrics.BATCH_SIZE.at + len(metrics.SIZES) + 1) == 3


_FLEET = [make.csr(subject=make.name(f"device-{number}")) for number in range(5)]
_FAULTS = st.sampled_from(["none", "none", "transient", "fatal", "before", "after"])


@given(acts=st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=8), _FAULTS, st.integers(0, 3)), max_size=12))
def test_the_invariant_holds_through_any_faults(
    ca: make.Identity, loaded: Material, acts: list[tuple[list[int], str, int]]
) -> None:
    """Through any sequence of batches and faults, a device that was given a certificate is given the same one for the
    whole window, and the ledger never holds two for it."""
    scene = Scene(ca=ca, material=loaded, token=SoftToken(ca.key))
    given_: dict[int, bytes] = {}
    for number, (devices, fault, place) in enumerate(acts):
        scene.now = NOW + number
        error = {"transient": TRANSIENT, "fatal": FATAL}.get(fault)
        scene.token.fault = lambda index, error=error, place=place: error if index == place else None  # type: ignore[misc]
        scene.ledger.before = _broken if fault == "before" else lambda: None
        scene.ledger.after = _broken if fault == "after" else lambda: None
        answers = scene.act(*(asks(_FLEET[device]) for device in devices))
        for device, answer in zip(devices, answers, strict=True):
            if answer.status == 200:
                assert given_.setdefault(device, answer.payload) == answer.payload
        if scene.why:
            scene.restart()
    assert len({row.subject for row in scene.ledger.rows.values()}) == len(scene.ledger.rows)
