"""csrattrs: what a label asks of a request follows from its profiles, in both forms; a request can be held to it."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from estd import asked, csr, csrattrs, der, labels
from estd.client import Refused
from estd.errors import BadRequest
from estd.labels import KEY_KINDS, Allow, Label, NameRule, Profile
from tests import make
from tests.clients import judge
from tests.command import estd
from tests.servers import Server
from tests.test_names import DEFAULT

NONE = NameRule(source="none", patterns=())
ANY = NameRule(source="csr", patterns=())
PLAIN = dataclasses.replace(
    DEFAULT, name="plain", keys=frozenset({"ec-p256"}), key_usage=("digital_signature",),
    extended_key_usage=(labels.EXTENDED_KEY_USAGES["clientAuth"],), subject="identity", dns=NONE, ip=NONE, uri=NONE,
)  # fmt: skip
_USAGE = "300e0603551d0f0101ff040403020780"
_CLIENT = "30130603551d25040c300a06082b06010505070302"


def label(*profiles: str, **more: Any) -> Label:
    """A label whose rules lead to these profiles."""
    return Label(
        **{
            "name": "one", "ca": "root", "linking": "accepted", "renew": "either", "pem": False,
            "cacerts_one_line": False, "body_bytes": 65536, "repeat_seconds": 600,
            "allow": tuple(Allow(who="basic", profile=name) for name in profiles), **more,
        }
    )  # fmt: skip


def profiles(*found: Profile) -> dict[str, Profile]:
    return {one.name: one for one in found}


def encoded(profile: Profile, form: str = "legacy", **more: Any) -> str:
    """The hexadecimal of what a label with this profile tells."""
    content = csrattrs.encode(label(profile.name, csrattrs=form, **more), profiles(profile))
    return content.hex() if content is not None else ""


def sequence(*parts: str, tag: int = 0x30) -> str:
    return der.tlv(tag, bytes.fromhex("".join(parts))).hex()


def attribute(oid: str, *values: str) -> str:
    return sequence(der.oid(oid).hex(), sequence(*values, tag=0x31))


KEYS: dict[str, tuple[str, str, str]] = {
    "ec-p256": (
        "301506072a8648ce3d0201310a06082a8648ce3d030107",
        "06082a8648ce3d040302",
        "a015301306072a8648ce3d020106082a8648ce3d030107",
    ),
    "ec-p384": (
        "301206072a8648ce3d0201310706052b81040022",
        "06082a8648ce3d040303",
        "a012301006072a8648ce3d020106052b81040022",
    ),
    "ec-p521": (
        "301206072a8648ce3d0201310706052b81040023",
        "06082a8648ce3d040304",
        "a012301006072a8648ce3d020106052b81040023",
    ),
    "ed25519": ("300706032b65703100", "06032b6570", "a007300506032b6570"),
    "rsa-2048": ("301106092a864886f70d010101310402020800", "06092a864886f70d01010b", ""),
    "rsa-3072": ("301106092a864886f70d010101310402020c00", "06092a864886f70d01010b", ""),
    "rsa-4096": ("301106092a864886f70d010101310402021000", "06092a864886f70d01010b", ""),
}
"""Kind: its attribute in RFC 7030's list, its signature's OID, its key in the template; written by hand."""


@pytest.mark.parametrize("kind", KEYS)
def test_R37_R43_one_kind_of_key_is_named_as_the_RFCs_write_it(kind: str) -> None:
    """R37, R43: OID with curve, or rsaEncryption with the size in bits; the signature that fits; the template's key."""
    key, signature, template = KEYS[kind]
    profile = dataclasses.replace(PLAIN, keys=frozenset({kind}))
    extensions = attribute(csrattrs.EXTENSION_REQUEST, sequence(_USAGE, _CLIENT))
    assert encoded(profile) == sequence(key, extensions, signature)
    if template:
        inside = sequence("020100", template, sequence(extensions, tag=0xA1))
        assert encoded(profile, "template") == sequence(attribute(csrattrs.TEMPLATE, inside))


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_R43_an_RSA_keys_size_is_a_modulus_that_stands_for_one(bits: int, folder: Path) -> None:
    """R43: subjectPublicKey holds an RSAPublicKey whose modulus has the size, and OpenSSL reads it as such."""
    content = bytes.fromhex(encoded(dataclasses.replace(PLAIN, keys=frozenset({f"rsa-{bits}"})), "template"))
    start = content.index(bytes.fromhex("300d06092a864886f70d0101010500"))
    end = der.element_end(content, der.element_end(content, start))
    (folder / "key.der").write_bytes(der.tlv(der.SEQUENCE, content[start:end]))
    shown = judge.openssl("rsa", "-pubin", "-inform", "DER", "-in", folder / "key.der", "-noout", "-text").decode()
    assert f"({bits} bit)" in shown
    assert "65537" in shown


