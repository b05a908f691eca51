"""The change of a root's key, as CMP has it (RFC 4210 §4.4, RFC 9810; R19, R48): prepare, activate, finish.

Each step can be repeated after it was interrupted anywhere: what is decided is written to the state before it is done,
what was done already is found and not done again, and each file is replaced whole. What a running server serves
changes by a reload, which is the caller's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estd import durable, transition
from estd.config import Ca, Config
from estd.errors import ConfigError
from estd.ledger import Reader
from estd.material import certificates, read_pin
from estd.rollover_toml import with_key_id
from estd.transition import CERTIFICATES, State, Transition
from hsm import keys
from hsm.token import Token

_SERVER_DAYS = 825
_KEY_ID_BYTES = 8
_OWN = (x509.SubjectKeyIdentifier.oid, x509.AuthorityKeyIdentifier.oid)
_EVERY = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `estd ca rollover prepare` was asked for."""

    kind: keys.KeyKind | None
    """None for the kind that the old key has."""
    key_id: bytes | None
    """A key that is in the token already; None to make one."""
    years: int | None
    """How long the new root is valid; None for as long as the old one was."""


def choose(config: Config, name: str | None) -> Ca:
    """The CA that is meant. Raises ConfigError where it is not clear, or no root."""
    if name is None and len(config.cas) != 1:
        raise ConfigError([f"there are several CAs; name one with --ca: {', '.join(config.cas)}"])
    ca = config.cas.get(name) if name is not None else next(iter(config.cas.values()))
    if ca is None:
        raise ConfigError([f"there is no [ca.{name}]; there are {', '.join(config.cas)}"])
    owner = config.ledger.stat().st_uid
    if owner != os.geteuid():
        raise ConfigError([f"run this as the server's user (uid {owner}), or it could not read what is written here"])
    own = certificates(ca.certificate)[0]
    if own.subject != own.issuer:
        raise ConfigError(
            [
                f"ca.{ca.name} is no root: {own.issuer.rfc4514_string()!r} signs it, and signs its next certificate. "
                "Make a new key in the token, have its certificate signed there, add it as another [ca.NAME] with its "
                "chain, name that in the labels and run estd reload; nobody needs to trust anything new"
            ]
        )
    return ca


def prepare(config: Config, ca: Ca, plan: Plan) -> Transition:
    """Make the new key and the certificates; the old key goes on issuing. Raises ConfigError, TokenError."""
    folder = transition.folder_of(ca.certificate)
    old = certificates(ca.certificate)[0]
    state = transition.read_state(folder)
    if state is not None and state.stage in ("active", "finished"):
        raise ConfigError([f"a rollover of ca.{ca.name} is {state.stage} already: estd ca rollover finish ends it"])
    if state is None or state.stage == "preparing":
        now = datetime.now(UTC)
        if now > old.not_valid_after_utc:
            raise ConfigError([f"ca.{ca.name} has expired: nothing that it signs is valid. Begin anew with estd init"])
        if state is None:
            new_id = plan.key_id if plan.key_id is not None else os.urandom(_KEY_ID_BYTES)
            folder.mkdir(mode=0o700, exist_ok=True)
            state = State(
                stage="preparing", old_key_id=ca.key_id.hex(), new_key_id=new_id.hex(), began=int(now.timestamp())
            )
            _check_life(old, state, plan.years)
            transition.write_state(folder, state)
        elif plan.key_id is not None:
            state = replace(state, new_key_id=plan.key_id.hex())
            transition.write_state(folder, state)
        token = _token(config)
        if plan.key_id is None:
            state = _make_key(token, folder, state, plan.kind or _kind(old), ca.name)
        made = _certificates(token, old, state, plan.years)
        for name, certificate in zip(CERTIFICATES, made, strict=True):
            durable.write(folder / f"{name}.pem", certificate.public_bytes(Encoding.PEM), mode=0o644)
        transition.write_state(folder, replace(state, stage="prepared"))
    return under_way(ca)


def under_way(ca: Ca) -> Transition:
    """The rollover whose certificates are made. Raises ConfigError where there is none."""
    found = transition.read(ca.certificate)
    if found is None:
        raise ConfigError([f"no rollover of ca.{ca.name} is prepared; begin with: estd ca rollover prepare"])
    return found


