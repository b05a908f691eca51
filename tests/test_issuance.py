"""Certificates: byte for byte what cryptography's CertificateBuilder makes of the same inputs, and inside RFC 5280."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from estd import csr, der, issuance
from estd.errors import Unavailable
from estd.issuance import CaCertificate, Issuer
from estd.labels import EXTENDED_KEY_USAGES, KEY_USAGES, Profile
from estd.names import Names
from tests import make
from tests.csr_forms import KINDS, rsa_key
from tests.test_names import profile

YEAR_2050 = 2524608000
NOW = int(datetime(2026, 11, 22, 8, 30, tzinfo=UTC).timestamp())
DAY = 86400


@cache
def ca_key(kind: str) -> Any:
    if kind.startswith("rsa"):
        return rsa_key(int(kind[4:]))
    return ec.generate_private_key(ec.SECP384R1() if kind == "ec-p384" else ec.SECP256R1())


@cache
def ca(kind: str = "ec-p256", starts: int = 0, ends: int = 4102444800, key_id: bool = True) -> CaCertificate:
    """A software CA that stands in for the token's; by default from 1970 to 2100."""
    key = ca_key(kind)
    subject = make.name(f"CA of {kind}", ORGANIZATION_NAME="Prüfstelle", COUNTRY_NAME="DE")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(starts, UTC))
        .not_valid_after(datetime.fromtimestamp(ends, UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    if key_id:
        # Not the hash of the key: what certificates carry is the CA's identifier, whatever it was made of.
        builder = builder.add_extension(x509.SubjectKeyIdentifier(b"some identifier of the CA"), critical=False)
    hash_algorithm = hashes.SHA384() if kind == "ec-p384" else hashes.SHA256()
    return CaCertificate.of(builder.sign(key, hash_algorithm), [])


@cache
def subject_key(kind: str) -> Any:
    return KINDS[kind]()


def built(
    authority: CaCertificate, limits: Profile, *, kind: str, serial: bytes, not_before: int, not_after: int,
    subject: x509.Name, san: Sequence[x509.GeneralName], signer: Any, public_key: Any, crl_url: str = "",
) -> x509.Certificate:  # fmt: skip
    """The same certificate by cryptography's CertificateBuilder."""
    bits = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    key = der.element_end(bits, der.content_start(bits, 0))
    digest.update(bits[der.content_start(bits, key) + 1 :])
    words = (*KEY_USAGES, "data_encipherment", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject)
        .public_key(public_key)
        .serial_number(int.from_bytes(serial, "big"))
        .not_valid_before(datetime.fromtimestamp(not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after, UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**{word: word in limits.key_usage for word in words}), critical=True)
    )
    if limits.extended_key_usage:
        uses = [x509.ObjectIdentifier(one) for one in limits.extended_key_usage]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(authority.key_id, None, None), critical=False)
    if crl_url and limits.crl_distribution_point:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier(digest.finalize()[:20]), critical=False)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=not subject.rdns)
    return builder.sign(signer, hashes.SHA384() if kind == "ec-p384" else hashes.SHA256())


_TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
_ATTRIBUTES = st.one_of(
    st.tuples(st.sampled_from([NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.USER_ID]), _TEXT),
    st.tuples(st.just(NameOID.COUNTRY_NAME), st.sampled_from(["DE", "US"])),
    st.tuples(st.just(NameOID.SERIAL_NUMBER), st.from_regex(r"[A-Za-z0-9-]{1,20}", fullmatch=True)),
    st.tuples(st.just(NameOID.DOMAIN_COMPONENT), st.from_regex(r"[a-z]{1,9}", fullmatch=True)),
)
_SUBJECTS = st.lists(
    st.lists(_ATTRIBUTES, min_size=1, max_size=3, unique=True).map(
        lambda parts: x509.RelativeDistinguishedName([x509.NameAttribute(oid, text) for oid, text in parts])
    ),
    max_size=4,
).map(x509.Name)
_SAN = st.lists(
    st.one_of(
        st.from_regex(r"[a-z0-9]{1,20}(\.[a-z]{1,20}){0,5}", fullmatch=True).map(x509.DNSName),
        st.ip_addresses().map(x509.IPAddress),
        st.from_regex(r"urn:[a-z]{2,9}:[a-z0-9:-]{1,200}", fullmatch=True).map(x509.UniformResourceIdentifier),
    ),
    max_size=17,
)
_PROFILES = st.builds(
    lambda validity, backdate, usage, extended, point: profile(
        validity_seconds=validity,
        backdate_seconds=backdate,
        key_usage=tuple(usage),
        extended_key_usage=tuple(extended),
        crl_distribution_point=point,
    ),
    st.integers(60, 40 * 365 * DAY),
    st.integers(0, 2 * DAY),
    st.lists(st.sampled_from(KEY_USAGES), unique=True, min_size=1),
    st.lists(st.sampled_from([*EXTENDED_KEY_USAGES.values(), "1.3.6.1.4.1.311.20.2.2", "2.999.1"]), unique=True),
    st.booleans(),
)
_TIMES = st.one_of(
    st.integers(NOW - 20 * 365 * DAY, NOW + 60 * 365 * DAY),
    st.integers(YEAR_2050 - 2, YEAR_2050 + 2),
    st.integers(YEAR_2050 - 2 * DAY, YEAR_2050 + 2 * DAY),
)


