"""Names: what a profile grants to whom, and when two sets of names are the same."""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from estd import csr, names
from estd.errors import EstError, Forbidden, Reason
from estd.labels import NameRule, Profile
from estd.names import Names
from tests import make
from tests.csr_forms import UTF8, extension, request, subject_of, wants
from tests.test_csr import der

NONE, ANY, IDENTITY = (NameRule(source=source, patterns=()) for source in ("none", "csr", "identity"))
LONG_NAMES = pytest.mark.filterwarnings("ignore:Attribute's length")

DEFAULT = Profile(
    name="p", validity_seconds=86400, backdate_seconds=3600, keys=frozenset({"ec-p256"}),
    key_usage=("digital_signature",), extended_key_usage=("1.3.6.1.5.5.7.3.2",), subject="identity",
    subject_attributes=frozenset({"CN", "serialNumber"}), common_name=("*",), dns=NONE, ip=NONE, uri=NONE, max_names=16,
    other_names="refuse",
)  # fmt: skip


def profile(**differences: Any) -> Profile:
    """The configuration's default profile but for `differences`; a list of patterns stands for a rule."""
    for kind in ("dns", "ip", "uri"):
        if isinstance(differences.get(kind), list):
            differences[kind] = NameRule(source="csr", patterns=tuple(differences[kind]))
    return replace(DEFAULT, **differences)