def test_every_kind_of_key_can_be_told() -> None:
    """No kind that a profile may take is without its OIDs, and both forms can be made of it."""
    for kind in KEY_KINDS:
        for form in ("legacy", "template", "both"):
            assert encoded(dataclasses.replace(PLAIN, keys=frozenset({kind})), form)


def test_R37_a_choice_of_keys_is_not_told_as_a_demand() -> None:
    """R37: several curves are one algorithm without a curve; several algorithms are no demand, so nothing is said."""
    curves = bytes.fromhex(encoded(dataclasses.replace(PLAIN, keys=frozenset({"ec-p256", "ec-p384"})), "both"))
    assert bytes.fromhex(attribute("1.2.840.10045.2.1")) in curves
    assert bytes.fromhex("a00b300906072a8648ce3d0201") in curves
    assert der.oid("1.2.840.10045.3.1.7") not in curves
    assert der.oid("1.2.840.10045.4.3.2") not in curves
    sizes = bytes.fromhex(encoded(dataclasses.replace(PLAIN, keys=frozenset({"rsa-2048", "rsa-4096"})), "template"))
    assert bytes.fromhex("a00f300d06092a864886f70d0101010500a1") in sizes
    several = bytes.fromhex(encoded(dataclasses.replace(PLAIN, keys=frozenset({"ec-p256", "ed25519"})), "both"))
    assert der.oid("1.2.840.10045.2.1") not in several
    assert der.oid("1.3.101.112") not in several


@pytest.mark.parametrize("form", ["legacy", "template", "both"])
def test_R37_challengePassword_where_linking_is_demanded_alone(form: str) -> None:
    """R37, R14: a label that demands linking says so in every form, one that accepts it or ignores it does not."""
    for linking in ("off", "accepted", "demanded"):
        found = asked.read(bytes.fromhex(encoded(PLAIN, form, linking=linking)))
        assert found.linked == (linking == "demanded")
        assert found.template == (form != "legacy")


def test_R42_one_extension_request_with_one_value_and_nothing_twice() -> None:
    """R42: one id-ExtensionReq, one Extensions in it, each extension once, with the profile's values."""
    content = bytes.fromhex(encoded(PLAIN))
    assert content.count(der.oid(csrattrs.EXTENSION_REQUEST)) == 1
    shown = judge.openssl("asn1parse", "-inform", "DER", data=content).decode()
    assert shown.count("X509v3 Key Usage") == shown.count("X509v3 Extended Key Usage") == 1
    assert sequence(_USAGE, _CLIENT) in content.hex()


def test_R43_the_common_name_is_the_clients_to_fill_in() -> None:
    """R43: where the subject is the request's, both forms ask for a common name without a value."""
    profile = dataclasses.replace(PLAIN, subject="csr", subject_attributes=frozenset({"CN"}))
    assert "0603550403" in encoded(profile)
    assert sequence(sequence(sequence("0603550403"), tag=0x31)) in encoded(profile, "template")
    assert "0603550403" not in encoded(PLAIN, "both")


def test_R43_a_name_that_only_a_subjectAltName_can_tell() -> None:
    """R43: the template asks for a subjectAltName without a value, with the other extensions in the same list, an
    id-aa-extensionReqTemplate; the old form has no way to say it."""
    profile = dataclasses.replace(PLAIN, subject="csr", subject_attributes=frozenset(), dns=ANY)
    san = sequence("0603551d11")
    content = encoded(profile, "template")
    assert attribute("1.2.840.113549.1.9.16.2.62", sequence(_USAGE, _CLIENT, san)) in content
    assert der.oid(csrattrs.EXTENSION_REQUEST).hex() not in content
    assert san not in encoded(profile)


