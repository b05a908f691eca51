"""ChangeSubjectName (R23, RFC 6402 §2.8): a re-enrolment that asks for other names, read strictly, granted by
policy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from estd import csr, der, policy, renaming
from estd.client import Refused
from estd.errors import BadRequest, EstError, Reason
from estd.names import Names
from tests import make
from tests.csr_forms import common_names, flipped, request
from tests.make import Identity
from tests.servers import Server
from tests.test_names import profile
from tests.test_policy import ISSUED, NAMES, PROFILES, client_of, evidence, issued_rule, label_policy

OID = der.oid("1.3.6.1.5.5.7.7.36")
CURRENT = Names(subject=make.name("device-1"), san=(x509.DNSName("a.example"),))
NEW_SUBJECT = make.name("device-2")
NEW_SAN = (x509.DNSName("b.example"), x509.UniformResourceIdentifier("urn:uuid:1"))


def san_der(*names: x509.GeneralName) -> bytes:
    return x509.SubjectAlternativeName(names).public_bytes()


def attribute(*values: bytes, oid: bytes = OID) -> bytes:
    return der.tlv(der.SEQUENCE, oid + der.tlv(der.SET, b"".join(values)))


def change(subject: x509.Name | None = None, *san: x509.GeneralName) -> bytes:
    """The attribute's value."""
    parts = (subject.public_bytes() if subject is not None else b"") + (san_der(*san) if san else b"")
    return der.tlv(der.SEQUENCE, parts)


def extension_request(*san: x509.GeneralName) -> bytes:
    extension = der.tlv(der.SEQUENCE, der.oid("2.5.29.17") + der.tlv(der.OCTET_STRING, san_der(*san)))
    return attribute(der.tlv(der.SEQUENCE, extension), oid=der.oid("1.2.840.113549.1.9.14"))


def asking(*attributes: bytes, key: Any = None, names: Names = CURRENT) -> csr.CertificationRequest:
    """A request with the current names and these attributes, checked and parsed as a server does."""
    parts = [*attributes, *([extension_request(*names.san)] if names.san else [])]
    made = request(*parts, key=key or make.key(), subject=names.subject.public_bytes())
    csr.check(made)
    return csr.parse(made)


READ: dict[str, tuple[bytes, Names]] = {
    "a subject": (change(NEW_SUBJECT), Names(subject=NEW_SUBJECT, san=CURRENT.san)),
    "alternative names": (change(None, *NEW_SAN), Names(subject=CURRENT.subject, san=NEW_SAN)),
    "both": (change(NEW_SUBJECT, *NEW_SAN), Names(subject=NEW_SUBJECT, san=NEW_SAN)),
    "an empty subject and alternative names": (
        change(x509.Name([]), *NEW_SAN), Names(subject=x509.Name([]), san=NEW_SAN),
    ),
    "the same": (change(CURRENT.subject, *CURRENT.san), CURRENT),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_R23_reads(case: str) -> None:
    """R23: a subject, alternative names or both; what is not there stays as it is."""
    value, expected = READ[case]
    found = asking(attribute(value))
    assert renaming.asks(found)
    assert renaming.read(found, CURRENT) == expected


def test_R23_without_the_attribute() -> None:
    """A request that merely holds the octets of the attribute's name does not ask for anything."""
    assert not renaming.asks(asking())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, OID.decode("latin1"))])
    odd = asking(names=Names(subject=subject, san=()))
    assert renaming.asks(odd)
    assert renaming.read(odd, CURRENT) is None


