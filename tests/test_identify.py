"""Client certificates: a path to a rule's own anchors, for clients, in its time; each refusal in its own words."""

from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from estd import der
from estd.errors import EstError, Reason, Unauthenticated
from estd.identify import Anchors, ClientCertificate, anchor_fault, client_chain
from tests import make
from tests.conftest import program
from tests.csr_forms import flipped
from tests.make import Identity

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOW = datetime.now(UTC).timestamp()
CA, OTHER = (make.certificate(ca=True, subject=make.name(f"ca {word}"), starts=-30 * DAY) for word in ("one", "two"))
BETWEEN = make.certificate(CA, ca=True, subject=make.name("between"), starts=-20 * DAY)
PAST_BETWEEN = make.certificate(CA, ca=True, subject=make.name("past"), starts=-20 * DAY, ends=-10 * DAY)
NO_CA_BETWEEN = make.certificate(CA, subject=make.name("no ca"), starts=-20 * DAY)
TWIN = make.certificate(ca=True, subject=make.name("ca one"), starts=-30 * DAY)
"""Another CA of the same name."""


@dataclass(frozen=True)
class Case:
    make: Callable[[], Any]
    above: Sequence[Identity] = ()
    reason: Reason | None = None
    """None: a path is found."""
    words: str = ""
    length: int = 1


def of_key(key: Any, **differences: Any) -> Identity:
    return make.certificate(CA, own_key=key, **differences)


