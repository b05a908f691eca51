"""Features two by two, on a real server: what each promises alone holds beside the other.

proxy       × webhook, one-time secret, registry, approval, serverkeygen, expired_window
approval    × one-time secret, webhook, registration authority, registry
serverkeygen × one-time secret (Basic and otpChallenge), webhook, registry's profile, registration authority,
              enforced csrattrs, approval and secret together
registry    × expired_window
csrattrs    × webhook's profiles
superseding × CRL, by openssl
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estd import challenges, device_keys
from estd.client import EstClient
from estd.errors import Refused
from estd.identify import ClientCertificate
from estd.ledger import Row
from estd.ledger_link import RemoteWriter
from tests import make, servers
from tests.clients import judge
from tests.command import estd
from tests.make import Identity
from tests.servers import Server, wait_for
from tests.test_proxy_forms import sf
from tests.test_requests_desk import newest
from tests.test_serverkeygen import broken
from tests.test_webhook import SECRET, Service, says

MAKER = "Demo Manufacturer"
KINDS = device_keys.GENERATED_KINDS
_HOOK = """who = "webhook"
profile = "registered"
profiles = ["registered", "ed"]
secret_file = "hook.secret"
url = "http://127.0.0.1:{port}/who"
anchors = "demo/manufacturer.pem"
crls = ["demo/manufacturer.crl"]
"""
_ISSUED = 'who = "issued"\n'
_SECRETS = 'who = "registry"\nsecrets = ["basic", "otpChallenge"]\nprofile = "registered"\n'
_FACTORY = f"""who = "registry"
anchors = "demo/manufacturer.pem"
crls = ["demo/manufacturer.crl"]
manufacturer = "{MAKER}"
match = "subject.serialNumber"
profile = "registered"
"""
_BASIC = 'who = "basic"\ncredentials = "credentials"\nprofile = "{profile}"\n'
_RA = 'who = "ra"\ncertificates = "ras.pem"\nprofile = "renewable"\n'
_HELD = 'approval = "first"\napproval_retry = "1s"\n'
_GENERATES = f"serverkeygen = {json.dumps(KINDS)}\n"
_BEHIND = 'proxies = ["front"]\n'


def _label(name: str, switches: str, *rules: str) -> str:
    return f'[label.{name}]\nca = "root"\n{switches}' + "".join(f"[[label.{name}.allow]]\n{rule}" for rule in rules)


def _labels(port: int) -> str:
    hook = _HOOK.format(port=port)
    exact = (
        f'[profile.only-{kind}]\nsubject = "csr"\nkeys = ["{kind}"]\n'
        + _label(f"exact-{kind}", f'{_GENERATES}enforce_csrattrs = true\ncsrattrs = "legacy"\n',
                 _BASIC.format(profile=f"only-{kind}"))
        for kind in KINDS
    )  # fmt: skip
    return "".join((
        '[proxy.front]\ncertificates = "front.pem"\nform = "rfc9440"\naddress_header = "X-Forwarded-For"\n',
        '[proxy.far]\ncertificates = "front.pem"\nform = "rfc9440"\naddresses = ["192.0.2.0/24"]\n',
        '[profile.ed]\nkeys = ["ed25519"]\nother_names = "replace"\n',
        _label("hook", _GENERATES + _BEHIND, _ISSUED, hook),
        _label("hook-held", _GENERATES + _HELD, hook),
        _label("hook-asks", 'csrattrs = "legacy"\n', hook.replace('profile = "registered"', 'profile = "ed"')),
        _label("secret", _GENERATES + _BEHIND, _SECRETS),
        _label("secret-held", _GENERATES + _HELD, _SECRETS),
        _label("factory", _GENERATES + _BEHIND + 'expired_window = "30d"\n', _ISSUED, _FACTORY),
        _label("far", 'proxies = ["far"]\n', _FACTORY),
        _label("factory-ed", _GENERATES, _FACTORY.replace('"registered"', '"ed"')),
        _label("factory-held", _HELD + _BEHIND, _FACTORY),
        _label("ra-held", _GENERATES + _HELD + "approval_waiting_each = 1\n", _RA),
        *exact,
    ))  # fmt: skip


@dataclass
class Pairs:
    server: Server
    service: Service
    front: Identity
    files: Path

    def client(self, label: str, who: Identity | None = None, **how: Any) -> EstClient:
        cert = who.write(self.files, f"{who.certificate.serial_number:x}") if who is not None else None
        return self.server.client(label=label, cert=cert, **how)

    def passed_on(self, label: str, operation: str, csr_der: bytes, device: Identity | None, **how: Any) -> int:
        """The status of a request that the proxy passes on."""
        headers = {"Client_Cert": sf(device)} if device is not None else {}
        with self.client(label, self.front, **how) as client:
            answer = client.request(
                "POST", operation, make.body(csr_der), Content_Type="application/pkcs10", **headers
            )  # fmt: skip
            answer.read()
            return answer.status

    def device(self, number: str, **times: timedelta) -> Identity:
        """One with a certificate of the demonstration's manufacturer."""
        subject = make.name(f"device {number}", SERIAL_NUMBER=number)
        return make.certificate(self.server.manufacturer, subject=subject, extended=[make.CLIENT_AUTH], **times)

    def add(self, number: str, label: str, *more: str, maker: str = "") -> None:
        self.run("device", "add", number, "--label", label, "--manufacturer", maker, *more)

    def secret(self, number: str, label: str, *more: str) -> str:
        return self.run("device", "secret", number, "--label", label, *more).strip()

    def run(self, *words: str) -> str:
        done = estd(*words, "--config", self.server.config)
        return done.out

    def decide(self, word: str = "approve", *more: str) -> None:
        number = newest(self.server)
        assert number is not None
        self.run("requests", word, str(number.id), *more)

    def signed(self) -> float:
        """Certificates that the token signed."""
        return self.server.metric("estd_sign_seconds_count")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    folder = tmp_path_factory.mktemp("pairs")
    service, server, front = Service(), servers.init(folder / "instance"), make.certificate()
    (server.folder / "hook.secret").write_text(SECRET)
    (server.folder / "hook.secret").chmod(0o600)
    (server.folder / "front.pem").write_bytes(front.pem)
    text = server.config.read_text()
    assert text.count("crl = true\n") == 1
    server.config.write_text(text.replace("crl = true\n", 'crl = true\ncrl_delay = "0s"\n') + _labels(service.port))
    assert "nothing is wrong" in estd("check", server.config).out
    with servers.running(server):
        yield Pairs(server, service, front, folder)
    service.close()


