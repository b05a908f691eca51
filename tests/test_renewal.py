"""Renewal: a device keeps its names, and its key as the label says; a request sent again gets the same certificate."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estd import config, labels
from estd.client import EstClient, Refused
from estd.errors import ConfigError
from tests import make
from tests.csr_forms import ec_spki, point, request
from tests.line import ROOT
from tests.make import Identity
from tests.servers import Server, identity_of
from tests.test_clients_refused import revoke

CMC_RA = "1.3.6.1.5.5.7.3.28"
NAMES: dict[str, Any] = {
    "subject": make.name("device-r", ORGANIZATION_NAME="Acme"), "san": [x509.DNSName("r.devices.example.com")],
}  # fmt: skip


class Device:
    """A device with a certificate of ours, which it renews."""

    def __init__(self, server: Server, folder: Path, identity: Identity, label: str | None) -> None:
        self.server, self.identity, self.label = server, identity, label
        self._folder = folder

    @property
    def certificate(self) -> x509.Certificate:
        return self.identity.certificate

    @property
    def names(self) -> dict[str, Any]:
        """What a renewal has to repeat."""
        try:
            san = list(self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            san = []
        return {"subject": self.certificate.subject, "san": san}

    def client(self, label: str | None = None) -> EstClient:
        files = self.identity.write(self._folder, f"{self.certificate.serial_number:x}")
        return self.server.client(cert=files, label=label or self.label)

    def ask(
        self, *, key: Any = None, label: str | None = None, renew: bool = True, csr_der: bytes | None = None,
        **names: Any,
    ) -> x509.Certificate:  # fmt: skip
        """A renewal on a new connection, with a new key by default. Raises Refused."""
        with self.client(label) as client:
            made = csr_der or make.csr(key or make.key(), **{**self.names, **names})
            return client.enroll(lambda _: made, renew=renew)

    def refusal(self, **differences: Any) -> Refused:
        with pytest.raises(Refused) as caught:
            self.ask(**differences)
        return caught.value

    def as_renewed(self, key: Any = None) -> Device:
        key = key or make.key()
        return Device(self.server, self._folder, Identity(self.ask(key=key), key), self.label)


@pytest.fixture
def enrolled(server: Server, folder: Path) -> Callable[..., Device]:
    """A device that got its first certificate under a label, by a credential or as a factory made it."""

    def enroll(label: str | None = None, *, idevid: bool = False, **names: Any) -> Device:
        key = make.key()
        cert = server.idevid_files if idevid else None
        asked = {"subject": x509.Name([])} if idevid else {**NAMES, **names}
        with server.client(basic=not idevid, cert=cert, label=label) as client:
            link = label == "trimmed"
            certificate = client.enroll(lambda binding: make.csr(key, challenge_password=binding, **asked), link=link)
        return Device(server, folder, Identity(certificate, key), label)

    return enroll


def test_R22_a_renewal_keeps_its_names(enrolled: Callable[..., Device]) -> None:
    """R22, R24: a renewal gives a new certificate with the same names and profile for a new key, and its row says which
    certificate it renews; the renewed one renews in its turn."""
    device = enrolled()
    renewed = device.as_renewed()
    for one, other in ((device, renewed), (renewed, renewed.as_renewed())):
        assert other.names == one.names
        assert other.certificate.serial_number != one.certificate.serial_number
        assert other.certificate.public_key() == other.identity.key.public_key()
        uses = [cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value for cert in
                (one.certificate, other.certificate)]  # fmt: skip
        assert uses[0] == uses[1]
        row = next(row for row in device.server.rows() if row.serial == serial(other.certificate))
        assert row.renews == serial(one.certificate)


def serial(certificate: x509.Certificate) -> bytes:
    return certificate.serial_number.to_bytes(16, "big")


SAN = NAMES["san"]
SAME_NAMES: dict[str, dict[str, Any]] = {
    "in capitals": {"subject": make.name("DEVICE-R", ORGANIZATION_NAME="ACME")},
    "with other spaces": {"subject": make.name(" device-r ", ORGANIZATION_NAME="Acme")},
    "dNSName in capitals": {"san": [x509.DNSName("R.Devices.Example.COM")]},
    "dNSName twice": {"san": SAN * 2},
}
OTHER_NAMES: dict[str, dict[str, Any]] = {
    "another common name": {"subject": make.name("device-s", ORGANIZATION_NAME="Acme")},
    "another organization": {"subject": make.name("device-r", ORGANIZATION_NAME="Acne")},
    "an attribute less": {"subject": make.name("device-r")},
    "an attribute more": {"subject": make.name("device-r", ORGANIZATION_NAME="Acme", COUNTRY_NAME="DE")},
    "the attributes in another order": {"subject": x509.Name(list(NAMES["subject"])[::-1])},
    "no subject": {"subject": x509.Name([])},
    "no alternative name": {"san": []},
    "another alternative name": {"san": [x509.DNSName("s.devices.example.com")]},
    "an alternative name more": {"san": [*SAN, x509.DNSName("s.devices.example.com")]},
    "an alternative name of a kind that none grants": {"san": [*SAN, x509.RFC822Name("r@devices.example.com")]},
    "the subject's name as the alternative one": {"san": [x509.DNSName("device-r")]},
    "a wildcard": {"san": [x509.DNSName("*.devices.example.com")]},
}


@pytest.mark.parametrize("case", OTHER_NAMES)
def test_R22_other_names_are_a_403(case: str, enrolled: Callable[..., Device]) -> None:
    """R22: a renewal that asks for any other name than its certificate's is a 403 that says whose names it has, though
    the label would grant them to a stranger; at simpleenroll the device stays itself too (CVE-2021-20179)."""
    device = enrolled()
    for renew in (True, False):
        found = device.refusal(renew=renew, **OTHER_NAMES[case])
        assert found.status == 403
        assert "device-r" in found.sentence
    assert device.ask().subject == device.certificate.subject


@pytest.mark.parametrize("case", SAME_NAMES)
def test_R22_the_same_names_written_otherwise(case: str, enrolled: Callable[..., Device]) -> None:
    """R22: case and spacing make no other name (RFC 5280 §7.1); what is issued is written as it was."""
    device = enrolled()
    found = device.ask(**SAME_NAMES[case])
    assert found.subject == device.certificate.subject
    alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(alternative) == SAN


REKEY: dict[str, tuple[str | None, bool, bool, int]] = {
    # label, from the factory's identity, with the same key: status
    "either: a new key": (None, False, False, 200),
    "either: the same key": (None, False, True, 200),
    "same-key: a new key": ("sites", False, False, 403),
    "same-key: the same key": ("sites", False, True, 200),
    "new-key: a new key": ("strict", True, False, 200),
    "new-key: the same key": ("strict", True, True, 403),
}  # fmt: skip


@pytest.mark.parametrize("case", REKEY)
def test_R24_renew_and_rekey(case: str, enrolled: Callable[..., Device]) -> None:
    """R24: the same key or another one in a renewal, as the label's policy says; the refusal says which it wants."""
    label, idevid, same, status = REKEY[case]
    device = enrolled(label, idevid=idevid)
    key = device.identity.key if same else make.key()
    if status == 200:
        found = device.ask(key=key)
        assert (found.public_key() == device.certificate.public_key()) is same
        assert found.serial_number != device.certificate.serial_number
    else:
        found_refusal = device.refusal(key=key)
        assert found_refusal.status == status
        assert ("new key" if same else "the key that they have") in found_refusal.sentence