def _check_life(old: x509.Certificate, state: State, years: int | None) -> datetime:
    """Until when the new root is valid: longer than the old (RFC 7030 §4.1.3 tells them apart by that)."""
    born = datetime.fromtimestamp(state.began, UTC)
    life = old.not_valid_after_utc - old.not_valid_before_utc
    if years is not None:
        life = timedelta(days=365 * years, seconds=-1)
    if born + life <= old.not_valid_after_utc:
        raise ConfigError(["the new root would not outlive the old one; give it more time with --years"])
    return born + life


def _kind(old: x509.Certificate) -> keys.KeyKind:
    key = old.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ec-p384" if key.key_size == 384 else "ec-p256"
    return "rsa-3072"


def _token(config: Config) -> Token:
    for name, value in config.token.environment:
        os.environ[name] = value
    config.run.mkdir(mode=0o700, exist_ok=True)
    return Token.open(
        module=config.token.module, label=config.token.label, pin=read_pin(config), rw=True,
        startup_lock=config.run / "token.lock",
    )  # fmt: skip


def _make_key(token: Token, folder: Path, state: State, kind: keys.KeyKind, name: str) -> State:
    """The new key, which an interrupted run may have made already; half a pair is left and another one made."""
    wanted = bytes.fromhex(state.new_key_id)
    held = [one for one in keys.list_keys(token) if one.key_id == wanted]
    if held and held[0].public_key is not None:
        return state
    if held:
        state = replace(state, new_key_id=os.urandom(_KEY_ID_BYTES).hex())
        transition.write_state(folder, state)
    keys.generate(token, kind=kind, key_id=bytes.fromhex(state.new_key_id), label=f"{name} {state.new_key_id}")
    return state


def _certificates(
    token: Token, old: x509.Certificate, state: State, years: int | None
) -> tuple[x509.Certificate, x509.Certificate, x509.Certificate, x509.Certificate]:
    """In the order of transition.CERTIFICATES. Subject equals issuer in all, and what the old root says of itself
    (constraints, usages) the new one says too."""
    old_key = keys.signer(token, bytes.fromhex(state.old_key_id))
    new_key = keys.signer(token, bytes.fromhex(state.new_key_id))
    if old_key.public_key() != old.public_key():
        raise ConfigError([f"the key {state.old_key_id} in the token is not the key of the CA's certificate"])
    if new_key.public_key() == old.public_key():
        raise ConfigError([f"the key {state.new_key_id} is the old one; a rollover is to another key"])
    born = datetime.fromtimestamp(state.began, UTC)
    old_ski = _key_identifier(old)
    new_ski = x509.SubjectKeyIdentifier.from_public_key(new_key.public_key())

    def signed(
        public_key: Any, ski: x509.SubjectKeyIdentifier, by: Any, authority: x509.SubjectKeyIdentifier | None,
        start: datetime, end: datetime,
    ) -> x509.Certificate:  # fmt: skip
        builder = x509.CertificateBuilder(
            subject_name=old.subject, issuer_name=old.subject, public_key=public_key,
            serial_number=x509.random_serial_number(), not_valid_before=start, not_valid_after=end,
        ).add_extension(ski, critical=False)  # fmt: skip
        for one in old.extensions:
            if one.oid not in _OWN:
                builder = builder.add_extension(one.value, one.critical)
        if authority is not None:
            aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority)
            builder = builder.add_extension(aki, critical=False)
        return builder.sign(by, _hash(by))

    ends = old.not_valid_after_utc
    new = signed(new_key.public_key(), new_ski, new_key, None, born, _check_life(old, state, years))
    old_with_new = signed(old_key.public_key(), old_ski, new_key, new_ski, old.not_valid_before_utc, ends)
    new_with_old = signed(new_key.public_key(), new_ski, old_key, old_ski, born, ends)
    return old, new, old_with_new, new_with_old


def _key_identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())


def _hash(key: Any) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA384() if key.key_size == 384 else hashes.SHA256()


