"""Registration authorities (R16): who is one, what it enrolls and renews for others, and what never is one."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from estd import admission, config, csr, policy, ras, registrar
from estd.client import EstClient, Refused
from estd.devices import Device, DeviceKey, key_of_identity
from estd.errors import ConfigError, EstError, Reason
from estd.identify import ClientCertificate
from estd.labels import Allow
from estd.ledger import Row, Writer, create
from estd.policy import Client, Issued, Renewed, Rule
from estd.ras import CMC_RA, RaFile
from tests import make
from tests.make import Identity
from tests.servers import Server, identity_of
from tests.test_clients_refused import revoke
from tests.test_policy import NOW, OURS, STRANGER, Held, evidence, issued_rule, label_policy, ledger

HOUR = timedelta(hours=1)
BOTH = (make.CLIENT_AUTH, CMC_RA)


def registrar_of(ca: Identity = OURS, uses: Any = BOTH, **more: Any) -> Identity:
    return make.certificate(ca, subject=make.name("gateway-1"), extended=uses, **more)


RA, OTHER_RA = registrar_of(), registrar_of()
EXPIRED_RA = registrar_of(starts=-2 * HOUR, ends=-HOUR)
FOREIGN_RA = registrar_of(STRANGER)
LOOKALIKE_RA = registrar_of(make.certificate(ca=True, subject=make.name("ours")))
"""Of a CA that calls itself as ours does."""
SERVERS_OWN = registrar_of(uses=(make.SERVER_AUTH, CMC_RA))
DEVICE = make.certificate(OURS, subject=make.name("device-1"), san=[x509.DNSName("a.example")])


def file_of(folder: Path, *listed: Identity) -> Path:
    path = folder / "ras.pem"
    path.write_bytes(b"".join(one.pem for one in listed))
    return path


def ra_rule(folder: Path, *listed: Identity, named: str = "free") -> Rule:
    path = file_of(folder, *listed)
    allow = Allow(who="ra", profile=named, certificates=path)
    return Rule(allow=allow, anchors=None, crls=None, ras=RaFile(path, OURS.certificate.subject))


@dataclass(frozen=True)
class Case:
    shown: Identity
    listed: tuple[Identity, ...]
    held: Held
    reason: Reason | None = None
    status: int = 0


HOLDS = ledger(RA, EXPIRED_RA, DEVICE, SERVERS_OWN)
CASES: dict[str, Case] = {
    "one of our CA, listed": Case(RA, (OTHER_RA, RA), HOLDS),
    "unlisted": Case(RA, (OTHER_RA,), HOLDS, Reason.CERT_UNKNOWN, 401),
    "nobody is listed": Case(RA, (), HOLDS, Reason.CERT_UNKNOWN, 401),
    "of a foreign CA, unlisted": Case(FOREIGN_RA, (RA,), HOLDS, Reason.CERT_UNKNOWN, 401),
    "of a CA of our name, listed": Case(LOOKALIKE_RA, (LOOKALIKE_RA,), HOLDS, Reason.CERT_UNKNOWN, 401),
    "listed, but not in the ledger": Case(OTHER_RA, (OTHER_RA,), HOLDS, Reason.CERT_UNKNOWN, 401),
    "revoked": Case(RA, (RA,), ledger(RA, revoked=True), Reason.REVOKED, 403),
    "expired": Case(EXPIRED_RA, (EXPIRED_RA,), HOLDS, Reason.CERT_EXPIRED, 401),
    "the server's own": Case(SERVERS_OWN, (RA,), HOLDS, Reason.CERT_UNKNOWN, 401),
    "a device's": Case(DEVICE, (RA,), HOLDS, Reason.CERT_UNKNOWN, 401),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_R16_who_is_a_registration_authority(case: str, folder: Path) -> None:
    """R16: a certificate of this CA with cmcRA and clientAuth, listed, unrevoked and valid; nothing else."""
    row = CASES[case]
    rules = label_policy(ra_rule(folder, *row.listed), expired_seconds=10**8)
    for renewal in (False, True):
        given = evidence(row.shown, renewal=renewal)
        if row.reason is None:
            found = admission.identify(rules, given, row.held(given.certificate), NOW, [])
            assert (found.ra, found.issued, found.profile) == (True, False, "free")
            assert found.identity.startswith("ra:")
            assert found.names == policy.names.Names(subject=x509.Name([]), san=())
            continue
        with pytest.raises(EstError) as caught:
            admission.identify(rules, given, row.held(given.certificate), NOW, [])
        assert (caught.value.status, caught.value.reason) == (row.status, row.reason)


UNFIT: dict[str, tuple[Identity, str]] = {
    "R16 of a foreign CA": (FOREIGN_RA, "not issued by this label's CA"),
    "R16 the server's own: cmcRA without clientAuth": (SERVERS_OWN, "clientAuth and cmcRA"),
    "clientAuth without cmcRA": (make.certificate(OURS, extended=[make.CLIENT_AUTH]), "clientAuth and cmcRA"),
    "no extended key usage": (make.certificate(OURS), "clientAuth and cmcRA"),
    "any use": (
        make.certificate(OURS, extended=[x509.oid.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), "clientAuth and cmcRA",
    ),
    "a CA's": (make.certificate(OURS, ca=True, extended=BOTH), "clientAuth and cmcRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_R16_what_may_not_be_listed(case: str, folder: Path) -> None:
    """R16: a file with another CA's certificate, or one without both usages, is refused whole, with whose it is."""
    identity, words = UNFIT[case]
    with pytest.raises(ValueError, match=words):
        ra_rule(folder, RA, identity)


