"""The authorisation matrix (D20) in the flesh: an instance with the labels of tests/matrix.py, everybody who asks
there, and a client that asks over kept TLS connections.

`python -m tests.matrix_world FOLDER` fills an instance before it serves: certificates of our CA are signed with its key
in the token, and stand in the ledger as its own writer would have put them there. It is a process of its own, since a
process opens one SoftHSM token.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from estd import challenges, config, credentials, importing, renewal_info
from estd.client import EstClient
from estd.devices import Device
from estd.identify import ClientCertificate
from estd.ledger import Row, Writer
from estd.material import read_pin
from estd.ras import CMC_RA
from hsm import keys
from hsm.token import Token
from tests import make, matrix, servers
from tests.make import Identity
from tests.matrix import CERTIFICATES, LABELS, Cell, Certificate
from tests.servers import Server

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
EXPIRED: dict[str, Any] = {"starts": -30 * MINUTE, "ends": -15 * MINUTE}  # its CA is older than this
STATES: dict[str, dict[str, Any]] = {
    "valid": {}, "revoked": {}, "on the CRL": {}, "expired": EXPIRED, "revoked and expired": EXPIRED,
    "late": {"starts": -90 * DAY, "ends": -40 * DAY}, "early": {"starts": timedelta(hours=1)},
    "for servers": {"extended": [make.SERVER_AUTH]}, "no signatures": {"usage": "key_agreement"},
    "a CA's": {"ca": True},
}  # fmt: skip
"""How a certificate gets into its state, by what `make.certificate` is asked for."""

_MAKER = 'anchors = "demo/manufacturer.pem"\ncrls = ["demo/manufacturer.crl"]\nprofile = "own"'
_HOOK = 'who = "webhook"\nurl = "{url}"\nsecret_file = "people/hook"\n'
_WAYS = {
    "issued": 'who = "issued"',
    "basic:factory": 'who = "basic"\ncredentials = "people/factory"\nprofile = "free"',
    "basic:plant": 'who = "basic"\ncredentials = "people/plant"\nprofile = "free"',
    "anchors:maker": f'who = "certificate"\n{_MAKER}',
    "anchors:ours": 'who = "certificate"\nanchors = "ca.pem"\nprofile = "own"',
    "registry:maker": f'who = "registry"\nmanufacturer = "Maker"\n{_MAKER}',
    "secret": 'who = "registry"\nsecrets = ["basic", "otpChallenge"]\nprofile = "own"',
    "hook:maker": f"{_HOOK}{_MAKER}",
    "hook": f'{_HOOK}profile = "own"',
    "ra": 'who = "ra"\ncertificates = "people/ras.pem"\nprofile = "free"',
}
_BESIDE = """
[profile.free]                      # the request's common name
subject = "csr"
[profile.own]                       # the identity's names, whatever the request says
other_names = "replace"
[proxy.front]
certificates = "people/front.pem"
form = "rfc9440"
[label.registrars]
ca = "root"
"""


def settings(url: str) -> str:
    """The labels of the matrix as TOML; `url` is the webhook's."""
    lines = [_BESIDE]
    for name, label in LABELS.items():
        lines += [f"[label.{name}]", 'ca = "root"']
        lines += ['expired_window = "30d"'] * label.window + ['approval = "first"'] * label.approval
        lines += ['linking = "demanded"'] * label.linked + ["enforce_csrattrs = true"] * label.enforced
        lines += ["serverkeygen = true"] * label.keygen + ['csrattrs = "off"'] * (not label.csrattrs)
        lines += ['proxies = ["front"]'] * label.proxy + ["revocation_challenge = true"] * label.challenged
        lines += ["renewal_info = false"] * (not label.renewal_info)
        for way in label.ways:
            lines += [f"[[label.{name}.allow]]", _WAYS[way].replace("{url}", url)]
            lines += [f"labels = {json.dumps(label.admits)}"] * (way == "issued" and bool(label.admits))
    return "\n".join(lines) + "\n"


def _stem(certificate: str) -> str:
    return certificate.translate({ord(" "): "-", ord(","): None, ord("'"): None})


