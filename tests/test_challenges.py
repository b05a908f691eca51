"""RFC 7894's attributes (R44): otpChallenge, revocationChallenge and estIdentityLinking, announced in csrattrs and each
evaluated on its own; and what is kept of a revocationChallenge, in the ledger and at `estd cert revoke`."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from estd import asked, csr, csrattrs, der, ledger, ledger_challenges, policy, revocation
from estd.challenges import IDENTITY_LINKING, OTP, REVOCATION, Challenge
from estd.client import EstClient, Refused
from estd.device_rules import RegistryRule
from estd.errors import BadRequest, Reason, Unavailable
from estd.labels import Allow, Label
from estd.ledger import LedgerError, Reader, Writer
from estd.ledger_link import RemoteWriter, WriterService
from estd.ledger_requests import Held
from tests import make, servers
from tests.clients import judge
from tests.csr_forms import CHALLENGE_PASSWORD, attribute, request, subject_of
from tests.line import VERSIONS, assert_served
from tests.servers import Server
from tests.test_csrattrs import label as label_of
from tests.test_curl_openssl import Curl
from tests.test_ledger import row
from tests.test_policy import BINDING, FACTORY, LINK, NAMES, evidence, issued_rule, label_policy
from tests.test_registry import estd

ALL = (OTP, REVOCATION, IDENTITY_LINKING)
BY_VERSION = pytest.mark.parametrize("tls", VERSIONS, ids=["1.2", "1.3"])
EACH = pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)

# Reading.


@EACH
@pytest.mark.parametrize(
    ("tag", "coding"), [(0x0C, "utf-8"), (0x13, "ascii"), (0x14, "latin-1"), (0x1C, "utf-32-be"), (0x1E, "utf-16-be")]
)
def test_R44_a_value_in_any_DirectoryString(one: Challenge, tag: int, coding: str) -> None:
    """R44: whichever string holds the characters, they are the same; 1 to 255 of them."""
    for text in ("x", "pass word 1", "x" * 255, *(["Grün", "ü" * 255] if coding != "ascii" else [])):
        csr_der = request(attribute(one.oid, der.tlv(tag, text.encode(coding))))
        csr.check(csr_der)
        assert one.read(csr_der) == text.encode()
        assert [other.read(csr_der) for other in ALL if other is not one] == [None, None]


def _text(value: bytes, tag: int = 0x0C) -> bytes:
    return der.tlv(tag, value)


HOSTILE: dict[str, tuple[tuple[bytes, ...], ...]] = {
    "no value": ((),),
    "two values": ((_text(b"a"), _text(b"b")),),
    "twice": ((_text(b"a"),), (_text(b"b"),)),
    "twice the same": ((_text(b"a"),), (_text(b"a"),)),
    "empty": ((_text(b""),),),
    "256 characters": ((_text(b"x" * 256),),),
    "300 characters in UTF-16": ((_text("x".encode("utf-16-be") * 300, 0x1E),),),
    "an OCTET STRING": ((_text(b"a", 0x04),),),
    "an IA5String": ((_text(b"a", 0x16),),),
    "a SEQUENCE": ((der.tlv(0x30, _text(b"a")),),),
    "a constructed string": ((_text(_text(b"a"), 0x2C),),),
    "no UTF-8": ((_text(b"\xff\xfe"),),),
    "no ASCII": ((_text("ü".encode(), 0x13),),),
    "half a character": ((_text(b"\0a\0", 0x1E),),),
    "half a surrogate pair": ((_text(b"\xd8\x00", 0x1E),),),
    "half a surrogate pair in UTF-8": ((_text(b"\xed\xa0\x80"),),),
    "beyond Unicode": ((_text(b"\0\x11\0\0", 0x1C),),),
    "a length that is too long": ((b"\x0c\x7fa",),),
    "a length that is indefinite": ((b"\x0c\x80a\0\0",),),
}


@EACH
@pytest.mark.parametrize("case", HOSTILE)
def test_R44_several_or_no_string_is_a_400(one: Challenge, case: str) -> None:
    """R44: an attribute that stands twice, has several values or is no such string: a 400 that names it."""
    csr_der = request(*(attribute(one.oid, *values) for values in HOSTILE[case]))
    with pytest.raises(BadRequest, match=one.name) as caught:
        one.read(csr_der)
    assert caught.value.reason is Reason.BAD_CSR


@EACH
def test_R44_the_OID_elsewhere_is_no_attribute(one: Challenge) -> None:
    """R44: the attribute's OID in the subject, in another attribute or in its value says nothing."""
    for csr_der in (
        request(subject=subject_of(der.oid(one.oid))),
        request(attribute("1.2.3.4", der.oid(one.oid))),
        request(attribute(CHALLENGE_PASSWORD, der.tlv(0x0C, der.oid(one.oid)))),
    ):
        assert one.may_be_in(csr_der)
        assert one.read(csr_der) is None


