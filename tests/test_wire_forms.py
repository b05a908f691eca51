"""The exact form of requests and answers on the wire (docs/clients.md): raw HTTP over real TLS, byte by byte."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estd import wire
from tests import make
from tests.clients import judge
from tests.servers import Server

EST = "/.well-known/est"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
PKCS10 = "Content-Type: application/pkcs10"


@dataclass(frozen=True)
class Answer:
    """One HTTP answer as it came."""

    status_line: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.status_line.split(" ")[1])

    def header(self, name: str) -> str | None:
        """Its value; None where it is absent. Nothing that matters may come twice."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, found
        return found[0] if found else None

    @property
    def certificates(self) -> list[x509.Certificate]:
        return pkcs7.load_der_pkcs7_certificates(base64.b64decode(self.body, validate=False))


class Wire:
    """One TLS connection on which bytes go out as the test says."""

    def __init__(self, server: Server, cert: tuple[Path, Path] | None = None) -> None:
        context = ssl.create_default_context(cafile=str(server.folder / "ca.pem"))
        if cert is not None:
            context.load_cert_chain(*cert)
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        # Without suppression an end of TCP that no close_notify announced raises SSLEOFError.
        self.tls = context.wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        self._came = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.tls.close()

    def send(self, data: bytes) -> None:
        self.tls.sendall(data)

    def _more(self) -> bool:
        part = self.tls.recv(65536)
        self._came += part
        return bool(part)

    def read(self, *, head_only: bool = False) -> Answer:
        """The next answer, whose length its Content-Length must tell."""
        while b"\r\n\r\n" not in self._came:
            assert self._more(), f"the connection ended inside {self._came!r}"
        head, _, self._came = self._came.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("ascii").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        answer = Answer(status_line, headers, b"")
        if answer.status == 100:
            return self.read(head_only=head_only)
        length = answer.header("Content-Length")
        assert length is not None, headers
        assert answer.header("Transfer-Encoding") is None
        wanted = 0 if head_only else int(length)
        while len(self._came) < wanted:
            assert self._more(), f"{len(self._came)} bytes of {wanted} came"
        body, self._came = self._came[:wanted], self._came[wanted:]
        return Answer(status_line, headers, body)

    def ended(self) -> bool:
        """The server says close_notify, and nothing before it."""
        return self._came == b"" and self.tls.recv(1) == b""


def request(
    method: str, path: str, *headers: str, body: bytes | None = None, sized: bool = True, version: str = "1.1"
) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/{version}", "Host: est.example.com", *headers]
    if body is not None and sized:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def basic(server: Server, user: str | None = None, password: str | None = None) -> str:
    """The Authorization header of the factory, or of somebody else."""
    known_user, known_password = server.basic
    pair = f"{known_user if user is None else user}:{known_password if password is None else password}"
    return "Authorization: Basic " + base64.b64encode(pair.encode()).decode()


def ask(server: Server, data: bytes, *, cert: tuple[Path, Path] | None = None) -> Answer:
    """One answer on a connection of its own."""
    with Wire(server, cert) as connection:
        connection.send(data)
        return connection.read(head_only=data.startswith(b"HEAD"))


def enroll(server: Server, body: bytes, *headers: str, path: str = f"{EST}/simpleenroll") -> Answer:
    """POST the body with the factory's credential."""
    return ask(server, request("POST", path, basic(server), *headers, body=body))


@cache
def rsa_4096_csr() -> bytes:
    """A request whose certificate takes more than 1,022 characters."""
    return make.csr(rsa.generate_private_key(65537, 4096))


def wrapped(text: bytes, width: int, end: bytes = b"\n") -> bytes:
    return end.join(text[at : at + width] for at in range(0, len(text), width)) + end


def assert_refusal(answer: Answer, status: int) -> str:
    """The form of every refusal but a 401: a sentence as plain text. Returns it."""
    assert answer.status == status, answer
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"
    assert answer.header("Content-Transfer-Encoding") is None
    sentence = answer.body.decode()
    assert sentence.endswith(".\n")
    assert sentence.count("\n") == 1
    assert len(sentence.split()) >= 4
    return sentence


