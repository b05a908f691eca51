"""The change of a root's key, as CMP has it (RFC 4210 §4.4, RFC 9810; R19, R48): prepare, activate, finish.

Each step can be repeated after it was interrupted anywhere: what is decided is written to the state before it is done,
what was done already is found and not done again, and each file is replaced whole. What a running server serves
changes by a reload, which is the caller's.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estd import durable, key_update, owner, transition
from estd.config import Ca, Config, load
from estd.errors import ConfigError
from estd.key_update import key_identifier
from estd.ledger import Reader
from estd.material import certificates, is_signed_by, path_of, read_changes, read_pin
from estd.rollover_toml import with_key_id
from estd.starting import Exclusive
from estd.transition import CERTIFICATES, State, Transition
from hsm import keys
from hsm.errors import TokenError
from hsm.token import Token, public_key_of

_KEY_ID_BYTES = 8
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


@contextmanager
def alone(file: Path) -> Iterator[Config]:
    """The configuration, with no other command of a rollover at work on its instance. Raises ConfigError."""
    turn = Exclusive(owner.run_folder(load(file)) / "rollover.lock")
    if not turn.take():
        raise ConfigError(
            ["another estd ca rollover is at work on this instance; once it is through, see estd ca rollover status"]
        )
    try:
        yield load(file)  # which the other may have changed meanwhile
    finally:
        turn.give()


def choose(config: Config, name: str | None) -> Ca:
    """The CA that is meant. Raises ConfigError where it is not clear, or no root."""
    if name is None and len(config.cas) != 1:
        raise ConfigError([f"there are several CAs; name one with --ca: {', '.join(config.cas)}"])
    ca = config.cas.get(name) if name is not None else next(iter(config.cas.values()))
    if ca is None:
        raise ConfigError([f"there is no [ca.{name}]; there are {', '.join(config.cas)}"])
    _check_root(ca)
    folder = transition.folder_of(ca.certificate)
    for other in config.cas.values():
        if other.certificate != ca.certificate and transition.folder_of(other.certificate) == folder:
            raise ConfigError(
                [
                    f"ca.{ca.name} and ca.{other.name} would both have their rollover in {folder}; "
                    "give the file of one of them another name"
                ]
            )
    return ca


def _check_root(ca: Ca) -> None:
    own = certificates(ca.certificate)[0]
    if own.subject != own.issuer:
        raise ConfigError(
            [
                f"ca.{ca.name} is no root: {own.issuer.rfc4514_string()!r} signs it, and signs its next certificate. "
                "Make a new key in the token, have its certificate signed there, add it as another [ca.NAME] with its "
                "chain, name that in the labels and run estd reload; nobody needs to trust anything new"
            ]
        )
    if not is_signed_by(own, own):
        raise ConfigError(
            [
                f"ca.{ca.name} is no root: another key of {own.subject.rfc4514_string()!r} signs the first certificate "
                f"in {ca.certificate}. Name the self-signed one there"
            ]
        )


def prepare(config: Config, ca: Ca, plan: Plan) -> Transition:
    """Make the new key and the certificates; the old key goes on issuing. Raises ConfigError, TokenError."""
    folder = transition.folder_of(ca.certificate)
    old = certificates(ca.certificate)[0]
    state = transition.read_state(folder)
    if state is not None and state.stage in ("active", "finished"):
        raise ConfigError([f"a rollover of ca.{ca.name} is {state.stage} already: estd ca rollover finish ends it"])
    if state is not None and state.stage == "prepared":
        change = under_way(ca)
        _check_repeated(plan, state, change.new.public_key())
        return change
    if datetime.now(UTC) > old.not_valid_after_utc:
        raise ConfigError([f"ca.{ca.name} has expired: nothing that it signs is valid. Begin anew with estd init"])
    token = _token(config)
    if plan.key_id is not None:
        _check_given(token, old, plan.key_id)
    state = _begun(token, ca, plan) if state is None else _resumed(token, state, plan)
    kind = None if state.is_given else _to_make(state, old)
    key_update.life_ends(old, state)
    durable.folder(folder)
    transition.write_state(folder, state)
    if kind is not None:
        state = _make_key(token, folder, state, kind, ca.name)
        _check_kept(config, state)
    made = key_update.make(token, old, state)
    for name, certificate in zip(CERTIFICATES, made, strict=True):
        durable.write(folder / f"{name}.pem", certificate.public_bytes(Encoding.PEM), mode=0o644)
    transition.write_state(folder, replace(state, stage="prepared"))
    return under_way(ca)


def _begun(token: Token, ca: Ca, plan: Plan) -> State:
    new_id = plan.key_id if plan.key_id is not None else os.urandom(_KEY_ID_BYTES)
    return State(
        stage="preparing", old_key_id=ca.key_id.hex(), new_key_id=new_id.hex(), began=int(time.time()),
        is_given=plan.key_id is not None, kind=plan.kind, years=plan.years,
    )  # fmt: skip


def _resumed(token: Token, state: State, plan: Plan) -> State:
    """The state of an interrupted command. What was asked for then counts, and what is asked for now, where no key
    that was made is in its way."""
    key = None if state.is_given else public_key_of(token.login_session, bytes.fromhex(state.new_key_id))
    if key is not None:
        _check_repeated(replace(plan, years=None), state, key)
    elif plan.key_id is not None:
        state = replace(state, new_key_id=plan.key_id.hex(), is_given=True)
    return replace(state, kind=plan.kind or state.kind, years=plan.years if plan.years is not None else state.years)


def _check_repeated(plan: Plan, state: State, new: Any) -> None:
    """Raises ConfigError where something else is asked for than what was made."""
    other = []
    if plan.key_id is not None and plan.key_id.hex() != state.new_key_id:
        other.append(f"with the key {state.new_key_id}, without --key-id {plan.key_id.hex()}")
    if plan.kind is not None and plan.kind != _kind(new):
        other.append(f"with a new key of {_kind(new)}, without --key {plan.kind}")
    if plan.years is not None and plan.years != state.years:
        life = "for as long as the old root" if state.years is None else f"for {state.years} years"
        other.append(f"with a root {life}, without --years {plan.years}")
    if other:
        raise ConfigError(
            [
                *(f"a rollover is {state.stage} already {one}" for one in other),
                "go on without these options; or give it up and begin anew: move the folder ca.rollover away first",
            ]
        )


def _check_given(token: Token, old: x509.Certificate, key_id: bytes) -> None:
    """Raises ConfigError, before anything is written, where the key that is asked for is not a new one."""
    if keys.signer(token, key_id).public_key() == old.public_key():
        raise ConfigError([f"the key {key_id.hex()} is the old one; a rollover is to another key"])


def under_way(ca: Ca) -> Transition:
    """The rollover whose certificates are made. Raises ConfigError where there is none."""
    found = transition.read(ca.certificate)
    if found is None:
        raise ConfigError([f"no rollover of ca.{ca.name} is prepared; begin with: estd ca rollover prepare"])
    return found


def _to_make(state: State, old: x509.Certificate) -> keys.KeyKind:
    """The kind that was asked for, or the old key's. Raises ConfigError where estd makes none of that."""
    wanted = state.kind or _kind(old.public_key())
    for kind in get_args(keys.KeyKind):
        if kind == wanted:
            return kind  # type: ignore[no-any-return]
    raise ConfigError([f"the old key is {wanted}, of which estd makes none; say another kind with --key, or --key-id"])