@given(
    values=st.lists(st.builds(der.tlv, st.integers(0, 255), st.binary(max_size=40)), max_size=3),
    cut=st.integers(0, 400),
)
@settings(deadline=None, derandomize=True, max_examples=400)
def test_R44_whatever_it_holds_is_a_value_or_a_400(values: list[bytes], cut: int) -> None:
    """R44: hostile attributes and requests that are cut off: a value or a 400, never another exception."""
    whole = request(attribute(REVOCATION.oid, *values))
    for csr_der in (whole, whole[:cut], REVOCATION.oid_der + whole):
        try:
            found = REVOCATION.read(csr_der)
        except BadRequest:
            continue
        assert found is None or 1 <= len(found.decode()) <= 255


# csrattrs.


def _told(label: Label) -> asked.Asked:
    told = csrattrs.encode(label, {})
    return asked.read(told) if told is not None else asked.NOTHING


@pytest.mark.parametrize("form", ["legacy", "template", "both"])
def test_R44_csrattrs_announces_what_a_label_hears(form: str) -> None:
    """R37, R44: each OID where its attribute is evaluated, and nowhere else, in each form of csrattrs."""

    def hears(*secrets: str) -> tuple[Allow, ...]:
        rule = RegistryRule(manufacturer="", match="subject.serialNumber", match_prefix="", secrets=secrets)
        return (Allow(who="basic", profile=None), Allow(who="registry", profile=None, registry=rule))

    labels: dict[str, tuple[dict[str, Any], set[str]]] = {
        "nothing": ({}, set()),
        "linking off": ({"linking": "off"}, set()),
        "linking demanded": ({"linking": "demanded"}, {csrattrs.CHALLENGE_PASSWORD, IDENTITY_LINKING.oid}),
        "secrets by Basic": ({"allow": hears("basic")}, set()),
        "one-time secrets": ({"allow": hears("basic", "otpChallenge")}, {OTP.oid}),
        "revocation": ({"revocation_challenge": True}, {REVOCATION.oid}),
        "all": (
            {"linking": "demanded", "allow": hears("otpChallenge"), "revocation_challenge": True},
            {csrattrs.CHALLENGE_PASSWORD, *(one.oid for one in ALL)},
        ),
    }
    for name, (more, expected) in labels.items():
        told = _told(label_of(**{"csrattrs": form, **more}))
        assert told.attributes == expected, name
        assert told.linked == told.identity_linking == (IDENTITY_LINKING.oid in expected)


# Linking, as policy decides it.

