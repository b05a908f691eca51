"""What is signed in a root's change of keys (RFC 4210 §4.4, RFC 9810; R48): NewWithNew, OldWithNew, NewWithOld, and the
server's own TLS certificate."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from estd import durable
from estd.errors import ConfigError
from estd.material import certificates, is_signed_by
from estd.transition import State, Transition
from hsm import keys
from hsm.token import Token

_SERVER_DAYS = 825
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_OWN = (x509.SubjectKeyIdentifier.oid, x509.AuthorityKeyIdentifier.oid)


def life_ends(old: x509.Certificate, state: State) -> datetime:
    """Until when the new root is valid: longer than the old (RFC 7030 §4.1.3 tells them apart by that), or as the old
    one without an end (RFC 5280 §4.1.2.5)."""
    born = datetime.fromtimestamp(state.began, UTC)
    life = old.not_valid_after_utc - old.not_valid_before_utc
    if state.years is not None:
        life = timedelta(days=365 * state.years, seconds=-1)
    ends = born + min(life, _NO_END - born)
    if ends <= old.not_valid_after_utc and ends != _NO_END:
        raise ConfigError(
            [
                f"the new root would not outlive the old one, which ends at {old.not_valid_after_utc:%Y-%m-%d}; give "
                "it more time with --years, or leave that out for as much as the old one had"
            ]
        )
    return ends


def make(
    token: Token, old: x509.Certificate, state: State
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
    old_ski = key_identifier(old)
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
    new = signed(new_key.public_key(), new_ski, new_key, None, born, life_ends(old, state))
    old_with_new = signed(old_key.public_key(), old_ski, new_key, new_ski, old.not_valid_before_utc, ends)
    new_with_old = signed(new_key.public_key(), new_ski, old_key, old_ski, born, ends)
    return old, new, old_with_new, new_with_old


def key_identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())


def _hash(key: Any) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA384() if key.key_size == 384 else hashes.SHA256()


def try_key(key: Any) -> None:
    """A signature that is verified and thrown away. Raises a TokenError."""
    data = b"estd key probe: not a certificate, a CRL or anything else\0" + os.urandom(16)
    if isinstance(key, rsa.RSAPrivateKey):
        key.sign(data, padding.PKCS1v15(), _hash(key))
    else:
        key.sign(data, ec.ECDSA(_hash(key)))


def sign_server_again(path: Path, change: Transition, token: Token) -> None:
    """The TLS certificate in the file, where the old key signed it: by the new one, and sent with NewWithOld, and with
    what joined the old root to those before it, so that a device that slept through two changes trusts the server."""
    leaf, *sent = certificates(path)
    if not is_signed_by(leaf, change.old):
        return  # somebody else's, or signed anew already
    key: Any = keys.signer(token, bytes.fromhex(change.state.new_key_id))
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
            value = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_identifier(change.new))
        builder = builder.add_extension(value, one.critical)
    made = builder.sign(key, _hash(key))
    joins = [one for one in sent if one.not_valid_after_utc > now and not is_signed_by(one, one)]
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in (made, change.new_with_old, *joins))
    durable.write(path, pem, mode=0o644)