@given(
    ca_kind=st.sampled_from(["ec-p256", "ec-p384", "rsa-2048"]),
    ca_ends=st.sampled_from([YEAR_2050 - 1, YEAR_2050, YEAR_2050 + 5 * 365 * DAY, 4102444800]),
    ca_id=st.booleans(),
    kind=st.sampled_from(["ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048", "ml-dsa-44"]),
    limits=_PROFILES,
    now=_TIMES,
    subject=_SUBJECTS,
    san=_SAN,
    crl_url=st.sampled_from(["", "http://crl.example.com/root.crl", f"http://crl.example.com/{'a' * 200}.crl"]),
)
@settings(deadline=None, derandomize=True, max_examples=400)
def test_R50_equals_the_builder(
    ca_kind: str, ca_ends: int, ca_id: bool, kind: str, limits: Profile, now: int, subject: x509.Name,
    san: Sequence[x509.GeneralName], crl_url: str,
) -> None:  # fmt: skip
    """Names, keys, CAs, profiles and times of any kind: the TBSCertificate and the whole certificate are those of
    CertificateBuilder, byte for byte."""
    authority = ca(ca_kind, ends=ca_ends, key_id=ca_id)
    issuer = Issuer(authority, limits, crl_url)
    given = Names(subject=subject, san=tuple(san))
    if now > ca_ends:
        with pytest.raises(Unavailable):
            issuer.prepare(
                serial=b"\1" * 16,
                now=now,
                subject_der=given.subject_der,
                san_der=given.san_der,
                spki_der=b"",
                key_bits=b"",
            )
        return
    request = csr.parse(make.csr(subject_key(kind)))
    (serial,) = issuance.serials(1, now * 1000)
    prepared = issuer.prepare(
        serial=serial,
        now=now,
        subject_der=given.subject_der,
        san_der=given.san_der,
        spki_der=request.spki_der,
        key_bits=request.key_bits,
    )
    assert prepared.not_before == now - limits.backdate_seconds
    assert prepared.not_after == min(now + limits.validity_seconds - 1, ca_ends)
    signer = ca_key(ca_kind)
    other = built(
        authority, limits, kind=ca_kind, serial=serial, not_before=prepared.not_before, not_after=prepared.not_after,
        subject=subject, san=san, signer=signer, public_key=subject_key(kind).public_key(), crl_url=crl_url,
    )  # fmt: skip
    assert prepared.tbs == other.tbs_certificate_bytes
    assert issuer.complete(prepared, other.signature) == other.public_bytes(Encoding.DER)
    authority.verify(other.signature, prepared.tbs)