RIGHT, WRONG = LINK, b"bm90IHRoaXMgb25l"
LINKED: dict[str, tuple[bytes | None, bytes | None, dict[str, str]]] = {
    # estIdentityLinking, challengePassword; label's linking to "" or the attribute that the refusal names
    "right": (RIGHT, None, {"accepted": "", "demanded": "", "off": ""}),
    "wrong": (WRONG, None, {"accepted": "estIdentityLinking", "demanded": "estIdentityLinking", "off": ""}),
    "not base64": (BINDING, None, {"accepted": "estIdentityLinking", "off": ""}),
    "right beside a password of the device's own": (RIGHT, b"secret", {"accepted": "", "demanded": "", "off": ""}),
    "wrong beside a right challengePassword": (WRONG, RIGHT, {"accepted": "estIdentityLinking", "off": ""}),
    "right twice": (RIGHT, RIGHT, {"accepted": "", "demanded": ""}),
    "challengePassword right": (None, RIGHT, {"accepted": "", "demanded": "", "off": ""}),
    "challengePassword wrong": (None, WRONG, {"accepted": "challengePassword", "demanded": "challengePassword"}),
    "none": (None, None, {"accepted": "", "demanded": "challengePassword or estIdentityLinking", "off": ""}),
}


@pytest.mark.parametrize("case", LINKED)
def test_R44_an_estIdentityLinking_is_what_links(case: str) -> None:
    """R13, R14, R44: where there is one it is compared, and a challengePassword is not taken for linking; without one
    the challengePassword is."""
    identity_linking, challenge_password, expected = LINKED[case]
    attributes = [(IDENTITY_LINKING.oid, identity_linking)] if identity_linking is not None else []
    parsed = csr.parse(make.csr(challenge_password=challenge_password, attributes=attributes, **NAMES))
    for linking, names in expected.items():
        rules = label_policy(issued_rule(), linking=linking)
        seen = evidence(user="factory", binding=BINDING)
        if not names:
            assert policy.authorise(rules, seen, FACTORY, parsed)
            continue
        with pytest.raises(BadRequest, match=f"request's {names}") as caught:
            policy.authorise(rules, seen, FACTORY, parsed)
        assert caught.value.reason is Reason.LINKING


def test_R44_no_binding_no_link() -> None:
    """R44: where the edge saw no binding (a proxy's client), no value is right, not even the empty one's base64."""
    for value in (RIGHT, b"="):
        parsed = csr.parse(make.csr(attributes=[(IDENTITY_LINKING.oid, value)], **NAMES))
        with pytest.raises(BadRequest, match="estIdentityLinking"):
            policy.authorise(label_policy(issued_rule()), evidence(user="factory"), FACTORY, parsed)


def test_R44_a_malformed_estIdentityLinking_is_a_400_in_the_issuer() -> None:
    """R44: the issuer reads it with the request."""
    csr_der = request(attribute(IDENTITY_LINKING.oid, _text(b"a")), attribute(IDENTITY_LINKING.oid, _text(b"b")))
    with pytest.raises(BadRequest, match="estIdentityLinking"):
        csr.parse(csr_der)


# What is kept of a revocationChallenge.


def test_R44_a_challenge_is_kept_salted_and_hashed() -> None:
    """R44: two hashes of one challenge differ, and neither has it in plain."""
    one, two = revocation.hashed(b"let go"), revocation.hashed(b"let go")
    assert one != two
    assert len(one) == len(two) == 48
    assert b"let go" not in one
    for given_file in (b"let go", b"let go\n", b"let go\r\n"):
        revocation.prove(one, given_file)
    for wrong in (b"", b"let", b"let go ", b"Let go", b"let go\n\n"):
        with pytest.raises(ValueError, match="nothing was revoked"):
            revocation.prove(one, wrong)
    with pytest.raises(ValueError, match="without a revocationChallenge"):
        revocation.prove(None, b"let go")