# The answer that pleases all.


@pytest.mark.parametrize("path", [f"{EST}/cacerts", f"{EST}/default/cacerts", f"{EST}/sites/cacerts"])
def test_R1_R4_R17_R18_cacerts_has_the_form_that_every_client_takes(server: Server, path: str) -> None:
    """R1, R4, R17, R18: under the well-known path, with a label and without, the root alone, nobody asked who it is."""
    answer = ask(server, request("GET", path))
    assert answer.status_line == "HTTP/1.1 200 OK"
    assert answer.header("Content-Type") == CERTS_ONLY
    assert answer.header("Content-Transfer-Encoding") == "base64"
    assert answer.certificates == [server.ca]
    assert answer.body.endswith(b"\n")
    assert answer.body.count(b"\n") == 1
    assert len(answer.body) - 1 <= 1022


def test_R17_cacerts_asks_nothing_of_a_client_certificate(server: Server, folder: Path) -> None:
    """R17: whoever shows a certificate of a CA that nobody knows gets the CA certificates too."""
    stranger = make.certificate().write(folder, "stranger")
    assert ask(server, request("GET", f"{EST}/cacerts"), cert=stranger).certificates == [server.ca]


@pytest.mark.parametrize("path", [f"{EST}/simpleenroll", f"{EST}/default/simpleenroll", f"{EST}/sites/simpleenroll"])
def test_R1_R4_R25_enrolment_answers_the_leaf_alone(server: Server, path: str) -> None:
    """R1, R4, R25: status 200, certs-only, base64 on one line, and in it the issued certificate and nothing else."""
    key = make.key()
    answer = enroll(server, make.body(make.csr(key)), PKCS10, path=path)
    assert answer.status_line == "HTTP/1.1 200 OK"
    assert answer.header("Content-Type") == CERTS_ONLY
    assert answer.header("Content-Transfer-Encoding") == "base64"
    (leaf,) = answer.certificates
    assert leaf.public_key() == key.public_key()
    leaf.verify_directly_issued_by(server.ca)
    assert answer.body.endswith(b"\n")
    assert answer.body.count(b"\n") == 1
    assert len(answer.body) - 1 <= 1022


def test_R2_R25_re_enrolment_answers_the_leaf_alone(server: Server, folder: Path) -> None:
    """R2, R25: simplereenroll answers in the same form, to the certificate that was issued before."""
    key = make.key()
    first = make.Identity(enroll(server, make.body(make.csr(key)), PKCS10).certificates[0], key)
    data = request("POST", f"{EST}/simplereenroll", PKCS10, body=make.body(make.csr()))
    answer = ask(server, data, cert=first.write(folder, "first"))
    assert (answer.status_line, answer.header("Content-Type")) == ("HTTP/1.1 200 OK", CERTS_ONLY)
    (leaf,) = answer.certificates
    assert leaf.serial_number != first.certificate.serial_number


_SENT_FORMS: list[tuple[str, Any, bool]] = [
    ("one line", lambda text: text + b"\n", False),
    ("one line without an end", lambda text: text, False),
    ("one line with empty ones around", lambda text: b"\r\n\n" + text + b"\n\n\n", False),
    ("wrapped at 64", lambda text: wrapped(text, 64), True),
    ("wrapped at 76 by CR LF", lambda text: wrapped(text, 76, b"\r\n"), True),
]


@pytest.mark.parametrize(("form", "is_wrapped"), [one[1:] for one in _SENT_FORMS], ids=[one[0] for one in _SENT_FORMS])
def test_a_long_answer_mirrors_the_form_of_its_request(server: Server, form: Any, is_wrapped: bool) -> None:
    """Beyond 1,022 characters: one line to who sent one line, wrapped at 64 to who wrapped."""
    answer = enroll(server, form(base64.b64encode(rsa_4096_csr())), PKCS10)
    assert len(answer.certificates) == 1
    assert len(base64.b64encode(base64.b64decode(answer.body))) > 1022
    lines = answer.body.decode().split("\n")
    assert lines.pop() == ""
    assert (len(lines) > 1) == is_wrapped
    if is_wrapped:
        assert {len(line) for line in lines[:-1]} == {64}
        assert 0 < len(lines[-1]) <= 64