def status(attempt: Any) -> int:
    try:
        attempt()
    except Refused as refused:
        return refused.status
    return 200


def enroll(client: EstClient, csr_der: bytes | None = None, **how: Any) -> x509.Certificate:
    with client:
        return client.enroll(lambda _: csr_der or make.csr(), **how)


def generate(client: EstClient, csr_der: bytes) -> tuple[Any, x509.Certificate]:
    with client:
        return client.serverkeygen(lambda _: csr_der)


def with_otp(number: str, secret: str) -> bytes:
    """A request with an otpChallenge, beside the serial number that it belongs to."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(make.name(None, SERIAL_NUMBER=number))
    builder = builder.add_attribute(x509.ObjectIdentifier(challenges.OTP.oid), secret.encode())
    return builder.sign(make.key(), hashes.SHA256()).public_bytes(Encoding.DER)


def test_proxy_webhook(pairs: Pairs) -> None:
    """The service is asked about the device whose certificate the proxy passes on, never about the proxy; without one
    it is asked nothing and nobody is let in."""
    device, asked = pairs.device("PX-1"), len(pairs.service.posts)
    pairs.service.reply = says(allow=True)
    assert pairs.passed_on("hook", "simpleenroll", make.csr(), device) == 200
    (question,) = pairs.service.posts[asked]["questions"]
    assert base64.b64decode(question["certificate"]) == device.der
    assert "PX-1" in question["subject"]
    assert pairs.server.rows()[-1].identity.startswith("webhook:")
    assert pairs.passed_on("hook", "simpleenroll", make.csr(), None) == 401
    assert len(pairs.service.posts) == asked + 1
    assert pairs.passed_on("hook-held", "simpleenroll", make.csr(), device) == 403
    assert len(pairs.service.posts) == asked + 1


def test_proxy_secret_serverkeygen(pairs: Pairs) -> None:
    """A one-time secret works through the proxy, with a device's certificate beside it or none, and for a key that the
    server makes."""
    for number, operation, beside in (
        ("PS-1", "simpleenroll", None), ("PS-2", "simpleenroll", pairs.device("PS-2")), ("PS-3", "serverkeygen", None),
    ):  # fmt: skip
        pairs.add(number, "secret")
        how = {"user": number, "password": pairs.secret(number, "secret")}
        assert pairs.passed_on("secret", operation, make.csr(), beside, **how) == 200
        assert pairs.passed_on("secret", operation, make.csr(), beside, **how) == 401
        assert pairs.server.rows()[-1].identity.endswith(f"/{number}")
    pairs.add("PS-4", "secret")
    by_otp = with_otp("PS-4", pairs.secret("PS-4", "secret"))
    assert pairs.passed_on("secret", "simpleenroll", by_otp, None) == 200


def test_proxy_registry_expired(pairs: Pairs) -> None:
    """A registered device enrols through the proxy by its factory's certificate, and renews through it with a
    certificate of ours that expired inside the window; its row disabled, it does neither."""
    number = "PR-1"
    pairs.add(number, "factory", maker=MAKER)
    device, slept = pairs.device(number), asleep(pairs, number)
    renewal = make.csr(subject=slept.certificate.subject)
    assert pairs.passed_on("factory", "simpleenroll", make.csr(), device) == 200
    assert pairs.passed_on("factory", "simplereenroll", renewal, slept) == 200
    assert pairs.passed_on("factory", "simpleenroll", renewal, slept) == 401
    pairs.run("device", "disable", number, "--label", "factory", "--manufacturer", MAKER)
    signed = pairs.signed()
    renewal = make.csr(subject=slept.certificate.subject)
    assert pairs.passed_on("factory", "simpleenroll", make.csr(), device) == 403
    assert pairs.passed_on("factory", "simplereenroll", renewal, slept) == 403
    assert pairs.signed() == signed


def asleep(pairs: Pairs, number: str) -> Identity:
    """A registered device whose certificate expired a week ago, put into the ledger as the writer would have."""
    identity = make.certificate(
        subject=make.name(f"{number}.example"), extended=[make.CLIENT_AUTH], starts=timedelta(days=-90),
        ends=-timedelta(days=7),
    )  # fmt: skip
    found = ClientCertificate.parse(identity.der)
    row = Row(
        serial=found.serial, certificate_der=identity.der, csr_sha256=bytes(32), repeat_key=identity.der[-32:],
        identity=f"device:factory/{MAKER}/{number}", subject=found.shown, label="factory", profile="registered",
        not_before=found.not_before, not_after=found.not_after, issued_at_ms=0, renews=None,
    )  # fmt: skip
    with RemoteWriter(pairs.server.folder / "ledger.sqlite3", pairs.server.folder / "run" / "ledger.sock") as writer:
        writer.record([row])
    return identity


def test_registry_expired(pairs: Pairs) -> None:
    """R50: a registered device that slept renews itself inside the window; once its row is disabled or gone it is a
    403, whatever the window."""
    for number, end in (("RE-1", "disable"), ("RE-2", "")):
        slept = asleep(pairs, number)
        if end:
            pairs.add(number, "factory", maker=MAKER)
            renewed = enroll(pairs.client("factory", slept), make.csr(subject=slept.certificate.subject), renew=True)
            assert renewed.subject == slept.certificate.subject
            pairs.run("device", end, number, "--label", "factory", "--manufacturer", MAKER)
        again = make.csr(subject=slept.certificate.subject)
        signed = pairs.signed()
        assert status(lambda: enroll(pairs.client("factory", slept), again, renew=True)) == 403  # noqa: B023
        assert pairs.signed() == signed


def test_proxy_approval(pairs: Pairs) -> None:
    """R27: what waits is the device's, found again through the proxy; the address that a person sees is the one that
    the proxy wrote last, and a device's own word for it counts for nothing."""
    number = "PA-1"
    pairs.add(number, "factory-held", maker=MAKER)
    device, csr_der = pairs.device(number), make.csr()
    with pairs.client("factory-held", pairs.front) as client:
        answer = client.request(
            "POST", "simpleenroll", make.body(csr_der), Content_Type="application/pkcs10", Client_Cert=sf(device),
            X_Forwarded_For="198.51.100.1, 192.0.2.7",
        )  # fmt: skip
        answer.read()
    assert answer.status == 202
    waiting = newest(pairs.server)
    assert waiting is not None
    assert (waiting.identity, waiting.peer) == (f"device:factory-held/{MAKER}/{number}", "192.0.2.7")
    pairs.decide()
    pairs.add("PA-2", "factory-held", maker=MAKER)
    with pairs.client("factory-held", pairs.device("PA-2")) as client:
        body = make.body(make.csr())
        client.request(
            "POST", "simpleenroll", body, Content_Type="application/pkcs10", X_Forwarded_For="192.0.2.7"
        ).read()  # fmt: skip
    second = newest(pairs.server)
    assert second is not None
    assert (second.identity, second.peer) == (f"device:factory-held/{MAKER}/PA-2", "127.0.0.1")
    assert pairs.passed_on("factory-held", "simpleenroll", csr_der, device) == 200
    assert pairs.passed_on("factory-held", "simpleenroll", make.csr(), pairs.front) == 401