SET = 0x31
HOSTILE: dict[str, tuple[bytes, ...]] = {
    "nothing in it": (attribute(der.tlv(der.SEQUENCE, b"")),),
    "no value": (attribute(),),
    "two values": (attribute(*sorted((change(NEW_SUBJECT), change(None, *NEW_SAN)))),),
    "twice": (attribute(change(NEW_SUBJECT)), attribute(change(None, *NEW_SAN))),
    "an OCTET STRING": (attribute(der.tlv(der.OCTET_STRING, NEW_SUBJECT.public_bytes())),),
    "a Name alone": (attribute(NEW_SUBJECT.public_bytes()),),
    "two subjects": (attribute(der.tlv(der.SEQUENCE, NEW_SUBJECT.public_bytes() * 2)),),
    "alternative names, then a subject": (
        attribute(der.tlv(der.SEQUENCE, san_der(*NEW_SAN) + NEW_SUBJECT.public_bytes())),
    ),
    "three parts": (attribute(der.tlv(der.SEQUENCE, NEW_SUBJECT.public_bytes() + san_der(*NEW_SAN) * 2)),),
    "alternative names tagged [1]": (attribute(der.tlv(der.SEQUENCE, der.tlv(0xA1, san_der(*NEW_SAN)))),),
    "a SET for the subject": (attribute(der.tlv(der.SEQUENCE, der.tlv(SET, b""))),),
    "an INTEGER in the subject": (attribute(der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, der.tlv(SET, der.uint(1))))),),
    "an empty SET in the subject": (attribute(der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, der.tlv(SET, b"")))),),
    "no alternative names in their list": (
        attribute(der.tlv(der.SEQUENCE, NEW_SUBJECT.public_bytes() + der.tlv(der.SEQUENCE, b""))),
    ),
    "a general name of a tag that there is not": (
        attribute(der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, der.tlv(0x8F, b"x")))),
    ),
    "an x400Address": (attribute(der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, der.tlv(0xA3, b"\x30\0")))),),
    "a dNSName that is not ASCII": (
        attribute(der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, der.tlv(0x82, b"\xff.example")))),
    ),
    "an iPAddress of five octets": (attribute(der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, der.tlv(0x87, b"12345")))),),
    "cut short": (attribute(b"\x30\x05" + NEW_SUBJECT.public_bytes()[:3]),),
    "an indefinite length": (attribute(b"\x30\x80\0\0"),),
    "deep": (attribute(der.tlv(der.SEQUENCE, b"\x30\x80" * 200)),),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_R23_hostile_attributes_are_a_400(case: str) -> None:
    """Whatever else the attribute holds is a 400 that names it, or the request is none at all."""
    with pytest.raises(BadRequest) as caught:
        renaming.read(asking(*HOSTILE[case]), CURRENT)
    assert caught.value.reason in (Reason.BAD_CSR, Reason.NOT_DER)
    assert caught.value.reason is Reason.NOT_DER or "ChangeSubjectName" in caught.value.sentence


def test_R23_as_many_names_as_in_a_request() -> None:
    """The attribute's names are bounded as a request's own are."""
    names = [x509.DNSName(f"{number}.example") for number in range(257)]
    assert renaming.read(asking(attribute(change(None, *names[:256]))), CURRENT)
    for value in (change(None, *names), der.tlv(der.SEQUENCE, common_names(4096))):
        with pytest.raises(BadRequest, match="asks for"):
            renaming.read(asking(attribute(value)), CURRENT)


_BASE = attribute(change(NEW_SUBJECT, *NEW_SAN))
_KEY = make.key()


@given(st.lists(st.integers(0, 8 * len(_BASE) - 1), min_size=1, max_size=4))
@settings(deadline=None, derandomize=True, max_examples=400)
def test_R23_edited_attributes_never_raise_anything_else(bits: list[int]) -> None:
    """However the attribute's bits are changed, it is read or it is an EstError."""
    edited = _BASE
    for bit in bits:
        edited = flipped(edited, bit)
    try:
        outcome: Names | EstError | None = renaming.read(asking(edited, key=_KEY), CURRENT)
    except EstError as refusal:
        outcome = refusal
    assert getattr(outcome, "status", 400) == 400


RULES: dict[str, Any] = {
    "free": profile(name="free", subject="csr", dns=["*.example"], uri=["urn:uuid:*"]),
    "own": PROFILES["own"],
    "loose": profile(name="loose", subject="csr", dns=["*.example"], other_names="replace"),
}
OF_ISSUED = Names(subject=NAMES["subject"], san=tuple(NAMES["san"]))
GRANTED: dict[str, tuple[str, bytes, bool, bool, Names | Reason]] = {
    # profile, the attribute, the label's change_names, simplereenroll: what is granted
    "another subject": ("free", change(NEW_SUBJECT), True, True, Names(subject=NEW_SUBJECT, san=OF_ISSUED.san)),
    "other alternative names": (
        "free", change(None, *NEW_SAN), True, True, Names(subject=OF_ISSUED.subject, san=NEW_SAN),
    ),
    "another subject where the label does not let it": ("free", change(NEW_SUBJECT), False, True, Reason.NAME_REFUSED),
    "the same where the label does not let it": ("free", change(OF_ISSUED.subject), False, True, OF_ISSUED),
    "a name that the profile does not grant": (
        "free", change(None, x509.DNSName("www.example.org")), True, True, Reason.NAME_REFUSED,
    ),
    "a subject where the profile takes the identity's": ("own", change(NEW_SUBJECT), True, True, Reason.NAME_REFUSED),
    "names where the profile replaces": (
        "loose", change(NEW_SUBJECT, x509.DNSName("b.example"), x509.DNSName("www.example.org")), True, True,
        Names(subject=NEW_SUBJECT, san=(x509.DNSName("b.example"),)),
    ),
    "at simpleenroll it says nothing": ("free", change(NEW_SUBJECT), True, False, OF_ISSUED),
    "malformed": ("free", der.tlv(der.SEQUENCE, b""), True, True, Reason.BAD_CSR),
    "malformed where the label does not let it": ("free", der.tlv(der.SEQUENCE, b""), False, True, Reason.BAD_CSR),
}  # fmt: skip