def files(folder: Path, certificate: str) -> tuple[Path, Path]:
    """Where the certificate with this name in CERTIFICATES, and its key, are."""
    if certificate == "the server's own":
        return folder / "server.pem", folder / "server.key"
    if certificate == "the maker's CA":
        return folder / "demo" / "manufacturer.pem", folder / "demo" / "manufacturer.key"
    if certificate == "our CA's own":
        return folder / "ca.pem", folder / "no.key"  # the token's: it can be in a proxy's header alone
    stem = _stem(certificate)
    return folder / "people" / f"{stem}.pem", folder / "people" / f"{stem}.key"


def shown_by(cells: Sequence[Cell]) -> set[str]:
    """The names of the certificates that somebody in these cells shows."""
    return {name for cell in cells for name in (cell.shown.certificate, cell.shown.header) if name}


def secret_of(cell: int) -> str:
    """The one-time secret of the device of the cell with this number: each has its own, since a secret works once, and
    since too many wrong ones make a device wait."""
    return hashlib.sha256(b"%d" % cell).hexdigest()[:32]


def password_of(user: str) -> str:
    return f"the password of {user}"


# Making them.


def populate(folder: Path, cells: Sequence[Cell]) -> None:
    """Everybody in these cells, before the instance is served for the first time."""
    people = folder / "people"
    people.mkdir()
    for user in matrix.PASSWORDS:
        (people / user).write_text(credentials.line(user, password_of(user), generated=True) + "\n")
    (people / "hook").write_text("the hook's secret\n")
    made = _certificates(folder, shown_by(cells) | {name for name in CERTIFICATES if CERTIFICATES[name].listed})
    listed = [made[name] for name, one in CERTIFICATES.items() if one.listed]
    (people / "ras.pem").write_bytes(b"".join(one.pem for one in listed))
    (people / "front.pem").write_bytes(made["the proxy's"].pem)
    gone = [made[name] for name in made if CERTIFICATES[name].state == "on the CRL"]
    maker = servers.identity_of(*files(folder, "the maker's CA"))
    (folder / "demo" / "manufacturer.crl").write_bytes(make.crl(maker, gone))
    writer = Writer(folder / "ledger.sqlite3")
    now = int(time.time())
    for name, identity in made.items():
        one = CERTIFICATES[name]
        if one.under:
            row = _row(identity, one, name)
            writer.record([row])
            if one.state.startswith("revoked"):
                writer.revoke(row.serial, now, 1)
    devices = [
        *(Device("registry", "", name, None, "", name.endswith("enabled"), None, None, None, now)
          for name in ("of a device enabled", "of a device disabled")),
        *(Device("registry", "Maker", f"idevid {row}", None, "", row == "enabled", None, None, None, now)
          for row in ("enabled", "disabled")),
        *(_device(number, kind, now) for number, cell in enumerate(cells) if (kind := secret_kind(cell))),
    ]  # fmt: skip
    devices.sort(key=lambda device: device.key)
    importing.write(devices, writer, at=now, secrets_out=None, secret_until=0, step=lambda _: None)
    writer.close()


def secret_kind(cell: Cell) -> str:
    """Which one-time secret the cell's client presents; empty where none."""
    who = cell.shown
    return who.otp or (who.basic.removeprefix("secret ") if who.basic.startswith("secret ") else "")


def _device(number: int, kind: str, now: int) -> Device:
    """The device of a cell; "of nobody" and "wrong" have another secret than they present, or no such serial number."""
    right = hashlib.sha256(secret_of(number).encode()).digest()
    used_ms = {"used": now * 1000, "used long ago": (now - 86400) * 1000}.get(kind)
    return Device(
        label="registry", manufacturer="", serial_number=f"SN-{number}" + "-other" * (kind == "of nobody"),
        profile=None, names="", enabled=kind != "of a disabled device", secret=bytes(32) if kind == "wrong" else right,
        secret_until=now - 60 if kind == "expired" else now + 3600, secret_used_ms=used_ms, added_at=now,
    )  # fmt: skip


