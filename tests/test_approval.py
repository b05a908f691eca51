"""Requests that wait for a person (R27): the states of one, stepped through the line of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from estd import config, csr, frames, holding, ledger_requests, material, metrics, policy
from estd.devices import DeviceKey, Use
from estd.errors import Reason
from estd.frames import Request
from estd.ledger import LedgerError
from estd.ledger_requests import Decision, HeldRequest
from estd.names import Names
from tests import make
from tests.test_batch import GOOD, LEDGER_AWAY, NOW, Scene, SoftToken, asks, refused
from tests.test_config import text
from tests.test_renaming import asking, attribute
from tests.test_renaming import change as renamed

WINDOW_SECONDS = 3600
RETRY_SECONDS = 60
WAITS = (202, Reason.WAITING)
DENIED = (403, Reason.DENIED)

HELD = (
    text("profile.device", 'subject = "csr"', 'dns = "csr"', 'keys = ["ec-p256"]')
    + """
approval = "first"
serverkeygen = ["ec-p256"]
approval_window = "1h"
approval_waiting = 5
approval_waiting_each = 3
[[label.default.allow]]
who = "issued"
[[label.default.allow]]
who = "basic"
credentials = "credentials"
profile = "device"
[label.other]
ca = "root"
[[label.other.allow]]
who = "basic"
credentials = "credentials"
profile = "device"
[label.all]
ca = "root"
approval = "all"
approval_retry = "8h"
[[label.all.allow]]
who = "issued"
labels = ["default", "other"]
[label.renamed]
ca = "root"
approval = "first"
change_names = true
[[label.renamed.allow]]
who = "issued"
labels = ["other"]
"""
)
"""Label 0 holds first certificates, 1 nothing, 2 everything; 3 holds first ones, and renews under other names."""


@pytest.fixture(scope="module")
def ca() -> make.Identity:
    return make.certificate(ca=True)


@pytest.fixture
def scene(ca: make.Identity, folder: Path) -> Scene:
    (folder / "ca.pem").write_bytes(ca.pem)
    return Scene(ca=ca, material=material.load(config.parse(HELD, folder)), token=SoftToken(ca.key))


def listed(scene: Scene) -> list[HeldRequest]:
    """All requests that the ledger holds, oldest first."""
    return list(scene.ledger.requests.search(int(scene.now * 1000)))[::-1]


def states(scene: Scene) -> list[str]:
    return [one.state for one in listed(scene)]


def decides(scene: Scene, state: str, reason: str = "known device", number: int = -1) -> bool:
    """A person's decision on a request, by default the last."""
    one = listed(scene)[number]
    decision = Decision(state, int(scene.now * 1000), "cli:alice", reason)
    return ledger_requests.decide(scene.ledger.db, one.id, one.state, decision)


def approve(scene: Scene) -> None:
    assert decides(scene, "approved")


def deny(scene: Scene) -> None:
    assert decides(scene, "denied", "not one of ours")


def later(seconds: float) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.now += seconds

    return act


def restart(scene: Scene) -> None:
    scene.restart()


def nothing(scene: Scene) -> None:
    """The client asks again at once."""


JUST_EXPIRED = later(WINDOW_SECONDS)


@pytest.mark.parametrize(
    ("acts", "answered", "left"),
    [
        ([nothing], WAITS, ["pending"]),
        ([restart], WAITS, ["pending"]),
        ([approve], GOOD, ["issued"]),
        ([restart, approve, restart], GOOD, ["issued"]),
        ([deny], DENIED, ["denied"]),
        ([deny, restart], DENIED, ["denied"]),
        ([approve, deny], DENIED, ["denied"]),
        ([deny, approve], GOOD, ["issued"]),
        ([later(WINDOW_SECONDS - 1)], WAITS, ["pending"]),
        ([JUST_EXPIRED], WAITS, ["expired", "pending"]),
        ([later(WINDOW_SECONDS - 1), approve, later(WINDOW_SECONDS - 1)], GOOD, ["issued"]),
        ([approve, JUST_EXPIRED], WAITS, ["expired", "pending"]),
        ([deny, JUST_EXPIRED], WAITS, ["expired", "pending"]),
        ([later(60), deny, later(60), approve, later(WINDOW_SECONDS - 1)], GOOD, ["issued"]),
        ([later(60), deny, later(60), approve, JUST_EXPIRED], WAITS, ["expired", "pending"]),
    ],
)  # fmt: skip
def test_R27_the_states_of_a_request(
    scene: Scene, acts: list[Callable[[Scene], None]], answered: tuple[int, str], left: list[str]
) -> None:
    """R27: what a client is told that asks again, after what happened meanwhile, and what the ledger holds then.

    Only an answer with a certificate costs a signature."""
    key = make.key()
    assert refused(*scene.act(asks(make.csr(key)))) == [WAITS]
    for act in acts:
        act(scene)
    assert refused(*scene.act(asks(make.csr(key)))) == [answered]
    assert states(scene) == left
    assert len(scene.token.signed) == (answered == GOOD)


