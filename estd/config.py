"""The configuration: TOML in, frozen dataclasses out, or a ConfigError with everything that is wrong in it.

Paths are relative to the file's folder. Durations and sizes carry their unit ("90d", "64KiB"). An unknown key is an
error that names its path, so a misspelt limit is never silently the default. Nothing here opens a certificate or a
token: that is what `estd check` does with the result.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from estd.errors import ConfigError
from estd.toml_table import Address, Table, address, string

OPERATIONS = ("cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs", "crls")
"""Names that no label may have (RFC 7030 §3.2.2), whether or not the operation is served."""

LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")

KEY_KINDS = ("ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096")
KEY_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "key_agreement")
EXTENDED_KEY_USAGES = {
    "serverAuth": "1.3.6.1.5.5.7.3.1",
    "clientAuth": "1.3.6.1.5.5.7.3.2",
    "codeSigning": "1.3.6.1.5.5.7.3.3",
    "emailProtection": "1.3.6.1.5.5.7.3.4",
    "timeStamping": "1.3.6.1.5.5.7.3.8",
    "ipsecIKE": "1.3.6.1.5.5.7.3.17",
}
SUBJECT_ATTRIBUTES = ("CN", "serialNumber", "C", "ST", "L", "O", "OU", "UID", "DC")

Source = Literal["none", "identity", "csr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    listen: Address
    admin: Address
    edges: int
    issuers: int
    tls_certificate: Path
    tls_key: Path
    default_label: str
    max_connections: int
    """Per edge; further ones wait in the kernel's accept queue."""
    queue: int
    """Requests per edge that may wait for the issuer; one more is 503."""
    idle_seconds: int
    handshake_seconds: int
    body_seconds: int
    deadline_seconds: int
    """From the request's last byte to its answer; what is older is 503 and is not signed."""
    drain_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    module: Path
    label: str
    pin_file: Path
    environment: tuple[tuple[str, str], ...]
    """Variables that the module reads, such as SOFTHSM2_CONF; a value is a path relative to the configuration."""
    sessions: int
    timeout_seconds: int
    """A batch that the token has not signed by then makes its issuer anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ca:
    name: str
    certificate: Path
    chain: Path | None
    """PEM with the certificates above the issuing CA's, up to and with the root."""
    key_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRule:
    """Where names of one kind (dNSName, iPAddress, URI, CN) come from, and which of those asked for may be had."""

    source: Source
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    name: str
    validity_seconds: int
    backdate_seconds: int
    keys: frozenset[str]
    key_usage: tuple[str, ...]
    extended_key_usage: tuple[str, ...]
    """Dotted OIDs."""
    subject: Literal["identity", "csr"]
    subject_attributes: frozenset[str]
    common_name: tuple[str, ...]
    dns: NameRule
    ip: NameRule
    uri: NameRule
    max_names: int
    other_names: Literal["refuse", "replace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """One way into a label: who is let in, and the profile of what they get."""

    who: Literal["basic", "certificate", "issued"]
    profile: str | None
    credentials: Path | None = None
    anchors: Path | None = None
    crls: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    name: str
    ca: str
    allow: tuple[Allow, ...]
    linking: Literal["off", "accepted", "demanded"]
    renew: Literal["either", "same-key", "new-key"]
    pem: bool
    cacerts_one_line: bool
    body_bytes: int
    repeat_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    folder: Path
    server: Server
    token: Token
    ledger: Path
    cas: dict[str, Ca]
    profiles: dict[str, Profile]
    labels: dict[str, Label]

    @property
    def run(self) -> Path:
        """The folder of sockets, pid file and locks, private to the server's user."""
        return self.folder / "run"


def _oid(text: str) -> str:
    if text in EXTENDED_KEY_USAGES:
        return EXTENDED_KEY_USAGES[text]
    if not re.fullmatch(r"[012](\.(0|[1-9]\d{0,9})){2,15}", text):
        raise ValueError(f"{text!r} is neither a known extended key usage nor a dotted OID")
    return text


def _server(table: Table) -> Server:
    needs = 'an address such as "127.0.0.1:8443"'
    server = Server(
        listen=table.take("listen", address, Address(host="127.0.0.1", port=8443), needs),
        admin=table.take("admin", address, Address(host="127.0.0.1", port=9443), needs),
        edges=table.whole("edges", 1, 1, 64),
        issuers=table.whole("issuers", 1, 1, 64),
        tls_certificate=table.file("tls_certificate", "server.pem"),
        tls_key=table.file("tls_key", "server.key"),
        default_label=table.string("default_label", "default"),
        max_connections=table.whole("max_connections", 10_000, 1, 1_000_000),
        queue=table.whole("queue", 1024, 1, 65536),
        idle_seconds=table.seconds("idle", "75s"),
        handshake_seconds=table.seconds("handshake_timeout", "10s"),
        body_seconds=table.seconds("body_timeout", "10s"),
        deadline_seconds=table.seconds("deadline", "10s"),
        drain_seconds=table.seconds("drain", "10s"),
    )
    table.done()
    return server


def _token(table: Table) -> Token:
    environment = table.table("environment")
    token = Token(
        module=table.file("module"),
        label=table.string("label"),
        pin_file=table.file("pin_file"),
        environment=tuple((name, str(environment.file(name))) for name in list(environment.left)),
        sessions=table.whole("sessions", 1, 1, 256),
        timeout_seconds=table.seconds("timeout", "15s"),
    )
    table.done()
    return token


def _ca(name: str, table: Table) -> Ca:
    ca = Ca(
        name=name,
        certificate=table.file("certificate"),
        chain=table.optional_file("chain"),
        key_id=table.take("key_id", bytes.fromhex, None, "a CKA_ID in hexadecimal"),
    )
    table.done()
    return ca


def _names(table: Table, key: str) -> NameRule:
    def kind(value: Any) -> NameRule:
        if isinstance(value, list) and all(isinstance(one, str) and one for one in value):
            if key == "ip":
                for one in value:
                    ipaddress.ip_network(one)  # raises ValueError that says what is wrong with it
            return NameRule(source="csr", patterns=tuple(value))
        if value not in ("none", "identity", "csr"):
            raise ValueError
        return NameRule(source=value, patterns=())

    return table.take(
        key, kind, NameRule(source="none", patterns=()), '"none", "identity", "csr" or a list of patterns'
    )


def _profile(name: str, table: Table) -> Profile:
    def oids(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError
        return tuple(_oid(string(one)) for one in value)

    profile = Profile(
        name=name,
        validity_seconds=table.seconds("validity", "90d"),
        backdate_seconds=table.seconds("backdate", "1h"),
        keys=frozenset(table.strings("keys", ("ec-p256", "ec-p384"), KEY_KINDS)),
        key_usage=table.strings("key_usage", ("digital_signature",), KEY_USAGES),
        extended_key_usage=table.take(
            "extended_key_usage", oids, (EXTENDED_KEY_USAGES["clientAuth"],),
            "a list of " + ", ".join(EXTENDED_KEY_USAGES) + " and dotted OIDs",
        ),
        subject=table.choice("subject", "identity", ("identity", "csr")),
        subject_attributes=frozenset(table.strings("subject_attributes", ("CN", "serialNumber"), SUBJECT_ATTRIBUTES)),
        common_name=table.strings("common_name", ("*",)),
        dns=_names(table, "dns"),
        ip=_names(table, "ip"),
        uri=_names(table, "uri"),
        max_names=table.whole("max_names", 16, 0, 256),
        other_names=table.choice("other_names", "refuse", ("refuse", "replace")),
    )  # fmt: skip
    if profile.validity_seconds is not None and profile.validity_seconds < 60:
        table.wrong("validity", "must be a minute or more")
    table.done()
    return profile


def _allow(table: Table) -> Allow:
    ways: tuple[Literal["basic", "certificate", "issued"], ...] = ("basic", "certificate", "issued")
    if "who" not in table.left:
        table.wrong("who", "is missing (needs one of " + ", ".join(ways) + ")")
    who = table.choice("who", "issued", ways)
    allow = Allow(
        who=who,
        profile=table.string("profile") if who != "issued" or "profile" in table.left else None,
        credentials=table.file("credentials") if who == "basic" else None,
        anchors=table.file("anchors") if who == "certificate" else None,
        crls=tuple(table.folder / one for one in table.strings("crls", ())) if who == "certificate" else (),
        labels=table.strings("labels", ()) if who == "issued" else (),
    )
    table.done()
    return allow


def _label(name: str, table: Table) -> Label:
    rules = table.left.pop("allow", [])
    if not isinstance(rules, list):
        table.wrong("allow", "must be an array of tables")
        rules = []
    label = Label(
        name=name,
        ca=table.string("ca"),
        allow=tuple(
            _allow(Table(rule, table.where(f"allow[{index}]"), table.problems, table.folder))
            for index, rule in enumerate(rules)
        ),
        linking=table.choice("linking", "accepted", ("off", "accepted", "demanded")),
        renew=table.choice("renew", "either", ("either", "same-key", "new-key")),
        pem=table.flag("pem", False),
        cacerts_one_line=table.flag("cacerts_one_line", False),
        body_bytes=table.size("body_limit", "64KiB", "1MiB"),
        repeat_seconds=table.seconds("repeat_window", "10m", "3h"),
    )
    table.done()
    if name in OPERATIONS:
        table.problems.append(f"label.{name}: a label cannot have the name of an operation (RFC 7030 §3.2.2)")
    elif not LABEL_NAME.fullmatch(name):
        table.problems.append(f"label.{name}: a label's name is one path segment of letters, digits and . _ ~ -")
    return label


def _cross_check(config: Config) -> list[str]:
    """References between the tables that lead nowhere."""
    problems: list[str] = []
    if config.server.default_label not in config.labels:
        problems.append(f"server.default_label: there is no [label.{config.server.default_label}]")
    for label in config.labels.values():
        where = f"label.{label.name}"
        if label.ca not in config.cas:
            problems.append(f"{where}.ca: there is no [ca.{label.ca}]")
        for index, allow in enumerate(label.allow):
            if allow.profile is not None and allow.profile not in config.profiles:
                problems.append(f"{where}.allow[{index}].profile: there is no [profile.{allow.profile}]")
            problems += [
                f"{where}.allow[{index}].labels: there is no [label.{other}]"
                for other in allow.labels
                if other not in config.labels
            ]
    return problems


def parse(text: str, folder: Path) -> Config:
    """The configuration in `text`, whose paths start in `folder`. Raises ConfigError with every problem."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"not TOML: {error}"]) from error
    problems: list[str] = []
    root = Table(data, "", problems, folder)
    ledger = root.table("ledger")
    config = Config(
        folder=folder,
        server=_server(root.table("server")),
        token=_token(root.table("token")),
        ledger=ledger.file("path", "ledger.sqlite3"),
        cas={name: _ca(name, table) for name, table in root.tables("ca").items()},
        profiles={name: _profile(name, table) for name, table in root.tables("profile").items()},
        labels={name: _label(name, table) for name, table in root.tables("label").items()},
    )
    ledger.done()
    root.done()
    if not problems:
        problems += _cross_check(config)
    if problems:
        raise ConfigError(problems)
    return config


def load(path: Path) -> Config:
    """The configuration in the file. Raises ConfigError, also where the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
    return parse(text, path.resolve().parent)
