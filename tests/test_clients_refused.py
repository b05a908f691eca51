"""Client certificates that say nothing to a label: each device is told why, on TLS 1.2 and 1.3, and may ask again."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from estd import credentials
from tests import make
from tests.conftest import program
from tests.line import CACERTS, ROOT, VERSIONS, Line, assert_plain, assert_served, basic, get, request
from tests.make import Identity
from tests.servers import Server, identity_of, wait_for
from tests.test_csr import der

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OTHER = make.certificate(ca=True, subject=make.name("other ca"))
BY_VERSION = pytest.mark.parametrize("tls", VERSIONS, ids=["1.2", "1.3"])
ENROLL, RENEW = ROOT + "simpleenroll", ROOT + "simplereenroll"

Files = tuple[Path, Path]


@dataclass(frozen=True)
class Case:
    """A certificate, made under the manufacturer, and the answer."""

    make: Callable[[Server], Identity]
    status: int = 401
    words: str = ""
    above: Callable[[Server], Sequence[Identity]] = lambda _: ()


def under_maker(**differences: object) -> Callable[[Server], Identity]:
    return lambda server: make.certificate(server.manufacturer, **differences)  # type: ignore[arg-type]


def between(server: Server) -> Identity:
    return make.certificate(server.manufacturer, ca=True, subject=make.name("between"))


def with_san(server: Server, san: bytes) -> Identity:
    """A certificate of the manufacturer whose subjectAltName is no client's to have."""
    plain = make.certificate(server.manufacturer, san=[x509.DNSName("marker.example")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(plain.certificate.subject)
        .issuer_name(plain.certificate.issuer)
        .public_key(plain.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(plain.certificate.not_valid_before_utc)
        .not_valid_after(plain.certificate.not_valid_after_utc)
        .add_extension(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, san), critical=False)
    )
    return Identity(builder.sign(server.manufacturer.key, hashes.SHA256()), plain.key)


X400 = der.tlv(der.SEQUENCE, der.tlv(0xA3, b"\x30\0"))

CASES: dict[str, Case] = {
    "R10 expired": Case(under_maker(starts=-HOUR / 2, ends=-HOUR / 4), 401, "expired at"),
    "R10 not yet valid": Case(under_maker(starts=HOUR), 401, "not valid before"),
    "R10 of an unknown CA": Case(lambda _: make.certificate(OTHER), 401, "no path"),
    "R10 of an unknown CA, expired": Case(
        lambda _: make.certificate(OTHER, starts=-HOUR / 2, ends=-HOUR / 4), 401, "no path",
    ),
    "R10 of an unknown CA, sent along": Case(
        lambda _: make.certificate(OTHER), 401, "no path", above=lambda _: [OTHER],
    ),
    "R10 of an unknown CA with the manufacturer's name": Case(
        lambda server: make.certificate(make.certificate(ca=True, subject=server.manufacturer.certificate.subject)),
        401, "no path",
    ),
    "R10 self-signed": Case(lambda _: make.certificate(), 401, "no path"),
    "R10 its intermediate is missing": Case(lambda server: make.certificate(between(server)), 401, "no path"),
    "for servers only": Case(under_maker(extended=[make.SERVER_AUTH]), 401, "extendedKeyUsage"),
    "for code signing only": Case(under_maker(extended=[ExtendedKeyUsageOID.CODE_SIGNING]), 401, "extendedKeyUsage"),
    "not for signatures": Case(under_maker(usage="key_agreement"), 401, "keyUsage"),
    "a CA's": Case(between, 401, "CA's"),
    "the anchor itself": Case(lambda server: server.manufacturer, 401, "CA's"),
    "R16 the server's own": Case(
        lambda server: identity_of(server.folder / "server.pem", server.folder / "server.key"), 401, "extendedKeyUsage",
    ),
    "that cannot be read: an x400Address": Case(lambda server: with_san(server, X400), 401, "cannot be read"),
    "that cannot be read: no DER": Case(lambda server: with_san(server, b"\xff"), 401, "cannot be read"),
}  # fmt: skip


def body(identity: Identity | None = None) -> bytes:
    return make.body(make.csr(subject=x509.Name([]) if identity is None else identity.certificate.subject))


@BY_VERSION
@pytest.mark.parametrize("case", CASES)
def test_R10_R20_is_told_why(case: str, tls: int, server: Server, folder: Path) -> None:
    """R10, R20: the handshake succeeds, each operation answers with the status of the table and its own sentence, and
    the connection and the next one are served."""
    row = CASES[case]
    identity = row.make(server)
    files = identity.write(folder, "client", *row.above(server))
    with Line(server, tls=tls, cert=files) as line:
        for path in (ENROLL, RENEW, ROOT + "default/simpleenroll", ENROLL):
            line.send(request(body(identity), path=path))
            answer = assert_plain(line.answer(), row.status, row.words)
            assert not answer.closes
        assert_served(server, line)
    with Line(server, tls=tls, cert=files) as line:
        line.send(request(body(identity)))
        assert_plain(line.answer(), row.status, row.words)


def test_R10_the_log_says_what_keeps_a_certificate_from_its_anchor(server: Server, folder: Path) -> None:
    """R10: the line of such a refusal has the verifier's own words, which the device is not told."""
    above = make.certificate(server.manufacturer, subject=make.name("no ca"))
    identity = make.certificate(above, subject=make.name("below no ca"))
    with Line(server, cert=identity.write(folder, "client", above)) as line:
        line.send(request(body(identity)))
        answer = assert_plain(line.answer(), 401, "no path")
        assert "cA" not in str(answer.headers)

    def is_logged() -> bool:
        lines = [one for one in server.log_lines() if one["event"] == "request"]
        return any(one["reason"] == "cert_unknown" and "cA must be asserted" in one["why"] for one in lines)

    wait_for(is_logged, 10)


@BY_VERSION
def test_R20_a_refused_certificate_does_not_stop_a_credential(tls: int, server: Server, folder: Path) -> None:
    """R5, R20: a device whose certificate has expired still enrols with a credential, on the same connection."""
    files = make.certificate(server.manufacturer, starts=-HOUR / 2, ends=-HOUR / 4).write(folder, "client")
    with Line(server, tls=tls, cert=files) as line:
        line.send(request(body()))
        assert_plain(line.answer(), 401, "expired at")
        line.send(request(make.body(make.csr()), basic(server)))
        answer = line.answer()
        assert answer is not None
        assert answer.status == 200


@BY_VERSION
def test_R5_R20_without_a_certificate(tls: int, server: Server) -> None:
    """R5, R20: no certificate and no credential is a 401 that names Basic; a wrong one on a live connection is another
    401, and the right one then is served."""
    with Line(server, tls=tls) as line:
        for header, words in ((None, "credential"), ("Authorization: Basic ZmFjdG9yeTp4", "wrong")):
            line.send(request(make.body(make.csr()), *([header] if header else [])))
            assert not assert_plain(line.answer(), 401, words).closes
        line.send(request(make.body(make.csr()), basic(server)))
        answer = line.answer()
        assert answer is not None
        assert answer.status == 200


def test_R6_an_empty_user_name(server: Server) -> None:
    """R6: a credential with an empty user name is one like any other, added while the server runs."""
    path = server.folder / "credentials"
    old = path.read_text()
    path.write_text(old + credentials.line("", "no-name-secret", generated=True) + "\n")
    try:

        def is_served() -> bool:
            with Line(server) as line:
                line.send(request(make.body(make.csr()), "Authorization: Basic Om5vLW5hbWUtc2VjcmV0"))
                answer = line.answer()
                assert answer is not None
                return answer.status == 200

        wait_for(is_served, 10)
        assert server.rows()[-1].identity == "basic:"
        with Line(server) as line:
            line.send(request(make.body(make.csr()), "Authorization: Basic Ong="))
            assert_plain(line.answer(), 401, "wrong")
    finally:
        path.write_text(old)


GOOD_KEYS: dict[str, Callable[[], object]] = {
    "P-256": make.key,
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@BY_VERSION
@pytest.mark.parametrize("kind", GOOD_KEYS)
def test_R10_a_device_with_any_common_key_gets_in(kind: str, tls: int, server: Server, folder: Path) -> None:
    """R10: the manufacturer's devices get in whatever key they have, under their own names: the other side of the
    refusals above."""
    name = make.name(f"good {kind}", SERIAL_NUMBER="7")
    identity = make.certificate(server.manufacturer, subject=name, own_key=GOOD_KEYS[kind]())  # type: ignore[arg-type]
    with server.client(cert=identity.write(folder, "client"), tls=tls) as client:
        assert client.enroll(lambda _: make.csr(subject=make.name("somebody else"))).subject == name


def test_R10_an_intermediate_needs_its_CRL(server: Server, folder: Path) -> None:
    """R10: a path through an intermediate is found; where the rule's CRLs do not cover it, its status is not known
    and the answer is a 503 with Retry-After."""
    above = between(server)
    files = make.certificate(above).write(folder, "client", above)
    with Line(server, cert=files) as line:
        line.send(request(body()))
        answer = assert_plain(line.answer(), 503, "no current CRL of its issuer")
        assert int(answer.headers["Retry-After"]) >= 1
        assert_served(server, line)


@BY_VERSION
def test_R10_a_chain_without_end_is_not_carried_on(tls: int, server: Server, folder: Path) -> None:
    """What is shown above a certificate is bounded before any of it is looked at; a chain of real length is not."""
    manufacturer = server.manufacturer
    device = make.certificate(manufacturer)
    few = device.write(folder, "few", manufacturer, OTHER)
    many = device.write(folder, "many", *[OTHER] * 5, *(make.certificate(ca=True) for _ in range(60)))
    for files, expected in ((few, 200), (many, 401)):
        with server.client(cert=files, tls=tls) as client:
            body = make.body(make.csr(subject=device.certificate.subject))
            answer = client.request("POST", "simpleenroll", body, Content_Type="application/pkcs10")
            assert answer.status == expected
    assert "estd takes 24576" in (answer.headers["Estd-Error"] or "")


@BY_VERSION
def test_R10_revoked_by_CRL_on_a_live_connection(tls: int, server: Server, folder: Path) -> None:
    """R10: a device on the manufacturer's CRL is refused with 403 as soon as the file is there, on the connection that
    it already had; others and the same device after a correction are served."""
    devices = [make.certificate(server.manufacturer, subject=make.name(f"crl-{n}-{tls}")) for n in (1, 2)]
    bad, good = (one.write(folder, f"client-{index}") for index, one in enumerate(devices))
    path = server.folder / "demo" / "manufacturer.crl"
    old = path.read_bytes()

    def status(line: Line) -> int:
        line.send(request(body()))
        answer = line.answer()
        assert answer is not None
        if answer.status != 200:
            assert_plain(answer, 403, "revoked by its issuer's CRL")
        return answer.status

    with Line(server, tls=tls, cert=bad) as live, Line(server, tls=tls, cert=good) as other:
        assert status(live) == 200
        try:
            path.write_bytes(make.crl(server.manufacturer, devices[:1]))
            wait_for(lambda: status(live) == 403, 10)
            assert status(other) == 200
            assert_served(server, live)
            with Line(server, tls=tls, cert=bad) as fresh:
                assert status(fresh) == 403
        finally:
            path.write_bytes(old)
        wait_for(lambda: status(live) == 200, 10)


def revoke(server: Server, serial: int) -> None:
    command = [sys.executable, "-m", "estd.cli", "cert", "revoke", "--config", str(server.config), f"{serial:032x}"]
    subprocess.run(command, check=True, capture_output=True)


@BY_VERSION
def test_R10_revoked_by_the_command_on_a_live_connection(tls: int, server: Server, folder: Path) -> None:
    """R10, R20: a certificate that `estd cert revoke` revokes is dead at its next request, on the connection that it
    already had too (403), for renewal and enrolment alike."""
    key = make.key()
    with server.client(basic=True) as client:
        certificate = client.enroll(lambda _: make.csr(key, subject=make.name(f"to-revoke-{tls}")))
    identity = Identity(certificate, key)
    files = identity.write(folder, "client")
    with Line(server, tls=tls, cert=files) as line:
        line.send(request(body(identity), path=RENEW))
        answer = line.answer()
        assert answer is not None
        assert answer.status == 200
        revoke(server, certificate.serial_number)
        for path in (RENEW, ENROLL):
            line.send(request(body(identity), path=path))
            assert_plain(line.answer(), 403, "is revoked")
        assert_served(server, line)
    with Line(server, tls=tls, cert=files) as line:
        line.send(request(body(identity), path=RENEW))
        assert_plain(line.answer(), 403, "is revoked")


def test_default_deny(server: Server, folder: Path) -> None:
    """A label without rules lets nobody in: no device of the manufacturer, no certificate of ours, no credential."""
    key = make.key()
    with server.client(basic=True) as client:
        ours = Identity(client.enroll(lambda _: make.csr(key)), key)
    for files in (server.idevid_files, ours.write(folder, "ours"), None):
        with Line(server, cert=files) as line:
            headers = [] if files else [basic(server)]
            line.send(request(body(), *headers, path=ROOT + "closed/simpleenroll"))
            assert_plain(line.answer(), 401)
            line.send(get(ROOT + "closed/cacerts"))
            answer = line.answer()
            assert answer is not None
            assert answer.status == 200


def test_a_device_is_known_to_its_own_labels_only(server: Server) -> None:
    """A label whose rules do not name the manufacturer does not know its devices (401)."""
    with Line(server, cert=server.idevid_files) as line:
        for label, status in (("sites", 401), ("server", 401), ("default", 200)):
            line.send(request(body(), path=f"{ROOT}{label}/simpleenroll"))
            answer = line.answer()
            assert answer is not None
            assert answer.status == status


@pytest.mark.parametrize("version", ["tls1", "tls1_1"])
def test_R8_old_TLS_is_refused(version: str, server: Server) -> None:
    """R8: TLS 1.0 and 1.1 are refused with the alert protocol_version, from a client that would speak them."""
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", "-cipher", "DEFAULT@SECLEVEL=0"]
    old = subprocess.run([*command, f"-{version}"], check=False, input=b"", capture_output=True, timeout=30)
    said = (old.stdout + old.stderr).decode()
    assert old.returncode != 0
    assert "alert protocol version" in said
    new = subprocess.run([*command, "-tls1_2"], check=False, input=b"", capture_output=True, timeout=30)
    assert new.returncode == 0, "the same client gets in with TLS 1.2"


@pytest.mark.parametrize(
    "cipher", ["aNULL", "eNULL", "AES128-SHA256", "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES128-SHA"]
)
def test_R5_weak_suites_are_refused(cipher: str, server: Server) -> None:
    """R5: no NULL and no anonymous suite, nothing without forward secrecy or authenticated encryption."""
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"]
    found = subprocess.run(
        [*command, "-cipher", f"{cipher}:@SECLEVEL=0"], check=False, input=b"", capture_output=True, timeout=30
    )  # fmt: skip
    assert found.returncode != 0
    assert "alert handshake failure" in (found.stdout + found.stderr).decode()


SESSIONS = {"1.2 with a ticket": (SSL.TLS1_2_VERSION, True), "1.2 with a session id": (SSL.TLS1_2_VERSION, False),
            "1.3": (SSL.TLS1_3_VERSION, True)}  # fmt: skip


@pytest.mark.parametrize("case", SESSIONS)
def test_R9_an_offered_session_gets_a_full_handshake(case: str, server: Server, folder: Path) -> None:
    """R9: a client that offers a session, such as one it had with another server behind the same name, is neither
    resumed nor turned away: it gets a full handshake, with the server's certificate, and is served."""
    tls, ticket = SESSIONS[case]
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(tls)
    context.set_max_proto_version(tls)
    session = session_of_another_server(context, folder, ticket=ticket)
    fresh = SSL.Connection(context, socket.create_connection(("127.0.0.1", server.port)))
    try:
        fresh.set_connect_state()
        fresh.set_session(session)
        fresh.do_handshake()
        shown = fresh.get_peer_certificate(as_cryptography=True)
        own = x509.load_pem_x509_certificate((server.folder / "server.pem").read_bytes())
        assert shown == own, "a resumed session would show the other server's"
        fresh.sendall(get(CACERTS))
        assert fresh.recv(15) == b"HTTP/1.1 200 OK"
    finally:
        fresh.close()


@BY_VERSION
def test_R9_its_own_session_is_not_resumed(tls: int, server: Server) -> None:
    """R9: a session that estd itself made is not resumed either: a second connection that offers it is a full
    handshake."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(tls)
    context.set_max_proto_version(tls)
    session = None
    for _ in range(2):
        connection = SSL.Connection(context, socket.create_connection(("127.0.0.1", server.port)))
        try:
            connection.set_connect_state()
            if session is not None:
                connection.set_session(session)
            connection.do_handshake()
            assert not SSL._lib.SSL_session_reused(connection._ssl)
            connection.sendall(get(CACERTS))
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            session = connection.get_session()
            connection.shutdown()
        finally:
            connection.close()


def session_of_another_server(context: SSL.Context, folder: Path, *, ticket: bool) -> SSL.Session:
    """A session of a server of the test's own, which would resume it."""
    files = make.certificate(san=[x509.DNSName("other.example")]).write(folder, "other")
    serving = SSL.Context(SSL.TLS_SERVER_METHOD)
    serving.use_certificate_file(str(files[0]))
    serving.use_privatekey_file(str(files[1]))
    serving.set_session_id(b"another server")
    if not ticket:
        serving.set_options(SSL.OP_NO_TICKET)
    session = connected(context, serving).get_session()
    assert session is not None
    assert SSL._lib.SSL_session_reused(connected(context, serving, session)._ssl)
    return session


def connected(context: SSL.Context, serving: SSL.Context, session: SSL.Session | None = None) -> SSL.Connection:
    """The client of a handshake in memory."""
    client, far = SSL.Connection(context, None), SSL.Connection(serving, None)
    client.set_connect_state()
    far.set_accept_state()
    if session is not None:
        client.set_session(session)
    for _ in range(6):
        for one, two in ((client, far), (far, client)):
            with suppress(SSL.WantReadError):
                one.do_handshake()
                one.recv(1)
            with suppress(SSL.WantReadError):
                two.bio_write(one.bio_read(65536))
    for one in (client, far):
        one.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)  # or the session would count as broken
    return client


def test_no_ticket_is_sent_that_nobody_could_resume(server: Server) -> None:
    """R9: without resumption the server makes no session tickets on TLS 1.3 either."""
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_3", "-ign_eof"]
    shown = subprocess.run(
        command, input=get(CACERTS, "GET", "Connection: close"), capture_output=True, timeout=60, check=False
    )
    assert b"HTTP/1.1 200 OK" in shown.stdout
    assert b"TLSv1.3" in shown.stdout
    assert b"New Session Ticket" not in shown.stdout