@pytest.mark.parametrize("form", [one[1] for one in _SENT_FORMS], ids=[one[0] for one in _SENT_FORMS])
def test_a_short_answer_is_one_line_whatever_the_request(server: Server, form: Any) -> None:
    """Up to 1,022 characters every client takes one line, so that is what it gets."""
    answer = enroll(server, form(base64.b64encode(make.csr())), PKCS10)
    assert answer.status == 200
    assert answer.body.count(b"\n") == 1


def _of_characters(count: int) -> bytes:
    """What stands for a certificate in a certs-only message of exactly `count` base64 characters."""
    for size in range(1, count):
        one = b"\x04\x82" + size.to_bytes(2, "big") + b"\0" * size
        if len(base64.b64encode(wire.certs_only([one]))) == count:
            return one
    raise AssertionError(f"no message has {count} characters")


@pytest.mark.parametrize(("characters", "long"), [(1020, False), (1024, True), (1172, True)])
def test_the_line_of_1022_characters_is_where_the_form_changes(characters: int, long: bool) -> None:
    """libest reads 1,022 characters in a line; base64 comes in fours, so 1,020 is the last that fits."""
    one = _of_characters(characters)
    plain = base64.b64encode(wire.certs_only([one]))
    split = wrapped(plain, 64) if long else plain + b"\n"
    assert wire.enrolled(one, wrapped=False) == plain + b"\n"
    assert wire.enrolled(one, wrapped=True) == split
    assert wire.cacerts([one], one_line=False) == split
    assert wire.cacerts([one], one_line=True) == plain + b"\n"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_R18_R40_certs_only_is_the_DER_that_cryptography_makes(count: int) -> None:
    """R18, R40: whatever the order they are given in, the certificates make the DER (a SET OF is sorted, X.690 §11.6)
    that cryptography makes, and OpenSSL reads every one of them."""
    made = [make.certificate(subject=make.name(f"device-{number}")).certificate for number in range(count)]
    # The wrong way round, so that chance does not sort them.
    made.sort(key=lambda one: one.public_bytes(Encoding.DER), reverse=True)
    ours = wire.certs_only([one.public_bytes(Encoding.DER) for one in made])
    assert set(judge.certificates(ours)) == {one.public_bytes(Encoding.PEM) for one in made}
    assert ours == pkcs7.serialize_certificates(made, Encoding.DER)


# Requests in any form.


_WHITE = {
    "none": lambda text: text,
    "wrapped at 64": lambda text: wrapped(text, 64),
    "CR LF at 76": lambda text: wrapped(text, 76, b"\r\n"),
    "CR alone": lambda text: wrapped(text, 64, b"\r"),
    "spaces and tabs": lambda text: b" \t" + wrapped(text, 5, b"\t ") + b" \t",
    "after every character": lambda text: wrapped(text, 1, b"\r\n \t"),
    "before and after": lambda text: b"\r\n\r\n \t" + text + b"\t \n\n",
}
_CALLED = [None, "base64", "binary", "BASE64", "8bit", "7bit", "quoted-printable", "nonsense"]