def test_R24_the_same_key_in_another_encoding_is_no_new_key(enrolled: Callable[..., Device]) -> None:
    """R24: a key is not new for being written otherwise (X9.62's hybrid form): a label that wants a new one refuses."""
    device = enrolled("strict", idevid=True)
    key = device.identity.key
    plain = point(key)
    hybrid = ec_spki(bytes([6 | plain[-1] & 1]) + plain[1:])
    csr_der = request(key=key, spki_der=hybrid, subject=device.certificate.subject.public_bytes())
    with device.client() as client:
        response = client.request("POST", "simplereenroll", make.body(csr_der), Content_Type="application/pkcs10")
        assert response.status in (400, 403)
        response.read()


def test_a_repeated_renewal_gets_the_same_certificate(enrolled: Callable[..., Device]) -> None:
    """A device that lost its answer asks again, on a new connection, with the same request or one rebuilt with the same
    key, and gets the certificate that was issued, octet for octet; another key gets another one."""
    device = enrolled()
    key = make.key()
    csr_der = make.csr(key, **device.names)
    first = device.ask(csr_der=csr_der)
    count = len(device.server.rows())
    assert device.ask(csr_der=csr_der) == first
    assert device.ask(key=key) == first, "rebuilt: another signature over the same key and names"
    with device.client() as client:
        assert client.enroll(lambda _: csr_der, renew=True) == first
        assert client.enroll(lambda _: csr_der, renew=True) == first
    assert len(device.server.rows()) == count
    assert device.ask() != first
    assert len(device.server.rows()) == count + 1