def issue(
    authority: CaCertificate, limits: Profile, *, now: int = NOW, subject: x509.Name | None = None,
    san: Sequence[x509.GeneralName] = (), kind: str = "ec-p256", signer: str = "ec-p256",
) -> x509.Certificate:  # fmt: skip
    """A certificate as an issuer makes it, the token's part done in software."""
    request = csr.parse(make.csr(subject_key(kind)))
    issuer = Issuer(authority, limits)
    given = Names(subject=make.name() if subject is None else subject, san=tuple(san))
    prepared = issuer.prepare(
        serial=issuance.serials(1, now * 1000)[0], now=now, subject_der=given.subject_der,
        san_der=given.san_der, spki_der=request.spki_der, key_bits=request.key_bits,
    )  # fmt: skip
    key = ca_key(signer)
    if signer.startswith("rsa"):
        signature = key.sign(prepared.tbs, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = key.sign(prepared.tbs, ec.ECDSA(authority.hash_algorithm))
    authority.verify(signature, prepared.tbs)
    return x509.load_der_x509_certificate(issuer.complete(prepared, signature))


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "rsa-2048", "rsa-3072"])
def test_R50_a_certificate_verifies_under_its_ca(kind: str) -> None:
    """R50: what is issued verifies directly under its CA and says which key of it signed."""
    authority = ca(kind)
    made = issue(authority, profile(), signer=kind)
    made.verify_directly_issued_by(authority.certificate)
    authority_id = made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own_id = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority_id.key_identifier == own_id.digest
    assert (authority_id.authority_cert_issuer, authority_id.authority_cert_serial_number) == (None, None)


def test_R50_what_every_certificate_says() -> None:
    """R50: version 3; never a CA; SubjectKeyIdentifier not critical; usages as the profile has them and no others."""
    limits = profile(key_usage=("digital_signature", "key_agreement"), extended_key_usage=("1.3.6.1.5.5.7.3.1",))
    made = issue(ca(), limits, san=[x509.DNSName("a.example")])
    assert made.version is x509.Version.v3
    found = {one.oid: one for one in made.extensions}
    assert len(found) == 6
    basic = found[x509.BasicConstraints.oid]
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, False, None)
    usage = found[x509.KeyUsage.oid]
    assert (usage.critical, usage.value.digital_signature, usage.value.key_agreement) == (True, True, True)
    assert not any((usage.value.key_cert_sign, usage.value.crl_sign, usage.value.key_encipherment))
    assert [one.dotted_string for one in found[x509.ExtendedKeyUsage.oid].value] == ["1.3.6.1.5.5.7.3.1"]
    assert not found[x509.SubjectKeyIdentifier.oid].critical
    assert not found[x509.AuthorityKeyIdentifier.oid].critical
    assert len(found[x509.SubjectKeyIdentifier.oid].value.digest) == 20


def test_R50_a_profile_without_extended_usages_has_none() -> None:
    """R50: an empty list of extended key usages leaves the extension out, since an empty one is not RFC 5280's."""
    made = issue(ca(), profile(extended_key_usage=()))
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_class(x509.ExtendedKeyUsage)


@pytest.mark.parametrize(("subject", "critical"), [(make.name(), False), (x509.Name([]), True)])
def test_R50_names_beside_an_empty_subject_are_critical(subject: x509.Name, critical: bool) -> None:
    """R50: subjectAltName is critical where the subject is empty and only there (RFC 5280 §4.2.1.6)."""
    made = issue(ca(), profile(), subject=subject, san=[x509.IPAddress(ipaddress.ip_address("::1"))])
    assert made.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical is critical


VALIDITY = {
    # now, backdating, validity, the CA's start and end, notBefore and notAfter: all relative to NOW
    "90 days, an hour back": (0, 3600, 90 * DAY, -DAY, 9999 * DAY, -3600, 90 * DAY - 1),
    "no backdating": (0, 0, DAY, -DAY, 9999 * DAY, 0, DAY - 1),
    "never before the CA's own start": (0, 3600, DAY, -60, 9999 * DAY, -60, DAY - 1),
    "never beyond the CA's end": (0, 3600, 90 * DAY, -DAY, 10 * DAY, -3600, 10 * DAY),
    "exactly to the CA's end": (0, 3600, 10 * DAY + 1, -DAY, 10 * DAY, -3600, 10 * DAY),
    "in the CA's last second": (0, 0, DAY, -DAY, 0, 0, 0),
}


@pytest.mark.parametrize("case", VALIDITY)
def test_R50_validity(case: str) -> None:
    """R50: validity counts its last second, is backdated by policy, and never reaches outside the CA's."""
    now, backdate, validity, ca_starts, ca_ends, starts, ends = VALIDITY[case]
    authority = ca(starts=NOW + ca_starts, ends=NOW + ca_ends)
    made = issue(authority, profile(validity_seconds=validity, backdate_seconds=backdate), now=NOW + now)
    assert made.not_valid_before_utc.timestamp() - NOW == starts
    assert made.not_valid_after_utc.timestamp() - NOW == ends
    if ends - starts < validity + backdate - 1:
        return
    total = made.not_valid_after_utc - made.not_valid_before_utc + timedelta(seconds=1)
    assert total == timedelta(seconds=validity + backdate), "with its last second, as long as policy says"