def _certificates(folder: Path, names: set[str]) -> dict[str, Identity]:
    settings_ = config.load(folder / "estd.toml")
    for name, value in settings_.token.environment:
        os.environ[name] = value
    token = Token.open(module=settings_.token.module, label=settings_.token.label, pin=read_pin(settings_))
    ca: Any = keys.signer(token, settings_.cas["root"].key_id)
    ours = Identity(x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()), ca)
    cas = {
        "ours": ours,
        "maker": servers.identity_of(*files(folder, "the maker's CA")),
        "strangers": make.certificate(ca=True, subject=ours.certificate.subject),  # it calls itself as ours does
    }
    made: dict[str, Identity] = {}
    for name in sorted(names):
        if files(folder, name)[0].parent != folder / "people":
            continue  # there already
        one = CERTIFICATES[name]
        wanted = {"extended": [make.CLIENT_AUTH, *([CMC_RA] if name.startswith("RA") else [])], **STATES[one.state]}
        subject = (
            make.name(_stem(name), SERIAL_NUMBER=f"idevid {one.row}") if one.issuer == "maker" else make.name(name)
        )
        made[name] = make.certificate(cas[one.issuer], subject=subject, **wanted)
    if (twin := "a stranger's with a serial number of ours") in made:
        made[twin] = _twin(made["ours valid of issued"], cas["strangers"])
    for name, identity in made.items():
        identity.write(folder / "people", _stem(name))
    return made


def _twin(one: Identity, signer: Identity) -> Identity:
    """The same certificate, for another key and signed by another."""
    key, found = make.key(), one.certificate
    builder = x509.CertificateBuilder(
        found.issuer, found.subject, key.public_key(), found.serial_number, found.not_valid_before_utc,
        found.not_valid_after_utc, list(found.extensions),
    )  # fmt: skip
    return Identity(builder.sign(signer.key, hashes.SHA256()), key)


def _row(identity: Identity, one: Certificate, name: str) -> Row:
    found = ClientCertificate.parse(identity.der)
    return Row(
        serial=found.serial, certificate_der=identity.der, csr_sha256=bytes(32),
        repeat_key=hashlib.sha256(identity.der).digest(),
        identity=f"device:registry//{name}" if one.row else "basic:factory", subject=found.shown, label=one.under,
        profile="free", not_before=found.not_before, not_after=found.not_after, issued_at_ms=0, renews=None,
    )  # fmt: skip


# Asking.


_IN_OPEN = 0x20
_EVENT_BYTES = 16
"""Of inotify: a file was opened; what tells of it, where the file itself is watched."""