def test_R27_a_request_is_found_by_its_key_and_names(scene: Scene) -> None:
    """R27: a CSR that is built anew, with another challengePassword and extensions of no account, is the same request;
    another key, another name or another client is another."""
    key = make.key()
    scene.act(asks(make.csr(key)))
    same = make.csr(key, extensions=[(x509.SubjectKeyIdentifier(b"x" * 20), False)])
    assert same != make.csr(key)
    scene.act(asks(same))
    assert len(listed(scene)) == 1
    for other in (
        asks(make.csr()), asks(make.csr(key, subject=make.name("device-2"))), asks(make.csr(key), user="operator"),
    ):  # fmt: skip
        before = len(listed(scene))
        assert refused(*scene.act(other)) == [WAITS]
        assert len(listed(scene)) == before + 1


def test_R27_the_order_and_the_case_of_alternative_names_make_no_other_request(scene: Scene) -> None:
    """R27: a client that builds its CSR anew may put its names in another order, and gets what was approved; what it
    is given is what is sent again."""
    key = make.key()

    def asked(*texts: str) -> Request:
        return asks(make.csr(key, san=[x509.DNSName(text) for text in texts]))

    scene.act(asked("a.example.com", "b.example.com"))
    assert refused(*scene.act(asked("b.example.com", "A.example.com"))) == [WAITS]
    assert len(listed(scene)) == 1
    approve(scene)
    (first,) = scene.act(asked("b.EXAMPLE.com", "a.example.com"))
    assert refused(first) == [GOOD]
    assert scene.act(asked("a.example.com", "b.example.com"))[0].serial == first.serial
    for other in (asked("a.example.com"), asked("a.example.com", "b.example.com", "c.example.com")):
        assert refused(*scene.act(other)) == [WAITS]
    assert states(scene) == ["issued", "pending", "pending"]


def test_R27_who_decides_sees_what_would_be_granted(scene: Scene) -> None:
    """The ledger holds who asks, from where and when, the granted names and the key."""
    key = make.key()
    names = [x509.DNSName("a.example.com"), x509.DNSName("b.example.com")]
    csr_der = make.csr(key, subject=make.name("device-9"), san=names)
    (answer,) = scene.act(asks(csr_der, peer="192.0.2.7"))
    assert RETRY_SECONDS <= answer.retry_after <= 2 * RETRY_SECONDS
    assert "approval" in answer.payload.decode()
    assert answer.identity == "basic:factory"
    (one,) = listed(scene)
    assert (one.label, one.profile, one.renews) == ("default", "device", None)
    assert (one.identity, one.peer, one.subject) == ("basic:factory", "192.0.2.7", "CN=device-9")
    assert one.names == ("DNS:a.example.com", "DNS:b.example.com")
    assert (one.key_kind, one.asked_at) == ("ec-p256", int(NOW * 1000))
    assert one.spki_sha256 == hashlib.sha256(csr.parse(csr_der).spki_der).digest()
    assert (one.decided_at, one.decided_by, one.reason, one.serial) == (None, None, None, None)


def test_R27_an_approval_is_for_one_certificate(scene: Scene) -> None:
    """The answer that is sent again is the same one; after the repeats' window the same request waits anew."""
    csr_der = make.csr()
    scene.act(asks(csr_der))
    approve(scene)
    (first,) = scene.act(asks(csr_der))
    assert refused(first) == [GOOD]
    assert listed(scene)[0].serial == first.serial
    assert scene.act(asks(csr_der))[0].serial == first.serial
    later(700)(scene)
    assert refused(*scene.act(asks(csr_der))) == [WAITS]
    assert states(scene) == ["issued", "pending"]


