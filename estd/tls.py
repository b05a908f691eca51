"""TLS for EST: a transport on pyOpenSSL that takes every client certificate and leaves the verdict to policy.

The standard library ends the handshake on an expired or unknown client certificate, so that its device could never be
told why. Here the handshake proves possession of the key alone (the verify callback says yes to everything, so
`verify_result` means nothing); who the client is gets decided per request, by label. TLS 1.2 and 1.3, no resumption
(R9 is a SHOULD; docs/decisions/0003-tls.md), no renegotiation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto

_READ_BYTES = 16384
"""What one record holds at most; pyOpenSSL allocates as much for each read."""
_LINGER_SECONDS = 1.0
_EXPORTER_LABEL = b"EXPORTER-Channel-Binding"
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!eNULL"
_OP_PRIORITIZE_CHACHA = 1 << 21
"""AES-128 first, as it costs least here, but ChaCha20 for a client that puts it first: it has no AES in hardware."""
_TLS13_CIPHERS = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"


def server_context(certificate: Path, key: Path) -> SSL.Context:
    """The TLS context of an edge. Raises as `use_pair`."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_tls13_ciphersuites(_TLS13_CIPHERS)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | _OP_PRIORITIZE_CHACHA)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    use_pair(context, certificate, key)
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    return context


def use_pair(context: SSL.Context, certificate: Path, key: Path) -> None:
    """Raises OSError, or SSL.Error in words: OpenSSL's own say neither which file it was nor why it could not be
    read."""
    for path in (certificate, key):
        path.open("rb").close()
    try:
        context.use_certificate_chain_file(str(certificate))
    except SSL.Error:
        raise SSL.Error(f"{certificate} holds no certificate in PEM") from None
    try:
        context.use_privatekey_file(str(key))
        context.check_privatekey()
    except SSL.Error:
        raise SSL.Error(f"{key} holds no private key in PEM that fits the certificate in {certificate}") from None


def _is_one_record(data: bytes) -> bool:
    """Whether these are the octets of one record of application data, as a request on a kept connection is: then there
    is nothing left to ask for. (The middle of a longer record looks like that once in 2^40 times; its sender waits.)"""
    return data[:3] == b"\x17\x03\x03" and int.from_bytes(data[3:5], "big") == len(data) - 5


