"""Enrolment by our own client over real TLS."""

from __future__ import annotations

import os
import socket
import ssl
from threading import Thread

import pytest

from estd.client import Access, EstClient
from estd.errors import ClientError
from tests import make
from tests.servers import Server


def test_R2_basic_enrolment_gives_the_names_asked_for(server: Server) -> None:
    """R2: a factory's credential enrols a device under the common name in its request."""
    with server.client(basic=True) as client:
        certificate = client.enroll(lambda _: make.csr(subject=make.name("device-7")))
    certificate.verify_directly_issued_by(server.ca)
    assert certificate.subject == make.name("device-7")


@pytest.mark.parametrize("operation", ["cacerts", "csrattrs"])
@pytest.mark.parametrize("end", [b"", b"no TLS record"], ids=["closed", "not TLS"])
def test_an_answer_that_breaks_off_is_a_sentence(server: Server, operation: str, end: bytes) -> None:
    """Whether the connection ends within the body or goes on with something else: a ClientError, as without an answer;
    also where the body says nothing that is asked for (404)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.folder / "server.pem", server.folder / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
            connection.recv(16384)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\nhalf")
            os.write(connection.fileno(), end)

    thread = Thread(target=answer)
    thread.start()
    with listener, EstClient(Access(url=f"https://127.0.0.1:{listener.getsockname()[1]}", anchors=[server.ca])) as one:
        with pytest.raises(ClientError, match="the server's answer broke off"):
            getattr(one, operation)()
        thread.join()