def raw(signer: Identity = CA, *, key: Any = None, san: bytes | None = None, subject: x509.Name | None = None) -> bytes:
    """A certificate whose subjectAltName may be anything."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject if subject is not None else make.name("odd"))
        .issuer_name(signer.certificate.subject)
        .public_key((key or make.key()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - HOUR)
        .not_valid_after(now + DAY)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
    )
    if san is not None:
        oid = x509.SubjectAlternativeName.oid
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, san), critical=False)
    return builder.sign(signer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def names_der(tag: int, value: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, der.tlv(tag, value))


CASES: dict[str, Case] = {
    "a factory's: no subjectAltName, no extendedKeyUsage": Case(lambda: make.certificate(CA)),
    "with a subjectAltName": Case(lambda: make.certificate(CA, san=[x509.DNSName("a.example")])),
    "for clients": Case(lambda: make.certificate(CA, extended=[make.CLIENT_AUTH])),
    "for clients and servers": Case(lambda: make.certificate(CA, extended=[make.CLIENT_AUTH, make.SERVER_AUTH])),
    "for any use": Case(lambda: make.certificate(CA, extended=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])),
    "without keyUsage": Case(lambda: make.certificate(CA, usage=None)),
    "without basicConstraints": Case(lambda: make.certificate(CA, basic_constraints=False)),
    "RSA": Case(lambda: of_key(rsa.generate_private_key(65537, 2048))),
    "Ed25519": Case(lambda: of_key(ed25519.Ed25519PrivateKey.generate())),
    "P-384": Case(lambda: of_key(ec.generate_private_key(ec.SECP384R1()))),
    "with its intermediate": Case(lambda: make.certificate(BETWEEN), above=[BETWEEN], length=2),
    "with its intermediate and the anchor": Case(lambda: make.certificate(BETWEEN), above=[BETWEEN, CA], length=2),
    "with intermediates of others": Case(lambda: make.certificate(BETWEEN), above=[OTHER, BETWEEN], length=2),
    "R10 expired": Case(
        lambda: make.certificate(CA, starts=-2 * HOUR, ends=-HOUR), (), Reason.CERT_EXPIRED, "expired at",
    ),
    "R10 expired, with its intermediate": Case(
        lambda: make.certificate(BETWEEN, starts=-2 * HOUR, ends=-HOUR), [BETWEEN], Reason.CERT_EXPIRED, "expired at",
    ),
    "R10 not yet valid": Case(lambda: make.certificate(CA, starts=HOUR), (), Reason.CERT_EXPIRED, "not valid before"),
    "R10 of an unknown CA": Case(lambda: make.certificate(OTHER), (), Reason.CERT_UNKNOWN, "no path"),
    "R10 of an unknown CA, sent along": Case(lambda: make.certificate(OTHER), [OTHER], Reason.CERT_UNKNOWN, "no path"),
    "R10 of an unknown CA and expired": Case(
        lambda: make.certificate(OTHER, starts=-2 * HOUR, ends=-HOUR), (), Reason.CERT_UNKNOWN, "no path",
    ),
    "R10 of another CA of the same name": Case(lambda: make.certificate(TWIN), (), Reason.CERT_UNKNOWN, "no path"),
    "R10 self-signed": Case(make.certificate, (), Reason.CERT_UNKNOWN, "no path"),
    "R10 self-signed in the anchor's name": Case(
        lambda: make.certificate(subject=make.name("ca one")), (), Reason.CERT_UNKNOWN, "no path",
    ),
    "R10 its intermediate is missing": Case(lambda: make.certificate(BETWEEN), (), Reason.CERT_UNKNOWN, "no path"),
    "R10 its intermediate has expired": Case(
        lambda: make.certificate(PAST_BETWEEN), [PAST_BETWEEN], Reason.CERT_UNKNOWN, "no path",
    ),
    "R10 under a certificate that is no CA's": Case(
        lambda: make.certificate(NO_CA_BETWEEN), [NO_CA_BETWEEN], Reason.CERT_UNKNOWN, "no path",
    ),
    "for servers only": Case(
        lambda: make.certificate(CA, extended=[make.SERVER_AUTH]), (), Reason.CERT_NOT_CLIENT, "extendedKeyUsage",
    ),
    "for code signing only": Case(
        lambda: make.certificate(CA, extended=[ExtendedKeyUsageOID.CODE_SIGNING]), (), Reason.CERT_NOT_CLIENT,
        "extendedKeyUsage",
    ),
    "R16 with cmcRA and serverAuth, as the server's own": Case(
        lambda: make.certificate(CA, extended=[make.SERVER_AUTH, x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")]), (),
        Reason.CERT_NOT_CLIENT, "extendedKeyUsage",
    ),
    "not for signatures": Case(
        lambda: make.certificate(CA, usage="key_agreement"), (), Reason.CERT_NOT_CLIENT, "keyUsage",
    ),
    "a CA's": Case(lambda: BETWEEN, (), Reason.CERT_NOT_CLIENT, "CA's"),
    "the anchor itself": Case(lambda: CA, (), Reason.CERT_NOT_CLIENT, "CA's"),
    "for servers only and expired": Case(
        lambda: make.certificate(CA, extended=[make.SERVER_AUTH], starts=-2 * HOUR, ends=-HOUR), (),
        Reason.CERT_NOT_CLIENT, "extendedKeyUsage",
    ),
}  # fmt: skip

UNREADABLE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no DER": lambda: b"\x30\x03abc",
    "cut": lambda: make.certificate(CA).der[:-9],
    "bytes behind it": lambda: make.certificate(CA).der + b"\0",
    "subjectAltName: no DER": lambda: raw(san=b"\xff"),
    "subjectAltName: an x400Address": lambda: raw(san=names_der(0xA3, b"\x30\0")),
    "subjectAltName: an ediPartyName": lambda: raw(san=names_der(0xA5, der.tlv(0xA1, der.tlv(0x0C, b"x")))),
    "a key of a kind that nobody knows": lambda: with_key_kind(b"\x2a\x86\x48\xce\x3d\x02\x02"),
    "a subject attribute that is a BIT STRING": lambda: make.certificate(CA, subject=make.name("marker")).der.replace(
        b"\x0c\x06marker", b"\x03\x06\x00arker"
    ),
    "of version 8": lambda: make.of_version_8(make.certificate(CA).der),
}  # fmt: skip


@cache
def with_key_kind(oid: bytes) -> bytes:
    """A certificate whose key's algorithm is another OID of the same length than id-ecPublicKey."""
    return make.certificate(CA).der.replace(der.oid("1.2.840.10045.2.1"), der.tlv(6, oid))


def judged(
    anchors: Anchors, identity: Identity, above: Sequence[Identity] = (), now: float = NOW
) -> tuple[x509.Certificate, ...]:
    """What policy asks of a client certificate, in its order."""
    client = ClientCertificate.parse(identity.der)
    if client.fault is not None:
        raise client.fault
    path = anchors.path(client, [one.certificate for one in above], now)
    client.check_time(now)
    return path