def test_R44_what_waits_to_be_hashed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """R44: an edge hashes one at a time beside its loop; beyond its queue it says 503, and then there is room again."""
    go, began = threading.Event(), threading.Event()

    def slow(challenge: bytes) -> bytes:
        began.set()
        assert go.wait(30)
        return challenge

    monkeypatch.setattr(revocation, "hashed", slow)

    async def play() -> None:
        hashing = revocation.Hashing()
        work = [asyncio.create_task(hashing.hashed(b"%d" % number)) for number in range(revocation._WAITING_MAX)]
        await asyncio.to_thread(began.wait, 30)
        with pytest.raises(Unavailable):
            await hashing.hashed(b"one more")
        work[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await work[-1]
        with pytest.raises(Unavailable):
            await hashing.hashed(b"who leaves makes no room")
        go.set()
        assert await asyncio.gather(*work[:-1]) == [b"%d" % number for number in range(revocation._WAITING_MAX - 1)]
        assert await hashing.hashed(b"again") == b"again"

    asyncio.run(play())


@pytest.fixture
def path(folder: Path) -> Path:
    ledger.create(folder / "ledger.sqlite3")
    return folder / "ledger.sqlite3"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with closing(Writer(path)) as opened:
        yield opened


def test_R44_a_challenge_is_recorded_with_its_certificate_or_not_at_all(writer: Writer, path: Path) -> None:
    """R44: one transaction; what is left out, or fails, leaves no challenge behind."""
    one, two, three = row(), row(), row()
    writer.record([one, two], challenges={one.serial: b"1" * 48})
    held = Held((), {three.serial: 1})  # there is no request 1
    assert writer.record([three], held, challenges={three.serial: b"3" * 48}) == {three.serial: "withdrawn"}
    with Reader(path) as reader:
        assert reader.revocation_challenge(one.serial) == b"1" * 48
        assert reader.revocation_challenge(two.serial) is None
        assert reader.revocation_challenge(three.serial) is None
    with pytest.raises(LedgerError):  # a serial that is there already: the batch is not written, nor is its challenge
        writer.record([three, one], challenges={three.serial: b"3" * 48})
    with Reader(path) as reader:
        assert reader.find(three.serial) is None
        assert reader.revocation_challenge(three.serial) is None


def test_R44_challenges_go_through_the_writers_socket(writer: Writer) -> None:
    """R44: with several issuers, what each sends with its rows is written with them."""
    one, two = row(), row()
    messages: list[dict[str, Any]] = []

    class Remote(RemoteWriter):
        def __init__(self) -> None:
            pass

        def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
            messages.append(json.loads(json.dumps(message)))
            return {"ok": True}

    Remote().record([one], challenges={one.serial: b"\x01" * 48})
    Remote().record([two])
    assert [one["ok"] for one in WriterService(writer).answer(messages)] == [True, True]
    assert writer.revocation_challenge(one.serial) == b"\x01" * 48
    assert writer.revocation_challenge(two.serial) is None


def test_R44_an_older_ledger_is_brought_up_to_date(path: Path) -> None:
    """R44: the table comes with the writer; a reader of a ledger that has none yet says what to do."""
    with closing(Writer(path)) as opened:
        opened._db.execute("DROP TABLE revocation_challenge")
        opened._db.execute(f"PRAGMA user_version = {ledger.MIGRATIONS.index(ledger_challenges.SCHEMA)}")
    with Reader(path) as reader, pytest.raises(LedgerError, match="older estd"):
        reader.revocation_challenge(b"x")
    Writer(path).close()
    with Reader(path) as reader:
        assert reader.revocation_challenge(b"x") is None


# The server.


def one_time(server: Server, number: str) -> bytes:
    """The one-time secret of a new device of the label."""
    estd(server, "device", "add", number, "--label", "challenged")
    return estd(server, "device", "secret", number, "--label", "challenged").encode()


def status(client: EstClient, csr_der: bytes) -> tuple[int, str]:
    try:
        client.enroll(lambda _: csr_der)
    except Refused as refusal:
        return refusal.status, refusal.sentence
    return 200, ""


def linked(value: bytes, **more: Any) -> bytes:
    return make.csr(attributes=[(IDENTITY_LINKING.oid, value)], **more)


@BY_VERSION
@pytest.mark.parametrize("label", [None, "challenged"], ids=["accepted", "demanded"])
def test_R44_an_estIdentityLinking_is_this_connections(label: str | None, tls: int, server: Server) -> None:
    """R13, R44, R46: right on its connection, a 400 on another, the other version's or replayed; a challengePassword
    beside it counts for nothing."""
    with server.client(basic=True, label=label, tls=tls) as client, server.client(basic=True, tls=tls) as other:
        value, foreign = client.channel_binding(), other.channel_binding()
        assert value != foreign
        if tls == SSL.TLS1_3_VERSION:
            unfit = base64.b64encode(client.connection.get_finished() or b"")
        else:
            unfit = base64.b64encode(client.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b""))
        csr_der = linked(value)
        assert status(client, csr_der)[0] == 200
        for wrong in (
            linked(foreign), linked(unfit), linked(value[:-4]), linked(value + b"\n"), linked(b"secret"),
            linked(foreign, challenge_password=value),
        ):  # fmt: skip
            code, sentence = status(client, wrong)
            assert code == 400
            assert "estIdentityLinking is not the channel-binding value" in sentence
        assert status(client, linked(value, challenge_password=b"secret"))[0] == 200
        assert status(client, make.csr(challenge_password=value))[0] == 200
        assert status(client, make.csr())[0] == (200 if label is None else 400)
    with server.client(basic=True, label=label, tls=tls) as client:
        assert status(client, csr_der)[0] == 400, "replayed"
    assert_served(server)


