"""Linked proof of possession (RFC 7030 §3.5, RFC 9148 §3): a challengePassword is this connection's value or a 400."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from estd.client import EstClient, Refused
from tests import make
from tests.line import VERSIONS, assert_served
from tests.servers import Server

BY_VERSION = pytest.mark.parametrize("tls", VERSIONS, ids=["1.2", "1.3"])
NAME = make.name("device-1")


def exporter(client: EstClient, label: bytes = b"EXPORTER-Channel-Binding", length: int = 32) -> bytes:
    return base64.b64encode(client.connection.export_keying_material(label, length, b""))


def own_finished(client: EstClient) -> bytes:
    """tls-unique as the client computes it: its own Finished, the first of a full handshake (RFC 5929 §3)."""
    return base64.b64encode(client.connection.get_finished() or b"")


def peers_finished(client: EstClient) -> bytes:
    return base64.b64encode(client.connection.get_peer_finished() or b"")


@dataclass(frozen=True)
class Case:
    """A challengePassword made of a connection, and on which TLS version it is right."""

    value: Callable[[EstClient], bytes | None]
    right_on: tuple[int, ...] = ()


CASES: dict[str, Case] = {
    "R13 tls-unique": Case(own_finished, (SSL.TLS1_2_VERSION,)),
    "R46 tls-exporter": Case(exporter, (SSL.TLS1_3_VERSION,)),
    "the server's Finished": Case(peers_finished),
    "an exporter of another label": Case(lambda client: exporter(client, b"EXPORTER-something-else")),
    "an exporter of 16 octets": Case(lambda client: exporter(client, length=16)),
    "the value in hexadecimal": Case(lambda client: base64.b64decode(client.channel_binding()).hex().encode()),
    "the value with a newline": Case(lambda client: client.channel_binding() + b"\n"),
    "the value cut short": Case(lambda client: client.channel_binding()[:-4]),
    "the value, doubled": Case(lambda client: client.channel_binding() * 2),
    "300 characters": Case(lambda _: b"QUJD" * 75),
    "a password of the device's own": Case(lambda _: b"secret"),
    "base64 of nothing": Case(lambda _: b" "),
}


def status_of(client: EstClient, password: bytes | None, *, renew: bool = False) -> tuple[int, str]:
    """What an enrolment with that challengePassword is answered."""
    try:
        client.enroll(lambda _: make.csr(subject=NAME, challenge_password=password), renew=renew)
    except Refused as refusal:
        return refusal.status, refusal.sentence
    return 200, ""


@BY_VERSION
@pytest.mark.parametrize("label", [None, "trimmed"], ids=["accepted", "demanded"])
@pytest.mark.parametrize("case", CASES)
def test_R13_R46_only_this_connections_value(case: str, label: str | None, tls: int, server: Server) -> None:
    """R13, R46: tls-unique links on TLS 1.2 and the exporter on TLS 1.3; any other value is a 400, also where linking
    is not demanded, and the other version's never counts."""
    row = CASES[case]
    with server.client(basic=True, label=label, tls=tls) as client:
        status, sentence = status_of(client, row.value(client))
        assert status == (200 if tls in row.right_on else 400), sentence
        if status == 400:
            assert "channel-binding" in sentence
        assert status_of(client, client.channel_binding())[0] == 200, "the same connection goes on"


@BY_VERSION
def test_R13_another_connections_value_is_refused(tls: int, server: Server) -> None:
    """R13: a request that was linked to one connection and is sent on another is a 400: whoever relays it is found."""
    with server.client(basic=True, tls=tls) as one, server.client(basic=True, tls=tls) as two:
        assert one.channel_binding() != two.channel_binding()
        assert status_of(one, two.channel_binding())[0] == 400
        assert status_of(two, one.channel_binding())[0] == 400
        assert status_of(two, two.channel_binding())[0] == 200


@BY_VERSION
def test_R13_a_linked_request_replayed(tls: int, server: Server) -> None:
    """R13: the very octets of a linked request, good on their connection, are a 400 on the next one."""
    with server.client(basic=True, label="trimmed", tls=tls) as client:
        csr_der = make.csr(subject=NAME, challenge_password=client.channel_binding())
        client.enroll(lambda _: csr_der)
    with server.client(basic=True, label="trimmed", tls=tls) as client, pytest.raises(Refused, match="channel-binding"):
        client.enroll(lambda _: csr_der)


@BY_VERSION
def test_R14_a_label_may_demand_linking(tls: int, server: Server) -> None:
    """R14: where a label demands linking, a request without is a 400 whose sentence says what to put where."""
    with server.client(basic=True, label="trimmed", tls=tls) as client:
        status, sentence = status_of(client, None)
        assert status == 400
        for word in ("tls-unique", "EXPORTER-Channel-Binding", "challengePassword"):
            assert word in sentence
        assert status_of(client, client.channel_binding())[0] == 200
    assert_served(server)