@pytest.mark.parametrize("case", CASES)
def test_R10_judges(case: str) -> None:
    """R10: a certificate has a path to an anchor, is for clients and in its time, or a 401 says what it lacks."""
    row = CASES[case]
    identity, anchors = row.make(), Anchors([CA.certificate])
    if row.reason is None:
        path = judged(anchors, identity, row.above)
        assert path[0] == identity.certificate
        assert len(path) == row.length
        assert CA.certificate not in path
        return
    with pytest.raises(Unauthenticated) as caught:
        judged(anchors, identity, row.above)
    assert (caught.value.status, caught.value.reason) == (401, row.reason)
    assert row.words in caught.value.sentence


def authority(
    signer: Identity | None = None, *extensions: tuple[x509.ExtensionType, bool], starts: timedelta = -20 * DAY,
    ends: timedelta = 30 * DAY,
) -> Identity:  # fmt: skip
    """A certificate of a CA under `signer`, or self-signed, with these extensions (and whether critical) alone."""
    key, number, now = make.key(), x509.random_serial_number(), datetime.now(UTC)
    subject = make.name(f"authority {number}")
    builder = x509.CertificateBuilder(
        signer.certificate.subject if signer else subject, subject, key.public_key(), number, now + starts, now + ends
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return Identity(builder.sign(signer.key if signer else key, hashes.SHA256()), key)


def constraints(
    *, ca: bool = True, length: int | None = None, critical: bool = True
) -> tuple[x509.ExtensionType, bool]:
    return x509.BasicConstraints(ca, length), critical


def usage(word: str, *, critical: bool = True) -> tuple[x509.ExtensionType, bool]:
    (found,) = (one for one in make.certificate(usage=word).certificate.extensions if one.oid == x509.KeyUsage.oid)
    return found.value, critical


def names_within(*, permitted: Any = None, excluded: Any = None) -> tuple[x509.ExtensionType, bool]:
    return x509.NameConstraints(permitted, excluded), True


def of_version_1(signer: Identity) -> Identity:
    """A certificate without version and extensions."""
    made = authority(signer)
    tbs = made.certificate.tbs_certificate_bytes
    parts, at = [], der.content_start(tbs, 0)
    while at < len(tbs):
        parts.append(tbs[at : der.element_end(tbs, at)])
        at = der.element_end(tbs, at)
    tbs = der.tlv(der.SEQUENCE, b"".join(part for part in parts if part[0] not in (0xA0, 0xA3)))
    signature = signer.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    whole = der.tlv(der.SEQUENCE, tbs + parts[2] + der.tlv(0x03, b"\0" + signature))
    return Identity(x509.load_der_x509_certificate(whole), made.key)


PLAIN = authority(None, constraints())
"""As plain `openssl req -x509` makes it: no keyUsage."""
BRANCH = authority(PLAIN, constraints(length=0))
SERVERS = (x509.ExtendedKeyUsage([make.SERVER_AUTH]), False)
UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\0"), True)
HERE = x509.DNSName("here.example")


@dataclass(frozen=True)
class Above:
    """What stands above a client: the anchor, and from it down those between."""

    anchor: Identity
    between: Sequence[Callable[[Identity], Identity]] = ()
    words: str = ""
    """What the verifier says; nothing where there is a path."""
    san: Sequence[x509.GeneralName] = ()


ABOVE: dict[str, Above] = {
    "an anchor without keyUsage": Above(PLAIN),
    "an anchor that is for certificates": Above(authority(None, constraints(), usage("key_cert_sign"))),
    "an anchor whose basicConstraints are not critical": Above(authority(None, constraints(critical=False))),
    "an anchor with a pathLenConstraint": Above(authority(None, constraints(length=0))),
    "an anchor that is not for certificates": Above(
        authority(None, constraints(), usage("crl_sign")), words="keyCertSign"
    ),
    "an anchor with cA false": Above(authority(None, constraints(ca=False)), words="cA must be asserted"),
    "an anchor without basicConstraints": Above(authority(), words="no basicConstraints"),
    "an anchor of version 1": Above(of_version_1(PLAIN), words="X509v3"),
    "an anchor for servers": Above(authority(None, constraints(), SERVERS), words="clientAuth"),
    "an anchor that has expired": Above(authority(None, constraints(), ends=-DAY), words="not valid at"),
    "an intermediate with basicConstraints alone": Above(PLAIN, [lambda up: authority(up, constraints())]),
    "an intermediate whose basicConstraints are not critical": Above(
        PLAIN, [lambda up: authority(up, constraints(critical=False))]
    ),
    "an intermediate with cA false": Above(
        PLAIN, [lambda up: authority(up, constraints(ca=False))], "cA must be asserted"
    ),
    "an intermediate with cA false, for certificates": Above(
        PLAIN, [lambda up: authority(up, constraints(ca=False), usage("key_cert_sign"))], "cA must be asserted"
    ),
    "an intermediate without basicConstraints": Above(PLAIN, [authority], "no basicConstraints"),
    "an intermediate without basicConstraints, for certificates": Above(
        PLAIN, [lambda up: authority(up, usage("key_cert_sign"))], "no basicConstraints"
    ),
    "an intermediate of version 1": Above(PLAIN, [of_version_1], "X509v3"),
    "an intermediate for signatures": Above(
        PLAIN, [lambda up: authority(up, constraints(), usage("digital_signature"))], "keyCertSign"
    ),
    "an intermediate for CRLs, not critical": Above(
        PLAIN, [lambda up: authority(up, constraints(), usage("crl_sign", critical=False))], "keyCertSign"
    ),
    "an intermediate for servers": Above(PLAIN, [lambda up: authority(up, constraints(), SERVERS)], "clientAuth"),
    "an intermediate that has expired": Above(
        PLAIN, [lambda up: authority(up, constraints(), ends=-DAY)], "not valid at"
    ),
    "an intermediate that is not valid yet": Above(
        PLAIN, [lambda up: authority(up, constraints(), starts=DAY)], "not valid at"
    ),
    "an intermediate with what nobody knows, critical": Above(
        PLAIN, [lambda up: authority(up, constraints(), UNKNOWN)], "critical extension"
    ),
    "an intermediate with a critical key identifier": Above(
        PLAIN,
        [
            lambda up: authority(
                up, constraints(), (x509.AuthorityKeyIdentifier.from_issuer_public_key(up.key.public_key()), True)
            )
        ],
        "criticality",
    ),
    "an intermediate, where the anchor allows none": Above(
        authority(None, constraints(length=0)), [lambda up: authority(up, constraints())], "path length"
    ),
    "one where the anchor, not critical, allows none": Above(
        authority(None, constraints(length=0, critical=False)), [lambda up: authority(up, constraints())], "path length"
    ),
    "two intermediates, of which the upper allows none": Above(
        PLAIN, [lambda _: BRANCH, lambda up: authority(up, constraints())], "path length"
    ),
    "two intermediates, of which the upper allows one": Above(
        PLAIN, [lambda up: authority(up, constraints(length=1)), lambda up: authority(up, constraints())]
    ),
    "a name inside what the intermediate permits": Above(
        PLAIN, [lambda up: authority(up, constraints(), names_within(permitted=[HERE]))],
        san=[x509.DNSName("a.here.example")],
    ),
    "a name outside what the intermediate permits": Above(
        PLAIN, [lambda up: authority(up, constraints(), names_within(permitted=[HERE]))], "no permitted name",
        san=[x509.DNSName("a.there.example")],
    ),
    "a name that the intermediate excludes": Above(
        PLAIN, [lambda up: authority(up, constraints(), names_within(excluded=[HERE]))], "excluded name",
        san=[x509.DNSName("a.here.example")],
    ),
    "a name outside what the anchor permits": Above(
        authority(None, constraints(), names_within(permitted=[HERE])), words="no permitted name",
        san=[x509.DNSName("a.there.example")],
    ),
    "an intermediate that constrains directory names": Above(
        PLAIN, [lambda up: authority(up, constraints(), names_within(permitted=[x509.DirectoryName(make.name("x"))]))],
        "directoryName",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ABOVE)
def test_R10_what_stands_above_a_client(case: str, folder: Path) -> None:
    """R10: CA certificates, the anchor too, are judged by RFC 5280 §6.1, and openssl is of the same mind. The device is
    told that there is no path, the log also why."""
    row = ABOVE[case]
    line = [row.anchor]
    for make_one in row.between:
        line.append(make_one(line[-1]))
    identity = make.certificate(line[-1], san=row.san)
    between = line[:0:-1]
    if row.words:
        with pytest.raises(Unauthenticated) as caught:
            judged(Anchors([row.anchor.certificate]), identity, between)
        assert "no path" in caught.value.sentence
        assert row.words in caught.value.why
        assert row.words not in caught.value.sentence
    else:
        assert len(judged(Anchors([row.anchor.certificate]), identity, between)) == len(line)
    assert openssl_verifies(folder, row.anchor, between, identity) is (not row.words)


def openssl_verifies(folder: Path, anchor: Identity, between: Sequence[Identity], identity: Identity) -> bool:
    for name, certificates in (("anchor", [anchor]), ("chain", [identity, *between])):
        (folder / name).write_bytes(b"".join(one.pem for one in certificates))
    command = [
        program("openssl"), "verify", "-purpose", "sslclient", "-no-CAstore", "-no-CApath", "-partial_chain", "-CAfile",
        "anchor", "-untrusted", "chain", "chain",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "verification failed" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("case", [case for case in ABOVE if not ABOVE[case].between and not ABOVE[case].san])
def test_an_anchor_that_lets_nobody_in_is_known_without_a_client(case: str) -> None:
    """`estd check` finds the same fault with an anchor as the verifier does when a client comes."""
    fault = anchor_fault(ABOVE[case].anchor.certificate, NOW)
    assert ABOVE[case].words in fault
    assert bool(fault) is bool(ABOVE[case].words)


def test_the_anchor_is_no_client_even_where_it_is_no_ca() -> None:
    """A certificate that is itself an anchor lets nobody in: who holds it is not who it vouches for."""
    anchor = make.certificate(subject=make.name("odd anchor"))
    with pytest.raises(Unauthenticated) as caught:
        judged(Anchors([CA.certificate, anchor.certificate]), anchor)
    assert caught.value.reason is Reason.CERT_UNKNOWN
    assert "anchor" in caught.value.sentence


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_certificate_is_a_401(case: str) -> None:
    """OpenSSL lets certificates through that RFC 5280 does not allow: they are a 401, never another exception."""
    with pytest.raises(Unauthenticated) as caught:
        ClientCertificate.parse(UNREADABLE[case]())
    assert caught.value.reason is Reason.CERT_UNKNOWN
    assert len(caught.value.sentence) < 300


@pytest.mark.filterwarnings("ignore")
@given(edits=st.lists(st.integers(0, 8 * 400), min_size=1, max_size=3))
@settings(deadline=None, derandomize=True, max_examples=400)
def test_an_edited_certificate_is_refused(edits: list[int]) -> None:
    """However a certificate's bits are changed, it has no path or is a 401, never another exception."""
    edited = _BASE.der
    for bit in edits:
        edited = flipped(edited, bit % (8 * len(edited)))
    start = der.content_start(_BASE.der, 0)
    signed = _BASE.der[start : der.element_end(_BASE.der, start)]
    try:
        client: ClientCertificate | EstError = ClientCertificate.parse(edited)
        if isinstance(client, ClientCertificate):
            _ANCHORS.path(client, [], NOW)
    except EstError as refusal:
        client = refusal
    assert getattr(client, "status", 401) == 401
    assert isinstance(client, EstError) or signed in edited


_BASE = make.certificate(CA, san=[x509.DNSName("a.example")], extended=[make.CLIENT_AUTH])
_ANCHORS = Anchors([CA.certificate])


def test_what_is_read() -> None:
    """A client certificate's serial, key, names and hash are read byte for byte."""
    identity = make.certificate(CA, subject=make.name("é", ORGANIZATION_NAME="Acme"), san=[x509.DNSName("a.example")])
    found = ClientCertificate.parse(identity.der)
    public = identity.key.public_key()
    assert int.from_bytes(found.serial, "big") == identity.certificate.serial_number
    assert found.spki_der == public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert found.names.subject == identity.certificate.subject
    assert found.names.san == (x509.DNSName("a.example"),)
    assert found.sha256 == hashlib.sha256(identity.der).digest()
    assert found.shown == identity.certificate.subject.rfc4514_string()


def test_a_certificate_without_subject_is_shown_by_its_serial() -> None:
    """What logs and the ledger call a client is never empty."""
    assert ClientCertificate.parse(make.certificate(CA, subject=x509.Name([])).der).shown.startswith("serial ")


@pytest.mark.parametrize(
    ("seconds_after_end", "valid"), [(-1, True), (0, True), (0.999, True), (1, False), (3600, False)]
)
def test_R50_the_last_second_counts(seconds_after_end: float, valid: bool) -> None:
    """R50: a certificate is valid through the whole of its last second."""
    found = ClientCertificate.parse(_BASE.der)
    end = _BASE.certificate.not_valid_after_utc.timestamp()
    if valid:
        found.check_time(end + seconds_after_end)
    else:
        with pytest.raises(Unauthenticated):
            found.check_time(end + seconds_after_end)


@pytest.mark.parametrize(("seconds_after_start", "valid"), [(-1, False), (-0.001, False), (0, True)])
def test_the_first_second_counts(seconds_after_start: float, valid: bool) -> None:
    """A certificate is valid from the beginning of its first second."""
    found = ClientCertificate.parse(_BASE.der)
    start = _BASE.certificate.not_valid_before_utc.timestamp()
    if valid:
        found.check_time(start + seconds_after_start)
    else:
        with pytest.raises(Unauthenticated):
            found.check_time(start + seconds_after_start)


def test_a_path_is_not_remembered_beyond_its_time() -> None:
    """A path found once is judged anew when its intermediate has expired, and not before."""
    anchors = Anchors([CA.certificate])
    between = make.certificate(CA, ca=True, subject=make.name("brief"), ends=HOUR)
    identity = make.certificate(between)
    for _ in range(2):
        assert len(judged(anchors, identity, [between])) == 2
    with pytest.raises(Unauthenticated) as caught:
        judged(anchors, identity, [between], now=NOW + 2 * 3600)
    assert caught.value.reason is Reason.CERT_UNKNOWN


def test_a_path_is_remembered_with_its_intermediates() -> None:
    """A client that found its path with an intermediate has none without it: what one connection sent says nothing
    about another."""
    anchors = Anchors([CA.certificate])
    identity = make.certificate(BETWEEN)
    assert judged(anchors, identity, [BETWEEN])
    with pytest.raises(Unauthenticated):
        judged(anchors, identity)


ODD_ABOVE = {
    "subjectAltName: an x400Address": UNREADABLE["subjectAltName: an x400Address"],
    "subjectAltName: no DER": UNREADABLE["subjectAltName: no DER"],
    "a key of a kind that nobody knows": UNREADABLE["a key of a kind that nobody knows"],
    "of version 8": UNREADABLE["of version 8"],
    "another's": lambda: OTHER.der,
}


@pytest.mark.parametrize("case", ODD_ABOVE)
def test_odd_certificates_above_the_clients_change_nothing(case: str) -> None:
    """What a client sends above its certificate helps it to a path or does nothing, whatever it is."""
    anchors = Anchors([CA.certificate])
    client, above = client_chain(make.certificate(CA).der + ODD_ABOVE[case]())
    assert anchors.path(client, above, NOW) == (client.certificate,)
    for odd in above:
        stranger = make.certificate(subject=odd.subject, ca=True)
        below = ClientCertificate.parse(make.certificate(stranger).der)
        with pytest.raises(Unauthenticated):
            anchors.path(below, [odd], NOW)


def test_R11_anchors_of_one_rule_say_nothing_to_another() -> None:
    """R11: each rule has its own explicit anchors, and what one knows the other does not."""
    one, two = Anchors([CA.certificate]), Anchors([OTHER.certificate])
    identity = make.certificate(CA)
    assert judged(one, identity)
    with pytest.raises(Unauthenticated):
        judged(two, identity)
    both = Anchors([OTHER.certificate, CA.certificate])
    assert judged(both, identity)
    assert judged(both, make.certificate(OTHER))


def test_R11_the_systems_anchors_are_never_consulted(
    monkeypatch: pytest.MonkeyPatch, folder: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """R11: a CA that the system trusts is a stranger to every rule that does not name it."""
    store = folder / "system.pem"
    store.write_bytes(OTHER.pem)
    monkeypatch.setitem(os.environ, "SSL_CERT_FILE", str(store))
    monkeypatch.setitem(os.environ, "SSL_CERT_DIR", str(tmp_path_factory.mktemp("empty")))
    assert ssl.create_default_context().get_ca_certs(), "the system trusts it"
    with pytest.raises(Unauthenticated) as caught:
        judged(Anchors([CA.certificate]), make.certificate(OTHER), [OTHER])
    assert caught.value.reason is Reason.CERT_UNKNOWN


def x_and_y(count: int) -> list[Identity]:
    """CAs of two names that sign each other in turn, with keys of their own or one for all."""
    keys = [make.key() for _ in range(2)]
    names_ = [make.name("x"), make.name("y")]
    signers = [make.certificate(ca=True, subject=one, own_key=key) for one, key in zip(names_, keys, strict=True)]
    return [
        make.certificate(signers[1 - at % 2], ca=True, subject=names_[at % 2], own_key=keys[at % 2])
        for at in range(count)
    ]


def of_one_name(count: int, name: str = "x") -> list[Identity]:
    """CAs of one name and key, each signed by itself."""
    key = make.key()
    return [make.certificate(ca=True, subject=make.name(name), own_key=key) for _ in range(count)]


def each_by_the_next(count: int) -> list[Identity]:
    """CAs of one name with keys of their own, each signed by the next and the last by the first."""
    own = [make.certificate(ca=True, subject=make.name("x")) for _ in range(count)]
    return [
        make.certificate(own[(at + 1) % count], ca=True, subject=make.name("x"), own_key=own[at].key)
        for at in range(count)
    ]


TANGLES: dict[str, Callable[[], list[Identity]]] = {
    "two of one name": lambda: of_one_name(2),
    "eight of one name": lambda: of_one_name(8),
    "eight of the anchor's name": lambda: of_one_name(8, "ca one"),
    "two names that sign each other": lambda: x_and_y(2),
    "four of two names that sign each other": lambda: x_and_y(4),
    "eight of two names that sign each other": lambda: x_and_y(8),
    "a ring of eight": lambda: each_by_the_next(8),
}


@pytest.mark.parametrize("case", TANGLES)
def test_no_stranger_buys_a_long_search(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a stranger shows above its certificate, the search for its path ends long before the verifier's own
    limit of signature checks; and the same certificates are not looked at again for some seconds."""
    above = TANGLES[case]()
    client, anchors = make.certificate(above[0]), Anchors([CA.certificate])
    searches = []
    real = Anchors._search
    monkeypatch.setattr(Anchors, "_search", lambda *args: (searches.append(1), real(*args))[1])
    for later, so_far in ((0.0, 1), (9.0, 1), (11.0, 2), (12.0, 2)):
        with pytest.raises(Unauthenticated) as caught:
            anchors.path(ClientCertificate.parse(client.der), [one.certificate for one in above], NOW + later)
        assert (caught.value.status, caught.value.reason) == (401, Reason.CERT_UNKNOWN)
        assert "limit" not in caught.value.why
        assert len(searches) == so_far


def test_strangers_push_no_devices_path_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of them is bounded, and apart."""
    monkeypatch.setattr("estd.identify._IN_VAIN_MAX", 3)
    device, anchors = make.certificate(CA), Anchors([CA.certificate])
    judged(anchors, device)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            judged(anchors, make.certificate(OTHER))
    assert (len(anchors._known), len(anchors._in_vain)) == (1, 3)


def test_what_a_client_shows_beside_its_path_does_not_hide_it() -> None:
    """A CA's cross-certificates and what belongs to others may stand in any order; of intermediates four are taken."""
    foreign = make.certificate(OTHER, ca=True, subject=make.name("between"), own_key=BETWEEN.key)
    for above in ([foreign, BETWEEN], [BETWEEN, foreign], [CA, OTHER, BETWEEN, CA, foreign, BETWEEN]):
        assert judged(Anchors([CA.certificate]), make.certificate(BETWEEN), above)[1] == BETWEEN.certificate
    line = [CA]
    for level in range(5):
        line.insert(0, make.certificate(line[0], ca=True, subject=make.name(f"level {level}"), starts=-20 * DAY))
    assert len(judged(Anchors([CA.certificate]), make.certificate(line[1]), line[1:])) == 5
    with pytest.raises(Unauthenticated, match="no path"):
        judged(Anchors([CA.certificate]), make.certificate(line[0]), line)


def test_one_that_becomes_valid_is_let_in_soon() -> None:
    """What had no path is looked at again: an intermediate may have begun meanwhile."""
    now = datetime.now(UTC).timestamp()  # NOW may be minutes ago
    soon = make.certificate(CA, ca=True, subject=make.name("soon"), starts=timedelta(seconds=5))
    client, anchors = make.certificate(soon), Anchors([CA.certificate])
    with pytest.raises(Unauthenticated):
        anchors.path(ClientCertificate.parse(client.der), [soon.certificate], now)
    assert len(anchors.path(ClientCertificate.parse(client.der), [soon.certificate], now + 60)) == 2