@pytest.mark.parametrize("called", _CALLED)
@pytest.mark.parametrize("white", _WHITE.values(), ids=_WHITE)
def test_R40_white_space_and_the_transfer_encoding_mean_nothing(server: Server, white: Any, called: str | None) -> None:
    """R40: CR, LF, space and tab anywhere, under any Content-Transfer-Encoding or none, are the same request."""
    headers = [PKCS10] if called is None else [PKCS10, f"Content-Transfer-Encoding: {called}"]
    key = make.key()
    answer = enroll(server, white(base64.b64encode(make.csr(key))), *headers)
    assert [one.public_key() for one in answer.certificates] == [key.public_key()]


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_chunked_request_is_read(server: Server, size: int) -> None:
    """Chunks of any size, with chunk extensions and a trailer, make one request (estclient in Go sends them)."""
    text = make.body(make.csr())
    chunks = b"".join(
        b"%x;name=value\r\n%b\r\n" % (len(part), part)
        for part in (text[at : at + size] for at in range(0, len(text), size))
    )
    body = chunks + b"0\r\nTrailing: yes\r\n\r\n"
    headers = [basic(server), PKCS10, "Transfer-Encoding: chunked"]
    answer = ask(server, request("POST", f"{EST}/simpleenroll", *headers, body=body, sized=False))
    assert len(answer.certificates) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "Content-Type: application/pkcs10",
        "Content-Type: application/pkcs10; charset=utf-8",
        "Content-Type: Application/PKCS10",
        "Content-Type: application/x-pkcs10",
        "X-Nothing: no Content-Type at all",
    ],
)
def test_R7_the_media_type_of_a_request(server: Server, kind: str) -> None:
    """R7: application/pkcs10 in any case and with any parameter is taken, and so is a request that names no type."""
    assert enroll(server, make.body(make.csr()), kind).status == 200


@pytest.mark.parametrize(
    "kind",
    [
        "application/pkcs7-mime", "application/x-www-form-urlencoded", "application/json", "text/plain",
        "application/x-pem-file", "application/pkcs10x", "multipart/mixed; boundary=x",
    ],
)  # fmt: skip
def test_R7_R26_another_media_type_is_415(server: Server, kind: str) -> None:
    """R7, R26: what calls itself something else is 415, and the sentence names both types."""
    sentence = assert_refusal(enroll(server, make.body(make.csr()), f"Content-Type: {kind}"), 415)
    assert "application/pkcs10" in sentence
    assert kind.partition(";")[0] in sentence


def test_R7_a_compressed_body_is_415(server: Server) -> None:
    """R7: a Content-Encoding other than identity is 415; nobody unpacks what a stranger packed."""
    answer = enroll(server, make.body(make.csr()), PKCS10, "Content-Encoding: gzip")
    assert "compressed" in assert_refusal(answer, 415)


def test_PEM_is_taken_where_the_label_allows_it(server: Server) -> None:
    """Cisco IOS 15 sends PEM, by its own media type: a label that allows it reads the request in it, others say 400."""
    armour = x509.load_der_x509_csr(make.csr()).public_bytes(Encoding.PEM)
    here, there = f"{EST}/trimmed/simpleenroll", f"{EST}/simpleenroll"
    for kind in ("application/x-pem-file", "application/pkcs10"):
        # It goes on to the policy of the label, which demands linking.
        answer = enroll(server, armour, f"Content-Type: {kind}", path=here)
        assert "linked proof of possession" in assert_refusal(answer, 400)
    assert "PEM" in assert_refusal(enroll(server, armour, PKCS10, path=there), 400)


# Refusals.