PEM_8 = make.as_pem(make.of_version_8(RA.der))


@pytest.mark.parametrize("data", [b"-----BEGIN CERTIFICATE-----\n", b"nonsense", RA.pem[:-40], b"\0" * 100, PEM_8])
def test_a_file_that_goes_bad_lists_nobody(data: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the file is broken or gone nobody is a registration authority; once it is well, they are again."""
    monkeypatch.setattr(ras, "_LOOK_AGAIN_SECONDS", 0.0)
    path = file_of(folder, RA)
    found = RaFile(path, OURS.certificate.subject)
    assert found.lists(RA.der)
    path.write_bytes(data)
    assert not found.lists(RA.der)
    path.unlink()
    assert not found.lists(RA.der)
    file_of(folder, RA, OTHER_RA)
    assert found.lists(RA.der)
    assert found.lists(OTHER_RA.der)
    file_of(folder)
    assert not found.lists(RA.der)


def issued(identity: Identity, *, revoked: bool = False, named: str = "own") -> Issued:
    return Issued(certificate_der=identity.der, label="here", profile=named, revoked=revoked)


OLD_DEVICE = make.certificate(OURS, subject=make.name("device-1"), san=[x509.DNSName("a.example")],
                              starts=-2 * HOUR, ends=-HOUR)  # fmt: skip
OTHER_SAN = make.certificate(OURS, subject=make.name("device-1"), san=[x509.DNSName("b.example")])
SAME_NAMES: dict[str, Any] = {"subject": make.name("DEVICE-1"), "san": [x509.DNSName("A.example")]}

CHOICES: dict[str, tuple[list[Issued], dict[str, Any], Reason | Identity]] = {
    "its one certificate": ([issued(DEVICE)], SAME_NAMES, DEVICE),
    "the newest": ([issued(DEVICE), issued(OLD_DEVICE)], SAME_NAMES, DEVICE),
    "another alternative name of the same subject is passed": ([issued(OTHER_SAN), issued(DEVICE)], SAME_NAMES, DEVICE),
    "none": ([], SAME_NAMES, Reason.NOT_ISSUED),
    "none with these alternative names": ([issued(OTHER_SAN)], SAME_NAMES, Reason.NOT_ISSUED),
    "a name more": (
        [issued(DEVICE)], {**SAME_NAMES, "san": [*SAME_NAMES["san"], x509.DNSName("b.example")]}, Reason.NOT_ISSUED,
    ),
    "the newest is revoked": ([issued(DEVICE, revoked=True), issued(OLD_DEVICE)], SAME_NAMES, Reason.REVOKED),
    "expired": ([issued(OLD_DEVICE)], SAME_NAMES, Reason.CERT_EXPIRED),
    "a profile that is gone": ([issued(DEVICE, named="gone")], SAME_NAMES, Reason.NOT_GRANTED),
    "another registration authority's": ([issued(OTHER_RA)], {"subject": make.name("gateway-1")}, Reason.NOT_GRANTED),
    "its own": ([issued(RA)], {"subject": make.name("gateway-1")}, RA),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_R16_what_it_renews(case: str) -> None:
    """The newest certificate with the request's names that the label issued is renewed with its own profile, if the
    device itself could renew it."""
    held, asked, outcome = CHOICES[case]
    rules = label_policy(issued_rule())
    request = csr.parse(make.csr(**asked))
    if isinstance(outcome, Reason):
        with pytest.raises(EstError) as caught:
            registrar.choose(rules, evidence(RA, renewal=True), request, held, {}, NOW)
        assert (caught.value.status, caught.value.reason) == (403, outcome)
        return
    found = registrar.choose(rules, evidence(RA, renewal=True), request, held, {}, NOW)
    assert (found.certificate.der, found.profile) == (outcome.der, "own")


ROW = DeviceKey("here", "acme", "SN-1")


def row_of(*, enabled: bool) -> dict[DeviceKey, Device]:
    return {ROW: Device(*ROW, None, "", enabled, None, None, None, 0)}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [({}, Reason.DEVICE_UNKNOWN), (row_of(enabled=False), Reason.DEVICE_DISABLED), (row_of(enabled=True), None)],
    ids=["gone", "disabled", "there"],
)
def test_a_registry_s_row_counts_for_its_devices_registrar(
    rows: dict[DeviceKey, Device], reason: Reason | None
) -> None:
    """A certificate that was issued to a device of the registry is renewed for it while its row is enabled, and the
    new one is the device's too, so that it dies with the row."""
    held = [issued(DEVICE)._replace(identity=ROW.identity)]
    rules = label_policy(issued_rule())
    request = csr.parse(make.csr(**SAME_NAMES))
    given = evidence(RA, renewal=True)
    if reason is not None:
        with pytest.raises(EstError) as caught:
            registrar.choose(rules, given, request, held, rows, NOW)
        assert (caught.value.status, caught.value.reason) == (403, reason)
        return
    found = registrar.choose(rules, given, request, held, rows, NOW)
    identity = policy.authorise(rules, given, REGISTRAR, request, found).identity
    assert identity == "device:here/acme/SN-1\tra:1"
    assert key_of_identity(identity) == ROW


REGISTRAR = Client(
    identity="ra:1", names=policy.names.Names(subject=x509.Name([]), san=()), profile="free", issued=False, ra=True
)
LIKE_DEVICE: dict[str, Any] = {"subject": make.name("device-1"), "san": [x509.DNSName("a.example")]}
ASKED: dict[str, tuple[dict[str, Any], bool, bool, Reason | None]] = {
    # the label, a renewal, with the device's own key: the refusal
    "R14 linking is demanded": ({"linking": "demanded"}, False, False, None),
    "R14 linking is demanded of a renewal": ({"linking": "demanded"}, True, False, None),
    "R24 new-key: another": ({"renew": "new-key"}, True, False, None),
    "R24 new-key: the same": ({"renew": "new-key"}, True, True, Reason.REKEY_REFUSED),
    "R24 same-key: another": ({"renew": "same-key"}, True, False, Reason.REKEY_REFUSED),
    "R24 same-key: the same": ({"renew": "same-key"}, True, True, None),
}


@pytest.mark.parametrize("case", ASKED)
def test_R16_what_it_asks_for_is_held_to_the_label(case: str) -> None:
    """R16, R24: linking is not demanded of a registration authority; keys of its devices' renewals are as the label
    says, and a renewal has the device's profile, not the rule's."""
    label, renewal, same_key, reason = ASKED[case]
    rules = label_policy(issued_rule(), **label)
    made = csr.parse(make.csr(DEVICE.key if same_key else make.key(), **LIKE_DEVICE))
    renewed = Renewed(ClientCertificate.parse(DEVICE.der), "own") if renewal else None
    args = (rules, evidence(RA, renewal=renewal), REGISTRAR, made, renewed)
    if reason is not None:
        with pytest.raises(EstError) as caught:
            policy.authorise(*args)
        assert caught.value.reason is reason
        return
    found = policy.authorise(*args)
    assert found.identity == "ra:1 for CN=device-1"
    assert found.profile.name == ("own" if renewal else "free")
    assert found.renews == (ClientCertificate.parse(DEVICE.der).serial if renewal else None)


def test_the_window_for_devices_that_slept_counts_for_their_registrar() -> None:
    """A device's certificate that expired is renewed by its registrar to the window's last second, as by itself."""
    end = ClientCertificate.parse(OLD_DEVICE.der).not_after
    rules = label_policy(issued_rule(), expired_seconds=60)
    request = csr.parse(make.csr(**SAME_NAMES))
    for at, good in ((end + 60.999, True), (end + 61, False)):
        given = evidence(RA, renewal=True)
        if good:
            assert (
                registrar.choose(rules, given, request, [issued(OLD_DEVICE)], {}, at).certificate.der == OLD_DEVICE.der
            )
        else:
            with pytest.raises(EstError, match="expired"):
                registrar.choose(rules, given, request, [issued(OLD_DEVICE)], {}, at)


def test_subjects_have_an_index_where_a_label_needs_one(folder: Path) -> None:
    """The index is there for the labels that are asked for, is used, finds the newest first, and goes with it."""
    create(folder / "ledger")
    writer = Writer(folder / "ledger")
    name = make.name("Device-1")

    def add(number: int, label: str, subject: x509.Name = name) -> None:
        text = subject.rfc4514_string()
        writer.record([Row(bytes([number]), b"der", b"", b"", "who", text, label, "p", 0, 1, 0, None)])

    add(1, "line")
    writer.index_subjects({"line", "a.b_c~d-e"})
    for number, label in ((2, "line"), (3, "default"), (4, "a.b_c~d-e")):
        add(number, label)
    add(5, "line", make.name("device-2"))
    assert [row.serial for row in writer.find_subject("line", "CN=DEVICE-1")] == [b"\2", b"\1"]
    assert [row.serial for row in writer.find_subject("a.b_c~d-e", "CN=Device-1")] == [b"\4"]
    assert writer.find_subject("line", "CN=device-3") == []
    plan = str(writer._db.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM certificate WHERE label = 'line' AND lower(subject) = lower(?) "
        "ORDER BY serial DESC LIMIT ?", ("CN=x", 1)).fetchall())  # fmt: skip
    assert "subjects of line" in plan
    for wanted in ({"line"}, set[str](), {"line"}):
        writer.index_subjects(wanted)
        found = {row[0] for row in writer._db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
        assert {one for one in found if one.startswith("subjects")} == {f"subjects of {one}" for one in wanted}
    assert [row.serial for row in writer.find_subject("line", "CN=device-1")] == [b"\2", b"\1"]
    writer.close()


@dataclass
class Gateway:
    """A registration authority of the demonstration, listed or not."""

    server: Server
    identity: Identity
    files: tuple[Path, Path]

    def client(self, label: str = "line") -> EstClient:
        return self.server.client(cert=self.files, label=label)

    def ask(self, *, renew: bool = False, key: Any = None, label: str = "line", **asked: Any) -> x509.Certificate:
        with self.client(label) as client:
            return client.enroll(lambda _: make.csr(key or make.key(), **asked), renew=renew)

    def refusal(self, **asked: Any) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            self.ask(**asked)
        return caught.value.status, caught.value.sentence

    def list(self) -> None:
        path = self.server.folder / "ras.pem"
        path.write_bytes(path.read_bytes() + self.identity.pem)
        time.sleep(1.1)  # the file is looked at again within a second


@pytest.fixture
def gateway(renewal_server: Server, folder: Path) -> Iterator[Callable[[], Gateway]]:
    """Makes registration authorities, enrolled under the label `registrars`; they are unlisted again after the test."""

    def enroll() -> Gateway:
        key = make.key()
        with renewal_server.client(basic=True, label="registrars") as client:
            made = client.enroll(lambda _: make.csr(key, subject=make.name("gateway-1")))
        identity = Identity(made, key)
        return Gateway(renewal_server, identity, identity.write(folder, f"{made.serial_number:x}"))

    yield enroll
    (renewal_server.folder / "ras.pem").write_bytes(b"")


MACHINE: dict[str, Any] = {
    "subject": make.name("machine-1"), "san": [x509.DNSName("machine-1.devices.example.com")],
}  # fmt: skip


def test_R16_enrolls_and_renews_for_its_devices(gateway: Callable[[], Gateway]) -> None:
    """R16: over TLS, a listed registration authority enrolls a device by the request's names inside the profile, renews
    for it, and the ledger says who asked for whom; the device renews by itself too."""
    found = gateway()
    found.list()
    key = make.key()
    first = found.ask(key=key, **MACHINE)
    assert first.subject == MACHINE["subject"]
    second = found.ask(renew=True, key=key, **MACHINE)
    rows = {int.from_bytes(row.serial, "big"): row for row in found.server.rows()}
    serial = f"{found.identity.certificate.serial_number:032x}"
    assert rows[first.serial_number].identity == f"ra:{serial} CN=gateway-1 for CN=machine-1"
    assert rows[second.serial_number].identity == rows[first.serial_number].identity
    assert (rows[first.serial_number].renews, rows[second.serial_number].renews) == (
        None, rows[first.serial_number].serial,
    )  # fmt: skip
    assert rows[second.serial_number].profile == "renewable"
    assert found.refusal(subject=make.name("x"), san=[x509.DNSName("www.example.org")])[0] == 403
    status, sentence = found.refusal(renew=True, subject=make.name("machine-2"))
    assert (status, "none to renew" in sentence) == (403, True)
    assert found.refusal(renew=True, subject=MACHINE["subject"], san=[])[0] == 403
    nameless = {"subject": x509.Name([]), "san": MACHINE["san"]}
    assert found.ask(**nameless)
    status, sentence = found.refusal(renew=True, **nameless)
    assert (status, "by its subject" in sentence) == (403, True)
    revoke(found.server, second.serial_number)
    assert found.refusal(renew=True, **MACHINE) == (403, "The device's certificate is revoked.")


def test_R16_linking_of_its_devices_is_not_compared(gateway: Callable[[], Gateway]) -> None:
    """R16: a challengePassword in an RA's request belongs to another TLS session: any value passes; a device's own
    request with the same value is a 400."""
    found = gateway()
    found.list()
    key = make.key()
    made = found.ask(key=key, challenge_password=base64.b64encode(b"another session!"), **MACHINE)
    files = Identity(made, key).write(found.files[0].parent, "machine")
    with found.server.client(cert=files, label="line") as client, pytest.raises(Refused) as caught:
        client.enroll(lambda _: make.csr(challenge_password=b"x", **MACHINE), renew=True)
    assert caught.value.status == 400


def test_R16_unlisted_or_revoked_it_is_nobody(gateway: Callable[[], Gateway]) -> None:
    """R16: over TLS, an RA's certificate opens nothing before it is listed, under another label, or once it is revoked;
    no refusal costs a signature."""
    found = gateway()
    signed = found.server.metric("estd_certificates_total")
    assert found.refusal(**MACHINE)[0] in (401, 403)
    found.list()
    assert found.refusal(label="renewal", **MACHINE)[0] == 403
    assert found.server.metric("estd_certificates_total") == signed
    assert found.ask(**MACHINE)
    revoke(found.server, found.identity.certificate.serial_number)
    for renew in (False, True):
        assert found.refusal(renew=renew, **MACHINE) == (403, "The client certificate is revoked.")


def test_R16_the_servers_own_certificate_is_none(gateway: Callable[[], Gateway], folder: Path) -> None:
    """R16: with the server's own certificate and key, which has cmcRA, nothing is enrolled; listing it is refused by
    `estd check`, and lists nobody while it stands there."""
    found = gateway()
    found.list()
    own = identity_of(found.server.folder / "server.pem", found.server.folder / "server.key")
    assert CMC_RA in own.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    leaked = Gateway(found.server, own, own.write(folder, "leaked"))
    assert leaked.refusal(**MACHINE)[0] == 401
    leaked.list()
    assert leaked.refusal(**MACHINE)[0] == 401
    assert found.refusal(**MACHINE)[0] in (401, 403), "a file with such an entry lists nobody"
    command = [sys.executable, "-m", "estd.cli", "check", str(found.server.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "label.line.allow[0]: ras.pem:" in done.stderr
    assert "clientAuth and cmcRA" in done.stderr


def test_a_profile_for_registrars_takes_the_requests_names(renewal_server: Server) -> None:
    """A rule whose profile takes its names from the identity is wrong: a registration authority asks for others."""
    text = renewal_server.config.read_text()
    wrong = text.replace(
        'certificates = "ras.pem"\nprofile = "renewable"', 'certificates = "ras.pem"\nprofile = "idevid"'
    )
    assert wrong != text
    with pytest.raises(ConfigError, match=r'label.line.allow\[0\].profile: .*subject = "csr"'):
        config.parse(wrong, renewal_server.folder)
