"""A small, correct EST client (RFC 7030): cacerts, csrattrs, enroll, re-enroll; for operators, tests, demonstrations.

The server is verified before a request is sent, against explicit trust anchors or, without any, the system's
(RFC 7030 §3.6). Linked proof of possession works on both TLS versions.
"""

from __future__ import annotations

import base64
import email
import http.client
import io
import ipaddress
import socket
import ssl
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key, pkcs7
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import verification
from OpenSSL import SSL

from estd import asked, renewal_info, tls
from estd.errors import ClientError, Refused

_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Whom to ask, and as whom."""

    url: str
    label: str | None = None
    anchors: Sequence[x509.Certificate] = ()
    """Explicit trust anchors; without any, the system's."""
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: str | None = None
    tls: int | None = None
    """SSL.TLS1_2_VERSION or SSL.TLS1_3_VERSION to speak that version alone."""


class _Stream(io.RawIOBase):
    """What http.client reads from: the TLS connection as a file."""

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            return self._connection.recv_into(buffer)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return 0


class _Socket:
    """What http.client takes for a socket."""

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection

    def sendall(self, data: bytes) -> None:
        self._connection.sendall(data)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(_Stream(self._connection))

    def close(self) -> None:
        """Called once the head of an answer says `Connection: close`, whose body may still be on its way."""