@BY_VERSION
@pytest.mark.parametrize("password", [None, b"a password of its own", b"QUJD" * 75])
def test_a_label_may_ignore_linking(password: bytes | None, tls: int, server: Server) -> None:
    """Where a label's linking is off, a challengePassword is whatever the device likes."""
    with server.client(basic=True, label="sites", tls=tls) as client:
        assert status_of(client, password)[0] == 200


@BY_VERSION
def test_R13_linked_with_a_client_certificate(tls: int, server: Server) -> None:
    """R13, R46: with a client certificate in the handshake the values are the same ones, right and wrong."""
    with server.client(cert=server.idevid_files, tls=tls) as client:
        assert status_of(client, client.channel_binding())[0] == 200
        assert status_of(client, own_finished(client) if tls == SSL.TLS1_3_VERSION else exporter(client))[0] == 400


@BY_VERSION
def test_R13_the_certificate_does_not_carry_the_value(tls: int, server: Server) -> None:
    """What links a request stays in the request: the certificate says nothing of it."""
    with server.client(basic=True, tls=tls) as client:
        value = client.channel_binding()
        certificate = client.enroll(lambda binding: make.csr(challenge_password=binding), link=True)
    assert value not in certificate.tbs_certificate_bytes
    assert base64.b64decode(value) not in certificate.tbs_certificate_bytes
    assert x509.SubjectKeyIdentifier.oid in {one.oid for one in certificate.extensions}


@BY_VERSION
@pytest.mark.parametrize("kind", ["application/pkcs10", "application/x-pem-file"])
def test_a_linked_request_in_PEM_where_a_label_takes_it(kind: str, tls: int, server: Server) -> None:
    """Where a label takes PEM, an armoured request is served as any other, linked and under either media type."""
    with server.client(basic=True, label="trimmed", tls=tls) as client:
        csr_der = make.csr(subject=NAME, challenge_password=client.channel_binding())
        pem = x509.load_der_x509_csr(csr_der).public_bytes(Encoding.PEM)
        for end in (b"\n", b"\r\n"):
            body = pem.replace(b"\n", end)
            response = client.request("POST", "simpleenroll", body, Content_Type=kind)
            assert (response.status, len(response.read()) > 500) == (200, True)


def context_of(server: Server, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(server.folder / "ca.pem"))
    context.minimum_version = context.maximum_version = version
    return context


class Standard:
    """A connection of Python's own ssl, which can ask for a resumption, unlike our client."""

    def __init__(self, server: Server, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self.tls = context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
        self.unique = base64.b64encode(self.tls.get_channel_binding("tls-unique") or b"")
        self._pair = base64.b64encode(":".join(server.basic).encode()).decode()

    def __enter__(self) -> Standard:
        return self

    def __exit__(self, *_: object) -> None:
        self.tls.close()

    def status(self, password: bytes) -> int:
        """What a request with that challengePassword is answered, by a label that demands linking."""
        connection = http.client.HTTPConnection("127.0.0.1")
        connection.sock = self.tls
        headers = {"Content-Type": "application/pkcs10", "Authorization": f"Basic {self._pair}"}
        body = make.body(make.csr(subject=NAME, challenge_password=password))
        connection.request("POST", "/.well-known/est/trimmed/simpleenroll", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status


def test_R9_R13_a_resumption_does_not_bring_a_value_back(server: Server) -> None:
    """R9, R13: who asks to resume gets a full handshake with a value of its own; the first connection's is refused."""
    context = context_of(server, ssl.TLSVersion.TLSv1_2)
    with Standard(server, context) as first:
        assert first.status(first.unique) == 200
        with Standard(server, context, first.tls.session) as second:
            assert not second.tls.session_reused
            assert second.unique != first.unique
            assert second.status(first.unique) == 400
            assert second.status(second.unique) == 200


def test_R46_what_Python_calls_tls_unique_on_TLS_1_3_is_no_value(server: Server) -> None:
    """R46: Python's ssl answers something for tls-unique under TLS 1.3, where it is undefined: a 400."""
    with Standard(server, context_of(server, ssl.TLSVersion.TLSv1_3)) as client:
        assert client.tls.version() == "TLSv1.3"
        assert client.unique
        assert client.status(client.unique) == 400


@BY_VERSION
def test_R37_a_client_that_links_where_csrattrs_asks(tls: int, server: Server) -> None:
    """R13, R14, R37, R46: csrattrs and the linked enrolment go over one connection, whose value it is."""
    with server.client(basic=True, label="trimmed", tls=tls) as client:
        assert client.csrattrs().linked
        assert client.enroll(lambda value: make.csr(subject=NAME, challenge_password=value), link=True)
    with server.client(basic=True, tls=tls) as client:
        assert not client.csrattrs().linked