def activate(config: Config, ca: Ca) -> Transition:
    """From the next reload on the new key issues. A TLS certificate that the old key signed is signed anew, and sent
    with NewWithOld, so that who trusts either root trusts the server."""
    change = under_way(ca)
    if change.is_switched:
        return change
    _sign_server_again(config, change)
    folder = transition.folder_of(ca.certificate)
    transition.write_state(folder, replace(change.state, stage="active", activated=int(time.time())))
    return under_way(ca)


def _sign_server_again(config: Config, change: Transition) -> None:
    path = config.server.tls_certificate
    leaf = certificates(path)[0]
    try:
        leaf.verify_directly_issued_by(change.old)
    except (InvalidSignature, ValueError, TypeError):
        return  # somebody else's, or signed anew already
    key: Any = keys.signer(_token(config), bytes.fromhex(change.state.new_key_id))
    now = datetime.now(UTC).replace(microsecond=0)
    builder = x509.CertificateBuilder(
        subject_name=leaf.subject, issuer_name=change.new.subject, public_key=leaf.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=max(now - timedelta(hours=1), change.new.not_valid_before_utc),
        not_valid_after=min(now + timedelta(days=_SERVER_DAYS, seconds=-1), change.new.not_valid_after_utc),
    )  # fmt: skip
    for one in leaf.extensions:
        value: x509.ExtensionType = one.value
        if isinstance(value, x509.AuthorityKeyIdentifier):
            value = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_key_identifier(change.new))
        builder = builder.add_extension(value, one.critical)
    made = builder.sign(key, _hash(key))
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in (made, change.new_with_old))
    durable.write(path, pem, mode=0o644)


def hanging(config: Config, change: Transition, progress: Callable[[int], None] = lambda _: None) -> int:
    """How many certificates that have neither expired nor been revoked the old key signed."""
    old_ski = _key_identifier(change.old).digest
    count = 0
    with Reader(config.ledger) as reader:
        for number, certificate_der in enumerate(reader.unexpired(time.time()), 1):
            if number % _EVERY == 0:
                progress(number)
            if old_ski in certificate_der and _authority(certificate_der) == old_ski:
                count += 1
    return count


def _authority(certificate_der: bytes) -> bytes | None:
    certificate = x509.load_der_x509_certificate(certificate_der)
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None


def finish(ca: Ca, file: Path, hangs: int, *, force: bool) -> bool:
    """From the next reload on the old root is gone: from cacerts, from the CA's file, and its key from the
    configuration `file`. False where `file` cannot be changed for the operator, who is to do that."""
    change = under_way(ca)
    if not change.is_switched:
        raise ConfigError([f"the rollover of ca.{ca.name} is prepared only: estd ca rollover activate comes first"])
    has_expired = datetime.now(UTC) > change.old.not_valid_after_utc
    if change.state.stage == "active" and hangs and not (force or has_expired):
        raise ConfigError(
            [
                f"{hangs} certificates under the old root have not expired, and whoever trusts the new root alone "
                "could not verify them; wait until they are renewed, or say --force"
            ]
        )
    folder = transition.folder_of(ca.certificate)
    transition.write_state(folder, replace(change.state, stage="finished"))
    durable.write(ca.certificate, change.new.public_bytes(Encoding.PEM), mode=0o644)
    return set_key_id(file, ca.name, change.state.old_key_id, change.state.new_key_id)


def is_finished(ca: Ca) -> bool:
    """The last rollover came to its end: what remains is to say so."""
    folder = transition.folder_of(ca.certificate)
    aside = sorted(folder.parent.glob(f"{folder.name}-*"))
    if folder.exists() or not aside:
        return False
    return (aside[-1] / "new.pem").read_bytes() == ca.certificate.read_bytes()


def archive(ca: Ca) -> None:
    """Put the files of a finished rollover aside: the configuration says all that the server needs."""
    folder = transition.folder_of(ca.certificate)
    durable.rename(folder, folder.with_name(f"{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"))


def set_key_id(file: Path, name: str, old: str, new: str) -> bool:
    """Change the one line key_id of [ca.NAME]; False where it is not there in the form that `estd init` writes."""
    text = file.read_text(encoding="utf-8")
    changed = with_key_id(text, name, old, new)
    if changed is None:
        return False
    if changed != text:
        durable.write(file, changed.encode(), mode=file.stat().st_mode & 0o777)
    return True