def test_a_proxy_elsewhere_is_no_device(pairs: Pairs) -> None:
    """A proxy's own certificate stands for no device at a label that names this proxy, but at another address: not
    where the registry would take it for one of its own either."""
    device = pairs.device("PF-1")
    pairs.add("PF-1", "far", maker=MAKER)
    with pairs.client("far", device) as client:
        assert client.enroll(lambda _: make.csr()).subject == device.certificate.subject
    assert pairs.passed_on("far", "simpleenroll", make.csr(), device) == 403
    with pairs.client("far", pairs.front) as client, pytest.raises(Refused, match="a proxy's own") as refused:
        client.enroll(lambda _: make.csr())
    assert refused.value.status == 403


def test_approval_registry(pairs: Pairs) -> None:
    """A device that is disabled while it waits gets nothing for its approval."""
    number = "AR-1"
    pairs.add(number, "factory-held", maker=MAKER)
    device, csr_der, signed = pairs.device(number), make.csr(), pairs.signed()
    assert status(lambda: enroll(pairs.client("factory-held", device), csr_der)) == 202
    pairs.decide()
    pairs.run("device", "disable", number, "--label", "factory-held", "--manufacturer", MAKER)
    assert status(lambda: enroll(pairs.client("factory-held", device), csr_der)) == 403
    assert pairs.signed() == signed
    pairs.run("device", "enable", number, "--label", "factory-held", "--manufacturer", MAKER)
    assert enroll(pairs.client("factory-held", device), csr_der)


