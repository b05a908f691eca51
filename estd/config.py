"""The configuration: TOML in, frozen dataclasses out, or a ConfigError with everything that is wrong in it.

Paths are relative to the file's folder. Durations and sizes carry their unit ("90d", "64KiB"). An unknown key is an
error that names its path, so a misspelt limit is never silently the default. Nothing here opens a certificate or a
token: that is what `estd check` does with the result.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from estd.crl_plan import CrlPlan, read_plan
from estd.errors import ConfigError
from estd.labels import Label, Profile, may_lead_to, profiles_of, read_label, read_profile, ungranted
from estd.proxy_settings import ProxySettings, read_proxy
from estd.toml_table import Address, Table, address, hexadecimal


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
    """For a request's body to arrive, and for a client to take a piece of a long answer."""
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
    crl: CrlPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    folder: Path
    server: Server
    token: Token
    ledger: Path
    cas: dict[str, Ca]
    profiles: dict[str, Profile]
    labels: dict[str, Label]
    proxies: dict[str, ProxySettings]
    approvers: Path | None
    """Credentials of those who may decide on waiting requests on the admin port; None: no page there."""

    @property
    def run(self) -> Path:
        """The folder of sockets, pid file and locks, private to the server's user."""
        return self.folder / "run"


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
        key_id=table.take("key_id", hexadecimal, None, "a CKA_ID in hexadecimal"),
        crl=read_plan(name, table),
    )
    table.done()
    return ca


def _cross_check(config: Config) -> list[str]:
    """References between the tables that lead nowhere."""
    problems: list[str] = []
    if config.server.default_label not in config.labels:
        problems.append(f"server.default_label: there is no [label.{config.server.default_label}]")
    for label in config.labels.values():
        where = f"label.{label.name}"
        if label.ca not in config.cas:
            problems.append(f"{where}.ca: there is no [ca.{label.ca}]")
        if label.csrattrs_profile is not None and label.csrattrs_profile not in config.profiles:
            problems.append(f"{where}.csrattrs_profile: there is no [profile.{label.csrattrs_profile}]")
        elif label.csrattrs_profile is not None and not may_lead_to(label, label.csrattrs_profile):
            problems.append(
                f"{where}.csrattrs_profile: no rule of the label leads to [profile.{label.csrattrs_profile}], "
                f"but to {', '.join(sorted(profiles_of(label)))}"
            )
        named = [config.profiles[name] for name in profiles_of(label) if name in config.profiles]
        if label.serverkeygen and not any(profile.keys & {*label.serverkeygen} for profile in named):
            problems.append(f"{where}.serverkeygen: no profile of the label's rules takes a key of these kinds")
        strange = [one for one in label.proxies if one not in config.proxies]
        problems += [f"{where}.proxies: there is no [proxy.{one}]" for one in strange]
        for index, allow in enumerate(label.allow):
            if allow.profile is not None and allow.profile not in config.profiles:
                problems.append(f"{where}.allow[{index}].profile: there is no [profile.{allow.profile}]")
            elif allow.who == "ra" and allow.profile and config.profiles[allow.profile].subject != "csr":
                problems.append(
                    f"{where}.allow[{index}].profile: a registration authority's names are the request's: "
                    f'[profile.{allow.profile}] needs subject = "csr"'
                )
            elif allow.profile is not None:
                problems += [
                    f'{where}.allow[{index}].names: [profile.{allow.profile}] takes them with {kind} = "identity" only'
                    for kind in ungranted(allow, config.profiles[allow.profile])
                ]
            problems += [
                f"{where}.allow[{index}].profiles: there is no [profile.{other}]"
                for other in (allow.hook.profiles if allow.hook is not None else ())
                if other not in config.profiles and other != allow.profile
            ]
            if allow.hook is not None and allow.hook.deadline_seconds >= config.server.deadline_seconds:
                problems.append(
                    f"{where}.allow[{index}].deadline: must be shorter than server.deadline "
                    f"({config.server.deadline_seconds} s), in which the request has to be answered as a whole"
                )
            problems += [
                f"{where}.allow[{index}].labels: there is no [label.{other}]"
                for other in allow.labels
                if other not in config.labels
            ]
    return problems + _crl_files(config)


def _crl_files(config: Config) -> list[str]:
    """CRLs that would replace another file, as they are written now or in a rollover of this CA."""
    written = {
        ca.name: {*_files((ca.crl.of_key(ca.key_id), ca.crl.of_former_key(ca.key_id)))}
        for ca in config.cas.values()
        if ca.crl.on
    }
    certificates = [(ca.certificate, ca.chain) for ca in config.cas.values()]
    environment = [Path(value) for _, value in config.token.environment]
    parts = [getattr(config, one.name) for one in fields(config) if one.name != "cas"]
    read = {*_files((certificates, environment, parts))}
    return [
        f"ca.{name}.crl_file: a CRL of ca.{name} would replace {path}, which another key of this configuration names: "
        "give it a file of its own"
        for name, own in written.items()
        for path in sorted(own & read.union(*(files for other, files in written.items() if other != name)))
    ]


def _files(part: object) -> Iterator[Path]:
    """Every file that this part of the configuration names."""
    if isinstance(part, Path):
        yield Path(os.path.normpath(part))
    elif isinstance(part, dict):
        yield from _files(tuple(part.values()))
    elif isinstance(part, tuple | list):
        for one in part:
            yield from _files(one)
    elif is_dataclass(part):
        yield from _files([getattr(part, one.name) for one in fields(part)])


def parse(text: str, folder: Path) -> Config:
    """The configuration in `text`, whose paths start in `folder`. Raises ConfigError with every problem."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"not TOML: {error}"]) from error
    problems: list[str] = []
    root = Table(data, "", problems, folder)
    ledger, admin = root.table("ledger"), root.table("admin")
    config = Config(
        folder=folder,
        server=_server(root.table("server")),
        token=_token(root.table("token")),
        ledger=ledger.file("path", "ledger.sqlite3"),
        cas={name: _ca(name, table) for name, table in root.tables("ca").items()},
        profiles={name: read_profile(name, table) for name, table in root.tables("profile").items()},
        proxies={name: read_proxy(name, table) for name, table in root.tables("proxy").items()},
        labels={name: read_label(name, table) for name, table in root.tables("label").items()},
        approvers=admin.optional_file("credentials"),
    )
    ledger.done()
    admin.done()
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