def test_R27_two_copies_in_a_batch_are_one_request(scene: Scene) -> None:
    """Copies wait together and get one certificate; a request of a label that holds nothing passes by."""
    csr_der = make.csr()
    assert refused(*scene.act(asks(csr_der), asks(csr_der), asks(label=1))) == [WAITS, WAITS, GOOD]
    assert len(listed(scene)) == 1
    assert scene.ledger.records == 1
    approve(scene)
    one, other, stranger = scene.act(asks(csr_der), asks(csr_der), asks())
    assert refused(one, other, stranger) == [GOOD, GOOD, WAITS]
    assert one.serial == other.serial
    assert scene.count(metrics.CERTIFICATES) == 2
    assert scene.ledger.records == 2


def test_R27_a_batch_asks_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question for a batch that waits already; where somebody is new one more for the client and one for the
    label, however many ask; none for a label that holds nothing."""
    queries: list[str] = []
    held = [make.csr() for _ in range(3)]
    scene.act(*(asks(csr_der) for csr_der in held))
    scene.ledger.db.set_trace_callback(queries.append)
    scene.act(*(asks(csr_der) for csr_der in held), asks(label=1))
    assert len([one for one in queries if one.startswith("SELECT")]) == 1
    del queries[:]
    scene.act(*(asks(label=1) for _ in range(3)))
    assert queries == []
    scene.act(asks(user="new"), asks(user="new"), *(asks(csr_der) for csr_der in held))
    assert len([one for one in queries if one.startswith("SELECT")]) == 3


def test_R27_waiting_requests_are_bounded(scene: Scene) -> None:
    """One client may have so many waiting, then it is told 429; a label so many, then 503; both say when to come
    back, and those that wait already are not disturbed."""
    first = make.csr()
    assert refused(*scene.act(asks(first), *(asks() for _ in range(3)))) == [WAITS] * 3 + [(429, Reason.TOO_MANY)]
    others = [asks(user=f"user-{number}") for number in range(3)]
    assert refused(*scene.act(*others)) == [WAITS, WAITS, (503, Reason.OVERLOADED)]
    assert len(listed(scene)) == 5
    assert refused(*scene.act(asks(first), asks())) == [WAITS, (429, Reason.TOO_MANY)]
    approve(scene)  # what is decided does not wait any more
    assert refused(*scene.act(asks(user="user-9"))) == [WAITS]
    later(WINDOW_SECONDS)(scene)
    assert refused(*scene.act(*(asks() for _ in range(4)))) == [WAITS] * 3 + [(429, Reason.TOO_MANY)]
    assert scene.token.signed == []


def test_R27_R39_waiting_uses_no_secret_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """R27, R39: requests with one secret wait beside each other; of those that were approved the first gets its
    certificate and uses the secret."""
    secret = policy.OneTimeSecret(DeviceKey("default", "", "S1"), bytes(32), spent=False)
    authorise, record = policy.authorise, scene.ledger.record
    uses: list[Use] = []
    monkeypatch.setattr(policy, "authorise", lambda *given: authorise(*given)._replace(secret=secret))
    monkeypatch.setattr(
        scene.ledger, "record", lambda rows, held, used, kept: uses.extend(used) or record(rows, held, (), kept)
    )
    csrs = [make.csr() for _ in range(3)]
    assert refused(*scene.act(*map(asks, csrs))) == [WAITS] * 3
    assert decides(scene, "approved", number=1)
    assert refused(*scene.act(*map(asks, csrs))) == [WAITS, GOOD, WAITS]
    assert len(uses) == 1
    for number in (0, 2):
        assert decides(scene, "approved", number=number)
    assert refused(*scene.act(*map(asks, csrs[::2]))) == [GOOD, (401, Reason.SECRET_SPENT)]


def test_R27_policy_comes_first(scene: Scene) -> None:
    """What policy refuses never waits, and nobody is asked about it."""
    address = x509.IPAddress(ip_address("10.0.0.1"))
    assert refused(*scene.act(asks(make.csr(san=[address])))) == [(403, Reason.NAME_REFUSED)]
    assert listed(scene) == []


def test_R27_a_renewal_waits_where_the_label_holds_all(scene: Scene) -> None:
    """`first` lets a renewal pass; `all` holds it, and says what it renews."""
    key = make.key()
    (first,) = scene.act(asks(make.csr(key), label=1))

    def renewal(label: int) -> Request:
        return asks(make.csr(key), kind=frames.RENEW, user=None, rule=-1, chain=first.payload)._replace(label=label)

    assert refused(*scene.act(renewal(2))) == [WAITS]
    (one,) = listed(scene)
    assert one.renews == first.serial
    assert 8 * 3600 <= scene.act(renewal(2))[0].retry_after <= 16 * 3600
    # A certificate of the label that holds first ones, renewed there.
    scene.act(asks(make.csr(key)))
    approve(scene)
    (held,) = scene.act(asks(make.csr(key)))
    again = asks(make.csr(key), kind=frames.RENEW, user=None, rule=-1, chain=held.payload)
    assert refused(*scene.act(again)) == [GOOD]


def test_R27_R23_a_renewal_under_other_names_is_a_first_certificate(scene: Scene) -> None:
    """Where `first` is held, a ChangeSubjectName waits for a person, who sees the new names and what is renewed; one
    for the names that the certificate has is a renewal and goes through. The approval is for these names alone."""
    key = make.key()
    (first,) = scene.act(asks(make.csr(key), label=1))
    current = Names(subject=x509.load_der_x509_certificate(first.payload).subject, san=())

    def renewal(name: x509.Name) -> Request:
        made = asking(attribute(renamed(name)), key=key, names=current)
        return asks(made.csr_der, kind=frames.RENEW, user=None, rule=-1, chain=first.payload)._replace(label=3)

    assert refused(*scene.act(renewal(current.subject))) == [GOOD]
    assert refused(*scene.act(renewal(make.name("device-2")))) == [WAITS]
    (one,) = listed(scene)
    assert (one.subject, one.renews, one.label) == ("CN=device-2", first.serial, "renamed")
    approve(scene)
    assert refused(*scene.act(renewal(make.name("device-3")))) == [WAITS]
    assert refused(*scene.act(renewal(make.name("device-2")))) == [GOOD]
    assert states(scene) == ["issued", "pending"]
    assert len(scene.token.signed) == 3


def test_R27_R29_a_key_that_is_to_be_made_waits_for_a_person(scene: Scene) -> None:
    """serverkeygen: the question waits before there is a key, whichever edge asks it; once approved, one key that was
    made meanwhile is certified, and no second one. Nothing is signed before."""
    own = make.key()

    def asked(kind: int, device: object = own) -> Request:
        return asks(make.csr(), kind=kind, asked_key=csr.key_sha256(make.csr(device)))

    assert refused(*scene.act(asked(frames.MAY)), *scene.act(asked(frames.MAY))) == [WAITS] * 2
    (one,) = listed(scene)
    assert (one.key_kind, one.spki_sha256) == ("serverkeygen", csr.key_sha256(make.csr(own)))
    assert refused(*scene.act(asked(frames.KEYGEN), asked(frames.MAY, make.key()))) == [WAITS] * 2
    assert states(scene) == ["pending", "pending"]
    assert decides(scene, "denied", "no", 1)
    assert decides(scene, "approved", number=0)
    assert scene.token.signed == []
    (may,) = scene.act(asked(frames.MAY))
    assert (refused(may), may.serial, may.payload) == ([GOOD], b"", b"ec-p256")
    assert scene.token.signed == []
    answers = scene.act(asked(frames.KEYGEN), asked(frames.KEYGEN))
    assert refused(*answers) == [GOOD, WAITS]
    assert listed(scene)[0].serial == answers[0].serial
    assert refused(*scene.act(asked(frames.MAY))) == [WAITS]
    assert states(scene) == ["issued", "denied", "pending"]


def test_R27_R29_an_edge_asks_for_several_keys_with_one_stand_in(scene: Scene) -> None:
    """Each is a question of its own, by the key that its client asked with, in one batch too."""
    stand_in = make.csr()
    assert (
        refused(*scene.act(*(asks(stand_in, kind=frames.MAY, asked_key=bytes([at]) * 32) for at in (1, 2, 1))))
        == [WAITS] * 3
    )
    assert states(scene) == ["pending", "pending"]


def test_R27_R44_what_is_asked_before_a_challenge_is_hashed_waits_too(scene: Scene) -> None:
    """A revocationChallenge is hashed for a request that is approved, not at each poll: the question waits itself. In
    one batch with what follows it, it is no twin of that: a certificate is never answered with a question's answer."""
    csr_der = make.csr()
    question, request = asks(csr_der, kind=frames.MAY_ENROLL), asks(csr_der)
    assert refused(*scene.act(question, question, request)) == [WAITS] * 3
    assert states(scene) == ["pending"]
    approve(scene)
    may, issued = scene.act(question, request)
    assert (refused(may, issued), may.serial, may.payload) == ([GOOD] * 2, b"", b"ec-p256")
    assert x509.load_der_x509_certificate(issued.payload)
    assert len(scene.token.signed) == 1