def test_approval_secret(pairs: Pairs) -> None:
    """R27, R39: waiting uses no secret up; two requests with one secret may both be approved, and one gets a
    certificate; a secret that another took the place of opens nothing, approval or not."""
    pairs.add("AS-1", "secret-held")
    how = {"user": "AS-1", "password": pairs.secret("AS-1", "secret-held")}
    first, second = make.csr(), make.csr()
    for csr_der in (first, second):
        assert status(lambda: enroll(pairs.client("secret-held", **how), csr_der)) == 202  # noqa: B023
        pairs.decide()
    got = enroll(pairs.client("secret-held", **how), first)
    assert status(lambda: enroll(pairs.client("secret-held", **how), second)) == 401
    assert enroll(pairs.client("secret-held", **how), first) == got
    pairs.add("AS-2", "secret-held")
    how = {"user": "AS-2", "password": pairs.secret("AS-2", "secret-held")}
    assert status(lambda: enroll(pairs.client("secret-held", **how), first)) == 202
    pairs.decide()
    new = pairs.secret("AS-2", "secret-held")
    assert status(lambda: enroll(pairs.client("secret-held", **how), first)) == 401
    assert enroll(pairs.client("secret-held", user="AS-2", password=new), first)


def test_approval_webhook(pairs: Pairs) -> None:
    """The service is asked at each try: what it grants is what waits, and a no ends an approval."""
    device, csr_der = pairs.device("AW-1"), make.csr()
    pairs.service.reply = says(allow=True, names={"subject": "CN=granted"})
    assert status(lambda: enroll(pairs.client("hook-held", device), csr_der)) == 202
    waiting = newest(pairs.server)
    assert waiting is not None
    assert waiting.subject == "CN=granted"
    pairs.decide()
    pairs.service.reply = says(allow=False, why="it was stolen")
    assert status(lambda: enroll(pairs.client("hook-held", device), csr_der)) == 403
    pairs.service.reply = says(allow=True, names={"subject": "CN=other"})
    assert status(lambda: enroll(pairs.client("hook-held", device), csr_der)) == 202
    pairs.service.reply = says(allow=True, names={"subject": "CN=granted"})
    assert enroll(pairs.client("hook-held", device), csr_der).subject == make.name("granted")


