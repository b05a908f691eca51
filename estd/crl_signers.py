"""Which keys sign a CA's CRL: the one that issues; and in a rollover's second half the old one too, so that whoever
trusts the old root alone can still verify the revocations of certificates under it (openssl takes a CRL from no other
key than those on the certificate's path)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from estd.config import Ca
from estd.crl_plan import CrlPlan
from estd.issuance import CaCertificate
from estd.transition import Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlSigner:
    """One CRL: its key, its file and its times."""

    name: str
    """The key's among the token's keys, and the CRL's in the ledger: the CA's own, or that with a CKA_ID."""
    ca_name: str
    ca: CaCertificate
    key_id: bytes
    plan: CrlPlan

    @property
    def is_former(self) -> bool:
        """The key has issued, and does not any more."""
        return self.name != self.ca_name


def signers(ca: Ca, own: CaCertificate, change: Transition | None) -> list[CrlSigner]:
    """The one that issues first; none where the CA keeps no CRL. Raises ValueError."""
    if not ca.crl.on:
        return []
    key_id = ca.key_id if change is None else change.key_id
    made = [CrlSigner(name=ca.name, ca_name=ca.name, ca=own, key_id=key_id, plan=ca.crl.of_key(key_id))]
    if change is not None and change.state.stage == "active" and datetime.now(UTC) <= change.old.not_valid_after_utc:
        old_id = bytes.fromhex(change.state.old_key_id)
        made.append(
            CrlSigner(
                name=f"{ca.name} {old_id.hex()}", ca_name=ca.name, ca=CaCertificate.of(change.old, []), key_id=old_id,
                plan=ca.crl.of_former_key(old_id),
            )
        )  # fmt: skip
    return made