def _with_its_last_bit_turned(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


_BROKEN: dict[str, Any] = {
    "empty": lambda text: b"",
    "white space": lambda text: b" \r\n\t",
    "not base64": lambda text: b"!" + text,
    "cut short": lambda text: text[:-6],
    "twice": lambda text: text + text,
    "base64url": lambda text: b"-_-_" + text,
    "not DER": lambda text: base64.b64encode(b"hello, world"),
    "a byte behind": lambda text: base64.b64encode(base64.b64decode(text) + b"\0"),
    "bare DER": base64.b64decode,
    "PEM": lambda text: b"-----BEGIN CERTIFICATE REQUEST-----\n" + text + b"\n-----END CERTIFICATE REQUEST-----\n",
    "broken signature": lambda text: base64.b64encode(_with_its_last_bit_turned(base64.b64decode(text))),
}


@pytest.mark.parametrize("broken", _BROKEN.values(), ids=_BROKEN)
def test_R26_R41_a_body_that_is_no_request_is_400(server: Server, broken: Any) -> None:
    """R21, R26, R41: what is not base64, not DER or not signed by its key is 400 with a sentence in plain text."""
    assert_refusal(enroll(server, broken(base64.b64encode(make.csr())), PKCS10), 400)


def test_R26_a_body_that_is_too_large_is_413(server: Server) -> None:
    """R26: over the label's limit, told by its size or found in its chunks, is 413 before anybody reads it all."""
    for headers, body, sized in (
        ([PKCS10], b"A" * 9000, True),
        ([PKCS10, "Transfer-Encoding: chunked"], b"2328\r\n" + b"A" * 9000 + b"\r\n0\r\n\r\n", False),
    ):
        data = request("POST", f"{EST}/trimmed/simpleenroll", basic(server), *headers, body=body, sized=sized)
        assert "8192" in assert_refusal(ask(server, data), 413)


@pytest.mark.parametrize(
    ("method", "operation", "allow"),
    [
        ("GET", "simpleenroll", "POST"),
        ("PUT", "simpleenroll", "POST"),
        ("DELETE", "simplereenroll", "POST"),
        ("OPTIONS", "simplereenroll", "POST"),
        ("POST", "cacerts", "GET, HEAD"),
        ("PUT", "cacerts", "GET, HEAD"),
    ],
)
def test_R26_another_method_is_405_and_says_which(server: Server, method: str, operation: str, allow: str) -> None:
    """R26: 405 carries Allow."""
    answer = ask(server, request(method, f"{EST}/{operation}", body=b"" if method in ("POST", "PUT") else None))
    assert_refusal(answer, 405)
    assert answer.header("Allow") == allow


@pytest.mark.parametrize(
    "path", ["/", "/.well-known", "/.well-known/est", "/.well-known/est/", f"{EST}/nothing", f"{EST}/nobody/cacerts"]
)
def test_R1_R26_another_path_is_404(server: Server, path: str) -> None:
    """R1, R26: EST is under its well-known path and nothing else is anywhere."""
    assert_refusal(ask(server, request("GET", path)), 404)


def test_R26_a_refused_name_is_403(server: Server) -> None:
    """R26: known, but not for this name: 403, and the sentence repeats the name."""
    body = make.body(make.csr(subject=make.name("router-1")))
    answer = enroll(server, body, PKCS10, path=f"{EST}/sites/simpleenroll")
    assert "router-1" in assert_refusal(answer, 403)


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
        b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)  # fmt: skip
def test_R26_what_is_not_HTTP_is_told_so(server: Server, data: bytes) -> None:
    """R26: a 400 in the same form and the end of the connection, also for a length that is told twice."""
    with Wire(server) as connection:
        connection.send(data)
        assert_refusal(connection.read(), 400)
        assert connection.ended()


_NOBODY: dict[str, Any] = {
    "nothing": lambda server: [],
    "wrong password": lambda server: [basic(server, password="wrong")],
    "wrong name": lambda server: [basic(server, user="nobody")],
    "not base64": lambda server: ["Authorization: Basic ???"],
    "no colon": lambda server: ["Authorization: Basic " + base64.b64encode(b"factory").decode()],
    "Digest": lambda server: ['Authorization: Digest username="factory"'],
    "Bearer": lambda server: ["Authorization: Bearer " + "x" * 100],
}


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
@pytest.mark.parametrize("who", _NOBODY.values(), ids=_NOBODY)
def test_R5_R20_a_401_names_the_scheme_and_has_no_body(server: Server, who: Any, operation: str) -> None:
    """R5, R20: WWW-Authenticate: Basic with a realm, Content-Length: 0, nothing after it; the connection goes on."""
    data = request("POST", f"{EST}/{operation}", *who(server), PKCS10, body=make.body(make.csr()))
    with Wire(server) as connection:
        connection.send(data)
        answer = connection.read()
        assert answer.status == 401
        assert (answer.header("WWW-Authenticate") or "").startswith('Basic realm="')
        assert answer.header("Content-Length") == "0"
        assert answer.header("Content-Type") is None
        assert answer.header("Estd-Error")
        connection.send(request("POST", f"{EST}/simpleenroll", basic(server), PKCS10, body=make.body(make.csr())))
        assert connection.read().status == 200


