"""A CA between two keys, as its files have it: beside `ca.pem` the folder `ca.rollover` with a state and certificates.

RFC 4210 §4.4 (RFC 9810) has four certificates in a root's change of keys, all of one name: OldWithOld and NewWithNew
are the two self-signed roots, OldWithNew is the old key signed by the new, NewWithOld the new key signed by the old.
The state says which key issues. It counts for as long as the folder is there, whichever of the two roots `ca.pem`
holds, so a rollover that is interrupted anywhere leaves a CA that issues.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from estd import durable

Stage = Literal["preparing", "prepared", "active", "finished"]
CERTIFICATES = ("old", "new", "old-with-new", "new-with-old")
_STATE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    stage: Stage
    old_key_id: str
    """CKA_ID in hexadecimal, as in the configuration."""
    new_key_id: str
    began: int
    """Seconds since 1970: the new key's birth."""
    activated: int | None = None
    is_given: bool = False
    """The new key was in the token already: nothing is made or removed there."""
    kind: Literal["ec-p256", "ec-p384", "rsa-3072"] | None = None
    years: int | None = None
    """What `prepare` was asked for; a repeated one goes on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A rollover whose certificates are made."""

    state: State
    old: x509.Certificate
    new: x509.Certificate
    old_with_new: x509.Certificate
    new_with_old: x509.Certificate

    @property
    def is_switched(self) -> bool:
        """The new key issues."""
        return self.state.stage in ("active", "finished")

    @property
    def issuing(self) -> x509.Certificate:
        return self.new if self.is_switched else self.old

    def besides(self, root: x509.Certificate) -> list[x509.Certificate]:
        """What cacerts has beside that root of the two (RFC 7030 §4.1.3, R19)."""
        if self.state.stage == "finished":
            return []
        return [self.old if root == self.new else self.new, self.old_with_new, self.new_with_old]

    def roots_of(self, held: list[x509.Certificate]) -> list[x509.Certificate]:
        """What the CA's file, which holds these now, stands for: the roots that count, and whatever else it has."""
        roots = [self.new] if self.state.stage == "finished" else [self.old, self.new]
        return [*roots, *(one for one in held if one not in (self.old, self.new))]

    @property
    def key_id(self) -> bytes:
        """CKA_ID of the key that issues."""
        return bytes.fromhex(self.state.new_key_id if self.is_switched else self.state.old_key_id)


def folder_of(certificate: Path) -> Path:
    """Where the rollover of the CA with that certificate's file has its files."""
    return certificate.with_suffix(".rollover")


def read_state(folder: Path) -> State | None:
    """None where no rollover is under way. Raises ValueError, OSError."""
    try:
        data = (folder / _STATE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        state = State(**json.loads(data))
        bytes.fromhex(state.old_key_id), bytes.fromhex(state.new_key_id)
        datetime.fromtimestamp(state.began, UTC)
        if state.stage not in get_args(Stage):
            raise ValueError(state.stage)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{folder / _STATE} is not a rollover's state ({error}); take it from a back-up") from None
    return state


def write_state(folder: Path, state: State) -> None:
    durable.write(folder / _STATE, json.dumps(asdict(state)).encode() + b"\n")


def read(certificate: Path) -> Transition | None:
    """The rollover of the CA with that certificate's file; None where there is none whose certificates are made.
    Raises ValueError, with what is wrong with them, and OSError."""
    folder = folder_of(certificate)
    state = read_state(folder)
    if state is None or state.stage == "preparing":
        return None
    old, new, old_with_new, new_with_old = (
        x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes()) for name in CERTIFICATES
    )
    try:
        for below, above in ((old, old), (new, new), (old_with_new, new), (new_with_old, old)):
            below.verify_directly_issued_by(above)
    except (InvalidSignature, ValueError) as error:
        raise ValueError(f"the certificates in {folder} are not of one rollover: {error or 'a signature'}") from None
    if old_with_new.public_key() != old.public_key() or new_with_old.public_key() != new.public_key():
        raise ValueError(f"the certificates in {folder} are not of one rollover: a key")
    if x509.load_pem_x509_certificate(certificate.read_bytes()) not in (old, new):
        raise ValueError(f"{folder} is the rollover of another certificate than {certificate}; move it away")
    return Transition(state=state, old=old, new=new, old_with_new=old_with_new, new_with_old=new_with_old)