class EstClient:
    """One connection; use as a context manager. Every method may raise ClientError."""

    def __init__(self, access: Access) -> None:
        parts = urlsplit(access.url)
        if parts.scheme != "https" or not parts.hostname:
            raise ClientError(f"{access.url!r} is not an https URL")
        self._access = access
        self._host, self._port = parts.hostname, parts.port or 443
        label = f"{access.label}/" if access.label else ""
        self._base = parts.path.rstrip("/") + f"/.well-known/est/{label}"
        self.connection = self._connect()
        self._http = http.client.HTTPConnection(self._host, self._port)
        self._http.sock = _Socket(self.connection)

    def __enter__(self) -> EstClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        with suppress(SSL.Error):
            self.connection.shutdown()
        self.connection.close()

    def _connect(self) -> SSL.Connection:
        access = self._access
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(access.tls or SSL.TLS1_2_VERSION)
        context.set_max_proto_version(access.tls or 0)
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)  # judged in _verify, before anything is sent
        try:
            if access.certificate is not None:
                tls.use_pair(context, access.certificate, access.key or access.certificate)
        except (OSError, SSL.Error) as error:
            raise ClientError(f"{error}; --cert and --key name the files") from error
        try:
            raw = socket.create_connection((self._host, self._port), timeout=_TIMEOUT_SECONDS)
            raw.settimeout(None)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = SSL.Connection(context, raw)
            if not _is_ip(self._host):
                connection.set_tlsext_host_name(self._host.encode())
            connection.set_connect_state()
            connection.do_handshake()
        except (OSError, SSL.Error) as error:
            raise ClientError(f"no TLS connection to {self._host}:{self._port}: {error}") from error
        self._verify(connection)
        return connection

    def _verify(self, connection: SSL.Connection) -> None:
        chain = connection.get_peer_cert_chain(as_cryptography=True) or []
        anchors = list(self._access.anchors) or _system_anchors()
        host = ipaddress.ip_address(self._host) if _is_ip(self._host) else None
        subject = x509.IPAddress(host) if host is not None else x509.DNSName(self._host)
        try:
            builder = verification.PolicyBuilder().store(verification.Store(anchors))
            builder.build_server_verifier(subject).verify(chain[0], chain[1:])
        except (verification.VerificationError, ValueError, IndexError) as error:
            raise ClientError(
                f"the certificate of {self._host} is not trusted ({error}); name the CA's certificate with --cacert"
            ) from None

    def channel_binding(self) -> bytes:
        """The value that links a request to this connection: base64 of tls-unique or of the exporter."""
        if self.connection.get_protocol_version() >= SSL.TLS1_3_VERSION:
            value = self.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        else:
            value = self.connection.get_finished() or b""  # the client's Finished is the first of a full handshake
        return base64.b64encode(value)

    def request(
        self, method: str, operation: str, body: bytes | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        """One request; the caller reads the response. `headers` have - for _."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self._access.user is not None and body is not None:
            pair = f"{self._access.user}:{self._access.password or ''}".encode()
            sent["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        try:
            self._http.request(method, self._base + operation, body, sent)
            return self._http.getresponse()
        except (OSError, http.client.HTTPException, SSL.Error) as error:
            raise ClientError(f"the server did not answer {operation}: {error!r}") from error

    def _body(self, response: http.client.HTTPResponse, media_type: str) -> bytes:
        """The body of a 200 of that type."""
        body = _read(response)
        if response.status != 200:
            sentence = response.headers.get("Estd-Error") or body.decode(errors="replace").strip() or response.reason
            raise Refused(response.status, sentence, response.headers.get("Retry-After"))
        if response.headers.get_content_type() != media_type:
            raise ClientError(f"the answer is {response.headers.get_content_type()}, not {media_type}")
        return body

    def _certificates(self, response: http.client.HTTPResponse) -> list[x509.Certificate]:
        body = self._body(response, "application/pkcs7-mime")
        try:
            return pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
        except (ValueError, x509.InvalidVersion) as error:
            raise ClientError(f"the answer is not a certs-only CMS in base64: {error}") from error

    def cacerts(self) -> list[x509.Certificate]:
        """The CA's certificates (RFC 7030 §4.1)."""
        return self._certificates(self.request("GET", "cacerts"))

    def csrattrs(self) -> asked.Asked:
        """What a request should have (§4.5); nothing where the server has nothing to say."""
        response = self.request("GET", "csrattrs")
        if response.status in (204, 404):
            _read(response)
            return asked.NOTHING
        body = self._body(response, "application/csrattrs")
        try:
            return asked.read(base64.b64decode(body))
        except ValueError as error:
            raise ClientError(f"the server's csrattrs cannot be read: {error}") from error

    def renewal_info(self, certificate: x509.Certificate) -> tuple[renewal_info.Window, int]:
        """When a certificate had best be renewed, and after how many seconds to ask again (RFC 9773 §4)."""
        try:
            response = self.request("GET", f"renewal-info/{renewal_info.cert_id(certificate)}")
            window = renewal_info.read_body(self._body(response, "application/json"))
        except ValueError as error:
            raise ClientError(f"when to renew this certificate cannot be had: {error}") from error
        told = response.headers.get("Retry-After", "")
        return window, int(told) if told.isdecimal() else renewal_info.ASK_SECONDS[1]

    def enroll(
        self, make_csr: Callable[[bytes | None], bytes], *, renew: bool = False, link: bool = False
    ) -> x509.Certificate:
        """A certificate for the request that `make_csr` makes (DER), given the linking value or None (§4.2)."""
        csr_der = make_csr(self.channel_binding() if link else None)
        response = self._post("simplereenroll" if renew else "simpleenroll", csr_der)
        return _own(self._certificates(response), x509.load_der_x509_csr(csr_der).public_key())

    def serverkeygen(
        self, make_csr: Callable[[bytes | None], bytes], *, link: bool = False
    ) -> tuple[PrivateKeyTypes, x509.Certificate]:
        """A key that the server made, of the kind of the request's own, and its certificate (§4.4)."""
        response = self._post("serverkeygen", make_csr(self.channel_binding() if link else None))
        body = self._body(response, "multipart/mixed")
        kind = response.headers["Content-Type"].encode()
        message = email.message_from_bytes(b"Content-Type: " + kind + b"\r\n\r\n" + body)
        parts = [one for one in message.walk() if not one.is_multipart()]
        if [one.get_content_type() for one in parts] != ["application/pkcs8", "application/pkcs7-mime"]:
            raise ClientError("the answer is not a PKCS#8 key and a certificate")
        try:
            private_key, certificates = (base64.b64decode(str(one.get_payload())) for one in parts)
            key = load_der_private_key(private_key, None)
            found = pkcs7.load_der_pkcs7_certificates(certificates)
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
            raise ClientError(f"the key or the certificate in the answer cannot be read: {error}") from error
        return key, _own(found, key.public_key())

    def _post(self, operation: str, csr_der: bytes) -> http.client.HTTPResponse:
        return self.request(
            "POST", operation, base64.b64encode(csr_der) + b"\n", Content_Type="application/pkcs10",
            Content_Transfer_Encoding="base64",
        )  # fmt: skip


def _read(response: http.client.HTTPResponse) -> bytes:
    """The body. Raises ClientError where it breaks off."""
    try:
        return response.read()
    except (OSError, http.client.HTTPException, SSL.Error) as error:
        raise ClientError(f"the server's answer broke off: {error!r}") from error


def _own(found: Sequence[x509.Certificate], key: object) -> x509.Certificate:
    """The one certificate of an answer, which must be for `key`."""
    if len(found) != 1:
        raise ClientError(f"the answer holds {len(found)} certificates, not the issued one alone")
    try:
        is_own = found[0].public_key() == key
    except (ValueError, UnsupportedAlgorithm):  # a key of no kind that could be ours
        is_own = False
    if not is_own:
        raise ClientError("the certificate in the answer is for another key")
    return found[0]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _system_anchors() -> list[x509.Certificate]:
    path = ssl.get_default_verify_paths().cafile
    if path is None:
        raise ClientError("this system has no trust anchors; name the CA's certificate with --cacert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # old roots; the system's choice, not ours
        return x509.load_pem_x509_certificates(Path(path).read_bytes())


def pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