def test_a_repeated_enrolment_gets_the_same_certificate(server: Server) -> None:
    """A first certificate that is asked for again is the same one; for another name, label or key it is not."""
    key = make.key()

    def enroll(label: str | None = None, **differences: Any) -> x509.Certificate:
        with server.client(basic=True, label=label) as client:
            return client.enroll(lambda _: make.csr(differences.pop("key", key), **{**NAMES, **differences}))

    first = enroll()
    assert enroll() == first
    assert enroll("default") == first, "the same label under its name"
    others = [
        enroll("sites"), enroll(key=make.key()), enroll(subject=make.name("device-r2")), enroll(san=[]),
    ]  # fmt: skip
    assert len({one.serial_number for one in (first, *others)}) == 5
    assert enroll() == first


def test_a_repeated_request_does_not_bring_a_revoked_certificate_back(server: Server) -> None:
    """A request sent again after its certificate was revoked gets a new one, never the revoked."""
    csr_der = make.csr(**NAMES)
    found: list[x509.Certificate] = []
    for _ in range(2):
        with server.client(basic=True) as client:
            found += [client.enroll(lambda _: csr_der) for _ in range(2)]
        revoke(server, found[-1].serial_number)
    assert [one.serial_number for one in found[:2]] == [found[0].serial_number] * 2
    assert [one.serial_number for one in found[2:]] == [found[2].serial_number] * 2
    assert found[0].serial_number != found[2].serial_number


def test_a_revoked_certificate_renews_no_more(enrolled: Callable[..., Device]) -> None:
    """A revoked certificate renews nothing, not even what was issued before the revocation, again; the one that it was
    renewed to still does."""
    device = enrolled()
    key = make.key()
    renewed = Device(device.server, device._folder, Identity(device.ask(key=key), key), device.label)
    revoke(device.server, device.certificate.serial_number)
    for again in (key, None):
        found = device.refusal(key=again)
        assert (found.status, found.sentence) == (403, "The client certificate is revoked.")
    assert renewed.ask().subject == renewed.certificate.subject


def test_issued_under_another_label(enrolled: Callable[..., Device]) -> None:
    """A certificate renews under its own label, and under another one only where that label names it."""
    of_default, of_strict = enrolled(), enrolled("strict", idevid=True)
    refused = [
        of_default.refusal(label="strict"), of_default.refusal(label="sites", key=of_default.identity.key),
        of_strict.refusal(label="default"), of_strict.refusal(label="trimmed"),
    ]  # fmt: skip
    assert [one.status for one in refused] == [403] * 4
    assert all("issued under the label" in one.sentence for one in refused)
    with of_default.client("trimmed") as client:
        found = client.enroll(
            lambda binding: make.csr(challenge_password=binding, **of_default.names), renew=True, link=True
        )
    assert found.subject == of_default.certificate.subject
    row = of_default.server.rows()[-1]
    assert (row.label, row.renews) == ("trimmed", serial(of_default.certificate))


def test_only_a_certificate_of_ours_is_renewed(server: Server) -> None:
    """simplereenroll with a factory's identity, or with a credential alone, is a 403 that names simpleenroll."""
    idevid = identity_of(*server.idevid_files)
    for options in ({"cert": server.idevid_files}, {"basic": True}):
        with server.client(**options) as client, pytest.raises(Refused) as caught:  # type: ignore[arg-type]
            client.enroll(lambda _: make.csr(subject=idevid.certificate.subject), renew=True)
        assert caught.value.status == 403
        assert "simpleenroll" in caught.value.sentence


def test_an_enrolled_device_with_the_factorys_credential_renews_itself(enrolled: Callable[..., Device]) -> None:
    """A renewal goes by the certificate in TLS, also where the request carries a credential."""
    device = enrolled()
    files = device.identity.write(device._folder, "both")
    with device.server.client(basic=True, cert=files) as client:
        client.enroll(lambda _: make.csr(**device.names), renew=True)
        with pytest.raises(Refused) as caught:
            client.enroll(lambda _: make.csr(subject=make.name("boss")), renew=True)
    assert caught.value.status == 403
    assert device.server.rows()[-1].renews == serial(device.certificate)