@BY_VERSION
def test_R37_R44_our_client_links_by_what_csrattrs_names(tls: int, server: Server, folder: Path) -> None:
    """R37, R44: `estd enroll` reads estIdentityLinking in csrattrs and uses it; the server that demands linking takes
    its request. The file that its revocationChallenge came from revokes, whatever it ends in."""
    with server.client(label="challenged") as client:
        told = client.csrattrs()
    assert told.identity_linking
    assert told.attributes >= {csrattrs.CHALLENGE_PASSWORD, *(one.oid for one in ALL)}
    credential = server.folder / "demo" / "basic"
    challenge = folder / "challenge"
    challenge.write_bytes(b"let go\r\n\n" if tls == SSL.TLS1_3_VERSION else b"let go\r\n")
    words = (
        "--cacert", server.folder / "ca.pem", "--credential", credential, "--label", "challenged", "--json",
        "--revocation-challenge", challenge,
    )  # fmt: skip
    command = [
        sys.executable, "-m", "estd.cli", "enroll", server.url, *map(str, words), "--subject", "CN=device-1", "--out",
        str(folder / "one"), "--tls", "1.3" if tls == SSL.TLS1_3_VERSION else "1.2",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["linked"] is True
    assert "is revoked" in estd(server, "cert", "revoke", made["serial"], "--challenge-file", challenge)


OPENSSL = """
[req]
distinguished_name = dn
attributes = attributes
prompt = no
[dn]
CN = device-1
serialNumber = {number}
[attributes]
{attributes}
"""


def by_openssl(folder: Path, attributes: dict[Challenge | str, str], number: str = "none") -> Path:
    """A request that `openssl req` makes, with attributes by their OIDs."""
    lines = [f"{one if isinstance(one, str) else one.oid} = {text}" for one, text in attributes.items()]
    (folder / "req.cnf").write_text(OPENSSL.format(number=number, attributes="\n".join(lines)))
    key, found = folder / "device.key", folder / "device.csr"
    if not key.exists():
        judge.openssl("genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    judge.openssl("req", "-new", "-key", key, "-config", folder / "req.cnf", "-outform", "DER", "-out", found)
    return found


@BY_VERSION
def test_R44_openssl_made_requests_with_all_of_them(tls: int, server: Server, folder: Path) -> None:
    """R44: all three attributes and a challengePassword stand in one request of OpenSSL's making, each is evaluated on
    its own, and the wrong one is what the refusal names; without a signature of the token for those refused."""
    number = f"all-{tls}"
    secret = one_time(server, number).decode()
    with server.client(label="challenged", tls=tls) as client:
        value = client.channel_binding().decode()
        right: dict[Challenge | str, str] = {
            OTP: secret, IDENTITY_LINKING: value, REVOCATION: "let go", "challengePassword": "of its own",
        }  # fmt: skip
        signed = server.metric("estd_sign_seconds_count")
        for wrong, words in (
            ({OTP: "wrong"}, (401, "one-time secret")),
            ({IDENTITY_LINKING: "d3Jvbmc="}, (400, "estIdentityLinking is not")),
            ({REVOCATION: "x" * 256}, (400, "revocationChallenge has not 1 to 255")),
        ):
            csr_der = by_openssl(folder, {**right, **wrong}, number).read_bytes()
            code, sentence = status(client, csr_der)
            assert (code, words[1] in sentence) == (words[0], True), sentence
        assert server.metric("estd_sign_seconds_count") == signed
        csr_file = by_openssl(folder, right, number)
        assert status(client, csr_file.read_bytes())[0] == 200
        assert server.metric("estd_sign_seconds_count") == signed + 1
        (folder / "got.pem").write_bytes(
            make.Identity(x509.load_der_x509_certificate(server.rows()[-1].certificate_der), make.key()).pem
        )
        judge.certifies(folder / "got.pem", csr_file)
        assert status(client, csr_file.read_bytes())[0] == 200, "the same request gets its certificate again"
        assert server.metric("estd_sign_seconds_count") == signed + 1
        assert status(client, by_openssl(folder, {**right, REVOCATION: "other"}, number).read_bytes())[0] == 200
        assert server.metric("estd_sign_seconds_count") == signed + 1, "nor does another challenge make it another one"
    serial = server.rows()[-1].serial.hex()
    challenge = folder / "challenge"
    challenge.write_text("other")
    assert "does not fit" in estd(server, "cert", "revoke", serial, "--challenge-file", challenge, code=1)
    assert server.rows()[-1].revoked_at is None
    challenge.write_text("let go\n")
    assert "is revoked" in estd(server, "cert", "revoke", serial, "--challenge-file", challenge)
    for text in (secret, "let go"):
        for file in server.folder.rglob("*"):
            if file.is_file() and file.parent.name != "demo":
                assert text.encode() not in file.read_bytes(), file


def test_R44_a_challenge_is_kept_where_the_label_takes_it(server: Server, folder: Path) -> None:
    """R44: curl with openssl on a label that takes none: the attribute is ignored, even a malformed one, and there is
    nothing that could fit."""
    curl = Curl(server, folder)
    for attributes in ({REVOCATION: "let go"}, {REVOCATION: "x" * 300}):
        made = by_openssl(folder, attributes)  # type: ignore[arg-type]
        curl.certificate("plain", made, curl.send("simpleenroll", made, *curl.factory()))
        (folder / "device.key").unlink()
    challenge = folder / "challenge"
    challenge.write_text("let go")
    serial = server.rows()[-1].serial.hex()
    said = estd(server, "cert", "revoke", serial, "--challenge-file", challenge, code=1)
    assert "without a revocationChallenge" in said
    assert server.rows()[-1].revoked_at is None
    estd(server, "cert", "revoke", serial)
    assert server.rows()[-1].revoked_at is not None


def test_R44_a_renewal_has_a_challenge_of_its_own(server: Server, folder: Path) -> None:
    """R44: what is renewed keeps its challenge, the new certificate has the one of its own request."""
    key = make.key()

    def ask(client: EstClient, key: Any, text: bytes, *, renew: bool) -> x509.Certificate:
        more = [(REVOCATION.oid, text), (IDENTITY_LINKING.oid, client.channel_binding())]
        return client.enroll(lambda _: make.csr(key, attributes=more), renew=renew)

    with server.client(basic=True, label="challenged") as client:
        first = ask(client, key, b"first", renew=False)
    with server.client(cert=make.Identity(first, key).write(folder, "own"), label="challenged") as client:
        second = ask(client, make.key(), b"second", renew=True)
    challenge = folder / "challenge"
    challenge.write_text("second\n")
    one, two = (f"{one.serial_number:032x}" for one in (first, second))
    assert "does not fit" in estd(server, "cert", "revoke", one, "--challenge-file", challenge, code=1)
    assert "is revoked" in estd(server, "cert", "revoke", two, "--challenge-file", challenge, "--reason", "superseded")
    with server.client(cert=(folder / "own.pem", folder / "own.key"), label="challenged") as client:
        ask(client, make.key(), b"third", renew=True)


def test_R44_a_generated_keys_certificate_has_its_challenge(server: Server, folder: Path) -> None:
    """R29, R44: serverkeygen keeps the request's attributes: linked by estIdentityLinking, and with a challenge."""
    with server.client(basic=True, label="challenged") as client:
        value = client.channel_binding()
        more = [(REVOCATION.oid, b"let go"), (IDENTITY_LINKING.oid, value)]
        _, certificate = client.serverkeygen(lambda _: make.csr(attributes=more))
        with pytest.raises(Refused, match="estIdentityLinking"):
            client.serverkeygen(lambda _: make.csr(attributes=[(IDENTITY_LINKING.oid, value[:-4])]))
    challenge = folder / "challenge"
    challenge.write_text("let go")
    estd(server, "cert", "revoke", f"{certificate.serial_number:032x}", "--challenge-file", challenge)
    assert server.rows()[-1].revoked_at is not None


@EACH
@pytest.mark.parametrize("case", ["twice", "two values", "an OCTET STRING"])
def test_R44_hostile_attributes_at_the_door(one: Challenge, case: str, server: Server) -> None:
    """R44: a 400 at no cost of the token's, and the server goes on."""
    signed = server.metric("estd_sign_seconds_count")
    with server.client(basic=one is not OTP, label="challenged") as client:
        parts = [attribute(one.oid, *values) for values in HOSTILE[case]]
        if one is not IDENTITY_LINKING:
            parts.append(attribute(IDENTITY_LINKING.oid, _text(client.channel_binding())))
        code, sentence = status(client, request(*parts))
    assert (code, one.name in sentence) == (400, True), sentence
    assert server.metric("estd_sign_seconds_count") == signed
    assert_served(server)


def test_R44_nobody_makes_an_edge_hash_without_a_credential(server: Server, folder: Path) -> None:
    """R44: a stranger's certificate and a challenge: the issuer says no before the edge hashes anything, so that more
    of them than are let in cost the edge less CPU."""
    stranger = make.certificate(subject=make.name("stranger")).write(folder, "stranger")
    edges = [pid for name, pid in server.pids().items() if name.startswith("edge")]

    def ticks(count: int, code: int, **access: Any) -> int:
        """Of all edges' CPU, for so many requests that are answered so."""
        before = [_ticks(pid) for pid in edges]
        with server.client(label="challenged", **access) as client:
            more = [(REVOCATION.oid, b"let go"), (IDENTITY_LINKING.oid, client.channel_binding())]
            assert [status(client, make.csr(attributes=more))[0] for _ in range(count)] == [code] * count
        return sum(_ticks(pid) for pid in edges) - sum(before)

    assert ticks(16, 401, cert=stranger) < ticks(8, 200, basic=True)


def _ticks(pid: int) -> int:
    """The process's CPU so far, in the kernel's ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_R44_two_issuers_and_a_stopped_server(folder: Path) -> None:
    """R44: with two issuers the ledger's process records the challenge; the command works with no server, too."""
    made = servers.init(folder / "instance")
    made.config.write_text(made.config.read_text().replace("# issuers = 1 ", "issuers = 2 "))
    estd(made, "device", "add", "T-1", "--label", "registry")
    secret = estd(made, "device", "secret", "T-1", "--label", "registry")
    with servers.running(made), made.client(label="registry", user="T-1", password=secret) as client:
        client.enroll(lambda _: make.csr(attributes=[(REVOCATION.oid, "größer".encode())]))
    challenge = folder / "challenge"
    serial = made.rows()[0].serial.hex()
    challenge.write_text("wrong")
    assert "nothing was revoked" in estd(made, "cert", "revoke", serial, "--challenge-file", challenge, code=1)
    challenge.write_text("größer\n", encoding="utf-8")
    estd(made, "cert", "revoke", serial, "--challenge-file", challenge)
    assert made.rows()[0].revoked_at is not None