def test_R20_a_certificate_of_an_unknown_ca_is_401(server: Server, folder: Path) -> None:
    """R10, R20: TLS lets it in so that HTTP can tell it why it is nobody here."""
    stranger = make.certificate().write(folder, "stranger")
    answer = ask(server, request("POST", f"{EST}/simpleenroll", PKCS10, body=make.body(make.csr())), cert=stranger)
    assert answer.status == 401
    assert answer.header("Content-Length") == "0"
    assert "no path to a trust anchor" in (answer.header("Estd-Error") or "")


_ASIDE = [
    f"{EST}/simpleenroll/", f"{EST}/default/simpleenroll/", f"{EST}//simpleenroll", f"/{EST}/simpleenroll",
    "/.well-known//est/simpleenroll", f"{EST}/default//simpleenroll", f"{EST}/./simpleenroll",
    f"{EST}/../est/simpleenroll", f"{EST}/SimpleEnroll", f"{EST}/nobody/simpleenroll", "/simpleenroll",
]  # fmt: skip


@pytest.mark.parametrize("path", _ASIDE)
def test_R38_a_POST_is_never_redirected(server: Server, path: str) -> None:
    """R38: a path beside the right one is 404 at once: a client that follows a redirection would send no body there."""
    answer = enroll(server, make.body(make.csr()), PKCS10, path=path)
    assert_refusal(answer, 404)
    assert answer.header("Location") is None


@pytest.mark.parametrize("path", [f"{EST}/simpleenroll/", f"{EST}//simpleenroll", f"{EST}/default/simpleenroll/"])
def test_R26_a_slash_too_many_is_called_that(server: Server, path: str) -> None:
    """R26: the sentence does not take the operation, or the label with the operation, for an unknown label, nor does it
    say that an operation which is offered is not."""
    sentence = assert_refusal(enroll(server, make.body(make.csr()), PKCS10, path=path), 404)
    assert "no label" not in sentence
    assert "not offered" not in sentence


@pytest.mark.parametrize("path", [f"{EST}/simpleenroll?a=b", f"https://est.example.com{EST}/simpleenroll"])
def test_R38_a_query_and_an_absolute_target_are_the_same_operation(server: Server, path: str) -> None:
    """R38: what a proxy may make of the request's target (RFC 9112 §3.2.2) is served, not redirected."""
    assert enroll(server, make.body(make.csr()), PKCS10, path=path).status == 200


# Connections.


def _closing(server: Server) -> list[bytes]:
    post = [basic(server), PKCS10]
    return [
        request("GET", f"{EST}/cacerts", "Connection: close"),
        request("GET", f"{EST}/cacerts", version="1.0"),
        request("POST", f"{EST}/simpleenroll", *post, "Connection: close", body=make.body(make.csr())),
        request("POST", f"{EST}/simpleenroll", *post, body=make.body(make.csr()), version="1.0"),
        request("POST", f"{EST}/simpleenroll", "Connection: close", body=b"A"),
        request("POST", f"{EST}/simpleenroll", *post, "Connection: close", body=b"A"),
    ]


def test_a_connection_that_is_to_close_ends_in_close_notify(server: Server) -> None:
    """`Connection: close` and HTTP/1.0 get the whole answer with its length, then close_notify: no truncation."""
    for data in _closing(server):
        with Wire(server) as connection:
            connection.send(data)
            connection.read()
            assert connection.ended()


def test_HTTP_1_0_may_keep_its_connection(server: Server) -> None:
    """An HTTP/1.0 client that asks for keep-alive gets it."""
    with Wire(server) as connection:
        for _ in range(2):
            connection.send(request("GET", f"{EST}/cacerts", "Connection: keep-alive", version="1.0"))
            answer = connection.read()
            assert (answer.status, (answer.header("Connection") or "").lower()) == (200, "keep-alive")