def test_R27_R29_a_key_is_not_certified_where_the_approval_was_withdrawn(scene: Scene) -> None:
    """A denial between the question and the key that was made for it holds."""
    held = {"asked_key": bytes(32)}
    scene.act(asks(kind=frames.MAY, **held))
    approve(scene)
    assert refused(*scene.act(asks(kind=frames.MAY, **held))) == [GOOD]
    assert decides(scene, "denied", "not one of ours")
    assert refused(*scene.act(asks(kind=frames.KEYGEN, **held))) == [DENIED]
    assert scene.token.signed == []


def test_R27_an_approval_that_is_withdrawn_within_the_batch_issues_nothing(scene: Scene) -> None:
    """A denial that was acknowledged holds, even where the certificate was being signed: it is not recorded, and the
    client is told to ask again."""
    csr_der = make.csr()
    scene.act(asks(csr_der))
    approve(scene)
    scene.ledger.before = lambda: deny(scene)
    answers = scene.act(asks(csr_der), asks(label=1))
    assert refused(*answers) == [WAITS, GOOD]
    scene.ledger.before = lambda: None
    assert refused(*scene.act(asks(csr_der))) == [DENIED]
    assert [one.label for one in scene.ledger.rows.values()] == ["other"]
    assert scene.count(metrics.CERTIFICATES) == 1