def test_an_expired_ca_issues_nothing() -> None:
    """Under an expired CA certificate nothing is prepared: a 503, since a new CA may come."""
    with pytest.raises(Unavailable) as caught:
        issue(ca(starts=NOW - DAY, ends=NOW - 1), profile())
    assert caught.value.retry_after is not None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (YEAR_2050 - 1, b"\x17\x0d491231235959Z"),
        (YEAR_2050, b"\x18\x0f20500101000000Z"),
        (0, b"\x17\x0d700101000000Z"),
        (951782400, b"\x17\x0d000229000000Z"),
        (253402300799, b"\x18\x0f99991231235959Z"),
    ],
)
def test_R50_times_change_their_type_in_2050(seconds: int, expected: bytes) -> None:
    """R50: UTCTime through 2049, GeneralizedTime from 2050, both in UTC with seconds."""
    assert issuance.time_der(seconds) == expected


@given(now_ms=st.integers(1_100_000_000_000, 2**47 - 1), count=st.integers(1, 40))
@example(now_ms=2**47 - 1, count=2)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_R50_serials(now_ms: int, count: int) -> None:
    """R50: a serial is positive, of 16 octets in DER's shortest form, begins with its time, and none comes twice."""
    made = issuance.serials(count, now_ms)
    assert len(set(made)) == count
    for serial in made:
        number = int.from_bytes(serial, "big", signed=True)
        assert len(serial) == 16
        assert number > 0
        assert number.bit_length() // 8 + 1 == 16, "no octet is superfluous"
        assert int.from_bytes(serial[:6], "big") == now_ms
        assert issuance.serial_floor(now_ms) <= serial < issuance.serial_floor(now_ms + 1)


def test_R50_serials_have_80_random_bits() -> None:
    """R50: of serials made in the same millisecond, each of the 80 low bits is set in about half (at least 72 must
    be random)."""
    count = 4000
    made = [int.from_bytes(serial, "big") for serial in issuance.serials(count, NOW * 1000)]
    for bit in range(80):
        share = sum(serial >> bit & 1 for serial in made) / count
        assert 0.44 < share < 0.56  # seven and a half standard deviations
    assert len({serial >> 80 for serial in made}) == 1


def test_serials_sort_by_their_time() -> None:
    """What is issued later has the greater serial, so that the ledger grows at its end."""
    made = [issuance.serials(1, NOW * 1000 + ms)[0] for ms in range(50)]
    assert made == sorted(made)


UNFIT = {
    "RSA of 1024 bits": lambda: rsa_key(1024),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_ca_of_an_unfit_key_is_refused(case: str) -> None:
    """A CA signs with P-256, P-384 or RSA of 2048 bits or more; another key is refused before anything is issued."""
    key = UNFIT[case]()
    name = make.name("ca")
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2020, 1, 1), datetime(2040, 1, 1))
    certificate = made.sign(key, None if case == "Ed25519" else hashes.SHA256())
    with pytest.raises(ValueError, match="CA's key"):
        CaCertificate.of(certificate, [])


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "rsa-2048"])
def test_a_signature_that_is_not_the_cas_is_found(kind: str) -> None:
    """A signature is checked with the CA's own key: one bit changed, or another key's, does not pass."""
    authority, key = ca(kind), ca_key(kind)
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(b"tbs", padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = key.sign(b"tbs", ec.ECDSA(authority.hash_algorithm))
    authority.verify(signature, b"tbs")
    for wrong, data in ((signature, b"tbt"), (signature[:-1] + bytes([signature[-1] ^ 1]), b"tbs"), (b"", b"tbs")):
        with pytest.raises(InvalidSignature):
            authority.verify(wrong, data)


def test_the_profile_is_fixed_when_the_issuer_is_made() -> None:
    """Two profiles of one CA differ in what they say and in nothing else."""
    one, two = profile(), replace(profile(), extended_key_usage=("1.3.6.1.5.5.7.3.1",))
    made = [issue(ca(), limits) for limits in (one, two)]
    uses = [list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for cert in made]
    assert uses == [[make.CLIENT_AUTH], [make.SERVER_AUTH]]