@pytest.mark.parametrize(("operation", "status"), [("cacerts", 200), ("nothing", 404), ("simpleenroll", 405)])
def test_HEAD_is_the_head_of_GET(server: Server, operation: str, status: int) -> None:
    """HEAD answers what GET would, with its length and without its body."""
    got = ask(server, request("GET", f"{EST}/{operation}"))
    with Wire(server) as connection:
        connection.send(request("HEAD", f"{EST}/{operation}", "Connection: close"))
        head = connection.read(head_only=True)
        assert connection.ended()
    assert (got.status, head.status) == (status, status)
    for name in ("Content-Length", "Content-Type", "Content-Transfer-Encoding", "Allow"):
        assert head.header(name) == got.header(name)


def test_Expect_is_answered_with_100(server: Server) -> None:
    """A client that waits before it sends its body is told to go on, and then gets its certificate."""
    body = make.body(make.csr())
    headers = [basic(server), PKCS10, "Expect: 100-continue", f"Content-Length: {len(body)}"]
    with Wire(server) as connection:
        connection.send(request("POST", f"{EST}/simpleenroll", *headers))
        assert connection.tls.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(body)
        assert connection.read().status == 200


def test_Expect_is_not_answered_with_100_where_nobody_may_enroll(server: Server) -> None:
    """A client without a credential is told 401 before it sends its body, so that it may not send it at all."""
    headers = [PKCS10, "Expect: 100-continue", "Content-Length: 500"]
    with Wire(server) as connection:
        connection.send(request("POST", f"{EST}/simpleenroll", *headers))
        assert connection.tls.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_answers_come_in_the_order_of_the_requests(server: Server) -> None:
    """Requests sent at once on one connection, a refused one among them, are answered one after the other."""
    good = request("POST", f"{EST}/simpleenroll", basic(server), PKCS10, body=make.body(make.csr()))
    bad = request("POST", f"{EST}/simpleenroll", basic(server), PKCS10, body=b"A")
    with Wire(server) as connection:
        connection.send(good + bad + request("GET", f"{EST}/cacerts") + good)
        assert [connection.read().status for _ in range(4)] == [200, 400, 200, 200]


def test_a_request_may_come_byte_by_byte(server: Server) -> None:
    """However TLS cuts a request, it is one: strongSwan and libest write header and body apart."""
    with Wire(server) as connection:
        data = request("POST", f"{EST}/simpleenroll", basic(server), PKCS10, body=make.body(make.csr()))
        for at in range(0, len(data), 11):
            connection.send(data[at : at + 11])
        assert connection.read().status == 200


def test_the_head_of_an_answer_is_short(server: Server) -> None:
    """strongSwan wants the whole header within the first 1,024 bytes that it reads."""
    body = make.body(make.csr())
    for data in (
        request("GET", f"{EST}/cacerts"),
        request("POST", f"{EST}/simpleenroll", basic(server), PKCS10, body=body),
        request("POST", f"{EST}/simpleenroll", PKCS10, body=body),
    ):
        answer = ask(server, data)
        head = [answer.status_line, *(f"{name}: {value}" for name, value in answer.headers)]
        assert sum(len(line) + 2 for line in head) + 2 < 1024


def test_python_reads_the_answer_too(server: Server) -> None:
    """Another reader of HTTP than this file's finds nothing amiss in the names of many kinds."""
    san: Sequence[x509.GeneralName] = [
        x509.DNSName("device-1.devices.example.com"),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        x509.UniformResourceIdentifier("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
    ]
    context = ssl.create_default_context(cafile=str(server.folder / "ca.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=context)
    name, _, value = basic(server).partition(": ")
    headers = {name: value, "Content-Type": "application/pkcs10"}
    # A body without a length makes http.client send chunks.
    connection.request("POST", f"{EST}/simpleenroll", BytesIO(make.body(make.csr(san=san))), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    (leaf,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.read()))
    assert list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == san
    connection.close()
