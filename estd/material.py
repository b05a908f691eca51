"""What the configuration names, read from its files: CA certificates, each label's rules and templates, PIN, TLS key.

Reading collects everything that is wrong, so that `estd check` can say it in one go; the processes use the same
functions and refuse to start on the first problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from estd import csrattrs, registry, transition, wire
from estd.config import Ca, Config
from estd.crl import CrlFiles
from estd.crl_plan import check_signs_crls
from estd.crl_signers import CrlSigner, signers
from estd.errors import ConfigError
from estd.identify import Anchors
from estd.issuance import CaCertificate, Issuer
from estd.labels import Allow, Label
from estd.policy import LabelPolicy, Rule
from estd.proxy import Proxy, validities
from estd.proxy_settings import ProxySettings
from estd.ras import RaFile
from estd.transition import Transition

T = TypeVar("T")
_SECRET = re.compile(rb"[ -~]+")
Changes = Mapping[Path, Transition | None]
"""Of each CA's certificate file the rollover that is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The configuration with its files, immutable for one generation of processes."""

    config: Config
    cas: dict[str, CaCertificate]
    policies: tuple[LabelPolicy, ...]
    """In the order of the configuration's labels, which is their number in frames."""
    issuers: dict[tuple[str, str], Issuer]
    """By CA and profile."""
    key_ids: dict[str, bytes]
    """CKA_ID of each CA's key: the configuration's, or a rollover's new one."""
    proxies: dict[str, Proxy]
    crls: tuple[CrlSigner, ...]
    """In the order of the configuration's CAs; of each the key that issues first."""

    def shown_cas(self) -> dict[str, list[str]]:
        """Of each CA the SHA-256 of cacerts' certificates, the one that issues first."""
        return {name: ca.fingerprints() for name, ca in self.cas.items()}