def subject(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """A subject as a hostile request may hold it: nothing is checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x509.Name([x509.NameAttribute(oid, value, _validate=False) for oid, value in parts])


def dns(value: str) -> x509.DNSName:
    return x509.DNSName._init_without_validation(value)


def uri(value: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier._init_without_validation(value)


def ip(value: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_network(value) if "/" in value else ipaddress.ip_address(value))


def of(subject: x509.Name | str | None = None, *san: x509.GeneralName) -> Names:
    if not isinstance(subject, x509.Name):
        subject = make.name(subject)
    return Names(subject=subject, san=san)


CN, ORG, OU, C, DC = (
    NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COUNTRY_NAME,
    NameOID.DOMAIN_COMPONENT,
)  # fmt: skip
SERIAL, UID, EMAIL = NameOID.SERIAL_NUMBER, NameOID.USER_ID, NameOID.EMAIL_ADDRESS
DEVICE = of("device-7", dns("own.example"), ip("192.0.2.1"), uri("urn:own:1"))
LONGEST = ".".join(["a" * 63] * 3 + ["b" * 61])
ALL = frozenset({"CN", "serialNumber", "C", "ST", "L", "O", "OU", "UID", "DC"})
FREE: dict[str, Any] = {"subject": "csr", "subject_attributes": ALL, "dns": ANY, "ip": ANY, "uri": ANY}
FENCED: dict[str, Any] = {
    "subject": "csr", "subject_attributes": frozenset({"CN", "O"}), "common_name": ("device-*",),
    "dns": ["*.devices.example.com"], "ip": ["10.0.0.0/8", "2001:db8::/32"], "uri": ["urn:uuid:*"], "max_names": 3,
}  # fmt: skip
REPLACE = {"other_names": "replace"}

GRANTED: dict[str, tuple[dict[str, Any], Names, Names]] = {
    # The profile, what is asked for (by DEVICE), what is granted.
    "identity: nothing asked for": ({}, of(), of("device-7")),
    "identity: its own subject": ({}, of("device-7"), of("device-7")),
    "identity: its own subject in capitals": ({}, of("DEVICE-7"), of("device-7")),
    "identity, replace: another subject": (REPLACE, of("boss"), of("device-7")),
    "identity, replace: other names of all kinds": (
        REPLACE, of("boss", dns("boss.example"), ip("192.0.2.9"), uri("urn:boss:1"), x509.RFC822Name("b@x.example")),
        of("device-7"),
    ),
    "identity: its own alternative names come unasked": (
        {"dns": IDENTITY, "ip": IDENTITY, "uri": IDENTITY}, of(), DEVICE,
    ),
    "identity: its own alternative names asked for": (
        {"dns": IDENTITY, "ip": IDENTITY, "uri": IDENTITY}, of("device-7", dns("OWN.example")), DEVICE,
    ),
    "identity, replace: others' alternative names": (
        {"dns": IDENTITY, **REPLACE}, of(None, dns("boss.example")), of("device-7", dns("own.example")),
    ),
    "csr: any names": (FREE, of("x", dns("a.example"), ip("::1"), uri("https://a.example/b")),
                       of("x", dns("a.example"), ip("::1"), uri("https://a.example/b"))),
    "csr: alternative names alone": (FREE, of(None, dns("a.example")), of(None, dns("a.example"))),
    "csr: each kind of attribute": (
        FREE, of(subject((C, "DE"), (ORG, "Acme & Söhne"), (OU, "a"), (OU, "b"), (DC, "x"), (UID, "u"), (CN, "n"),
                         (SERIAL, "1-2"))),
        of(subject((C, "DE"), (ORG, "Acme & Söhne"), (OU, "a"), (OU, "b"), (DC, "x"), (UID, "u"), (CN, "n"),
                   (SERIAL, "1-2"))),
    ),
    "csr: a common name of 64 characters": (FREE, of("n" * 64), of("n" * 64)),
    "csr: a name that stands there twice": (FREE, of("x", dns("a.example"), dns("A.example")),
                                            of("x", dns("A.example"))),
    "csr: an IDN as A-label": (FREE, of(None, dns("xn--gert-loa.example")), of(None, dns("xn--gert-loa.example"))),
    "csr: a name of one label": (FREE, of(None, dns("printer")), of(None, dns("printer"))),
    "csr: the longest name and label": (FREE, of(None, dns(LONGEST)), of(None, dns(LONGEST))),
    "fence: inside": (
        FENCED, of("device-1", dns("a.devices.example.com"), ip("10.255.0.1"), uri("urn:uuid:1-2")),
        of("device-1", dns("a.devices.example.com"), ip("10.255.0.1"), uri("urn:uuid:1-2")),
    ),
    "fence: capitals": (FENCED, of("DEVICE-1", dns("A.Devices.Example.COM")),
                        of("DEVICE-1", dns("A.Devices.Example.COM"))),
    "fence: IPv6": (FENCED, of("device-1", ip("2001:db8::1")), of("device-1", ip("2001:db8::1"))),
    "fence, replace: what is outside is left out": (
        {**FENCED, **REPLACE},
        of(subject((CN, "device-1"), (OU, "x")), dns("a.devices.example.com"), dns("evil.example"), ip("11.0.0.1")),
        of("device-1", dns("a.devices.example.com")),
    ),
    "fence, replace: the common name is left out": (
        {**FENCED, **REPLACE}, of("boss", dns("a.devices.example.com")), of(None, dns("a.devices.example.com")),
    ),
    "replace: a second common name is left out": (
        {**FREE, **REPLACE}, of(subject((CN, "a"), (CN, "b"))), of("a"),
    ),
    "replace: kinds of names that no profile grants are left out": (
        {**FREE, **REPLACE}, of("a", x509.RFC822Name("b@x.example"), x509.RegisteredID(CN),
                                x509.OtherName(CN, b"\x05\0"), x509.DirectoryName(make.name("x"))), of("a"),
    ),
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], Names]] = {
    "identity: another subject": ({}, of("boss")),
    "identity: an attribute more": ({}, of(subject((ORG, "Acme"), (CN, "device-7")))),
    "identity: a dNSName where none is granted": ({}, of(None, dns("own.example"))),
    "identity: an iPAddress where none is granted": ({}, of(None, ip("192.0.2.1"))),
    "identity: a URI where none is granted": ({}, of(None, uri("urn:own:1"))),
    "identity: another's dNSName": ({"dns": IDENTITY}, of(None, dns("boss.example"))),
    "identity: a wildcard over its own dNSName": ({"dns": IDENTITY}, of(None, dns("*.example"))),
    "identity: another's iPAddress": ({"ip": IDENTITY}, of(None, ip("192.0.2.2"))),
    "csr: no name at all": (FREE, of()),
    "csr: more names than are granted, all the same": (FREE, of("x", *[dns("a.example")] * 17)),
    "csr: an eMail address": (FREE, of("x", x509.RFC822Name("a@b.example"))),
    "csr: a directoryName": (FREE, of("x", x509.DirectoryName(make.name("boss")))),
    "csr: an otherName": (FREE, of("x", x509.OtherName(CN, b"\x0c\x01x"))),
    "csr: a registeredID": (FREE, of("x", x509.RegisteredID(CN))),
    "csr: an attribute that is not granted": ({"subject": "csr"}, of(subject((ORG, "Acme"), (CN, "x")))),
    "csr: an attribute that nobody grants": (FREE, of(subject((EMAIL, "a@b.example")))),
    "csr: two common names": (FREE, of(subject((CN, "a"), (CN, "b")))),
    "csr: an empty common name": (FREE, of(subject((CN, "")))),
    "csr: a blank common name": (FREE, of(subject((CN, "   ")))),
    "csr: a common name of 65 characters": (FREE, of(subject((CN, "n" * 65)))),
    "csr: a common name of 40 characters in 80 octets": (FREE, of(subject((CN, "é" * 40)))),
    "csr: NUL in a common name": (FREE, of(subject((CN, "device\0.example")))),
    "csr: a control character": (FREE, of(subject((CN, "a\nb")))),
    "csr: a direction override": (FREE, of(subject((CN, "a\u202eb")))),
    "csr: a zero-width space": (FREE, of(subject((CN, "a\u200bb")))),
    "csr: a country in small letters": (FREE, of(subject((C, "de")))),
    "csr: a country of one letter": (FREE, of(subject((C, "D")))),
    "csr: a serial number outside PrintableString": (FREE, of(subject((SERIAL, "1_2")))),
    "csr: an organization of 65 characters": (FREE, of(subject((ORG, "o" * 65)))),
    "csr: a domain component with a dot": (FREE, of(subject((DC, "a.b")))),
    "csr: a domain component that is none": (FREE, of(subject((DC, "é")))),
    "csr: a wildcard": (FREE, of(None, dns("*.example"))),
    "csr: a wildcard inside": (FREE, of(None, dns("a*.example"))),
    "csr: an empty dNSName": (FREE, of(None, dns(""))),
    "csr: a dot alone": (FREE, of(None, dns("."))),
    "csr: a dot at the end": (FREE, of(None, dns("a.example."))),
    "csr: a dot in front": (FREE, of(None, dns(".example"))),
    "csr: two dots": (FREE, of(None, dns("a..example"))),
    "csr: a label of 64": (FREE, of(None, dns("a" * 64 + ".example"))),
    "csr: a dNSName of 254": (FREE, of(None, dns(LONGEST + "b"))),
    "csr: a hyphen in front": (FREE, of(None, dns("-a.example"))),
    "csr: a hyphen behind": (FREE, of(None, dns("a-.example"))),
    "csr: an underscore": (FREE, of(None, dns("_a.example"))),
    "csr: an IDN as U-label": (FREE, of(None, dns("gerät.example"))),
    "csr: NUL in a dNSName": (FREE, of(None, dns("a.example\0.evil"))),
    "csr: a newline behind a dNSName": (FREE, of(None, dns("a.example\n"))),
    "csr: a space in a dNSName": (FREE, of(None, dns("a b.example"))),
    "csr: an IPv4 network": (FREE, of(None, ip("10.0.0.0/8"))),
    "csr: an IPv6 network": (FREE, of(None, ip("2001:db8::/32"))),
    "csr: a relative URI": (FREE, of(None, uri("/a/b"))),
    "csr: a URI without a scheme": (FREE, of(None, uri("a.example/b"))),
    "csr: a URI without a host": (FREE, of(None, uri("https:///b"))),
    "csr: a URI with a wildcard host": (FREE, of(None, uri("https://*.example/"))),
    "csr: a URI with a percent-encoded host": (FREE, of(None, uri("https://a%2eexample/"))),
    "csr: a URI with a broken IPv6 host": (FREE, of(None, uri("https://[::1/"))),
    "csr: a URI with a name in brackets": (FREE, of(None, uri("https://[a.example]/"))),
    "csr: a URI with a space": (FREE, of(None, uri("urn:a b"))),
    "csr: a URI with a newline": (FREE, of(None, uri("urn:a\nb"))),
    "csr: a URI with a NUL": (FREE, of(None, uri("https://a.example\0.evil/"))),
    "csr: a URI outside ASCII": (FREE, of(None, uri("https://gerät.example/"))),
    "csr: an empty URI": (FREE, of(None, uri(""))),
    "csr: a scheme alone": (FREE, of(None, uri("urn:"))),
    "csr: a URI of 2049 characters": (FREE, of(None, uri("urn:x:" + "y" * 2043))),
    "fence: another common name": (FENCED, of("boss")),
    "fence: a common name with the pattern inside": (FENCED, of("x device-1")),
    "fence: the domain itself": (FENCED, of(None, dns("devices.example.com"))),
    "fence: a domain that ends alike": (FENCED, of(None, dns("evildevices.example.com"))),
    "fence: a domain behind it": (FENCED, of(None, dns("a.devices.example.com.evil.example"))),
    "fence: an address outside": (FENCED, of(None, ip("11.0.0.1"))),
    "fence: an IPv6 address outside": (FENCED, of(None, ip("2001:db9::1"))),
    "fence: an IPv4 address as IPv6": (FENCED, of(None, ip("::ffff:10.0.0.1"))),
    "fence: another URI": (FENCED, of(None, uri("urn:isbn:1"))),
    "fence: one name too many": (FENCED, of("device-1", *(dns(f"{n}.devices.example.com") for n in range(4)))),
    "fence, replace: one name too many": (
        {**FENCED, **REPLACE}, of("device-1", *(dns(f"{n}.devices.example.com") for n in range(4))),
    ),
    "fence, replace: nothing is left": ({**FENCED, **REPLACE}, of("boss", dns("evil.example"))),
    "replace: a wildcard is all": ({**FREE, **REPLACE}, of(None, dns("*.example"))),
}  # fmt: skip

HOSTED = ["https://*.devices.example.com/*"]
OUTSIDE = {
    "the host in the path": "https://evil.example/x.devices.example.com/",
    "the host in the query": "https://evil.example?x.devices.example.com/",
    "the host in the fragment": "https://evil.example#x.devices.example.com/",
    "the host as a user": "https://x.devices.example.com@evil.example/.devices.example.com/",
    "another scheme": "http://x.devices.example.com/",
}  # fmt: skip

SAME: dict[str, tuple[Names, Names, bool]] = {
    "equal": (DEVICE, DEVICE, True),
    "case of the subject": (of("Device-7"), of("device-7"), True),
    "spacing of the subject": (of(" device  7 "), of("device 7"), True),
    "case of a dNSName": (of("x", dns("A.example")), of("x", dns("a.EXAMPLE")), True),
    "the order of the alternative names": (of("x", dns("a"), ip("::1")), of("x", ip("::1"), dns("a")), True),
    "a name twice": (of("x", dns("a"), dns("a")), of("x", dns("a")), True),
    "another string type": (
        of(x509.Name([x509.NameAttribute(CN, "x", _type=x509.name._ASN1Type.PrintableString)])), of("x"), True,
    ),
    "another common name": (of("device-7"), of("device-8"), False),
    "an attribute more": (of(subject((ORG, "a"), (CN, "x"))), of("x"), False),
    "another type of attribute": (of(subject((OU, "x"))), of("x"), False),
    "the order of the attributes": (of(subject((ORG, "a"), (CN, "x"))), of(subject((CN, "x"), (ORG, "a"))), False),
    "one relative name or two": (
        of(x509.Name([x509.RelativeDistinguishedName([x509.NameAttribute(ORG, "a"), x509.NameAttribute(CN, "x")])])),
        of(subject((ORG, "a"), (CN, "x"))), False,
    ),
    "an alternative name more": (of("x", dns("a")), of("x"), False),
    "an alternative name less": (of("x"), of("x", dns("a")), False),
    "another alternative name": (of("x", dns("a")), of("x", dns("b")), False),
    "another kind of the same text": (of("x", dns("a")), of("x", x509.RFC822Name("a")), False),
    "an address and its text": (of("x", ip("10.0.0.1")), of("x", dns("10.0.0.1")), False),
    "case of a URI": (of("x", uri("urn:a")), of("x", uri("urn:A")), False),
}  # fmt: skip


@pytest.mark.parametrize("case", GRANTED)
def test_grants(case: str) -> None:
    """A client gets the names that its identity and the profile give, never others."""
    limits, asked, expected = GRANTED[case]
    assert names.grant(asked, DEVICE, profile(**limits)) == expected


@LONG_NAMES
@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    """A name that may not be had is a 403 that says which; so is a request that leaves no name."""
    limits, asked = REFUSED[case]
    with pytest.raises(Forbidden) as caught:
        names.grant(asked, DEVICE, profile(**limits))
    assert (caught.value.status, caught.value.reason) == (403, Reason.NAME_REFUSED)
    assert caught.value.sentence.endswith(".")
    assert len(caught.value.sentence) < 600


def test_an_identity_without_names_gets_none() -> None:
    """Where identity and profile give no name, there is no certificate: an empty user name has no subject."""
    with pytest.raises(Forbidden):
        names.grant(of("anything"), of(), profile(**REPLACE))


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_pattern_for_a_host_holds_for_the_host(case: str) -> None:
    """A URI pattern that names a host grants URIs of that host alone: its stars end where the host ends."""
    asked = of(None, uri(OUTSIDE[case]))
    with pytest.raises(Forbidden):
        names.grant(asked, DEVICE, profile(**FREE | {"uri": HOSTED}))


def test_a_pattern_for_a_host_grants_that_host() -> None:
    """A URI pattern that names a host grants what it was written for."""
    asked = of(None, uri("https://a.devices.example.com/x/y?z"))
    assert names.grant(asked, DEVICE, profile(**FREE | {"uri": HOSTED})) == asked


@pytest.mark.parametrize("case", SAME)
def test_R22_same(case: str) -> None:
    """R22: names are compared as RFC 5280 §7.1 does, so case and spacing do not matter and everything else does."""
    one, other, expected = SAME[case]
    assert names.same(one, other) is expected
    assert names.same(other, one) is expected


def test_names_of_a_request() -> None:
    """The names of a request are its subject and its subjectAltName, hostile as they may be."""
    san = der.tlv(der.SEQUENCE, der.tlv(0x82, "gerät".encode()) + der.tlv(0x82, b"a\0b"))
    found = csr.parse(request(wants(extension("2.5.29.17", san)), subject=subject_of(der.oid("2.5.4.3"))))
    assert names.of_extensions(found.subject, found.extensions) == of("x", dns("gerät"), dns("a\0b"))


_TEXT = st.one_of(
    st.text(max_size=70),
    st.text("abc-.*0é \0", max_size=70),
    st.sampled_from(["device-1", "DEVICE-x", "boss", "DE", "a" * 64, "é" * 33, "a.devices.example.com"]),
)
_OIDS = st.sampled_from([CN, ORG, OU, C, DC, SERIAL, UID, EMAIL, NameOID.STATE_OR_PROVINCE_NAME, NameOID.LOCALITY_NAME])
_LIKELY = st.tuples(
    st.sampled_from([CN, CN, ORG, OU]), st.one_of(st.from_regex(r"device-[a-zé]{0,60}", fullmatch=True), _TEXT)
)
_WILD = st.tuples(_OIDS, _TEXT)


def _relative(parts: list[tuple[x509.ObjectIdentifier, str]]) -> x509.RelativeDistinguishedName:
    return x509.RelativeDistinguishedName([x509.NameAttribute(oid, text, _validate=False) for oid, text in parts])


_SUBJECTS = st.one_of(
    st.lists(_LIKELY, max_size=2).map(lambda parts: subject(*parts)),
    st.lists(st.lists(_WILD, min_size=1, max_size=2, unique=True).map(_relative), max_size=4).map(x509.Name),
)
_GOOD_NAMES = st.one_of(
    st.from_regex(r"[a-z]{1,4}\.devices\.example\.com", fullmatch=True).map(dns),
    st.ip_addresses(v=4, network="10.0.0.0/8").map(x509.IPAddress),
    st.ip_addresses(v=6, network="2001:db8::/32").map(x509.IPAddress),
    st.from_regex(r"urn:uuid:[0-9a-f]{1,8}", fullmatch=True).map(uri),
)
_OTHER_NAMES = st.one_of(
    _TEXT.map(dns),
    st.from_regex(r"([a-z*-]{1,4}\.){0,2}(devices\.)?example\.com", fullmatch=True).map(dns),
    st.ip_addresses().map(x509.IPAddress),
    st.ip_addresses(v=4, network="10.0.0.0/7").map(x509.IPAddress),
    st.just(ip("10.0.0.0/8")),
    _TEXT.map(uri),
    st.from_regex(r"(urn:uuid|https?)://?[a-z.@\[\]:/?#%*]{1,20}", fullmatch=True).map(uri),
    st.just(x509.RFC822Name("a@b.example")),
    st.just(x509.DirectoryName(make.name("x"))),
)
_SAN = st.one_of(st.lists(_GOOD_NAMES, max_size=4), st.lists(st.one_of(_GOOD_NAMES, _OTHER_NAMES), max_size=5))
_LDH = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.IGNORECASE)
_BOUNDS = {CN: 64, SERIAL: 64, C: 2, ORG: 64, OU: 64, UID: 256, DC: 63, NameOID.STATE_OR_PROVINCE_NAME: 128,
           NameOID.LOCALITY_NAME: 128}  # fmt: skip


def assert_inside(granted: Names, limits: Profile, fenced: bool) -> None:
    """What the limits say, said again in other words."""
    attributes = [part for rdn in granted.subject.rdns for part in rdn]
    for part in attributes:
        assert names._BY_OID[part.oid][0] in limits.subject_attributes
        assert 0 < len(str(part.value)) <= _BOUNDS[part.oid]
        assert str(part.value).isprintable()
    once = [part.oid for part in attributes if part.oid not in (OU, DC)]
    assert len(once) == len(set(once))
    assert len(granted.san) <= limits.max_names
    assert len(set(granted.san)) == len(granted.san)
    assert granted.san or attributes
    for name in granted.san:
        value: Any = name.value
        if isinstance(name, x509.DNSName):
            assert _LDH.fullmatch(value)
            assert len(value) <= 253
            assert not fenced or value.lower().endswith(".devices.example.com")
        elif isinstance(name, x509.IPAddress):
            assert value.max_prefixlen in (32, 128), "an address, not a network"
            assert not fenced or any(value in ipaddress.ip_network(one) for one in ("10.0.0.0/8", "2001:db8::/32"))
        else:
            assert isinstance(name, x509.UniformResourceIdentifier)
            assert value.isascii()
            assert urlsplit(value).scheme
            assert not fenced or value.startswith("urn:uuid:")
    if fenced:
        assert all(str(part.value).casefold().startswith("device-") for part in attributes if part.oid == CN)


@LONG_NAMES
@given(asked_subject=_SUBJECTS, asked_san=_SAN, fenced=st.booleans(), other=st.sampled_from(["refuse", "replace"]))
@settings(deadline=None, derandomize=True, max_examples=800)
def test_what_is_granted_is_inside_the_limits(
    asked_subject: x509.Name, asked_san: Sequence[x509.GeneralName], fenced: bool, other: str
) -> None:
    """Whatever is asked for, what is granted is inside the profile's limits and part of what was asked for, and can
    be encoded; all else is a 403, never another exception."""
    limits = profile(**(FENCED if fenced else FREE), other_names=other)
    try:
        granted: Names | EstError = names.grant(of(asked_subject, *asked_san), DEVICE, limits)
    except EstError as refusal:
        granted = refusal
    if isinstance(granted, EstError):
        assert granted.status == 403
        return
    assert_inside(granted, limits, fenced)
    asked_parts = {(part.oid, part.value) for rdn in asked_subject.rdns for part in rdn}
    assert {(part.oid, part.value) for rdn in granted.subject.rdns for part in rdn} <= asked_parts
    assert set(granted.san) <= set(asked_san)
    if other == "refuse":
        assert granted.subject == asked_subject
        assert {names._folded_san(one) for one in granted.san} == {names._folded_san(one) for one in asked_san}
    assert granted.subject.public_bytes()
    assert not granted.san or x509.SubjectAlternativeName(granted.san).public_bytes()


@LONG_NAMES
@given(asked_subject=_SUBJECTS, asked_san=_SAN, other=st.sampled_from(["refuse", "replace"]))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_an_identity_keeps_its_own_names(
    asked_subject: x509.Name, asked_san: Sequence[x509.GeneralName], other: str
) -> None:
    """Where names come from the identity, whatever is asked for, no others are granted (CVE-2022-2393)."""
    limits = profile(dns=IDENTITY, ip=IDENTITY, uri=IDENTITY, other_names=other)
    try:
        granted: Names | EstError = names.grant(of(asked_subject, *asked_san), DEVICE, limits)
    except EstError as refusal:
        granted = refusal
    if isinstance(granted, EstError):
        assert (granted.status, other) == (403, "refuse")
    else:
        assert granted == DEVICE


def test_BIT_STRING_and_long_values_are_refused_not_raised() -> None:
    """A subject attribute that is no text is refused as any other that may not be had."""
    unique = x509.NameAttribute(NameOID.X500_UNIQUE_IDENTIFIER, b"\0\1", x509.name._ASN1Type.BitString)
    with pytest.raises(Forbidden):
        names.grant(of(x509.Name([unique])), DEVICE, profile(**FREE))
    found = csr.parse(request(subject=subject_of(der.oid("2.5.4.10"), der.tlv(UTF8, b"x" * 4000))))
    with pytest.raises(Forbidden):
        names.grant(of(found.subject), DEVICE, profile(**FREE))


def test_a_serial_number_is_shown_and_read_by_its_word() -> None:
    """RFC 4514 text has words for few types; a factory's identity has a serialNumber (IEEE 802.1AR §8.6), and people
    read it in logs."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, "SN-1"), *make.name("x")])
    assert names.shown(subject) == "CN=x,serialNumber=SN-1"
    assert names.read(names.shown(subject)) == subject
