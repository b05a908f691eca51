"""serverkeygen: keys that the server makes are delivered once, as a strict parser takes them, and are nowhere else."""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import io
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from estd import csr, der, device_keys, frames, keygen, wire
from estd.client import Access, EstClient, Refused
from estd.errors import BadRequest, ClientError, EstError, Forbidden, Reason, Unauthenticated, Unavailable
from estd.frames import Answer
from tests import make
from tests.clients import judge
from tests.csr_forms import attribute, request
from tests.servers import Server, wait_for
from tests.test_csr import UNKNOWN

KINDS = device_keys.GENERATED_KINDS
NAME = make.name("device-1")
DECRYPT_KEYS = {
    "DecryptKeyIdentifier": "1.2.840.113549.1.9.16.2.37",
    "AsymmetricDecryptKeyIdentifier": "1.2.840.113549.1.9.16.2.54",
}
"""RFC 7030 §4.4.1.1 and §4.4.1.2."""


def public(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def ask(client: EstClient, csr_der: bytes) -> Any:
    return client.serverkeygen(lambda _: csr_der)


def broken(csr_der: bytes) -> bytes:
    return csr_der[:-1] + bytes((csr_der[-1] ^ 1,))


def with_attribute(oid: str, value: bytes) -> bytes:
    """A request with one more attribute, whose signature is not right any more."""
    plain = make.csr(subject=NAME)
    start = der.content_start(plain, 0)
    key = der.element_end(plain, der.element_end(plain, der.content_start(plain, start)))
    added = der.tlv(0xA0, der.tlv(der.SEQUENCE, der.oid(oid) + der.tlv(der.SET, value)))
    tbs = der.tlv(der.SEQUENCE, plain[der.content_start(plain, start) : der.element_end(plain, key)] + added)
    return der.tlv(der.SEQUENCE, tbs + plain[der.element_end(plain, start) :])


@pytest.mark.parametrize("kind", KINDS)
def test_R29_R33_the_key_delivered_is_the_certificates(kind: str, server: Server, folder: Path) -> None:
    """R29, R33: for each kind, what the request's own key names; OpenSSL finds the key sound and the certificate's."""
    own = device_keys.generate(kind)
    with server.client(basic=True, label="keys") as client:
        key, certificate = ask(client, keygen.rebuilt(make.csr(subject=NAME), own))
    assert public(key) != public(own)
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    judge.openssl("pkey", "-in", folder / "key.pem", "-check", "-noout")
    assert judge.openssl("pkey", "-in", folder / "key.pem", "-pubout") == judge.openssl(
        "x509", "-in", folder / "cert.pem", "-noout", "-pubkey"
    )
    judge.chain_holds(server.folder / "ca.pem", folder / "cert.pem")
    assert csr.key_kind(key.public_key()) == kind
    assert "CN=device-1" in judge.subject(folder / "cert.pem")


def test_R33_the_answer_to_the_letter(server: Server) -> None:
    """R33: multipart/mixed with exactly two parts, each with its type and encoding, in lines that MIME allows; no cache
    may keep it, and no Content-Transfer-Encoding of the whole."""
    with server.client(basic=True, label="keys") as client:
        response = client.request(
            "POST", "serverkeygen", make.body(make.csr(subject=NAME)), Content_Type="application/pkcs10"
        )
        headers, body = {k.lower(): v for k, v in response.getheaders()}, response.read()
    assert response.status == 200
    assert headers["cache-control"] == "no-store"
    assert "content-transfer-encoding" not in headers
    found = re.fullmatch(r"multipart/mixed; boundary=([A-Za-z0-9-]{1,70})", headers["content-type"])
    assert found
    assert body.count(b"\r\n") == body.count(b"\n")
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert body.startswith(b"--" + found[1].encode() + b"\r\n")
    assert body.endswith(b"\r\n--" + found[1].encode() + b"--\r\n")
    message: Any = email.message_from_bytes(
        b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body, policy=email.policy.strict
    )
    key, certificate = message.iter_parts()
    assert key.items() == [("Content-Type", "application/pkcs8"), ("Content-Transfer-Encoding", "base64")]
    assert certificate.get_content_type() == "application/pkcs7-mime"
    assert certificate["Content-Type"].params == {"smime-type": "certs-only"}
    assert certificate["Content-Transfer-Encoding"] == "base64"
    (one,) = judge.certificates(certificate.get_content())
    loaded: Any = load_der_private_key(key.get_content(), None)
    assert public(loaded) == x509.load_pem_x509_certificate(one).public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


def test_R29_the_requests_key_and_signature_are_ignored(server: Server) -> None:
    """R29: a broken signature, a key too weak to certify, and a curve that is not certified are all as good."""
    weak = rsa.generate_private_key(65537, 1024)
    odd = ec.generate_private_key(ec.SECP256K1())
    with server.client(basic=True, label="keys") as client:
        for request in (broken(make.csr(subject=NAME)), make.csr(weak, subject=NAME), make.csr(odd, subject=NAME)):
            key, _ = ask(client, request)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            assert key.curve.name == "secp256r1", "the label's first kind"
        with pytest.raises(Refused, match="signature does not fit"):
            client.enroll(lambda _: broken(make.csr(subject=NAME)))


def test_R29_serverkeygen_is_authenticated_and_authorised(server: Server, folder: Path) -> None:
    """R20, R29: nobody, a wrong password, a stranger's certificate and a name that is not granted are refused, and the
    token signs nothing."""
    signed = server.metric("estd_sign_seconds_count")
    body = make.csr(subject=NAME)
    with server.client(label="keys") as client, pytest.raises(Refused) as refusal:
        ask(client, body)
    assert refusal.value.status == 401
    with server.client(label="keys", user="factory", password="no") as client, pytest.raises(Refused) as refusal:
        ask(client, body)
    assert refusal.value.status == 401
    stranger = make.certificate().write(folder, "stranger")
    with server.client(cert=stranger, label="keys") as client, pytest.raises(Refused) as refusal:
        ask(client, body)
    assert refusal.value.status == 401
    with server.client(basic=True, label="keys") as client, pytest.raises(Refused) as refusal:
        ask(client, make.csr(subject=make.name("device-1", ORGANIZATION_NAME="Acme")))
    assert refusal.value.status == 403
    assert server.metric("estd_sign_seconds_count") == signed


@pytest.mark.parametrize("name", DECRYPT_KEYS)
def test_R30_R31_a_decryption_key_that_is_not_known(name: str, server: Server) -> None:
    """R30, R31: a request for a key that is encrypted beyond TLS is a 400 that says so, and gets no plain key."""
    oid = DECRYPT_KEYS[name]
    with server.client(basic=True, label="keys") as client:
        with pytest.raises(Refused, match=rf"\({name}\).* protected by TLS alone") as refusal:
            ask(client, with_attribute(oid, der.tlv(der.OCTET_STRING, b"key-1")))
        assert refusal.value.status == 400
        ask(client, with_attribute("1.2.3.4", der.tlv(der.OCTET_STRING, b"key-1")))


def test_R34_off_unless_a_label_switches_it_on(server: Server) -> None:
    """R3, R34: 404, and GET is 405 where it is on."""
    with server.client(basic=True, label="sites") as client, pytest.raises(Refused, match="not offered") as refusal:
        ask(client, make.csr(subject=NAME))
    assert refusal.value.status == 404
    with server.client(basic=True, label="keys") as client:
        response = client.request("GET", "serverkeygen")
        response.read()
    assert (response.status, response.headers["Allow"]) == (405, "POST")


def test_a_label_makes_the_kinds_that_it_names(server: Server) -> None:
    """A request whose key is of another kind gets the first; challengePassword counts as in any request (R13, R14)."""
    with server.client(basic=True, label="keys-few") as client:
        for kind, size in (("rsa-2048", 384), ("ec-p256", 384), ("ec-p384", 384), ("ed25519", None)):

            def request(value: bytes | None, kind: str = kind) -> bytes:
                return keygen.rebuilt(make.csr(subject=NAME, challenge_password=value), device_keys.generate(kind))

            key, _ = client.serverkeygen(request, link=True)
            assert getattr(key, "key_size", None) == size
        for value in (None, b"another"):
            with pytest.raises(Refused) as refusal:
                ask(client, make.csr(subject=NAME, challenge_password=value))
            assert refusal.value.status == 400


def test_a_request_sent_again_gets_another_key_and_certificate(server: Server) -> None:
    """Never two keys for one certificate: the same octets twice, on one connection and on another, are two of both."""
    request = make.csr(subject=NAME)
    found = []
    for _ in range(2):
        with server.client(basic=True, label="keys") as client:
            found += [ask(client, request), ask(client, request)]
    assert len({public(key) for key, _ in found}) == 4
    assert len({certificate.serial_number for _, certificate in found}) == 4


def test_a_device_with_a_certificate_of_ours_keeps_its_names(server: Server, folder: Path) -> None:
    """A certificate of this CA asks for another with a key of the server's making, in its own name alone."""
    with server.client(basic=True, label="keys") as client:
        key, certificate = ask(client, make.csr(subject=NAME))
    files = make.Identity(certificate, key).write(folder, "device")
    with server.client(cert=files, label="keys") as client:
        _, again = ask(client, make.csr(subject=NAME))
        assert again.subject == certificate.subject
        with pytest.raises(Refused) as refusal:
            ask(client, make.csr(subject=make.name("device-2")))
    assert refusal.value.status == 403
    assert server.rows()[-1].renews is not None


def secrets_of(key: Any) -> list[bytes]:
    """The numbers that make a private key."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return [key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8, "big")]
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        return [one.to_bytes((one.bit_length() + 7) // 8, "big") for one in (numbers.d, numbers.p, numbers.q)]
    return [key.private_bytes_raw()]


def holding(folder: Path, value: bytes) -> set[str]:
    """The files below the folder that hold these octets: as they are, in hexadecimal, or in base64 of whatever begins
    before them, also over several lines."""
    in_hex = value.hex().encode()
    in_base64 = [base64.b64encode(bytes(at) + value)[4 if at else 0 : -4] for at in range(3)]
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            text = re.sub(rb"\s|\\[rn]", b"", content)
            if value in content or in_hex in text.lower() or any(one in text for one in in_base64):
                found.add(path.name)
    return found


@pytest.mark.parametrize("wrapped", [76, 64, 0])
def test_what_a_file_holds_is_found(folder: Path, wrapped: int) -> None:
    """The search for a key finds it in DER, in either hexadecimal and in base64, on one line or on many."""
    key = device_keys.generate("rsa-2048")
    der_ = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    encoded = base64.b64encode(der_).decode()
    lines = [encoded[at : at + (wrapped or 4096)] for at in range(0, len(encoded), wrapped or 4096)]
    (folder / "below").mkdir()
    (folder / "below" / "der").write_bytes(b"x" + der_)
    (folder / "hex").write_text("x" + der_.hex())
    (folder / "HEX").write_text(der_.hex().upper())
    (folder / "lines").write_text("\n".join(lines))
    (folder / "log").write_text(json.dumps("\r\n".join(lines)))
    (folder / "other").write_bytes(public(key))
    for secret in secrets_of(key):
        assert holding(folder, secret) == {"der", "hex", "HEX", "lines", "log"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_neither_logged_nor_stored(kind: str, server: Server) -> None:
    """What was delivered is in no file of the instance: not the log, not the ledger and what belongs to it, which both
    have the certificate."""
    with server.client(basic=True, label="keys") as client:
        key, certificate = ask(client, keygen.rebuilt(make.csr(subject=NAME), device_keys.generate(kind)))
    assert csr.key_kind(key.public_key()) == kind
    serial = certificate.serial_number.to_bytes(16, "big")
    wait_for(lambda: any(line.get("serial") == serial.hex() for line in server.log_lines()), 10)
    found = holding(server.folder, serial)
    assert "serve.log" in found
    assert any(name.startswith("ledger.sqlite3") for name in found)
    for secret in secrets_of(key):
        assert holding(server.folder, secret) == set()
    assert server.metric("estd_requests_total", operation="serverkeygen", status="200") > 0


# Our own client is told what it must not believe.

OWN, ANOTHER = make.certificate(), make.certificate()
PKCS8 = OWN.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
LOCKED = OWN.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
Part = tuple[str, bytes]
KEY: Part = ("application/pkcs8", base64.b64encode(PKCS8))


def certificates(*found: bytes) -> Part:
    return (wire.CERTS_ONLY_TYPE, base64.b64encode(wire.certs_only(found)))


CERTIFICATE = certificates(OWN.der)


def multipart(*parts: Part, kind: str = "multipart/mixed; boundary=line") -> tuple[str, bytes]:
    """An answer's Content-Type and body."""
    lines = [
        f"--line\r\nContent-Type: {one}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode() + content + b"\r\n"
        for one, content in parts
    ]
    return kind, b"".join(lines) + b"--line--\r\n"


WRONG_ANSWERS: dict[str, tuple[str, bytes]] = {
    "a certificate of a key that nobody knows": multipart(
        KEY, certificates(OWN.der.replace(der.oid("1.2.840.10045.2.1"), der.oid("1.2.840.10045.2.9")))
    ),
    "a key that is no base64": multipart((KEY[0], b"A"), CERTIFICATE),
    "a certificate that is no base64": multipart(KEY, (CERTIFICATE[0], b"A")),
    "octets in place of base64": multipart((KEY[0], PKCS8), (CERTIFICATE[0], OWN.der)),
    "an empty key": multipart((KEY[0], b""), CERTIFICATE),
    "an empty certificate": multipart(KEY, (CERTIFICATE[0], b"")),
    "a key that is no key": multipart((KEY[0], CERTIFICATE[1]), CERTIFICATE),
    "a key with a password": multipart((KEY[0], base64.b64encode(LOCKED)), CERTIFICATE),
    "a key cut short": multipart((KEY[0], base64.b64encode(PKCS8[:-9])), CERTIFICATE),
    "a key on a curve that nobody knows": multipart(
        (KEY[0], base64.b64encode(PKCS8.replace(der.oid("1.2.840.10045.3.1.7"), der.oid("1.2.840.10045.3.1.9")))),
        CERTIFICATE,
    ),
    "a certificate that is none": multipart(KEY, (CERTIFICATE[0], KEY[1])),
    "a certificate without its CMS": multipart(KEY, (CERTIFICATE[0], base64.b64encode(OWN.der))),
    "a certificate of a version that there is not": multipart(KEY, certificates(make.of_version_8(OWN.der))),
    "no certificate in the CMS": multipart(KEY, certificates()),
    "two certificates": multipart(KEY, certificates(OWN.der, ANOTHER.der)),
    "a key of another certificate": multipart(KEY, certificates(ANOTHER.der)),
    "no key": multipart(CERTIFICATE),
    "a key alone": multipart(KEY),
    "three parts": multipart(KEY, CERTIFICATE, CERTIFICATE),
    "no part": multipart(),
    "the parts the other way round": multipart(CERTIFICATE, KEY),
    "a key of another media type": multipart(("application/octet-stream", KEY[1]), CERTIFICATE),
    "a certificate of another media type": multipart(KEY, ("application/pkix-cert", CERTIFICATE[1])),
    "a certificate alone, as enrolling answers": CERTIFICATE,
    "another multipart": multipart(KEY, CERTIFICATE, kind="multipart/form-data; boundary=line"),
    "another boundary": multipart(KEY, CERTIFICATE, kind="multipart/mixed; boundary=another"),
    "no boundary": multipart(KEY, CERTIFICATE, kind="multipart/mixed"),
    "an empty body": ("multipart/mixed; boundary=line", b""),
    "no text at all": ("multipart/mixed; boundary=line", bytes(range(256))),
}


class Canned:
    """Stands for a connection whose server says the same whatever it is asked."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def sendall(self, data: bytes) -> None:
        pass

    def makefile(self, *_: object, **__: object) -> io.BytesIO:
        return io.BytesIO(self._answer)

    def close(self) -> None:
        pass


def given_key(answer: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What our client makes of an answer."""
    kind, body = answer
    monkeypatch.setattr(EstClient, "_connect", lambda _: None)
    client = EstClient(Access(url="https://127.0.0.1"))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    client._http.sock = Canned(head.encode() + body)
    return ask(client, make.csr())


@pytest.mark.parametrize("case", WRONG_ANSWERS)
def test_our_client_refuses_an_answer_that_is_not_as_it_must_be(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a serverkeygen's answer: a ClientError, never anything else."""
    with pytest.raises(ClientError):
        given_key(WRONG_ANSWERS[case], monkeypatch)


def test_our_client_takes_the_answer_that_the_wrong_ones_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts in their order, each with its media type, are a key and its certificate."""
    key, certificate = given_key(multipart(KEY, CERTIFICATE), monkeypatch)
    assert (public(key), certificate) == (public(OWN.key), OWN.certificate)


# The room itself.


class Issuer:
    """Stands for the issuer: says yes, or raises."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self._refusal = refusal
        self.taken = ",".join(KINDS).encode()

    async def __call__(self, kind: int, csr_der: bytes) -> Answer:
        csr.check(csr_der)
        self.asked.append((kind, csr_der))
        if self._refusal is not None:
            raise self._refusal
        return Answer(0, 200, 0, 0, "", b"\x01", b"certificate" if kind == frames.KEYGEN else self.taken)


class Maker:
    """Counts the keys that are made."""

    def __init__(self) -> None:
        self.made = 0

    async def make(self, kind: str, asked_der: bytes) -> keygen.Made:
        self.made += 1
        return keygen._make(kind, asked_der)


@pytest.mark.parametrize("refusal", [Unauthenticated, Forbidden, BadRequest])
def test_R20_the_issuer_is_asked_before_a_key_is_made(refusal: type[EstError]) -> None:
    """R20: who may not have the certificate makes the server compute no key; who may has one made."""
    maker, issuer = Maker(), Issuer(refusal(Reason.NOT_GRANTED, "no"))
    with pytest.raises(refusal):
        asyncio.run(keygen.KeyService(maker).serve(make.csr(), ("rsa-4096",), issuer))
    assert (maker.made, [kind for kind, _ in issuer.asked]) == (0, [frames.MAY])
    asyncio.run(keygen.KeyService(maker).serve(make.csr(), ("ec-p256",), Issuer()))
    assert maker.made == 1


def test_the_rebuilt_request_keeps_subject_and_attributes() -> None:
    """Both frames carry the client's subject, extensions and challengePassword byte for byte, under other keys."""
    asked = make.csr(subject=NAME, san=[x509.DNSName("a.example")], challenge_password=b"value")
    issuer = Issuer()
    given, private_key = asyncio.run(keygen.KeyService(keygen.SoftwareKeys()).serve(asked, ("ed25519",), issuer))
    assert given.payload == b"certificate"
    client = csr.parse(asked)
    for kind, csr_der in issuer.asked:
        found = csr.parse(csr_der)
        assert found.subject == client.subject
        assert found.challenge_password == b"value"
        assert [one.value for one in found.extensions] == [one.value for one in client.extensions]
        assert found.spki_der != client.spki_der
        if kind == frames.KEYGEN:
            assert public(load_der_private_key(private_key, None)) == found.spki_der


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_rebuilt_with_a_signature_that_holds(kind: str) -> None:
    """OpenSSL verifies the rebuilt request."""
    request = keygen.rebuilt(make.csr(subject=NAME), device_keys.generate(kind))
    csr.check(request)
    judge.openssl("req", "-inform", "DER", "-noout", "-verify", data=request)


def test_more_RSA_keys_than_an_edge_makes_are_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded; one more is told to come back, EC keys are made meanwhile, and room comes back. A client
    that leaves makes no room before its key is made."""
    go = threading.Event()

    def slow(kind: str, asked_der: bytes) -> keygen.Made:
        if kind.startswith("rsa-"):
            assert go.wait(20)
        return keygen.Made(asked_der, b"key")

    monkeypatch.setattr(keygen, "_make", slow)

    async def play() -> None:
        keys = keygen.SoftwareKeys()
        waiting = [asyncio.ensure_future(keys.make("rsa-2048", b"")) for _ in range(keygen._WAITING_MAX)]
        await asyncio.sleep(0)
        waiting[-1].cancel()
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="more keys to generate") as refusal:
            await keys.make("rsa-2048", b"")
        assert refusal.value.retry_after
        assert (await keys.make("ec-p256", b"")).private_key == b"key"
        go.set()
        await asyncio.gather(*waiting[:-1])
        await asyncio.get_running_loop().run_in_executor(keys._thread._pool, int)  # behind the one that was left
        await asyncio.sleep(0)
        assert keys._thread._under_way == 0
        await keys.make("rsa-2048", b"")

    asyncio.run(play())


@pytest.mark.parametrize("content", [b"", b"\x30\x00", b"\x30\x80", b"not DER", make.csr()[:-3], make.csr() + b"\0"])
def test_what_is_no_request_is_refused(content: bytes) -> None:
    """Hostile octets are a 400 before anything is taken out of them."""
    with pytest.raises(BadRequest):
        keygen.wanted_kind(content)


@pytest.mark.parametrize("case", UNKNOWN)
def test_attributes_that_nobody_knows_are_ignored(case: str) -> None:
    """Beside an attribute that means nothing here a decryption key is found, and without one the kind is told."""
    assert keygen.wanted_kind(request(UNKNOWN[case])) == "ec-p256"
    for oid in DECRYPT_KEYS.values():
        for named in (attribute(oid, der.NULL), attribute(oid, der.NULL, der.uint(1)), attribute(oid)):
            with pytest.raises(BadRequest, match="protected by TLS alone"):
                keygen.wanted_kind(request(UNKNOWN[case], named))


def test_changed_octets_are_rebuilt_or_refused() -> None:
    """Whatever octet is changed: a 400, or a request that holds by itself or that the issuer's check refuses."""
    asked = make.csr(subject=NAME, san=[x509.DNSName("a.example")])
    key = device_keys.generate("ec-p256")
    for at in range(len(asked)):
        for change in (0x01, 0x80, 0xFF):
            other = asked[:at] + bytes((asked[at] ^ change,)) + asked[at + 1 :]
            try:
                keygen.wanted_kind(other)
                csr.check(keygen.rebuilt(other, key))
            except BadRequest:
                continue