def _kind(key: Any) -> str:
    """The kind of a CA's public key, which estd may make or not."""
    return f"{'ec-p' if isinstance(key, ec.EllipticCurvePublicKey) else 'rsa-'}{key.key_size}"


def _token(config: Config) -> Token:
    for name, value in config.token.environment:
        os.environ[name] = value
    return Token.open(
        module=config.token.module, label=config.token.label, pin=read_pin(config), rw=True,
        startup_lock=owner.run_folder(config) / "token.lock",
    )  # fmt: skip


def _make_key(token: Token, folder: Path, state: State, kind: keys.KeyKind, name: str) -> State:
    """The new key, which an interrupted run may have made already. What it left of half a pair is removed, or where
    the token does not let it, left, and another pair made."""
    wanted = bytes.fromhex(state.new_key_id)
    try:
        if keys.remove_half(token, wanted):
            return state
    except TokenError:
        state = replace(state, new_key_id=os.urandom(_KEY_ID_BYTES).hex())
        transition.write_state(folder, state)
    keys.generate(token, kind=kind, key_id=bytes.fromhex(state.new_key_id), label=f"{name} {state.new_key_id}")
    return state


def _check_kept(config: Config, state: State) -> None:
    """Raises ConfigError unless another process finds the new key too: SoftHSM on a full disk makes one that it shows,
    and lets sign, to nobody but the process that made it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as another:
        why = another.submit(_try_key, config, state.new_key_id).result()
    if why:
        raise ConfigError([f"the token has not kept the new key ({why}); is its disk full? Then repeat this command"])


def _try_key(config: Config, key_id: str) -> str:
    """Why the key does not sign; nothing where it does."""
    try:
        key_update.try_key(keys.signer(_token(config), bytes.fromhex(key_id)))
    except (TokenError, ConfigError) as error:
        return str(error)
    return ""


def activate(config: Config, ca: Ca) -> Transition:
    """From the next reload on the new key issues. A TLS certificate that the old key signed is signed anew, and sent
    with NewWithOld, so that who trusts either root trusts the server."""
    change = under_way(ca)
    if change.is_switched:
        return change
    _check_new_key(token := _token(config), change)
    key_update.sign_server_again(config.server.tls_certificate, change, token)
    folder = transition.folder_of(ca.certificate)
    transition.write_state(folder, replace(change.state, stage="active", activated=int(time.time())))
    return under_way(ca)


def _check_new_key(token: Token, change: Transition) -> None:
    """Raises ConfigError unless the token holds the new root's key, and it signs."""
    told = ""
    try:
        key = keys.signer(token, bytes.fromhex(change.state.new_key_id))
        key_update.try_key(key)
        if key.public_key() != change.new.public_key():
            told = "another key has its CKA_ID"
    except TokenError as error:
        told = str(error)
    if told:
        raise ConfigError(
            [
                f"the new root's key {change.state.new_key_id} is not in the token as it was ({told}). If the token "
                "was restored, restore it from after prepare; else move the folder ca.rollover away and begin anew"
            ]
        )