def test_serverkeygen_secret(pairs: Pairs) -> None:
    """R29, R39: a key is made for a one-time secret, by Basic or otpChallenge; the question before it uses nothing up,
    and a spent or wrong secret is refused before there is a key."""
    for number, by_otp in (("KS-1", False), ("KS-2", True)):
        pairs.add(number, "secret")
        secret = pairs.secret(number, "secret")
        csr_der = with_otp(number, secret) if by_otp else make.csr()
        how = {} if by_otp else {"user": number, "password": secret}
        key, certificate = generate(pairs.client("secret", **how), csr_der)
        assert key.public_key() == certificate.public_key()
        assert certificate.subject == make.name(number)
        signed = pairs.signed()
        with pytest.raises(Refused, match="secret is used") as refused:
            generate(pairs.client("secret", **how), csr_der)
        assert refused.value.status == 401
        assert status(lambda: generate(pairs.client("secret", user="KS-3", password="x"), make.csr())) == 401
        assert pairs.signed() == signed


def test_serverkeygen_secret_approval(pairs: Pairs) -> None:
    """R27, R29, R39, all three: waits, is approved, and then the secret is used with the one key that is made."""
    pairs.add("KA-1", "secret-held")
    how = {"user": "KA-1", "password": pairs.secret("KA-1", "secret-held")}
    csr_der, signed = make.csr(), pairs.signed()
    for _ in range(2):
        assert status(lambda: generate(pairs.client("secret-held", **how), csr_der)) == 202
    assert pairs.signed() == signed
    pairs.decide()
    key, certificate = generate(pairs.client("secret-held", **how), csr_der)
    assert key.public_key() == certificate.public_key()
    assert status(lambda: generate(pairs.client("secret-held", **how), csr_der)) == 401


def test_serverkeygen_webhook(pairs: Pairs) -> None:
    """R29: the service is asked once, about a request whose signature counts for nothing; the profile that it chooses
    says which kind of key is made."""
    device, asked = pairs.device("KW-1"), len(pairs.service.posts)
    pairs.service.reply = says(allow=True)
    key, _ = generate(pairs.client("hook", device), broken(make.csr()))
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (question,) = (one for post in pairs.service.posts[asked:] for one in post["questions"])
    assert question["operation"] == "serverkeygen"
    pairs.service.reply = says(allow=True, profile="ed")
    key, certificate = generate(pairs.client("hook", device), make.csr())
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    assert certificate.public_key() == key.public_key()
    pairs.service.reply = says(allow=False)
    signed = pairs.signed()
    assert status(lambda: generate(pairs.client("hook", device), make.csr())) == 403
    assert pairs.signed() == signed


def test_serverkeygen_registry_profile(pairs: Pairs) -> None:
    """A row's own profile says which kind is made, also where no rule of the label names it."""
    pairs.add("KR-1", "factory-ed", "--profile", "only-rsa-3072", maker=MAKER)
    key, _ = generate(pairs.client("factory-ed", pairs.device("KR-1")), make.csr())
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 3072


