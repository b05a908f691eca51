"""Who is let in, by which rule, and what for: default deny, and the first rule that fits."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from estd import admission, crl, csr, policy
from estd.crl import CrlFiles
from estd.errors import BadRequest, EstError, Forbidden, NotFound, Reason, Unavailable
from estd.identify import Anchors, ClientCertificate
from estd.labels import Allow, Label, Profile
from estd.policy import Authorised, Client, Evidence, Issued, LabelPolicy, Rule
from tests import make
from tests.csr_forms import rsa_key
from tests.make import Identity
from tests.test_names import dns, profile

NOW = datetime.now(UTC).timestamp()
HOUR = timedelta(hours=1)
MAKER, STRANGER, OURS = (make.certificate(ca=True, subject=make.name(word)) for word in ("maker", "stranger", "ours"))
DEVICE = make.certificate(MAKER, subject=make.name("device-1", SERIAL_NUMBER="1"))
OLD_DEVICE = make.certificate(MAKER, starts=-HOUR / 2, ends=-HOUR / 4)
STRANGE = make.certificate(STRANGER)
ISSUED = make.certificate(
    OURS, subject=make.name("device-1"), san=[x509.DNSName("a.example")], extended=[make.CLIENT_AUTH]
)
OLD = make.certificate(OURS, starts=-HOUR / 2, ends=-HOUR / 4)
FOR_SERVERS = make.certificate(OURS, extended=[make.SERVER_AUTH])
UNRECORDED = make.certificate(OURS)

LABEL = Label(
    name="here", ca="root", allow=(), linking="accepted", renew="either", pem=False, cacerts_one_line=False,
    body_bytes=65536, repeat_seconds=600,
)  # fmt: skip
PROFILES = {
    "own": profile(name="own"),
    "free": profile(name="free", subject="csr", dns=["*.example"]),
    "loose": profile(name="loose", other_names="replace", keys=frozenset({"ec-p256", "rsa-2048"})),
}


def issued_rule(named: str | None = None, *labels: str) -> Rule:
    return Rule(allow=Allow(who="issued", profile=named, labels=labels), anchors=None, crls=None)


def anchors_rule(*anchors: Identity, named: str = "own", crls: Sequence[Path] = ()) -> Rule:
    found = [one.certificate for one in anchors]
    allow = Allow(who="certificate", profile=named, anchors=Path("a.pem"), crls=tuple(crls))
    return Rule(allow=allow, anchors=Anchors(found), crls=CrlFiles(crls, found))


def basic_rule(named: str = "free") -> Rule:
    return Rule(allow=Allow(who="basic", profile=named, credentials=Path("c")), anchors=None, crls=None)


def label_policy(*rules: Rule, profiles: dict[str, Profile] | None = None, **label: Any) -> LabelPolicy:
    label = {"allow": tuple(rule.allow for rule in rules), **label}
    return LabelPolicy(label=replace(LABEL, **label), rules=rules, profiles=profiles or PROFILES)


def evidence(
    identity: Identity | None = None, user: str | None = None, *, rule: int = 0, renewal: bool = False,
    binding: bytes = b"", above: Sequence[Identity] = (),
) -> Evidence:  # fmt: skip
    return Evidence(
        label="here", renewal=renewal, certificate=None if identity is None else ClientCertificate.parse(identity.der),
        intermediates=tuple(one.certificate for one in above), user=user, rule=rule, binding=binding,
    )  # fmt: skip


def ledger(*rows: Identity, label: str = "here", named: str = "free", revoked: bool = False) -> Held:
    """What a ledger that holds these certificates has of a client's."""
    held = {ClientCertificate.parse(one.der).serial: one.der for one in rows}

    def find(certificate: ClientCertificate | None) -> Issued | None:
        if certificate is None or certificate.serial not in held:
            return None
        return Issued(certificate_der=held[certificate.serial], label=label, profile=named, revoked=revoked)

    return find


Held = Callable[[ClientCertificate | None], Issued | None]
EMPTY = ledger()


@dataclass(frozen=True)
class Case:
    policy: LabelPolicy
    evidence: Evidence
    find: Held = EMPTY
    identity: str = ""
    profile: str = ""
    reason: Reason | None = None
    status: int = 0


