"""What no well-meaning client sends: each is answered from the status table with a plain sentence, and harms nobody."""

from __future__ import annotations

import base64
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from tests import make, servers, test_csr
from tests.csr_forms import flipped
from tests.line import (
    BODY,
    CACERTS,
    CSR,
    ENROLL,
    HANG_SECONDS,
    ROOT,
    TABLE,
    VERSIONS,
    Answer,
    Line,
    assert_plain,
    assert_served,
    basic,
    get,
    request,
)
from tests.servers import Server, wait_for

SIGNED = slice(*test_csr.signed_part(CSR))
PEM = b"-----BEGIN CERTIFICATE REQUEST-----\n" + BODY + b"-----END CERTIFICATE REQUEST-----\n"


def enroll(body: bytes, *more: str, **differences: object) -> bytes:
    """A POST to simpleenroll with a right credential."""
    return request(body, "BASIC", *more, **differences)  # type: ignore[arg-type]


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + end
    return enroll(body, "Transfer-Encoding: chunked", length=-1)


def signed(*attributes: bytes, **differences: object) -> bytes:
    return enroll(make.body(test_csr.request(*attributes, **differences)))  # type: ignore[arg-type]


CASES: dict[str, tuple[int, Callable[[], bytes], str]] = {
    # case: status, request, part of the sentence
    "bodies: empty": (400, lambda: enroll(b""), "empty"),
    "bodies: none, without a length": (400, lambda: enroll(b"", length=-1), "empty"),
    "bodies: bad base64": (400, lambda: enroll(b"!!!!"), "not base64"),
    "bodies: bare DER": (400, lambda: enroll(CSR), "bare DER"),
    "bodies: PEM where not allowed": (400, lambda: enroll(PEM), "PEM"),
    "bodies: PEM where allowed is read, and lacks its linking": (
        400, lambda: enroll(PEM, path=ROOT + "trimmed/simpleenroll", kind="application/x-pem-file"), "linked",
    ),
    "bodies: PEM without content where allowed": (
        400, lambda: enroll(b"\n".join(PEM.splitlines()[::2]), path=ROOT + "trimmed/simpleenroll"), "",
    ),
    "bodies: base64 of nothing that is a request": (400, lambda: enroll(b"AAAA"), "PKCS#10"),
    "bodies: a certificate": (400, lambda: enroll(base64.b64encode(make.certificate().der)), "PKCS#10"),
    "bodies: no request for a key that waits for a person": (
        400, lambda: enroll(b"MAA=", path=ROOT + "approval/serverkeygen"), "PKCS#10",
    ),
    "bodies: text for a key that waits for a person": (
        400, lambda: enroll(b"bm90IGEgY3Ny", path=ROOT + "approval/serverkeygen"), "PKCS#10",
    ),
    "bodies: a cut request": (400, lambda: enroll(base64.b64encode(CSR[:-5])), "PKCS#10"),
    "media type: JSON": (415, lambda: enroll(BODY, kind="application/json"), "application/pkcs10"),
    "media type: a form": (415, lambda: enroll(BODY, kind="application/x-www-form-urlencoded"), "application/pkcs10"),
    "media type: PEM where not allowed": (415, lambda: enroll(BODY, kind="application/x-pem-file"), "pkcs10"),
    "media type: nothing readable": (415, lambda: enroll(BODY, kind="\xff\xfe" * 40), "application/pkcs10"),
    "coding: gzip": (415, lambda: enroll(BODY, "Content-Encoding: gzip"), "compressed"),
    "coding: deflate": (415, lambda: enroll(BODY, "Content-Encoding: deflate"), "compressed"),
    "size: a declared body over the limit": (413, lambda: enroll(b"", length=65537), "65536"),
    "size: ten gigabytes declared": (413, lambda: enroll(b"", length=10**10), "65536"),
    "size: over the limit and sent": (413, lambda: enroll(b"A" * 300_000), "65536"),
    "size: chunks over the limit": (413, lambda: chunked(b"A" * 40_000, b"A" * 40_000), "65536"),
    "size: endless chunks": (413, lambda: chunked(b"A" * 70_000, end=b"10000000\r\n" + b"A" * 9000), "65536"),
    "size: a label's own limit": (413, lambda: enroll(b"A" * 9000, path=ROOT + "trimmed/simpleenroll"), "8192"),
    "R21 a bad signature": (400, lambda: enroll(make.body(flipped(CSR, 8 * 40))), ""),
    "a weak key": (400, lambda: enroll(make.body(make.csr(test_csr.rsa_key(1024)))), "1024"),
    "a curve that is not taken": (
        400, lambda: enroll(make.body(make.csr(ec.generate_private_key(ec.SECP256K1())))), "curve",
    ),
    "a key that the profile does not take": (
        400, lambda: enroll(make.body(make.csr(ec.generate_private_key(ec.SECP384R1()))),
                            path=ROOT + "sites/simpleenroll"), "keys",
    ),
    "a hybrid point": (400, lambda: signed(spki_der=test_csr.ec_spki(test_csr.hybrid())), ""),
    "a request of version 1": (400, lambda: signed(version=1), "PKCS#10"),
    "an extension twice": (
        400, lambda: signed(test_csr.wants(*[test_csr.extension("2.5.29.17", test_csr.A_SAN)] * 2)), "",
    ),
    "an x400Address": (400, lambda: signed(test_csr.general_name(0xA3, b"\x30\0")), ""),
    "a common name that is a BIT STRING": (
        400, lambda: enroll(make.body(test_csr.REFUSED["a common name that is a BIT STRING"][0]())), "",
    ),
    "a common name of 40 characters in 80 octets": (
        403, lambda: signed(subject=test_csr.subject_of(test_csr.der.oid("2.5.4.3"),
                                                        test_csr.der.tlv(0x0C, ("é" * 40).encode()))), "",
    ),
    "a name that nobody grants": (
        403, lambda: enroll(make.body(make.csr(san=[x509.RFC822Name("a@b.example")]))), "RFC822Name",
    ),
    "10,000 levels": (400, lambda: enroll(make.body(test_csr.deep(10_000))), "PKCS#10"),
    "an OID of 20,000 arcs": (400, lambda: enroll(make.body(test_csr.COSTLY["an OID of 20,000 arcs"]())), ""),
    "explicit EC parameters": (400, lambda: enroll(make.body(test_csr.COSTLY["explicit EC parameters"]())), ""),
    "R20 no credential": (401, lambda: request(BODY), "credential"),
    "R20 no credential, no body": (401, lambda: request(b""), "credential"),
    "R5 a wrong password": (
        401, lambda: request(BODY, "Authorization: Basic " + base64.b64encode(b"factory:x").decode()), "wrong",
    ),
    "R5 an unknown user": (
        401, lambda: request(BODY, "Authorization: Basic " + base64.b64encode(b"nobody:x").decode()), "wrong",
    ),
    "R6 an empty user name with a wrong password": (
        401, lambda: request(BODY, "Authorization: Basic " + base64.b64encode(b":x").decode()), "wrong",
    ),
    "R5 another scheme": (401, lambda: request(BODY, "Authorization: Bearer abc"), "Basic"),
    "R5 no base64": (401, lambda: request(BODY, "Authorization: Basic \xff\xfe"), "base64"),
    "R5 a long credential": (401, lambda: request(BODY, "Authorization: Basic " + "QUFB" * 1900), "base64"),
    "R5 a credential where no rule takes one": (401, lambda: enroll(BODY, path=ROOT + "strict/simpleenroll"), "wrong"),
    "default deny": (401, lambda: enroll(BODY, path=ROOT + "closed/simpleenroll"), "wrong"),
    "paths: an unknown label": (404, lambda: enroll(BODY, path=ROOT + "nobody/simpleenroll"), "label"),
    "paths: an unknown operation": (404, lambda: enroll(BODY, path=ROOT + "simplyenroll"), "operation"),
    "paths: an unknown operation of a label": (404, lambda: get(ROOT + "default/x"), "operation"),
    "R4 paths: a label named as an operation": (404, lambda: get(ROOT + "cacerts/cacerts"), "label"),
    "R4 paths: an operation behind an operation": (404, lambda: enroll(BODY, path=ROOT + "cacerts/simpleenroll"), ""),
    "paths: the root": (404, lambda: get("/"), "well-known"),
    "paths: EST's root": (404, lambda: get(ROOT), ""),
    "paths: without its last slash": (404, lambda: get(ROOT[:-1]), ""),
    "paths: a slash behind": (404, lambda: get(CACERTS + "/"), ""),
    "paths: two slashes": (404, lambda: get(ROOT + "/cacerts"), ""),
    "paths: three parts": (404, lambda: get(ROOT + "default/default/cacerts"), "label"),
    "paths: capitals": (404, lambda: get(ROOT + "CACERTS"), "operation"),
    "paths: control characters": (404, lambda: get(ROOT + "%00%0d%0aX:%20y/cacerts"), "label"),
    "paths: dots": (404, lambda: get(ROOT + "../../etc/passwd"), ""),
    "paths: a label of 6,000 characters": (404, lambda: get(ROOT + "a" * 6000 + "/cacerts"), "label"),
    "R3 fullcmc": (404, lambda: enroll(BODY, path=ROOT + "fullcmc"), "not offered"),
    "R3 serverkeygen": (404, lambda: enroll(BODY, path=ROOT + "silent/serverkeygen"), "not offered"),
    "R3 csrattrs": (404, lambda: get(ROOT + "silent/csrattrs"), "not offered"),
    "methods: GET simpleenroll": (405, lambda: get(ENROLL), "POST"),
    "methods: PUT simpleenroll": (405, lambda: enroll(BODY, method="PUT"), "POST"),
    "methods: DELETE simplereenroll": (405, lambda: get(ROOT + "simplereenroll", "DELETE"), "POST"),
    "methods: OPTIONS simpleenroll": (405, lambda: get(ENROLL, "OPTIONS"), "POST"),
    "methods: TRACE simpleenroll": (405, lambda: get(ENROLL, "TRACE"), "POST"),
    "methods: POST cacerts": (405, lambda: enroll(BODY, path=CACERTS), "GET"),
    "methods: POST cacerts without a body": (405, lambda: request(b"", path=CACERTS), "GET"),
    "methods: OPTIONS *": (404, lambda: get("*", "OPTIONS"), ""),
    "methods: CONNECT": (404, lambda: get("estd.example:443", "CONNECT"), ""),
    "HTTP: garbage": (400, lambda: b"\x00\x01\x02GARBAGE\r\n\r\n", "HTTP/1.1"),
    "HTTP: another protocol": (400, lambda: b"SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1"),
    "HTTP: version 2": (400, lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1"),
    "HTTP: a made-up method": (400, lambda: get(CACERTS, "BREW"), "HTTP/1.1"),
    "HTTP: no Host": (400, lambda: get(CACERTS).replace(b"Host: estd.example\r\n", b""), "HTTP/1.1"),
    "HTTP: lines without CR": (400, lambda: get(CACERTS).replace(b"\r", b""), "HTTP/1.1"),
    "HTTP: a folded header": (400, lambda: enroll(BODY, "X-A: a\r\n b"), "HTTP/1.1"),
    "HTTP: a space before the colon": (400, lambda: enroll(BODY, "X-A : a"), "HTTP/1.1"),
    "HTTP: NUL in a header": (400, lambda: enroll(BODY, "X-A: a\0b"), "HTTP/1.1"),
    "HTTP: a header without a name": (400, lambda: enroll(BODY, ": a"), "HTTP/1.1"),
    "HTTP: a path that is no text": (400, lambda: get(ROOT + "\xff\xfe"), "HTTP/1.1"),
    "HTTP: 100 headers": (400, lambda: enroll(BODY, *(f"X-{n}: a" for n in range(100))), "HTTP/1.1"),
    "HTTP: a header of 9,000 octets": (400, lambda: enroll(BODY, "X-A: " + "a" * 9_000), "HTTP/1.1"),
    "HTTP: a path of 9,000 octets": (400, lambda: get("/" + "a" * 9_000), "HTTP/1.1"),
    "HTTP: a first line without an end": (400, lambda: b"GET /" + b"a" * 9_000, "HTTP/1.1"),
    "smuggling: two lengths": (400, lambda: enroll(BODY, "Content-Length: 5"), "HTTP/1.1"),
    "smuggling: the same length twice": (400, lambda: enroll(BODY, f"Content-Length: {len(BODY)}"), "HTTP/1.1"),
    "smuggling: two lengths in one": (400, lambda: enroll(BODY, "Content-Length: 5, 6", length=-1), "HTTP/1.1"),
    "smuggling: length and chunks": (400, lambda: enroll(b"0\r\n\r\n", "Transfer-Encoding: chunked"), "HTTP/1.1"),
    "smuggling: a negative length": (400, lambda: enroll(BODY, length=-5), "HTTP/1.1"),
    "smuggling: a length with a sign": (400, lambda: enroll(BODY, "Content-Length: +5", length=-1), "HTTP/1.1"),
    "smuggling: a length in hexadecimal": (400, lambda: enroll(BODY, "Content-Length: 0x5", length=-1), "HTTP/1.1"),
    "smuggling: a length beyond 64 bits": (400, lambda: enroll(b"", length=2**64 + 5), "HTTP/1.1"),
    "smuggling: an unknown coding": (
        400, lambda: enroll(b"0\r\n\r\n", "Transfer-Encoding: xchunked", length=-1), "HTTP/1.1",
    ),
    "smuggling: chunked is not the last coding": (
        400, lambda: enroll(b"0\r\n\r\n", "Transfer-Encoding: chunked, identity", length=-1), "HTTP/1.1",
    ),
    "smuggling: a chunk's size that is none": (400, lambda: chunked(end=b"zz\r\nabc\r\n"), ""),
    "smuggling: a chunk's size beyond 64 bits": (400, lambda: chunked(end=b"f" * 17 + b"\r\n"), ""),
    "smuggling: a chunk longer than it says": (400, lambda: chunked(end=b"2\r\nabcdef\r\n0\r\n\r\n"), ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits a second for a handshake and for a body, and two for a next request."""
    made = servers.init(tmp_path_factory.mktemp("impatient") / "instance")
    text = made.config.read_text()
    waits = '[server]\nhandshake_timeout = "1s"\nbody_timeout = "1s"\nidle = "2s"\n'
    made.config.write_text(text.replace("[server]\n", waits, 1))
    with servers.running(made):
        yield made


@dataclass(frozen=True)
class Before:
    pids: dict[str, int]
    log_lines: int


@pytest.fixture(scope="module")
def before(server: Server) -> Before:
    """The children as they were before this module's first request."""
    return Before(server.pids(), len(server.log_lines()))


def said(server: Server, data: bytes) -> bytes:
    return data.replace(b"\r\nBASIC\r\n", f"\r\n{basic(server)}\r\n".encode(), 1)


@pytest.mark.parametrize("case", CASES)
def test_R26_is_refused(case: str, server: Server, before: Before) -> None:
    """R26: each wrong request gets the status of the table and a plain sentence, and the next one is served."""
    status, build, words = CASES[case]
    with Line(server) as line:
        line.send(said(server, build()))
        answer = assert_plain(line.answer(), status, words)
        if status == 405:
            assert answer.headers["Allow"] == ("GET, HEAD" if "cacerts" in case else "POST")
        assert_served(server, None if answer.closes else line)


ACCEPTED = {
    "chunks with extensions": lambda: chunked(end=b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "chunks of one octet": lambda: chunked(*(BODY[at : at + 1] for at in range(len(BODY)))),
    "a trailer behind the chunks": lambda: chunked(BODY, end=b"0\r\nX-A: b\r\n\r\n"),
    "no media type": lambda: enroll(BODY, kind=None),
    "R40 a Content-Transfer-Encoding that lies": lambda: enroll(BODY, "Content-Transfer-Encoding: binary"),
    "Content-Encoding: identity": lambda: enroll(BODY, "Content-Encoding: identity"),
    "a query behind the path": lambda: enroll(BODY, path=ENROLL + "?a=b"),
    "an absolute URI": lambda: enroll(BODY, path="https://estd.example" + ENROLL),
    "the default label by its name": lambda: enroll(BODY, path=ROOT + "default/simpleenroll"),
    "an offer to upgrade": lambda: enroll(BODY, "Connection: Upgrade", "Upgrade: h2c"),
    "Expect of something else": lambda: enroll(BODY, "Expect: something"),
    "HTTP/1.0": lambda: enroll(BODY).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "50 headers": lambda: enroll(BODY, *(f"X-{n}: a" for n in range(50))),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_but_right_is_served(case: str, server: Server, before: Before) -> None:
    """What is odd but means one thing only is served like any other request."""
    with Line(server) as line:
        line.send(said(server, ACCEPTED[case]()))
        answer = line.answer()
        assert answer is not None
        assert (answer.status, answer.sentence[:0]) == (200, "")
        assert answer.headers["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
        assert answer.headers["Content-Transfer-Encoding"] == "base64"


def test_expect_100_continue(server: Server) -> None:
    """A client that waits for 100 Continue gets it and sends its body then; one that is refused need not send it."""
    with Line(server) as line:
        head, _, body = said(server, enroll(BODY, "Expect: 100-continue")).partition(b"\r\n\r\n")
        line.send(head + b"\r\n\r\n")
        assert line._reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert line._reader.readline() == b"\r\n"
        line.send(body)
        answer = line.answer()
        assert answer is not None
        assert answer.status == 200
    with Line(server) as line:
        line.send(request(BODY, "Expect: 100-continue").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        assert_plain(line.answer(), 401)


def test_HEAD_has_no_body(server: Server) -> None:
    """HEAD answers as GET would, without a body, and the connection goes on."""
    with Line(server) as line:
        for path, status in ((CACERTS, 200), (ROOT + "x", 404), (ENROLL, 405)):
            line.send(get(path, "HEAD"))
            answer = line.answer(head=True)
            assert answer is not None
            assert answer.status == status
        assert_served(server, line)


def test_pipelined_requests_are_answered_in_order(server: Server, before: Before) -> None:
    """Requests that are sent in one go are each answered, in their order, good and bad ones."""
    with Line(server) as line:
        order = [
            get(CACERTS),
            enroll(b"!!"),
            get(ROOT + "x"),
            enroll(BODY),
            get(ENROLL),
            enroll(BODY, "Connection: close"),
        ]
        line.send(b"".join(said(server, one) for one in order))
        assert [one.status for one in line.answers()] == [200, 400, 404, 200, 405, 200]


@pytest.mark.parametrize("size", [1, 7, 400])
def test_a_request_in_small_pieces_is_served(size: int, server: Server) -> None:
    """However a request is cut into TLS records, it is the same request."""
    data = said(server, enroll(BODY))
    with Line(server) as line:
        line.send(*(data[at : at + size] for at in range(0, len(data), size)))
        answer = line.answer()
        assert answer is not None
        assert answer.status == 200


@pytest.mark.parametrize("tls", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize("method", ["close_notify", "FIN", "both"])
def test_a_half_closed_client_gets_its_answer(tls: int, method: str, server: Server, before: Before) -> None:
    """A client that closes its sending side after its request still gets the answer, then the server closes; however
    the two meet on their way, so it is tried several times."""
    for _ in range(12):
        with Line(server, tls=tls) as line:
            line.send(said(server, enroll(make.body(make.csr()))))
            if method != "FIN":
                line.say_goodbye()
            if method != "close_notify":
                line.tls.sock_shutdown(socket.SHUT_WR)
            assert [one.status for one in line.answers()] == [200]


@pytest.mark.parametrize("kept", [1, 40, 150, 450], ids=["a letter", "a line", "headers", "body"])
def test_a_client_that_leaves_in_its_request_is_let_go(kept: int, impatient: Server) -> None:
    """A client that closes its sending side within a request gets a 400 or nothing, and an end."""
    with Line(impatient) as line:
        line.send(said(impatient, enroll(BODY))[:kept])
        line.say_goodbye()
        assert {one.status for one in line.answers()} <= {400}
    assert_served(impatient)


FLOODS = {
    "a first line": b"GET /" + b"a" * 200_000,
    "a header": get(CACERTS).replace(b"\r\n\r\n", b"\r\nX-A: ") + b"a" * 200_000,
    "headers": get(CACERTS).replace(b"\r\n\r\n", b"\r\n") + b"X-A: a\r\n" * 20_000,
    "no HTTP": b"\0" * 200_000,
}


@pytest.mark.parametrize("case", FLOODS)
def test_a_flood_gets_its_answer(case: str, server: Server, before: Before) -> None:
    """Who sends far more than is taken still reads the 400: the server does not reset the connection over octets that
    it has not read. Tried several times, since the two meet anywhere on their way."""
    for _ in range(10):
        with Line(server) as line:
            line.send(FLOODS[case])
            assert_plain(line.answer(), 400, "HTTP/1.1")


LEAVE_AT = {"nothing sent": 0, "in the headers": 60, "in the body": 500, "before the answer": 10**6}


@pytest.mark.parametrize("case", LEAVE_AT)
def test_a_client_that_vanishes_costs_nothing(case: str, server: Server, before: Before) -> None:
    """Clients that reset their connections leave no connection open and nothing waiting, and the next is served."""
    assert_served(server)
    wait_for(lambda: server.metric("estd_connections_open") == 0, 10)
    for _ in range(5):
        line = Line(server)
        line.send(said(server, enroll(make.body(make.csr())))[: LEAVE_AT[case]])
        line.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.tls.close()
    assert_served(server)
    wait_for(lambda: server.metric("estd_connections_open") == 0, 10)
    wait_for(lambda: server.metric("estd_queue_depth") == 0, 10)


CHUNKS = {
    "a size that is none": (b"5\r\nabcde\r\n", b"zz\r\n"),
    "a chunk longer than it says": (b"5\r\nabc", b"deFGH\r\n0\r\n\r\n"),
    "a size beyond 64 bits": (b"5\r\nabcde\r\n", b"f" * 17 + b"\r\n"),
}


@pytest.mark.parametrize("case", CHUNKS)
def test_chunks_that_break_later_are_a_400_at_once(case: str, impatient: Server) -> None:
    """A body whose chunks break after the request is at work is a 400 that says so, not a wait for the time-out."""
    first, then = CHUNKS[case]
    with Line(impatient) as line:
        line.send(said(impatient, enroll(first, "Transfer-Encoding: chunked", length=-1)))
        assert not line.is_readable(0.2), "the server is waiting for the rest of the body"
        line.send(then)
        answer = assert_plain(line.answer(), 400)
        assert "too long" not in answer.sentence
    assert_served(impatient)


@pytest.mark.parametrize("trickle", [False, True], ids=["nothing more", "an octet now and then"])
def test_a_slow_body_is_cut(trickle: bool, impatient: Server) -> None:
    """A body that does not arrive within body_timeout is a 400, however its octets trickle, and the connection ends."""
    with Line(impatient) as line:
        line.send(said(impatient, enroll(BODY, length=4000)))
        waited = 0
        while not line.is_readable(0.1):
            waited += 1
            assert waited < 50
            if trickle:
                line.send(b"A")
        assert_plain(line.answer(), 400, "too long")
        assert line.answer() is None
    assert_served(impatient)


def test_an_idle_connection_is_closed(impatient: Server) -> None:
    """A connection without a request is closed after the idle time, with close_notify."""
    with Line(impatient) as line:
        assert_served(impatient, line)
        assert line.answer() is None
        assert line.tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN


NO_TLS = {
    "nothing": b"",
    "plain HTTP": get(CACERTS),
    "random octets": bytes(range(256)),
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a record of the wrong kind": b"\x17\x03\x03\x00\x05hello",
    "a ClientHello that is none": b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    "a record that is too long": b"\x16\x03\x01\x48\x01" + b"A" * 18433,
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "half a record": b"\x16\x03\x01\x02",
}


@pytest.mark.parametrize("case", NO_TLS)
def test_no_TLS_is_ended(case: str, impatient: Server) -> None:
    """What does not begin a TLS handshake is ended, at the latest after handshake_timeout, and the next is served."""
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=HANG_SECONDS) as raw:
        raw.sendall(NO_TLS[case])
        with suppress(ConnectionResetError):
            while data := raw.recv(4096):
                assert data[0] == 0x15, "nothing but an alert"
    assert_served(impatient)


def test_a_handshake_that_stops_is_ended(impatient: Server) -> None:
    """A client that begins a handshake and stops is ended after handshake_timeout."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    hello = SSL.Connection(context, None)
    hello.set_connect_state()
    with suppress(SSL.WantReadError):
        hello.do_handshake()
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=HANG_SECONDS) as raw:
        raw.sendall(hello.bio_read(65536))
        assert raw.recv(1) == b"\x16", "a ServerHello"
        with suppress(ConnectionResetError):
            while raw.recv(4096):
                pass
    assert_served(impatient)


def test_no_HTTP_is_refused_like_everything_else(server: Server, before: Before) -> None:
    """What is no HTTP is counted by its reason, and its sentence stands in Estd-Error, as with every refusal."""
    counted = server.metric("estd_rejections_total", reason="bad_http")
    with Line(server) as line:
        line.send(b"GARBAGE\r\n\r\n")
        answer = assert_plain(line.answer(), 400)
    assert answer.headers["Estd-Error"] == answer.body.decode().strip()
    assert server.metric("estd_rejections_total", reason="bad_http") == counted + 1


class Kept:
    """A connection that is kept for as long as the server keeps it, and made anew then."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._line: Line | None = None

    def ask(self, data: bytes) -> Answer:
        if self._line is None:
            self._line = Line(self._server)
        self._line.send(said(self._server, data))
        answer = self._line.answer()
        assert answer is not None
        if answer.closes:
            self.close()
        return answer

    def close(self) -> None:
        if self._line is not None:
            self._line.tls.close()
            self._line = None


_BODIES = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(base64.b64encode),
    st.text("MIIBAQ=/+\n\r\t -", max_size=300).map(str.encode),
    st.tuples(st.integers(0, 8 * len(CSR) - 1), st.integers(0, 8 * len(CSR) - 1)).map(
        lambda bits: base64.b64encode(flipped(flipped(CSR, bits[0]), bits[1]))
    ),
    st.integers(0, len(CSR) - 1).map(lambda end: base64.b64encode(CSR[:end])),
)


def test_any_body_is_a_400(server: Server, before: Before) -> None:
    """Any body but a request whose signed part is whole is a 400, one after the other on one connection."""
    line = Kept(server)

    @given(body=_BODIES, label=st.sampled_from(["", "default/", "trimmed/", "sites/"]))
    @settings(deadline=None, derandomize=True, max_examples=300)
    def check(body: bytes, label: str) -> None:
        answer = line.ask(enroll(body, path=f"{ROOT}{label}simpleenroll"))
        if answer.status == 200:
            assert CSR[SIGNED] in base64.b64decode(body)
        else:
            assert_plain(answer, 400)

    with closing(line):
        check()


_PATHS = st.one_of(
    st.text("abcest/.%20~-_ACR", max_size=40).map(ROOT.__add__),
    st.sampled_from([ENROLL, CACERTS, ROOT + "default/simplereenroll", ROOT + "fullcmc"]),
    st.from_regex(r"(/|%2[ef]|\.\.|;|\?|#|cacerts|default|simpleenroll){1,8}", fullmatch=True).map("/".__add__),
)
_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["Accept", "Authorization", "Content-Type", "Content-Encoding", "Cookie", "Expect", "Range",
                         "Content-Transfer-Encoding", "X-Forwarded-For", "If-None-Match", "Host"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    ).map(": ".join),
    max_size=4,
)  # fmt: skip


def test_any_path_and_headers_earn_a_status_of_the_table(server: Server, before: Before) -> None:
    """Any path, method and headers earn a status of the table and a plain sentence, never a 5xx."""
    line = Kept(server)

    @given(path=_PATHS, headers=_HEADERS, method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]))
    @settings(deadline=None, derandomize=True, max_examples=300)
    def check(path: str, headers: list[str], method: str) -> None:
        answer = line.ask(request(BODY, *headers, method=method, path=path.replace(" ", ""), kind=None))
        assert answer.status in TABLE, answer.sentence
        if answer.status != 200:
            assert_plain(answer, answer.status)

    with closing(line):
        check()


def test_any_octets_earn_a_status_of_the_table(impatient: Server) -> None:
    """A request whose octets are changed at will earns a status of the table or an end, and the next is served."""
    good = said(impatient, enroll(BODY, "Connection: close"))
    at = good.index(b"Content-Length")
    free = [place for place in range(len(good)) if not at <= place < at + 22]

    @given(edits=st.lists(st.tuples(st.sampled_from(free), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4))
    @settings(deadline=None, derandomize=True, max_examples=120)
    def check(edits: list[tuple[int, bytes]]) -> None:
        data = bytearray(good)
        for place, octets in edits:
            data[place : place + 1] = octets[:1]
        with Line(impatient) as line:
            line.send(bytes(data))
            line.say_goodbye()
            for answer in line.answers():
                assert answer.status in TABLE, answer.sentence
                if answer.status != 200:
                    assert_plain(answer, answer.status)

    check()
    assert_served(impatient)


def test_nothing_was_harmed(server: Server, before: Before) -> None:
    """After all that, the children are those from before, none was replaced, and no request failed on its way."""
    assert_served(server)
    assert server.pids() == before.pids
    assert server.metric("estd_process_restarts_total") == 0
    assert server.metric("estd_requests_total", status="500") == 0
    failed = [
        one for one in server.log_lines()[before.log_lines :] if one["event"] in ("step_failed", "request_failed")
    ]
    assert failed == []