@pytest.mark.parametrize("case", GRANTED)
def test_R23_by_policy(case: str) -> None:
    """R23: the label says whether other names may be asked for, the profile which may be had."""
    named, value, lets, renewal, outcome = GRANTED[case]
    rules = label_policy(issued_rule(), profiles=RULES, change_names=lets)
    made = asking(attribute(value), names=OF_ISSUED)
    args = (rules, evidence(ISSUED, renewal=renewal), client_of(ISSUED, named), made)
    if isinstance(outcome, Reason):
        with pytest.raises(EstError) as caught:
            policy.authorise(*args)
        assert caught.value.reason is outcome
        return
    found = policy.authorise(*args)
    assert found.names == outcome
    assert found.renews == evidence(ISSUED).certificate.serial  # type: ignore[union-attr]


@pytest.mark.parametrize("other", [{"subject": NEW_SUBJECT}, {"san": (x509.DNSName("c.example"),)}])
def test_R22_the_requests_own_names_are_still_the_current_ones(other: dict[str, Any]) -> None:
    """R22, R23: with the attribute too, a request whose subject or subjectAltName is another is a 403."""
    names = Names(**{"subject": OF_ISSUED.subject, "san": OF_ISSUED.san, **other})
    rules = label_policy(issued_rule(), profiles=RULES, change_names=True)
    made = asking(attribute(change(NEW_SUBJECT)), names=names)
    with pytest.raises(EstError) as caught:
        policy.authorise(rules, evidence(ISSUED, renewal=True), client_of(ISSUED, "free"), made)
    assert caught.value.reason is Reason.NAME_REFUSED


Rename = Callable[..., x509.Certificate]


@pytest.fixture
def rename(renewal_server: Server, folder: Path) -> Rename:
    """Enrolls a device under a label and renews it with the attribute."""

    def act(value: bytes, label: str | None = "renewal") -> x509.Certificate:
        key, new_key = make.key(), make.key()
        names = Names(subject=make.name("pump-1"), san=(x509.DNSName("pump-1.devices.example.com"),))
        with renewal_server.client(basic=True, label=label) as client:
            first = client.enroll(lambda _: make.csr(key, subject=names.subject, san=names.san))
        files = Identity(first, key).write(folder, os.urandom(4).hex())
        made = asking(attribute(value), key=new_key, names=names)
        with renewal_server.client(cert=files, label=label) as client:
            return client.enroll(lambda _: made.csr_der, renew=True)

    return act


def test_R23_over_tls(rename: Rename, renewal_server: Server) -> None:
    """R23: at a label that lets it a device gets the name it asks for, inside its profile; elsewhere a 403 without a
    signature."""
    san = x509.DNSName("pump-2.devices.example.com")
    found = rename(change(make.name("pump-2"), san))
    assert found.subject == make.name("pump-2")
    assert list(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [san]
    rows = {int.from_bytes(row.serial, "big"): row for row in renewal_server.rows()}
    assert rows[found.serial_number].subject == "CN=pump-2"
    for value, label, words in (
        (change(None, x509.DNSName("www.example.org")), "renewal", "does not grant"),
        (change(make.name("pump-2")), "sleepers", "leave ChangeSubjectName out"),
    ):
        with pytest.raises(Refused, match=words) as caught:
            rename(value, label)
        assert caught.value.status == 403
    with pytest.raises(Refused) as broken:
        rename(der.tlv(der.SEQUENCE, b""))
    assert broken.value.status == 400