ALL_RULES = label_policy(issued_rule(), anchors_rule(MAKER), basic_rule())
HELD = ledger(ISSUED, OLD, FOR_SERVERS)

LET_IN: dict[str, Case] = {
    "a right credential": Case(ALL_RULES, evidence(user="factory", rule=2), identity="basic:factory", profile="free"),
    "R6 an empty user name": Case(ALL_RULES, evidence(user="", rule=2), identity="basic:", profile="free"),
    "a device of the manufacturer": Case(ALL_RULES, evidence(DEVICE), identity="idevid:", profile="own"),
    "a certificate of ours keeps its profile": Case(ALL_RULES, evidence(ISSUED), HELD, "cert:", "free"),
    "a certificate of ours, the rule names a profile": Case(
        label_policy(issued_rule("own")), evidence(ISSUED), HELD, "cert:", "own",
    ),
    "issued under a label that the rule names": Case(
        label_policy(issued_rule(None, "there")), evidence(ISSUED), ledger(ISSUED, label="there"), "cert:", "free",
    ),
    "the first rule that fits: the certificate": Case(
        label_policy(anchors_rule(MAKER, named="loose"), anchors_rule(MAKER, named="own")), evidence(DEVICE),
        identity="idevid:", profile="loose",
    ),
    "the first rule that fits: the credential of the second": Case(
        label_policy(basic_rule("own"), basic_rule("free")), evidence(user="u", rule=1), identity="basic:u",
        profile="free",
    ),
    "rules before it that do not fit are passed": Case(
        label_policy(anchors_rule(STRANGER), issued_rule(), anchors_rule(MAKER)), evidence(DEVICE), identity="idevid:",
        profile="own",
    ),
    "a credential beside a strange certificate": Case(
        ALL_RULES, evidence(STRANGE, "factory", rule=2), identity="basic:factory", profile="free",
    ),
    "a credential beside an expired certificate": Case(
        ALL_RULES, evidence(OLD_DEVICE, "factory", rule=2), identity="basic:factory", profile="free",
    ),
    "the credential's rule stands first": Case(
        label_policy(basic_rule(), anchors_rule(MAKER)), evidence(DEVICE, "factory", rule=0), identity="basic:factory",
        profile="free",
    ),
    "a renewal goes by its certificate, not by the credential beside it": Case(
        label_policy(basic_rule("own"), issued_rule()), evidence(ISSUED, "factory", rule=0, renewal=True), HELD,
        "cert:", "free",
    ),
}  # fmt: skip