def test_ra_serverkeygen_approval(pairs: Pairs) -> None:
    """R16, R27, R29: a registration authority asks for a key and certificate of a device; what waits says who asks for
    whom, and counts as the authority's own."""
    own_key = make.key()
    with pairs.server.client(basic=True, label="registrars") as client:
        own = Identity(client.enroll(lambda _: make.csr(own_key, subject=make.name("line 1"))), own_key)
    (pairs.server.folder / "ras.pem").write_bytes(own.pem)
    csr_der = make.csr(subject=make.name("machine-1"))

    def ask() -> tuple[Any, x509.Certificate]:
        return generate(pairs.client("ra-held", own), csr_der)

    wait_for(lambda: status(ask) == 202, 10)
    waiting = newest(pairs.server)
    assert waiting is not None
    assert waiting.identity.startswith("ra:")
    assert waiting.identity.endswith(" CN=line 1")
    assert waiting.subject == "CN=machine-1"
    another = make.csr(subject=make.name("machine-2"))
    assert status(lambda: generate(pairs.client("ra-held", own), another)) == 429
    pairs.decide()
    key, certificate = ask()
    assert key.public_key() == certificate.public_key()
    assert certificate.subject == make.name("machine-1")


@pytest.mark.parametrize("kind", KINDS)
def test_serverkeygen_enforced_csrattrs(kind: str, pairs: Pairs) -> None:
    """R29, R47: a request with what csrattrs asks for gets its key, whatever kind that is and whatever key and
    signature the request has; one without is refused before there is a key."""
    label = f"exact-{kind}"
    with pairs.client(label) as client:
        assert client.csrattrs().attributes
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "exact")])
    usage = [
        (x509.KeyUsage(True, *[False] * 8), True), (x509.ExtendedKeyUsage([make.CLIENT_AUTH]), False),
    ]  # fmt: skip
    key, certificate = generate(
        pairs.client(label, basic=True), broken(make.csr(subject=subject, extensions=usage))
    )  # fmt: skip
    assert certificate.public_key() == key.public_key()
    signed = pairs.signed()
    assert status(lambda: generate(pairs.client(label, basic=True), make.csr(subject=subject))) == 400
    assert pairs.signed() == signed


def test_csrattrs_webhook(pairs: Pairs) -> None:
    """R36: csrattrs tells what all profiles want alike that the webhook may choose from, not the rule's own profile
    alone: of Ed25519 and others, no kind of key."""
    with pairs.client("hook-asks") as client:
        asked = client.csrattrs().attributes
    assert "1.2.840.113549.1.9.14" in asked
    assert asked & {"1.2.840.10045.2.1", "1.3.101.112", "1.2.840.113549.1.1.1"} == set()


def test_superseding_crl(pairs: Pairs) -> None:
    """R45: the certificate whose successor was seen is on the next CRL, with its reason; openssl judges both."""
    key, new_key, subject = make.key(), make.key(), make.name("pump-9")
    with pairs.server.client(basic=True, label="renewal") as client:
        old = Identity(client.enroll(lambda _: make.csr(key, subject=subject)), key)
    renewed = enroll(pairs.client("renewal", old), make.csr(new_key, subject=subject), renew=True)
    new = Identity(renewed, new_key)
    path = pairs.server.folder / "crl" / "root.crl"
    serial = old.certificate.serial_number
    assert x509.load_der_x509_crl(path.read_bytes()).get_revoked_certificate_by_serial_number(serial) is None
    with pairs.client("renewal", new) as client:
        client.cacerts()
    wait_for(lambda: b"%X" % serial in told(path), 30)
    after = told(path).partition(b"%X" % serial)[2].partition(b"Serial Number")[0]
    assert b"Superseded" in after
    (pairs.files / "crl.pem").write_bytes(judge.openssl("crl", "-inform", "DER", "-in", path))
    for identity, words in ((old, b"certificate revoked"), (new, b": OK")):
        certificate, _ = identity.write(pairs.files, "judged")
        judged = judge.run(
            "openssl", "verify", "-crl_check", "-CRLfile", pairs.files / "crl.pem", "-CAfile",
            pairs.server.folder / "ca.pem", certificate,
        )  # fmt: skip
        assert words in judged.stdout + judged.stderr
    with pairs.client("renewal", new) as client:
        body = client.request("GET", "crls").read()
    crls = judge.openssl("pkcs7", "-inform", "DER", "-print_certs", data=base64.b64decode(body))
    assert x509.load_pem_x509_crl(crls).public_bytes(Encoding.DER) == path.read_bytes()


def told(path: Path) -> bytes:
    return judge.openssl("crl", "-inform", "DER", "-in", path, "-noout", "-text")