def test_several_profiles_are_told_by_what_they_want_alike() -> None:
    """Nobody is known when csrattrs is asked: what one profile wants alone is not said, unless it is named."""
    both = dataclasses.replace(PLAIN, name="both", extended_key_usage=("1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1"))
    other = dataclasses.replace(both, keys=frozenset({"ec-p256", "ec-p384"}))
    found = profiles(PLAIN, other)
    alike = csrattrs.demands(label("plain", "both"), found)
    assert [one.value.hex() for one in alike.extensions] == ["03020780"]
    assert (alike.keys, alike.kind) == ({"ec-p256", "ec-p384"}, None)
    named = csrattrs.demands(label("plain", "both", csrattrs_profile="plain"), found)
    assert (named.kind, len(named.extensions)) == ("ec-p256", 2)


def test_R36_nothing_to_say() -> None:
    """R36: a label without a rule that names a profile has nothing to say; with linking demanded it has."""
    assert csrattrs.encode(label(csrattrs="both"), {}) is None
    assert asked.read(csrattrs.encode(label(csrattrs="both", linking="demanded"), {}) or b"").linked


# A request is held to it (R47).

P384 = dataclasses.replace(PLAIN, keys=frozenset({"ec-p384"}), subject="csr", subject_attributes=frozenset({"CN"}))
_KU = x509.KeyUsage(**{name: name == "digital_signature" for name in (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")})  # fmt: skip
_EKU = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_TOLD = (
    asked.Extension(_KU.oid.dotted_string, True, _KU.public_bytes()),
    asked.Extension(_EKU.oid.dotted_string, False, _EKU.public_bytes()),
)
"""What csrattrs says of a profile that leaves usages as they are."""
_FIT: dict[str, Any] = {"extensions": [(_KU, True), (_EKU, False)], "algorithm": hashes.SHA384()}
P384_KEY = ec.generate_private_key(ec.SECP384R1())

UNFIT: dict[str, tuple[Callable[[], bytes], str]] = {
    "another key": (lambda: make.csr(**_FIT), "ec-p384"),
    "another signature": (lambda: make.csr(P384_KEY, **{**_FIT, "algorithm": hashes.SHA256()}), "signature"),
    "no common name": (lambda: make.csr(P384_KEY, subject=x509.Name([]), **_FIT), "common name"),
    "no key usage": (lambda: make.csr(P384_KEY, **{**_FIT, "extensions": [(_EKU, False)]}), "2.5.29.15"),
    "key usage that is not critical": (
        lambda: make.csr(P384_KEY, **{**_FIT, "extensions": [(_KU, False), (_EKU, False)]}), "critical"),
    "another extended key usage": (
        lambda: make.csr(P384_KEY, **{**_FIT, "extensions": [
            (_KU, True), (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)]}), "2.5.29.37"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_R47_a_request_that_does_not_match(case: str) -> None:
    """R47: each part that csrattrs asks for is looked at, and the sentence names the part."""
    request, word = UNFIT[case]
    demands = csrattrs.demands(label("plain"), profiles(P384))
    with pytest.raises(BadRequest, match=word) as refusal:
        csrattrs.check(demands, csr.parse(request()))
    assert refusal.value.reason == "csrattrs"


def test_R47_a_request_that_matches() -> None:
    """R47: what is as csrattrs asks passes, whatever else it has; the template's reader is not held to a signature."""
    csrattrs.check(csrattrs.demands(label("plain"), profiles(P384)), csr.parse(make.csr(P384_KEY, **_FIT)))
    more = make.csr(P384_KEY, san=[x509.DNSName("a.example")], challenge_password=b"x", **_FIT)
    csrattrs.check(csrattrs.demands(label("plain"), profiles(P384)), csr.parse(more))
    template = csrattrs.demands(label("plain", csrattrs="template"), profiles(P384))
    csrattrs.check(template, csr.parse(make.csr(P384_KEY, **{**_FIT, "algorithm": hashes.SHA256()})))


def test_R47_a_name_in_the_subjectAltName_must_be_there_where_that_is_told() -> None:
    """R47: where only a subjectAltName can name the device, a request without one does not match, if every client can
    see that: the list cannot say it."""
    profile = dataclasses.replace(P384, subject_attributes=frozenset(), dns=ANY)
    for form in ("legacy", "template", "both"):
        demands = csrattrs.demands(label("plain", csrattrs=form), profiles(profile))
        csrattrs.check(demands, csr.parse(make.csr(P384_KEY, san=[x509.DNSName("a.example")], **_FIT)))
        without = csr.parse(make.csr(P384_KEY, **_FIT))
        if form != "template":
            csrattrs.check(demands, without)
            continue
        with pytest.raises(BadRequest, match="subjectAltName"):
            csrattrs.check(demands, without)


# The server.


def told(server: Server, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    with server.client(label=path or None) as client:
        response = client.request(method, "csrattrs")
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def test_R35_R36_csrattrs_for_anybody(server: Server) -> None:
    """R35, R36, R40: without a credential, with and without a label; media type, encoding and form of the body."""
    for path in ("", "default", "asking"):
        status, headers, body = told(server, path)
        assert (status, headers["content-type"]) == (200, "application/csrattrs")
        assert headers["content-transfer-encoding"] == "base64"
        assert body.endswith(b"\n")
        assert int(headers["content-length"]) == len(body)
        assert asked.read(base64.b64decode(body)).linked == (path == "asking")
        assert told(server, path, "HEAD")[::2] == (200, b"")


def test_R3_R36_nothing_to_say_and_switched_off(server: Server) -> None:
    """R3, R36: 204 without a body where there is nothing to say, 404 with a sentence where a label is silent."""
    status, headers, body = told(server, "closed")
    assert (status, body) == (204, b"")
    assert "content-type" not in headers
    status, _, body = told(server, "silent")
    assert (status, body) == (404, b"The operation csrattrs is not offered here.\n")
    status, headers, _ = told(server, "asking", "POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    before = server.metric("estd_requests_total", operation="csrattrs", status="204")
    told(server, "closed")
    assert server.metric("estd_requests_total", operation="csrattrs", status="204") == before + 1


def test_R47_an_enforcing_label(server: Server) -> None:
    """R47: a request that does not match is a 400 whose sentence says what is missing, without a signature of the
    token; one that matches is served."""
    signed = server.metric("estd_sign_seconds_count")
    counted = server.metric("estd_rejections_total", reason="csrattrs")
    with server.client(basic=True, label="enforced") as client:
        for request, word in UNFIT.values():
            with pytest.raises(Refused, match=word) as refusal:
                client.enroll(lambda _, request=request: request())  # type: ignore[misc]
            assert refusal.value.status == 400
        assert server.metric("estd_sign_seconds_count") == signed
        certificate = client.enroll(lambda _: make.csr(P384_KEY, **_FIT))
        assert certificate.public_key() == P384_KEY.public_key()
    assert server.metric("estd_rejections_total", reason="csrattrs") == counted + len(UNFIT)


def test_R47_our_client_does_as_it_is_told(server: Server, folder: Path) -> None:
    """R47: `estd enroll` puts the extensions of csrattrs into its request, signed as it asks, so that a label that
    insists on them lets it in, with other names beside them too."""
    estd(
        "enroll", f"https://127.0.0.1:{server.port}", "--cacert", server.folder / "ca.pem", "--label", "enforced",
        "--credential", server.folder / "demo" / "basic", "--subject", "CN=told", "--key-type", "ec-p384",
        "--out", folder / "told",
    )  # fmt: skip
    certificate = x509.load_pem_x509_certificate((folder / "told.pem").read_bytes())
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value == _KU


def test_an_extension_twice_is_no_csrattrs() -> None:
    """RFC 9908 §3.2: what a server must not send is refused, not guessed at."""
    twice = sequence(*(sequence(der.oid("2.5.29.15").hex(), "040403020780") for _ in range(2)))
    with pytest.raises(ValueError, match="twice"):
        asked.read(bytes.fromhex(sequence(attribute(csrattrs.EXTENSION_REQUEST, twice))))


def test_the_extensions_of_either_form_are_read() -> None:
    """R42, R43: the list's, the template's, and of a template's own those with a value."""
    for form in ("legacy", "template", "both"):
        assert asked.read(bytes.fromhex(encoded(P384, form))).extensions == _TOLD
    named = encoded(dataclasses.replace(P384, subject="csr", subject_attributes=frozenset(), dns=ANY), "template")
    assert asked.read(bytes.fromhex(named)).extensions == _TOLD


def test_R37_R43_what_is_told_is_what_is_wanted(server: Server) -> None:
    """R37, R43: a request made of what csrattrs tells gets a certificate, with the extensions that it told."""
    with server.client(basic=True, label="asking") as client:
        found = client.csrattrs()
        assert found.linked
        assert found.template
        assert csrattrs.EXTENSION_REQUEST in found.attributes
        assert found.extensions == _TOLD
        certificate = client.enroll(lambda value: make.csr(P384_KEY, challenge_password=value, **_FIT), link=True)
    values = {one.oid: (one.critical, one.value) for one in certificate.extensions}
    assert values[_KU.oid] == (True, _KU)
    assert values[_EKU.oid] == (False, _EKU)


def test_R37_a_common_name_is_told_that_alternative_names_can_stand_for(server: Server) -> None:
    """R37: a label that takes names from either place asks for a common name; without one, where it does not enforce
    that, alternative names alone are granted."""
    with server.client(basic=True, label="server") as client:
        assert csrattrs._COMMON_NAME in client.csrattrs().attributes
        certificate = client.enroll(lambda _: make.csr(subject=make.name(None), san=[x509.DNSName("a.example.com")]))
    assert not certificate.subject.rdns


# Our own client reads what other servers tell.


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x30", b"\x30\x02\x02\x01", b"\x31\x00", b"\x30\x03\x02\x01\x00", b"\x30\x00\x00",
        bytes.fromhex(sequence(attribute(csrattrs.TEMPLATE))),
        bytes.fromhex(sequence(attribute(csrattrs.TEMPLATE, "0500"))),
        bytes.fromhex(sequence(attribute(csrattrs.TEMPLATE, sequence("020101", "a100")))),
        bytes.fromhex(sequence(attribute(csrattrs.TEMPLATE, sequence("020100"))))
    ],
)  # fmt: skip
def test_what_is_no_CsrAttrs_is_refused(content: bytes) -> None:
    """Hostile or broken: a ValueError, never anything else."""
    with pytest.raises(ValueError, match="not CsrAttrs"):
        asked.read(content)


def test_cut_and_changed_CsrAttrs_are_read_or_refused() -> None:
    """Every prefix is refused, and every changed octet read or refused, never with anything but a ValueError."""
    content = bytes.fromhex(encoded(P384, "both", linking="demanded"))
    for at in range(len(content)):
        with pytest.raises(ValueError, match="not CsrAttrs"):
            asked.read(content[:at])
        with suppress(ValueError):
            asked.read(content[:at] + bytes((content[at] ^ 0x41,)) + content[at + 1 :])


def test_unknown_attributes_are_read_over() -> None:
    """RFC 7030 §4.5.2: what a client does not know it ignores; the order of values does not matter to it."""
    odd = sequence(der.oid("1.2.3.4").hex(), attribute("1.2.3.5", "020101"), der.oid("1.2.840.113549.1.9.7").hex())
    assert asked.read(bytes.fromhex(odd)).linked
    assert not asked.read(b"\x30\x00").linked


def test_the_example_of_RFC_7030_is_read() -> None:
    """RFC 7030 §4.5.2's own example has a bare OID in its extensionRequest, which RFC 9908 calls wrong: all else in it
    counts, and so do extensions beside what is no list of them."""
    example = "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw=="
    found = asked.read(base64.b64decode(example))
    assert found.linked
    assert found.extensions == ()
    for odd in ("06072b060101010116", "0500", sequence("0603551d0f"), "0c01ff"):
        values = attribute(csrattrs.EXTENSION_REQUEST, *sorted((odd, sequence(_USAGE))))
        assert asked.read(bytes.fromhex(sequence(values))).extensions == _TOLD[:1]


def test_the_template_alone_counts() -> None:
    """RFC 9908 §4: with a template, what the old form lists beside it is not for a client that knows templates."""
    template = attribute(csrattrs.TEMPLATE, sequence("020100", "a100"))
    assert not asked.read(bytes.fromhex(sequence(der.oid("1.2.840.113549.1.9.7").hex(), template))).linked
