"""One TLS connection to the server, on which a test sends any octets, and the answers that come back."""

from __future__ import annotations

import base64
import http.client
import io
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from types import TracebackType

from OpenSSL import SSL

from estd import client as est_client
from tests import make
from tests.servers import Server

HANG_SECONDS = 15
"""A read that waits so long for the server is a hang and fails its test."""
ROOT = "/.well-known/est/"
ENROLL, CACERTS = ROOT + "simpleenroll", ROOT + "cacerts"
TABLE = {200, 400, 401, 403, 404, 405, 413, 415}
"""The statuses that a request can earn by itself (docs/authorisation.md); a 5xx is the server's own trouble."""
VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]
CSR = make.csr()
BODY = make.body(CSR)


@dataclass(frozen=True)
class Answer:
    """One response, read to its last octet."""

    version: str
    status: int
    headers: Message
    body: bytes

    @property
    def sentence(self) -> str:
        return self.body.decode().strip() or self.headers.get("Estd-Error", "")

    @property
    def closes(self) -> bool:
        return self.version != "HTTP/1.1" or self.headers.get("Connection", "").lower() == "close"


class Line:
    """One TLS connection on which a test says whatever it likes."""

    def __init__(
        self, server: Server, *, tls: int | None = None, cert: tuple[Path, Path] | None = None
    ) -> None:  # fmt: skip
        self._client = server.client(tls=tls, cert=cert)
        self.tls = self._client.connection
        self._wait_at_most(HANG_SECONDS)
        self._reader = io.BufferedReader(est_client._Stream(self.tls))

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.tls.close()

    def send(self, *data: bytes) -> None:
        """Each part in TLS records of its own. A server that has closed meanwhile is found by reading."""
        with suppress(SSL.Error):
            for part in data:
                self.tls.sendall(part)

    def say_goodbye(self) -> None:
        """Close the sending side: close_notify."""
        self.tls.shutdown()

    def answer(self, *, head: bool = False) -> Answer | None:
        """The next response; None where the server has closed. Raises where neither comes in time."""
        line = self._reader.readline().decode()
        if not line:
            return None
        version, status, _ = line.split(" ", 2)
        headers = http.client.parse_headers(self._reader)
        assert "Transfer-Encoding" not in headers
        size = 0 if head else int(headers["Content-Length"])
        body = self._reader.read(size)
        assert len(body) == size
        return Answer(version, int(status), headers, body)

    def answers(self) -> list[Answer]:
        """All responses up to the end of the connection."""
        return list(iter(self.answer, None))

    def is_readable(self, seconds: float) -> bool:
        """Whether the server says something, or goodbye, within that time."""
        self._wait_at_most(seconds)
        try:
            self.tls.recv(1, socket.MSG_PEEK)
        except SSL.WantReadError:
            return False
        except SSL.ZeroReturnError:
            return True
        finally:
            self._wait_at_most(HANG_SECONDS)
        return True

    def _wait_at_most(self, seconds: float) -> None:
        whole = int(seconds)
        limit = struct.pack("ll", whole, round((seconds - whole) * 1e6))
        self.tls.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def basic(server: Server) -> str:
    return "Authorization: Basic " + base64.b64encode(":".join(server.basic).encode()).decode()


def request(
    body: bytes | None = None, *more: str, method: str = "POST", path: str = ENROLL,
    kind: str | None = "application/pkcs10", length: int | None = None,
) -> bytes:  # fmt: skip
    """A request as octets; the word BASIC among `more` headers is replaced by a right credential."""
    lines = [f"{method} {path} HTTP/1.1", "Host: estd.example", *more]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    if body is not None and length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def get(path: str, method: str = "GET", *more: str) -> bytes:
    return request(None, *more, method=method, path=path, kind=None)


def assert_plain(answer: Answer | None, status: int, words: str = "") -> Answer:
    """A refusal as docs/authorisation.md and docs/clients.md have it."""
    assert answer is not None, "the connection ended without an answer"
    assert answer.status == status, answer.sentence
    assert words in answer.sentence
    assert answer.sentence.endswith(".")
    assert len(answer.sentence) <= 600
    if status == 401:
        assert answer.body == b""
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
    else:
        assert answer.headers.get_content_type() == "text/plain"
        assert answer.body.decode() == answer.body.decode().strip() + "\n"
    assert (answer.headers["Allow"] is not None) == (status == 405)
    return answer


def assert_served(server: Server, line: Line | None = None) -> None:
    """The next request is served: on the same connection, where it is still there, and on a new one."""
    if line is not None:
        line.send(get(CACERTS))
        answer = line.answer()
        assert answer is not None
        assert answer.status == 200
    with Line(server) as fresh:
        fresh.send(get(CACERTS))
        answer = fresh.answer()
        assert answer is not None
        assert answer.status == 200
