"""The floor: what the cryptography and the disk alone cost here, without a server: `python -m bench.floor`.

An enrolment on a kept connection cannot cost less than verifying the request's signature, signing, and verifying the
signature made; on a fresh connection, less than that and the server's part of a mutual TLS handshake. Machines differ
and drift, so a figure of bench.fleet is worth something as a ratio to this floor, measured in the same hour.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL
from pkcs11 import Mechanism

from estd import tls
from estd.config import load
from estd.instance import Plan, init
from estd.ledger import Row, Writer, create
from hsm.token import Token, private_key_of, public_key_of

_ROUNDS = 7
KEPT = ("verify the CSR's signature", "C_SignInit + C_Sign, raw", "verify the signature made")
"""The parts of the floor of a kept connection."""
_CKM_ECDSA = 0x1041
_REQUEST_BYTES = 640
_ANSWER_BYTES = 1100


def _cost_us(step: Callable[[], object], loops: int, clock: Callable[[], float] = time.process_time) -> float:
    """µs of CPU of one step: the median of several rounds."""
    step()
    rounds = []
    for _ in range(_ROUNDS):
        began = clock()
        for _ in range(loops):
            step()
        rounds.append((clock() - began) / loops * 1e6)
    return statistics.median(rounds)


def _csr(key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device-1")])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())


class _Mechanism(ctypes.Structure):
    _fields_ = (("mechanism", ctypes.c_ulong), ("parameter", ctypes.c_void_p), ("length", ctypes.c_ulong))


def _raw_signer(module: Path, session: int, key: int) -> Callable[[], object]:
    """C_SignInit and C_Sign by ctypes, the nearest to a loop in C: about a microsecond of overhead a call."""
    library = ctypes.CDLL(str(module))
    mechanism = _Mechanism(_CKM_ECDSA, None, 0)
    digest = os.urandom(32)
    signature = ctypes.create_string_buffer(64)
    length = ctypes.c_ulong(64)
    handle, key_handle = ctypes.c_ulong(session), ctypes.c_ulong(key)
    by_mechanism, by_length = ctypes.byref(mechanism), ctypes.byref(length)

    def sign() -> None:
        length.value = 64
        code = library.C_SignInit(handle, by_mechanism, key_handle)
        code = code or library.C_Sign(handle, digest, 32, signature, by_length)
        if code:
            raise click.ClickException(f"C_Sign answered {code:#x}")

    return sign


def _raw_session(module: Path, token: Token, key_id: bytes) -> tuple[int, int]:
    """A session and the private key's handle, of ctypes' own."""
    library = ctypes.CDLL(str(module))
    slot = token.slot_id
    session = ctypes.c_ulong()
    assert library.C_OpenSession(ctypes.c_ulong(slot), ctypes.c_ulong(4), None, None, ctypes.byref(session)) == 0

    class Attribute(ctypes.Structure):
        _fields_ = (("type", ctypes.c_ulong), ("value", ctypes.c_void_p), ("length", ctypes.c_ulong))

    kind, name = ctypes.c_ulong(3), ctypes.create_string_buffer(key_id, len(key_id))
    template = (Attribute * 2)(
        Attribute(0, ctypes.addressof(kind), 8), Attribute(0x102, ctypes.addressof(name), len(key_id))
    )  # fmt: skip
    found, count = ctypes.c_ulong(), ctypes.c_ulong()
    assert library.C_FindObjectsInit(session, template, ctypes.c_ulong(2)) == 0
    assert library.C_FindObjects(session, ctypes.byref(found), ctypes.c_ulong(1), ctypes.byref(count)) == 0
    library.C_FindObjectsFinal(session)
    assert count.value == 1
    return session.value, found.value


def _client_context(folder: Path, key: ec.EllipticCurvePrivateKey) -> SSL.Context:
    """A client with a certificate of its own."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    now = datetime.now(UTC)
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(days=1)
    ).sign(key, hashes.SHA256())
    (folder / "client.pem").write_bytes(
        certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.use_certificate_file(str(folder / "client.pem"))
    context.use_privatekey_file(str(folder / "client.pem"))
    return context


class _Pair:
    """A server and a client of TLS in one process; `server_seconds` counts the server's part alone."""

    def __init__(self, server: SSL.Context, client: SSL.Context) -> None:
        self.server_seconds = 0.0
        began = time.thread_time()
        self.server = SSL.Connection(server, None)
        self.server.set_accept_state()
        self.server_seconds += time.thread_time() - began
        self.client = SSL.Connection(client, None)
        self.client.set_connect_state()

    def handshake(self) -> None:
        done = False
        while not done:
            with suppress(SSL.WantReadError):
                self.client.do_handshake()
            data = _out(self.client)
            began = time.thread_time()
            self.server.bio_write(data)
            with suppress(SSL.WantReadError):
                self.server.do_handshake()
                done = True
            back = _out(self.server)
            self.server_seconds += time.thread_time() - began
            if back:
                self.client.bio_write(back)

    def exchange(self) -> None:
        """A request and its answer, of an enrolment's sizes."""
        self.client.send(bytes(_REQUEST_BYTES))
        data = _out(self.client)
        began = time.thread_time()
        self.server.bio_write(data)
        self.server.recv(65536)
        self.server.send(bytes(_ANSWER_BYTES))
        back = _out(self.server)
        self.server_seconds += time.thread_time() - began
        self.client.bio_write(back)
        self.client.recv(65536)


def _out(connection: SSL.Connection) -> bytes:
    try:
        return connection.bio_read(65536)
    except SSL.WantReadError:
        return b""


def _tls_us(folder: Path, loops: int) -> tuple[float, float]:
    """Server's CPU of a mutual TLS 1.3 handshake, and of a request and an answer through the record layer."""
    server = tls.server_context(folder / "server.pem", folder / "server.key")
    client = _client_context(folder, ec.generate_private_key(ec.SECP256R1()))
    handshakes, exchanges = [], []
    for _ in range(_ROUNDS):
        total = 0.0
        for _ in range(loops):
            pair = _Pair(server, client)
            pair.handshake()
            total += pair.server_seconds
        handshakes.append(total / loops * 1e6)
        pair.server_seconds = 0.0
        for _ in range(loops):
            pair.exchange()
        exchanges.append(pair.server_seconds / loops * 1e6)
    return statistics.median(handshakes), statistics.median(exchanges)


def _commit_us(folder: Path, batches: int) -> float:
    path = folder / "floor.sqlite3"
    create(path)
    writer = Writer(path)
    certificate = os.urandom(480)

    def batch() -> None:
        writer.record(
            [
                Row(
                    time.time_ns().to_bytes(8, "big") + os.urandom(8), certificate, bytes(32), bytes(32),
                    "idevid:CN=device-123456", "CN=device-123456", "default", "device", 0, 0, 0, None,
                )
                for _ in range(32)
            ]
        )  # fmt: skip

    return _cost_us(batch, batches) / 32


def measure(folder: Path, loops: int) -> dict[str, float]:
    """µs of CPU of each part, and the two floors."""
    instance = folder / "instance"
    init(
        Plan(
            folder=instance, ca_key="ec-p256", ca_name="floor", hosts=(), listen="127.0.0.1:1", admin="127.0.0.1:2",
            demo=True, existing=None,
        )
    )  # fmt: skip
    config = load(instance / "estd.toml")
    token = Token.open(
        module=config.token.module, label=config.token.label, pin=config.token.pin_file.read_text().strip()
    )
    session = token.session()
    public, private = public_key_of(session, b"\x01"), private_key_of(session, b"\x01")
    assert isinstance(public, ec.EllipticCurvePublicKey)
    digest = os.urandom(32)
    raw = private.sign(digest, mechanism=Mechanism.ECDSA)
    signature = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    algorithm = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
    request = _csr(ec.generate_private_key(ec.SECP256R1()))
    raw_session, raw_key = _raw_session(config.token.module, token, b"\x01")
    figures = {
        "verify the CSR's signature": _cost_us(lambda: request.is_signature_valid, loops),
        "C_SignInit + C_Sign, raw": _cost_us(_raw_signer(config.token.module, raw_session, raw_key), loops),
        "the same by python-pkcs11": _cost_us(lambda: private.sign(digest, mechanism=Mechanism.ECDSA), loops),
        "verify the signature made": _cost_us(lambda: public.verify(signature, digest, algorithm), loops),
        "a row of the ledger, batch of 32": _commit_us(folder, max(4, loops // 32)),
    }
    figures["mutual TLS 1.3 handshake, server"], figures["request and answer through TLS, server"] = _tls_us(
        instance, max(20, loops // 8)
    )
    keep = sum(figures[part] for part in KEPT)
    figures["floor, kept connection"] = keep
    figures["floor, fresh connection"] = keep + figures["mutual TLS 1.3 handshake, server"]
    return figures


@click.command()
@click.option("--loops", default=800, show_default=True, help="Steps in a round; the median of seven rounds is shown.")
@click.option("--json", "as_json", is_flag=True, help="Print data, not words.")
def main(loops: int, as_json: bool) -> None:
    """Measure the floor of this machine, now."""
    with tempfile.TemporaryDirectory(prefix="estd-floor-") as folder:
        figures = measure(Path(folder), loops)
    if as_json:
        click.echo(json.dumps({name: round(value, 2) for name, value in figures.items()}))
        return
    for name, value in figures.items():
        click.echo(f"{name:42} {value:8.1f} µs")


if __name__ == "__main__":
    main()