def certificates(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file. Raises OSError or ValueError."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except x509.InvalidVersion as error:  # which is no ValueError
        raise ValueError(f"{path}: {error}") from None


def read_pin(config: Config) -> str:
    """The token's PIN, from its file. Raises ConfigError."""
    try:
        pin = config.token.pin_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError([f"token.pin_file: {error}"]) from error
    except UnicodeDecodeError:  # whose words show an octet
        raise ConfigError([f"token.pin_file: {config.token.pin_file} is not UTF-8"]) from None
    if not pin:
        raise ConfigError([f"token.pin_file: {config.token.pin_file} is empty"])
    return pin


def hook_secret(path: Path) -> str:
    """What a webhook is shown: the file's first line. Raises OSError or ValueError, which say nothing of its bytes."""
    line = path.read_bytes().split(b"\n", 1)[0].strip()
    if not _SECRET.fullmatch(line):
        raise ValueError(f"the first line of {path} is not a secret of printable ASCII characters")
    return line.decode("ascii")


def is_signed_by(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _change(path: Path) -> tuple[Path, Transition | None]:
    return path, transition.read(path)


def read_changes(config: Config) -> Changes:
    """Raises OSError or ValueError."""
    return dict(_change(ca.certificate) for ca in config.cas.values())


def _held(path: Path, changes: Changes) -> list[x509.Certificate]:
    """The certificates of the file; where it is a CA's own, in a rollover both of its roots."""
    found, change = certificates(path), changes.get(path)
    return found if change is None else change.roots_of(found)


def path_of(ca: Ca, changes: Changes) -> list[x509.Certificate]:
    """From the CA's certificate up to its root, each signed by the next. Raises OSError or ValueError."""
    own, *above = certificates(ca.certificate)
    change = changes.get(ca.certificate)
    if change is not None:
        own = change.issuing
    if ca.chain is not None:
        above += _held(ca.chain, changes)
    path = [own]
    while path[-1].subject != path[-1].issuer:
        named = [one for one in above if one.subject == path[-1].issuer and one not in path]
        if not named:
            raise ValueError(f"the chain has no certificate of {path[-1].issuer.rfc4514_string()!r}, so cacerts "
                             "could not be complete; name the chain up to the root")  # fmt: skip
        # In a rollover two roots have that name.
        path.append(next((one for one in named if is_signed_by(path[-1], one)), named[0]))
    if not all(map(is_signed_by, path, [*path[1:], path[-1]])):
        raise ValueError("a certificate in the chain is not signed by the one above it")
    return path


def load_ca(ca: Ca, changes: Changes, now: datetime | None = None) -> CaCertificate:
    """The CA's certificate and chain, which must be one unbroken path to a root; where that root changes its key, also
    the other root and what joins the two. Raises OSError or ValueError."""
    now = now or datetime.now(UTC)
    path = path_of(ca, changes)
    for child in path:
        if not child.not_valid_before_utc <= now <= child.not_valid_after_utc:
            raise ValueError(f"{child.subject.rfc4514_string()!r} is not valid now")
        constraints = child.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            raise ValueError(f"{child.subject.rfc4514_string()!r} is not a CA's certificate (basicConstraints)")
    if ca.crl.on:
        check_signs_crls(path[0])
    root = path[-1]
    found = (one.besides(root) for one in changes.values() if one is not None and root in (one.old, one.new))
    return CaCertificate.of(path[0], [*path[1:], *next(found, [])])


@contextmanager
def _of_key(key: str, holds: str) -> Iterator[None]:
    """What is wrong with a file is told with the key that names it, and what it holds where it is not there."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{key}: there is no {error.filename}; it holds {holds}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


def _rule(allow: Allow, ca: CaCertificate | None, changes: Changes) -> Rule:
    """The rule with its anchors and CRLs, or its registration authorities. Raises OSError or ValueError."""
    if allow.certificates is not None and ca is not None:
        return Rule(allow=allow, anchors=None, crls=None, ras=RaFile(allow.certificates, ca.certificate.subject))
    if allow.names is not None:
        registry.try_names(allow.names)
    if allow.hook is not None:
        with _of_key("secret_file", "a secret that the service knows too, made by openssl rand -hex 32"):
            hook_secret(allow.hook.secret_file)
    if allow.anchors is None:
        return Rule(allow=allow, anchors=None, crls=None)
    with _of_key("anchors", "the certificates of the CAs that are trusted, in PEM"):
        found = _held(allow.anchors, changes)
    return Rule(allow=allow, anchors=Anchors(found), crls=CrlFiles(allow.crls, found))


def _proxy(settings: ProxySettings) -> Proxy:
    """Raises OSError or ValueError."""
    listed = None if settings.certificates is None else validities(certificates(settings.certificates))
    return Proxy(
        name=settings.name, form=settings.form, networks=settings.networks, certificates=listed,
        address_header=settings.address_header,
    )  # fmt: skip


def read(config: Config) -> tuple[Material, list[str]]:
    """The material, and what is wrong with its files; with problems, the material is of no use."""
    problems: list[str] = []

    def attempt(where: str, reader: Callable[[], T]) -> T | None:
        try:
            return reader()
        except (
            OSError, ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.InvalidVersion,
        ) as error:  # fmt: skip
            problems.append(f"{where}: {error}")
            return None

    changes = dict(
        one
        for name, ca in config.cas.items()
        if (one := attempt(f"ca.{name}", partial(_change, ca.certificate))) is not None
    )
    cas = {
        name: found
        for name, ca in config.cas.items()
        if ca.certificate in changes and (found := attempt(f"ca.{name}", partial(load_ca, ca, changes))) is not None
    }
    under_way = {name: changes[config.cas[name].certificate] for name in cas}
    key_ids = {name: config.cas[name].key_id if change is None else change.key_id for name, change in under_way.items()}
    crls = tuple(one for name, ca in cas.items() for one in signers(config.cas[name], ca, under_way[name]))
    policies = tuple(
        LabelPolicy(
            label=label,
            rules=tuple(
                rule
                for index, allow in enumerate(label.allow)
                if (
                    rule := attempt(
                        f"label.{label.name}.allow[{index}]", partial(_rule, allow, cas.get(label.ca), changes)
                    )
                )
                is not None
            ),
            profiles=config.profiles,
            demands=csrattrs.demands(label, config.profiles) if label.enforce_csrattrs else None,
        )
        for label in config.labels.values()
    )
    pairs = {(label.ca, profile) for label in config.labels.values() for profile in config.profiles}
    issuers = {
        (ca, profile): Issuer(cas[ca], config.profiles[profile], config.cas[ca].crl.of_key(key_ids[ca]).url)
        for ca, profile in sorted(pairs)
        if ca in cas
    }
    proxies = {
        name: proxy
        for name, settings in config.proxies.items()
        if (proxy := attempt(f"proxy.{name}.certificates", partial(_proxy, settings))) is not None
    }
    return Material(
        config=config, cas=cas, policies=policies, issuers=issuers, key_ids=key_ids, proxies=proxies, crls=crls
    ), problems


def tls_problems(config: Config) -> list[str]:
    """What is wrong with the server's own certificate by itself; its key is for edges to read."""
    try:
        ends = certificates(config.server.tls_certificate)[0].not_valid_after_utc
    except (OSError, ValueError) as error:
        return [f"server.tls_certificate: {error}"]
    return [f"server.tls_certificate: expired at {ends:%Y-%m-%d %H:%M} UTC"] if ends < datetime.now(UTC) else []


def load(config: Config) -> Material:
    """The material. Raises ConfigError with everything that is wrong."""
    material, problems = read(config)
    if problems:
        raise ConfigError(problems)
    return material


def cacerts_body(material: Material, label: Label) -> bytes:
    """The answer to cacerts: the issuing CA and what is above it, up to the root (R18); in a rollover also the other
    root and what joins the two (R19)."""
    chain = material.cas[label.ca].chain
    return wire.cacerts((one.public_bytes(Encoding.DER) for one in chain), one_line=label.cacerts_one_line)


def csrattrs_body(material: Material, label: Label) -> bytes | None:
    """The answer to csrattrs, None where there is nothing to say (R36)."""
    content = csrattrs.encode(label, material.config.profiles)
    return None if content is None else wire.csrattrs(content, one_line=label.cacerts_one_line)