class KeyFile:
    """An outside witness of the token: SoftHSM reads the file of a private key once for each signature, and Linux tells
    who watches the file (inotify)."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for path in (folder / "token" / "tokens").rglob("*.object"):
            watch = libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_OPEN)
            assert watch >= 0, os.strerror(ctypes.get_errno())

    def reads(self) -> int:
        """How often one was opened since the last question."""
        count = 0
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return count
            count += len(data) // _EVENT_BYTES

    def close(self) -> None:
        os.close(self._descriptor)


_SAMPLE = re.compile(
    r"^(estd_rejections_total|estd_sign_seconds_count|estd_certificates_total|estd_token_errors_total)"
    r"""\{(?:.*reason="(\w+)")?.*\} (\d+)\.0$""", re.MULTILINE,
)  # fmt: skip


class Counts(NamedTuple):
    """What the server has counted, and how many rows its ledger has."""

    rows: int
    signatures: int
    """Of certificates: the health probe's and the CRLs' are not among them."""
    certificates: int
    token_errors: int
    """Jobs for certificates that the token was given and did not sign."""
    rejections: Counter[str]

    def since(self, before: Counts) -> Counts:
        """What came since then."""
        return Counts(
            self.rows - before.rows, self.signatures - before.signatures, self.certificates - before.certificates,
            self.token_errors - before.token_errors, self.rejections - before.rejections,
        )  # fmt: skip


@dataclass
class World:
    """The instance while it is served, and kept connections to it: one for each certificate, and one without."""

    server: Server
    connections: dict[str, EstClient] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ledger = sqlite3.connect(f"file:{self.server.folder / 'ledger.sqlite3'}?mode=ro", uri=True)

    def counts(self) -> Counts:
        """As the admin port and the ledger show them now, of all processes together."""
        sums: Counter[str] = Counter()
        for name, reason, value in _SAMPLE.findall(self.server.admin("/metrics")[1]):
            sums[reason if name == "estd_rejections_total" else name] += int(value)
        return Counts(
            rows=self._ledger.execute("SELECT count(*) FROM certificate").fetchone()[0],
            signatures=sums.pop("estd_sign_seconds_count"),
            certificates=sums.pop("estd_certificates_total"),
            token_errors=sums.pop("estd_token_errors_total"),
            rejections=sums,
        )

    def last_identity(self) -> str:
        """Who the newest certificate was issued to, as the ledger has it."""
        row = self._ledger.execute("SELECT identity FROM certificate ORDER BY issued_at DESC LIMIT 1").fetchone()
        return str(row[0])

    def connection(self, certificate: str) -> EstClient:
        if certificate not in self.connections:
            cert = files(self.server.folder, certificate) if certificate else None
            self.connections[certificate] = self.server.client(cert=cert)
        return self.connections[certificate]

    def close(self) -> None:
        for client in self.connections.values():
            client.__exit__()
        self._ledger.close()

    def ask(self, number: int, cell: Cell) -> tuple[int, str]:
        """Status and sentence that the client of this cell gets. A fresh key each time: nothing is a repetition."""
        who = cell.shown
        path = f"{cell.label}/{cell.operation}" if cell.label else cell.operation
        if cell.operation == "renewal-info":
            path += f"/{self._identifier(who.certificate)}"
        client = self.connection(who.certificate)
        body = make.body(self._csr(number, cell, client)) if cell.method != "GET" else None
        response = client.request(cell.method, path, body, **self._headers(number, cell))
        sentence = response.headers.get("Estd-Error", "")
        response.read()
        if response.will_close:
            self.connections.pop(who.certificate).__exit__()
        return response.status, sentence

    def _identifier(self, certificate: str) -> str:
        if not certificate:
            return "none"
        path = files(self.server.folder, certificate)[0]
        return str(renewal_info.cert_id(x509.load_pem_x509_certificate(path.read_bytes())))

    def _headers(self, number: int, cell: Cell) -> dict[str, str]:
        who, headers = cell.shown, {"Content_Type": "application/pkcs10"}
        user, password = who.basic, "wrong"
        if who.basic in matrix.PASSWORDS:
            password = password_of(user)
        elif who.basic == "wrong":
            user = "factory"
        elif who.basic.startswith("secret "):
            user, password = f"SN-{number}", secret_of(number)
        if who.basic:
            pair = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"{'Bearer' if who.basic == 'bearer' else 'Basic'} {pair}"
        if who.header:
            certificate = x509.load_pem_x509_certificate(files(self.server.folder, who.header)[0].read_bytes())
            headers["Client_Cert"] = f":{base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()}:"
        return headers

    def _csr(self, number: int, cell: Cell, client: EstClient) -> bytes:
        """A request for the names of the certificate that counts; a registration authority's for a device's."""
        who = cell.shown
        name = who.header or who.certificate or "somebody"
        subject = make.name(name)
        if name in CERTIFICATES and CERTIFICATES[name].issuer == "maker":
            subject = make.name(_stem(name))
        elif name.startswith("RA"):
            subject = make.name(f"ours valid of {cell.here}")
        if cell.form == "other names":
            subject = make.name(f"somebody else {number}")
        attributes: list[tuple[str, bytes]] = []
        if who.otp:
            subject = make.name(None, SERIAL_NUMBER=f"SN-{number}")
            attributes.append((challenges.OTP.oid, secret_of(number).encode()))
        if cell.form == "challenged":
            attributes.append((challenges.REVOCATION.oid, b"a word for later"))
        extensions: list[tuple[x509.ExtensionType, bool]] = []
        if cell.form == "fit":
            extensions = [(_USAGE, True), (x509.ExtendedKeyUsage([make.CLIENT_AUTH]), False)]
        return make.csr(
            subject=subject, extensions=extensions, attributes=attributes,
            challenge_password=client.channel_binding() if cell.form == "linked" else None,
        )  # fmt: skip


_USAGE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def build(folder: Path, url: str) -> Server:
    """An instance with everybody in it, not served yet; `url` is the webhook's."""
    server = servers.init(folder)
    text = server.config.read_text()
    demo_rules = text.index("\n# A label joins a CA with the ways into it.")
    server.config.write_text(text[:demo_rules] + settings(url))
    command = [sys.executable, "-m", "tests.matrix_world", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "SOFTHSM2_CONF"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return server


if __name__ == "__main__":
    populate(Path(sys.argv[1]), matrix.cells())