@pytest.mark.parametrize("operation", ["fullcmc", "serverkeygen", "csrattrs"])
@pytest.mark.parametrize("label", ["silent"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_R3_what_is_not_offered_is_a_404(operation: str, label: str | None, method: str, server: Server) -> None:
    """R3: an operation that is not offered is a 404 that says so, with any method, credential and label."""
    with server.client(basic=True, label=label) as client:
        body = make.body(make.csr()) if method == "POST" else None
        response = client.request(method, operation, body, Content_Type="application/pkcs10")
        text = response.read().decode()
    assert response.status == 404
    assert f"{operation} is not offered" in text


@pytest.mark.parametrize("name", labels.OPERATIONS)
def test_R4_no_label_is_named_as_an_operation(name: str, server: Server) -> None:
    """R4: the configuration refuses a label with the name of an operation, served or not."""
    text = server.config.read_text()
    config.parse(text + '\n[label.fine]\nca = "root"\n', server.folder)
    with pytest.raises(ConfigError, match=f"label.{name}: .*name of an operation"):
        config.parse(text + f'\n[label.{name}]\nca = "root"\n', server.folder)


@pytest.mark.parametrize("name", ["a/b", "a b", "ü", ".", "..", "-", "", "a" * 65, "a%2fb"])
def test_R4_a_label_is_one_segment_of_a_path(name: str, server: Server) -> None:
    """R4: a label that could not stand in a path by itself is refused by the configuration."""
    with pytest.raises(ConfigError, match="one path segment"):
        config.parse(server.config.read_text() + f'\n[label."{name}"]\nca = "root"\n', server.folder)


def test_R4_with_and_without_a_label(server: Server) -> None:
    """R4: the default label answers with its name and without one."""
    for label in (None, "default"):
        with server.client(basic=True, label=label) as client:
            assert client.cacerts() == [server.ca]
            assert client.enroll(lambda _: make.csr()).issuer == server.ca.subject
    assert ROOT == "/.well-known/est/"


def test_R15_the_servers_certificate(server: Server) -> None:
    """R15: the server's certificate satisfies clients that look for its names or id-kp-cmcRA, and is no client's."""
    (own,) = x509.load_pem_x509_certificates((server.folder / "server.pem").read_bytes())
    san = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in san.get_values_for_type(x509.DNSName)
    assert {"127.0.0.1", "::1"} <= {str(one) for one in san.get_values_for_type(x509.IPAddress)}
    uses = {one.dotted_string for one in own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value}
    assert uses == {CMC_RA, make.SERVER_AUTH.dotted_string}
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    own.verify_directly_issued_by(server.ca)
    assert own.not_valid_after_utc <= server.ca.not_valid_after_utc
    with server.client() as client:
        (shown,) = client.connection.get_peer_cert_chain(as_cryptography=True) or []
    assert shown == own


PROFILES: dict[str, tuple[str | None, set[str], set[str], timedelta]] = {
    "factory": (None, {"1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1"}, {"digital_signature"}, timedelta(days=90)),
    "sites": ("sites", {"1.3.6.1.5.5.7.3.2"}, {"digital_signature"}, timedelta(days=30)),
    "server": (
        "server", {"1.3.6.1.5.5.7.3.1", "1.3.6.1.4.1.311.20.2.2"}, {"digital_signature", "key_agreement"},
        timedelta(days=90),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROFILES)
def test_what_a_profile_gives(case: str, server: Server) -> None:
    """A certificate has its profile's usages and validity, an hour back, its last second counted, inside the CA's."""
    label, extended, usages, validity = PROFILES[case]
    before = datetime.now(UTC).replace(microsecond=0)
    names = {} if case == "server" else NAMES
    with server.client(basic=True, label=label) as client:
        found = client.enroll(lambda _: make.csr(subject=make.name("device-p"), san=names.get("san", ())))
    after = datetime.now(UTC)
    uses = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {one.dotted_string for one in uses} == extended
    usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
    words = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign")  # fmt: skip
    assert {word for word in words if getattr(usage, word)} == usages
    lasts = found.not_valid_after_utc - found.not_valid_before_utc + timedelta(seconds=1)
    assert lasts == validity + timedelta(hours=1)
    assert before <= found.not_valid_before_utc + timedelta(hours=1) <= after
    assert found.not_valid_after_utc <= server.ca.not_valid_after_utc
    assert found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "device-p"
    assert found.public_bytes(Encoding.DER) == server.rows()[-1].certificate_der
