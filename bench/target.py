"""The server as the command line names it, and requests to it as bytes."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

_ROOT = "/.well-known/est"
_CONNECT_SECONDS = 5.0


class TargetError(Exception):
    """The URL names no server that can be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go: `prefix` is the path before the operation, with the label."""

    address: str
    port: int
    host: str
    prefix: str

    def _host(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def head(self, operation: str, authorization: str | None) -> bytes:
        """An enrolment up to the value of its Content-Length."""
        lines = [
            f"POST {self.prefix}/{operation} HTTP/1.1",
            f"Host: {self._host()}",
            "Content-Type: application/pkcs10",
            "Content-Transfer-Encoding: base64",
            "Accept: application/pkcs7-mime",
            *([f"Authorization: {authorization}"] if authorization else []),
            "Content-Length: ",
        ]
        return "\r\n".join(lines).encode()

    def enrolment(self, body: bytes, authorization: str | None) -> bytes:
        """A whole simpleenroll."""
        return b"%b%d\r\n\r\n%b" % (self.head("simpleenroll", authorization), len(body), body)

    def cacerts(self) -> bytes:
        """A whole request for the CA's certificates."""
        return f"GET {self.prefix}/cacerts HTTP/1.1\r\nHost: {self._host()}\r\n\r\n".encode()

    def at_label(self, label: str) -> Target:
        """The same server's label of that name."""
        return replace(self, prefix=self.prefix.partition(_ROOT)[0] + f"{_ROOT}/{label}")


def _connect(address: str, port: int) -> None:
    """A whole handshake, so that the server does not count one that failed; the runs check the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((address, port), timeout=_CONNECT_SECONDS) as raw, context.wrap_socket(raw):
        pass


def find_target(url: str, label: str | None) -> Target:
    """Picks the first of the host's addresses that takes a TLS connection, so that the generators need not look it up.

    Raises ValueError for what is no URL of a server, TargetError where nobody answers.
    """
    parts = urlsplit(url)
    port = parts.port or 443
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not like https://localhost:8443")
    prefix = parts.path.rstrip("/") + _ROOT + (f"/{label}" if label else "")
    reason: OSError | None = None
    try:
        for _, _, _, _, address in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM):
            try:
                _connect(str(address[0]), port)
            except OSError as error:
                reason = error
            else:
                return Target(address=str(address[0]), port=port, host=parts.hostname, prefix=prefix)
    except socket.gaierror as error:
        reason = error
    raise TargetError(f"{parts.hostname}:{port} takes no TLS connection: {reason}")
