"""The names that an operator gives to a device in the registry: read and checked when they are written, and again when
a certificate is made of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from estd import names
from estd.errors import Forbidden

_ENCODER = json.JSONEncoder(separators=(",", ":"))


def _subject(text: str) -> x509.Name:
    """RFC 4514 text such as "CN=device-1,O=Acme", or a common name alone. Raises ValueError."""
    if "=" in text:
        return names.read(text)
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def made(subject: str, dns: Iterable[str], ip: Iterable[str], uri: Iterable[str]) -> names.Names:
    """Raises ValueError with what no certificate may say."""
    try:
        return names.of_texts(_subject(subject), dns, ip, uri)
    except Forbidden as refusal:
        raise ValueError(
            refusal.sentence.replace("The label's profile does not grant", "no certificate may say")
        ) from None


def pack(subject: str, dns: Iterable[str], ip: Iterable[str], uri: Iterable[str], *, known: bool = False) -> str:
    """The names as the ledger keeps them, empty without any. Raises ValueError, unless they are known to be good."""
    kept = {"subject": subject, "dns": list(dns), "ip": list(ip), "uri": list(uri)}
    if not any(kept.values()):
        return ""
    if not known:
        made(**kept)  # type: ignore[arg-type]
    return _ENCODER.encode({word: value for word, value in kept.items() if value})


def unpack(text: str) -> names.Names | None:
    """The names in a row; None where it has none. Raises ValueError."""
    if not text:
        return None
    kept: dict[str, Any] = {"subject": "", "dns": (), "ip": (), "uri": (), **json.loads(text)}
    return made(**kept)