def hanging(config: Config, change: Transition, progress: Callable[[int], None] = lambda _: None) -> int:
    """How many certificates that have neither expired nor been revoked the old key signed."""
    old_ski = key_identifier(change.old).digest
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


def below(config: Config, ca: Ca, change: Transition) -> list[str]:
    """The other CAs of the configuration whose chain ends at the old root. Raises ConfigError where one has none."""
    changes, found = read_changes(config), []
    for one in config.cas.values():
        try:
            if one.certificate != ca.certificate and path_of(one, changes)[-1] == change.old:
                found.append(one.name)
        except (OSError, ValueError) as error:
            raise ConfigError([f"ca.{one.name}: {error}"]) from None
    return found


def finish(config: Config, ca: Ca, file: Path, count: Callable[[], int], *, force: bool) -> list[str]:
    """From the next reload on the old root is gone: from cacerts, from the CA's file, and its key from the
    configuration `file`. The CAs of that file whose key_id the operator is to change, since the configuration cannot
    be changed for them. `count` tells how many certificates hang on the old root, and is asked, since that takes long,
    once nothing else is in the way. Raises ConfigError."""
    change = under_way(ca)
    if not change.is_switched:
        raise ConfigError([f"the rollover of ca.{ca.name} is prepared only: estd ca rollover activate comes first"])
    folder = transition.folder_of(ca.certificate)
    if names := below(config, ca, change):
        raise ConfigError(
            [
                *(f"ca.{name} is under the old root, and could not issue any more" for name in names),
                f"have its certificate signed anew by the new root's key ({change.state.new_key_id} in the token), let "
                f"its chain lead to {ca.certificate}, run estd reload, and repeat this command",
            ]
        )
    hangs = count()
    has_expired = datetime.now(UTC) > change.old.not_valid_after_utc
    if change.state.stage == "active" and hangs and not (force or has_expired):
        raise ConfigError(
            [
                f"{hangs} certificates under the old root have not expired, and whoever trusts the new root alone "
                "could not verify them; wait until they are renewed, or say --force"
            ]
        )
    finished = replace(change, state=replace(change.state, stage="finished"))
    transition.write_state(folder, finished.state)
    kept = finished.roots_of(certificates(ca.certificate))
    durable.write(ca.certificate, b"".join(one.public_bytes(Encoding.PEM) for one in kept), mode=0o644)
    same = [one.name for one in config.cas.values() if one.certificate == ca.certificate]
    return [name for name in same if not set_key_id(file, name, change.state.old_key_id, change.state.new_key_id)]


def is_finished(ca: Ca) -> bool:
    """The last rollover came to its end: what remains is to say so."""
    folder = transition.folder_of(ca.certificate)
    own = certificates(ca.certificate)[0]
    aside = folder.parent.glob(f"{folder.name}-*/new.pem")  # one that was given up has none there, or another
    return not folder.exists() and any(certificates(path)[0] == own for path in aside)


def archive(ca: Ca) -> None:
    """Put the files of a finished rollover aside: the configuration says all that the server needs."""
    folder = transition.folder_of(ca.certificate)
    durable.rename(folder, folder.with_name(f"{folder.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"))


def set_key_id(file: Path, name: str, old: str, new: str) -> bool:
    """Change the one line key_id of [ca.NAME]; False where it is not there in the form that `estd init` writes, or the
    file is not for us to change: it may be read-only, mounted, or written by something else."""
    text = file.read_text(encoding="utf-8")
    changed = with_key_id(text, name, old, new)
    if changed is None:
        return False
    if changed == text:
        return True
    try:
        if not file.stat().st_mode & stat.S_IWUSR:
            return False
        durable.write(file, changed.encode())
    except OSError:
        return False
    return True