class TlsConnection(asyncio.Protocol, asyncio.Transport):
    """One connection: a protocol to the TCP transport below, a transport to the HTTP protocol above.

    `on_end` is called once, with whether the handshake had succeeded.
    """

    __slots__ = (
        "_app", "_app_factory", "_binding", "_chain", "_closing", "_connection", "_ended_by_client", "_loop", "_on_end",
        "_open", "_raw", "_timer", "told",
    )  # fmt: skip

    def __init__(
        self,
        context: SSL.Context,
        app_factory: Callable[[], asyncio.Protocol],
        *,
        loop: asyncio.AbstractEventLoop,
        handshake_seconds: float,
        on_end: Callable[[bool], None],
    ) -> None:
        self._app_factory = app_factory
        self._app: asyncio.Protocol | None = None
        self._loop = loop
        self._on_end = on_end
        self._raw: asyncio.Transport | None = None
        self._open = False
        self._closing = False
        self._ended_by_client = False
        self._chain: bytes | None = None
        self._binding: bytes | None = None
        self.told = False
        """Whether an issuer was told that this client's certificate was seen."""
        self._connection = SSL.Connection(context, None)
        self._connection.set_accept_state()
        self._timer: asyncio.TimerHandle | None = loop.call_later(handshake_seconds, self.abort)

    # What the TCP transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # what is still on its way is taken and forgotten, see `close`
        try:
            self._connection.bio_write(data)
            alone = self._open and _is_one_record(data)
            if not self._open and not self._handshake():
                return
            while not self._closing:
                assert self._app is not None
                self._app.data_received(self._connection.recv(_READ_BYTES))
                if alone:
                    return
        except SSL.WantReadError:
            self._flush()
        except SSL.ZeroReturnError:
            self._ended()
        except SSL.Error:
            self._flush()  # the alert that says what was wrong
            self.abort_softly()

    def eof_received(self) -> bool:
        self._ended()
        return not self._closing  # keep the other direction open while an answer is on its way

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        was_open, self._open, self._closing = self._open, False, True
        self._on_end(was_open)
        if self._app is not None:
            app, self._app = self._app, None
            app.connection_lost(exc)
        self._raw = None

    def pause_writing(self) -> None:
        if self._app is not None:
            self._app.pause_writing()

    def resume_writing(self) -> None:
        if self._app is not None:
            self._app.resume_writing()

    def _handshake(self) -> bool:
        """A step of the handshake; True once it is done."""
        self._connection.do_handshake()  # raises WantReadError while it is not
        self._open = True
        self._stop_timer()
        self._flush()
        self._app = self._app_factory()
        self._app.connection_made(self)
        return True

    def _ended(self) -> None:
        """The client sends no more: what it asked before is answered, then the HTTP protocol closes."""
        self._ended_by_client = True
        if self._app is None or self._closing:
            self.abort_softly()
        else:
            self._app.eof_received()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        """Hand what TLS has to say to TCP."""
        if self._raw is None:
            return
        full = True
        while full:
            try:
                data = self._connection.bio_read(_READ_BYTES)
            except SSL.WantReadError:
                return
            self._raw.write(data)
            full = len(data) == _READ_BYTES

    # What the HTTP protocol calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._raw is None or not self._open or not data:
            return
        try:
            self._connection.sendall(bytes(data))
        except SSL.Error:
            self.abort()
            return
        self._flush()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Say goodbye (close_notify), send what is queued, close.

        A client that is still sending is listened to for a moment longer: closing over octets that nobody has read
        makes TCP reset the connection, and the answer that says why would be lost.
        """
        if self._closing:
            return
        self._closing = True
        if self._open:
            with suppress(SSL.Error):
                self._connection.shutdown()
            self._flush()
        if self._ended_by_client or not self._open or self._raw is None or self._raw.is_closing():
            self.abort_softly()
            return
        self._raw.write_eof()
        self._raw.resume_reading()
        self._timer = self._loop.call_later(_LINGER_SECONDS, self.abort_softly)

    def abort_softly(self) -> None:
        """Close the TCP transport once its queue is sent."""
        self._closing = True
        if self._raw is not None:
            self._raw.close()

    def abort(self) -> None:
        self._closing = True
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._raw is not None and self._raw.is_reading()

    def pause_reading(self) -> None:
        if self._raw is not None and not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self._raw is not None and not self._raw.is_closing():
            self._raw.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._app is not None
        return self._app

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._app = protocol  # type: ignore[assignment]

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "tls":
            return self
        if name == "socket":
            return default  # aiohttp would set TCP_NODELAY on it, which uvloop has done: two system calls
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    # What EST asks.

    def client_chain(self) -> bytes:
        """The client's certificate and whatever it sent above it, DER after DER; empty without one."""
        if self._chain is None:
            leaf = self._connection.get_peer_certificate()
            if leaf is None:
                self._chain = b""
            else:
                # On the server's side OpenSSL keeps the leaf out of the chain.
                above = self._connection.get_peer_cert_chain() or []
                parts = [crypto.dump_certificate(crypto.FILETYPE_ASN1, one) for one in (leaf, *above)]
                self._chain = b"".join(part for index, part in enumerate(parts) if part not in parts[:index])
        return self._chain

    def channel_binding(self) -> bytes:
        """What a linked request must carry: tls-unique on TLS 1.2 (RFC 5929: without resumption the first Finished
        message is the client's), the exporter on TLS 1.3 (RFC 9266), where tls-unique is undefined."""
        if self._binding is None:
            if self._connection.get_protocol_version() >= SSL.TLS1_3_VERSION:
                self._binding = self._connection.export_keying_material(_EXPORTER_LABEL, 32, b"")
            else:
                self._binding = self._connection.get_peer_finished() or b""
        return self._binding