def test_R27_nobody_waits_who_is_not_recorded(scene: Scene) -> None:
    """Where the ledger cannot write, a new request is told 503, not 202, and the process ends."""

    def fails() -> None:
        raise LedgerError("the disk is gone")

    scene.ledger.before = fails
    assert refused(*scene.act(asks())) == [LEDGER_AWAY]
    assert "the disk is gone" in scene.why


def test_R27_a_ledger_that_cannot_be_asked_lets_nobody_through(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be looked up is neither issued nor told to wait; others in the batch are served."""

    def fails(*_: object) -> None:
        raise LedgerError("no answer")

    monkeypatch.setattr(holding, "judge", fails)
    assert refused(*scene.act(asks(), asks(label=1))) == [(503, Reason.INTERNAL), GOOD]
    assert len(scene.token.signed) == 1


def test_R27_a_denial_is_told_with_its_reason(scene: Scene) -> None:
    """The sentence of the 403 is the reason that the person gave, with no Retry-After."""
    csr_der = make.csr()
    scene.act(asks(csr_der))
    deny(scene)
    (answer,) = scene.act(asks(csr_der))
    assert answer.payload.decode() == "The request was denied: not one of ours."
    assert answer.retry_after == 0


@given(st.lists(st.sampled_from(["asks", "approved", "denied", "passes", "restart"]), max_size=14))
def test_R27_no_certificate_without_an_approval(shared: Scene, acts: list[str]) -> None:
    """Whatever happens in whatever order: a certificate is issued exactly where the last decision, not yet used and
    not yet expired, was an approval; within the repeats' window it is the same one."""
    scene, csr_der = shared, make.csr()
    state, until, issued_at = "", 0.0, -1e9
    for act in acts:
        if act == "passes":
            scene.now += WINDOW_SECONDS / 2
        elif act == "restart":
            scene.restart()
        elif act == "asks":
            (answer,) = scene.act(asks(csr_der, user="only"))
            if scene.now - issued_at <= 600:
                assert refused(answer) == [GOOD]
            elif not state or scene.now >= until:
                assert refused(answer) == [WAITS]
                state, until = "pending", scene.now + WINDOW_SECONDS
            else:
                assert refused(answer) == [{"pending": WAITS, "approved": GOOD, "denied": DENIED}[state]]
                if state == "approved":
                    state, issued_at = "", scene.now
        else:
            done = bool(listed(scene)) and decides(scene, act)
            assert done == (bool(state) and scene.now < until and state != act)
            if done:
                state, until = act, scene.now + WINDOW_SECONDS
    scene.ledger.db.execute("DELETE FROM decision")
    scene.ledger.db.execute("DELETE FROM request")


@pytest.fixture(scope="module")
def shared(ca: make.Identity, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "ca.pem").write_bytes(ca.pem)
    return Scene(ca=ca, material=material.load(config.parse(HELD, folder)), token=SoftToken(ca.key))