KEPT_OUT: dict[str, Case] = {
    "R20 nothing presented": Case(ALL_RULES, evidence(), reason=Reason.NO_CREDENTIAL, status=401),
    "default deny: a certificate, no rules": Case(
        label_policy(), evidence(DEVICE), reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "default deny: a certificate of ours, no rules": Case(
        label_policy(), evidence(ISSUED), HELD, reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "default deny: a credential, no rules": Case(
        label_policy(), evidence(user="u", rule=-1), reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "a credential of another rule": Case(
        label_policy(basic_rule(), issued_rule()), evidence(user="u", rule=1), reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "a credential of no rule": Case(ALL_RULES, evidence(user="u", rule=-1), reason=Reason.CERT_UNKNOWN, status=401),
    "R10 a stranger": Case(ALL_RULES, evidence(STRANGE), reason=Reason.CERT_UNKNOWN, status=401),
    "R10 an expired device": Case(ALL_RULES, evidence(OLD_DEVICE), reason=Reason.CERT_EXPIRED, status=401),
    "R10 expired, one of ours": Case(ALL_RULES, evidence(OLD), HELD, reason=Reason.CERT_EXPIRED, status=401),
    "R16 one of ours that is for servers": Case(
        ALL_RULES, evidence(FOR_SERVERS), HELD, reason=Reason.CERT_NOT_CLIENT, status=401,
    ),
    "R11 our CA is no anchor: signed by it, not in the ledger": Case(
        ALL_RULES, evidence(UNRECORDED), HELD, reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "R11 a certificate of ours where only the manufacturer's are let in": Case(
        label_policy(anchors_rule(MAKER)), evidence(ISSUED), HELD, reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "R11 a manufacturer's where only ours are let in": Case(
        label_policy(issued_rule()), evidence(DEVICE), HELD, reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "R11 a manufacturer's of another rule's manufacturer": Case(
        label_policy(anchors_rule(STRANGER)), evidence(DEVICE), reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "a certificate with the serial of one of ours": Case(
        ALL_RULES, evidence(STRANGE), lambda _: HELD(ClientCertificate.parse(ISSUED.der)),
        reason=Reason.CERT_UNKNOWN, status=401,
    ),
    "issued under another label": Case(
        ALL_RULES, evidence(ISSUED), ledger(ISSUED, label="there"), reason=Reason.NOT_GRANTED, status=403,
    ),
    "issued under a label that another rule names": Case(
        label_policy(issued_rule(None, "elsewhere")), evidence(ISSUED), ledger(ISSUED, label="there"),
        reason=Reason.NOT_GRANTED, status=403,
    ),
    "revoked": Case(ALL_RULES, evidence(ISSUED), ledger(ISSUED, revoked=True), reason=Reason.REVOKED, status=403),
    "revoked and expired": Case(ALL_RULES, evidence(OLD), ledger(OLD, revoked=True), reason=Reason.REVOKED, status=403),
    "revoked, of another label": Case(
        ALL_RULES, evidence(ISSUED), ledger(ISSUED, label="there", revoked=True), reason=Reason.REVOKED, status=403,
    ),
    "revoked, though its CA is an anchor of a later rule": Case(
        label_policy(issued_rule(), anchors_rule(OURS)), evidence(ISSUED), ledger(ISSUED, revoked=True),
        reason=Reason.REVOKED, status=403,
    ),
    "revoked, though its CA is an anchor of an earlier rule": Case(
        label_policy(anchors_rule(OURS), issued_rule()), evidence(ISSUED), ledger(ISSUED, revoked=True),
        reason=Reason.REVOKED, status=403,
    ),
    "issued under a profile that is not configured any more": Case(
        ALL_RULES, evidence(ISSUED), ledger(ISSUED, named="gone"), reason=Reason.NOT_GRANTED, status=403,
    ),
    "the refusal that tells most: expired, not unknown": Case(
        label_policy(anchors_rule(MAKER), anchors_rule(STRANGER)), evidence(OLD_DEVICE), reason=Reason.CERT_EXPIRED,
        status=401,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LET_IN)
def test_R20_lets_in(case: str) -> None:
    """R20: the first rule that fits says who the client is and which profile it gets."""
    row = LET_IN[case]
    found = admission.identify(row.policy, row.evidence, row.find(row.evidence.certificate), NOW, [])
    assert found.profile == row.profile
    if row.identity.startswith("basic"):
        assert found.identity == row.identity
        user = row.evidence.user
        assert found.names.subject == (make.name(user) if user else x509.Name([]))
    else:
        assert row.evidence.certificate is not None
        assert found.identity.startswith(row.identity)
        assert row.evidence.certificate.shown in found.identity
        assert found.names == row.evidence.certificate.names
    assert found.issued is row.identity.startswith("cert:")


@pytest.mark.parametrize("case", KEPT_OUT)
def test_R20_keeps_out(case: str) -> None:
    """R20: who fits no rule is refused, with the reason that tells most."""
    row = KEPT_OUT[case]
    with pytest.raises(EstError) as caught:
        admission.identify(row.policy, row.evidence, row.find(row.evidence.certificate), NOW, [])
    assert (caught.value.status, caught.value.reason) == (row.status, row.reason)
    assert caught.value.sentence.endswith(".")


def test_revocation_of_a_foreign_certificate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R10: a rule with CRLs refuses who is revoked with 403, and everybody with 503 while it has no current CRL."""
    monkeypatch.setattr(crl, "_LOOK_AGAIN_SECONDS", 0.0)
    path = folder / "maker.crl"
    found = label_policy(anchors_rule(MAKER, crls=[path]), anchors_rule(STRANGER))
    with pytest.raises(Unavailable) as absent:
        admission.identify(found, evidence(DEVICE), None, NOW, [])
    assert absent.value.reason is Reason.CRL_STALE
    path.write_bytes(make.crl(MAKER))
    assert admission.identify(found, evidence(DEVICE), None, NOW, []).profile == "own"
    path.write_bytes(make.crl(MAKER, [DEVICE]))
    with pytest.raises(Forbidden) as revoked:
        admission.identify(found, evidence(DEVICE), None, NOW, [])
    assert revoked.value.reason is Reason.REVOKED


def test_a_long_user_name_is_no_failure() -> None:
    """A credential whose name is too long for a common name still lets in who needs no subject of it."""
    user = "factory-" + "x" * 80
    found = admission.identify(ALL_RULES, evidence(user=user, rule=2), None, NOW, [])
    assert found.identity == f"basic:{user}"


@dataclass(frozen=True)
class Request:
    """What is asked for, by whom, and the outcome."""

    csr_der: Callable[[], bytes]
    client: Client
    evidence: Evidence
    reason: Reason | None = None
    status: int = 0
    label: dict[str, Any] | None = None


def client_of(identity: Identity, named: str = "free", *, issued: bool = True) -> Client:
    found = ClientCertificate.parse(identity.der)
    return Client(identity="cert:1", names=found.names, profile=named, issued=issued)


FACTORY = Client(identity="basic:factory", names=policy.names.Names(subject=make.name("factory"), san=()),
                 profile="free", issued=False)  # fmt: skip
NAMES: dict[str, Any] = {"subject": make.name("device-1"), "san": [x509.DNSName("a.example")]}
BINDING = b"twelve bytes"
LINK = base64.b64encode(BINDING)


def renewing(**differences: Any) -> Evidence:
    return evidence(ISSUED, renewal=True, **differences)


REQUESTS: dict[str, Request] = {
    "first certificate": Request(lambda: make.csr(**NAMES), FACTORY, evidence(user="factory")),
    "names that the profile does not grant": Request(
        lambda: make.csr(san=[x509.DNSName("a.other")]), FACTORY, evidence(user="factory"), Reason.NAME_REFUSED, 403,
    ),
    "a key that the profile does not take": Request(
        lambda: make.csr(rsa_key(), **NAMES), FACTORY, evidence(user="factory"),
        Reason.KEY_REFUSED, 400,
    ),
    "R22 renewal with the same names": Request(lambda: make.csr(**NAMES), client_of(ISSUED), renewing()),
    "R22 renewal with the same names in capitals": Request(
        lambda: make.csr(subject=make.name("DEVICE-1"), san=[x509.DNSName("A.example")]), client_of(ISSUED), renewing(),
    ),
    "R22 renewal with another subject": Request(
        lambda: make.csr(**NAMES | {"subject": make.name("device-2")}), client_of(ISSUED), renewing(),
        Reason.NAME_REFUSED, 403,
    ),
    "R22 renewal with a name more": Request(
        lambda: make.csr(**NAMES | {"san": [*NAMES["san"], x509.DNSName("b.example")]}), client_of(ISSUED), renewing(),
        Reason.NAME_REFUSED, 403,
    ),
    "R22 renewal without its name": Request(
        lambda: make.csr(**NAMES | {"san": []}), client_of(ISSUED), renewing(), Reason.NAME_REFUSED, 403,
    ),
    "R22 renewal with other names where the profile replaces": Request(
        lambda: make.csr(subject=make.name("boss")), client_of(ISSUED, "loose"), renewing(), Reason.NAME_REFUSED, 403,
    ),
    "renewal of a foreign certificate": Request(
        lambda: make.csr(subject=make.name("device-1", SERIAL_NUMBER="1")), client_of(DEVICE, "own", issued=False),
        evidence(DEVICE, renewal=True), Reason.NOT_ISSUED, 403,
    ),
    "renewal by a credential alone": Request(
        lambda: make.csr(**NAMES), FACTORY, evidence(user="factory", renewal=True), Reason.NOT_ISSUED, 403,
    ),
    "R24 either: the same key": Request(lambda: make.csr(ISSUED.key, **NAMES), client_of(ISSUED), renewing()),
    "R24 same-key: the same": Request(
        lambda: make.csr(ISSUED.key, **NAMES), client_of(ISSUED), renewing(), label={"renew": "same-key"},
    ),
    "R24 same-key: another": Request(
        lambda: make.csr(**NAMES), client_of(ISSUED), renewing(), Reason.REKEY_REFUSED, 403, {"renew": "same-key"},
    ),
    "R24 new-key: another": Request(
        lambda: make.csr(**NAMES), client_of(ISSUED), renewing(), label={"renew": "new-key"},
    ),
    "R24 new-key: the same": Request(
        lambda: make.csr(ISSUED.key, **NAMES), client_of(ISSUED), renewing(), Reason.REKEY_REFUSED, 403,
        {"renew": "new-key"},
    ),
    "R22 at simpleenroll too, one of ours keeps its names": Request(
        lambda: make.csr(**NAMES), client_of(ISSUED), evidence(ISSUED),
    ),
    "R22 at simpleenroll too, one of ours asks for others": Request(
        lambda: make.csr(**NAMES | {"san": [x509.DNSName("b.example")]}), client_of(ISSUED), evidence(ISSUED),
        Reason.NAME_REFUSED, 403,
    ),
    "R22 at simpleenroll, one of ours gets its own where the profile replaces": Request(
        lambda: make.csr(subject=make.name("boss"), san=[x509.DNSName("b.example")]), client_of(ISSUED, "loose"),
        evidence(ISSUED),
    ),
    "R24 at simpleenroll too, new-key: the same": Request(
        lambda: make.csr(ISSUED.key, **NAMES), client_of(ISSUED), evidence(ISSUED), Reason.REKEY_REFUSED, 403,
        {"renew": "new-key"},
    ),
    "R13 linked": Request(
        lambda: make.csr(challenge_password=LINK, **NAMES), FACTORY, evidence(user="factory", binding=BINDING),
    ),
    "R13 linked to something else": Request(
        lambda: make.csr(challenge_password=LINK, **NAMES), FACTORY, evidence(user="factory", binding=b"other bytes!"),
        Reason.LINKING, 400,
    ),
    "R13 linked, but the edge saw no binding": Request(
        lambda: make.csr(challenge_password=b"x", **NAMES), FACTORY, evidence(user="factory"), Reason.LINKING, 400,
    ),
    "R13 linked to nothing, and the edge saw no binding": Request(
        lambda: make.csr(challenge_password=b"", **NAMES), FACTORY, evidence(user="factory"), Reason.LINKING, 400,
    ),
    "R13 the binding's bytes, not their base64": Request(
        lambda: make.csr(challenge_password=BINDING, **NAMES), FACTORY, evidence(user="factory", binding=BINDING),
        Reason.LINKING, 400,
    ),
    "R13 a prefix of the value": Request(
        lambda: make.csr(challenge_password=LINK[:-1], **NAMES), FACTORY, evidence(user="factory", binding=BINDING),
        Reason.LINKING, 400,
    ),
    "R13 more than 255 characters": Request(
        lambda: make.csr(challenge_password=LINK * 20, **NAMES), FACTORY, evidence(user="factory", binding=BINDING),
        Reason.LINKING, 400,
    ),
    "R13 another value where linking is off": Request(
        lambda: make.csr(challenge_password=b"a real password", **NAMES), FACTORY, evidence(user="factory"),
        label={"linking": "off"},
    ),
    "R14 demanded and given": Request(
        lambda: make.csr(challenge_password=LINK, **NAMES), FACTORY, evidence(user="factory", binding=BINDING),
        label={"linking": "demanded"},
    ),
    "R14 demanded and absent": Request(
        lambda: make.csr(**NAMES), FACTORY, evidence(user="factory", binding=BINDING), Reason.LINKING, 400,
        {"linking": "demanded"},
    ),
    "R14 demanded and wrong": Request(
        lambda: make.csr(challenge_password=b"x", **NAMES), FACTORY, evidence(user="factory", binding=BINDING),
        Reason.LINKING, 400, {"linking": "demanded"},
    ),
    "R14 demanded of a renewal too": Request(
        lambda: make.csr(**NAMES), client_of(ISSUED), renewing(binding=BINDING), Reason.LINKING, 400,
        {"linking": "demanded"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_authorises(case: str) -> None:
    """A client gets what its profile and label allow for its request, and a reason where they do not."""
    row = REQUESTS[case]
    rules = label_policy(issued_rule(), **(row.label or {}))
    request = csr.parse(row.csr_der())
    if row.reason is not None:
        with pytest.raises(EstError) as caught:
            policy.authorise(rules, row.evidence, row.client, request)
        assert (caught.value.status, caught.value.reason) == (row.status, row.reason)
        return
    found = policy.authorise(rules, row.evidence, row.client, request)
    assert (found.label, found.profile, found.request) == (rules.label, PROFILES[row.client.profile], request)
    assert found.identity == row.client.identity
    if row.client.issued:
        assert row.evidence.certificate is not None
        assert found.names == row.client.names
        assert found.renews == row.evidence.certificate.serial
    else:
        assert found.renews is None
        assert found.names == policy.names.Names(subject=make.name("device-1"), san=(dns("a.example"),))


def test_R14_the_refusal_says_what_to_link() -> None:
    """R14: a label that demands linking says so, and with what."""
    rules = label_policy(issued_rule(), linking="demanded")
    with pytest.raises(BadRequest) as caught:
        policy.authorise(rules, evidence(user="factory"), FACTORY, csr.parse(make.csr(**NAMES)))
    for word in ("tls-unique", "EXPORTER-Channel-Binding", "challengePassword"):
        assert word in caught.value.sentence


def authorised(
    key: Any, *, client: Client = FACTORY, rules: LabelPolicy | None = None, given: Evidence | None = None, **names: Any
) -> Authorised:
    rules = rules or label_policy(issued_rule())
    given = (given or evidence(user="factory"))._replace(label=rules.label.name)
    return policy.authorise(rules, given, client, csr.parse(make.csr(key, **{**NAMES, **names})))


def test_R34_a_label_that_makes_no_keys_refuses_those_that_an_edge_made() -> None:
    """R34: the issuer does not take an edge's word for serverkeygen being switched on."""
    for more in ({"keygen": True}, {"keygen": True, "key_to_come": True}):
        with pytest.raises(NotFound, match="serverkeygen is not offered"):
            authorised(make.key(), given=evidence(user="factory")._replace(**more))


def test_a_key_that_stands_for_the_one_to_come_is_not_judged() -> None:
    """The issuer is asked before the edge makes the key: the profile's kinds are looked at when it is there."""
    profiles = {name: replace(one, keys=frozenset({"rsa-2048"})) for name, one in PROFILES.items()}
    rules = label_policy(issued_rule(), profiles=profiles, serverkeygen=("rsa-2048",))
    asking = evidence(user="factory")._replace(keygen=True)
    assert authorised(make.key(), rules=rules, given=asking._replace(key_to_come=True))
    with pytest.raises(BadRequest, match="takes keys of rsa-2048"):
        authorised(make.key(), rules=rules, given=asking)


def test_repeats_are_the_same_request_sent_again() -> None:
    """A rebuilt request with the same key repeats the first; another label, operation, credential, key, name or profile
    does not."""
    key = make.key()
    first = authorised(key).repeat_key
    assert len(first) == 32
    assert authorised(key).repeat_key == first, "another signature over the same"
    linked = evidence(user="factory", binding=BINDING)
    assert authorised(key, given=linked, challenge_password=LINK).repeat_key == first, "linked to another connection"
    other = {
        "key": authorised(make.key()),
        "name": authorised(key, subject=make.name("device-2")),
        "alternative name": authorised(key, san=[x509.DNSName("b.example")]),
        "credential": authorised(key, client=FACTORY._replace(identity="basic:other")),
        "profile": authorised(
            key, rules=label_policy(issued_rule(), profiles={"free": replace(PROFILES["free"], name="fred")})
        ),
        "label": authorised(key, rules=label_policy(issued_rule(), name="hers")),
        "operation": authorised(key, client=client_of(ISSUED)._replace(identity=FACTORY.identity), given=renewing()),
    }
    assert len({first, *(one.repeat_key for one in other.values())}) == 1 + len(other)
