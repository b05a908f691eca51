"""The keys of [ca.NAME] that say whether, when and where a CA publishes its CRL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from estd.toml_table import Table, string

_KEY = "{key}"
"""In crl_file and crl_url: the CKA_ID of the key that signs, in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlPlan:
    """When a CA's CRL is made anew, and the file that holds it."""

    on: bool
    validity_seconds: int
    """From thisUpdate to nextUpdate."""
    renew_seconds: int
    """From a CRL of the schedule to the next; those made for a revocation do not put it off."""
    delay_seconds: int
    """From a revocation to the CRL that lists it; those that come meanwhile go into the same."""
    file: Path
    """The CRL as DER, replaced whole: what a web server may publish, and what /crls answers from."""
    url: str
    """What certificates name as their distribution point; nothing where it is empty."""

    def of_key(self, key_id: bytes) -> CrlPlan:
        """Of the key that issues."""
        named = self.file.name.replace(_KEY, key_id.hex())
        return replace(self, file=self.file.with_name(named), url=self.url.replace(_KEY, key_id.hex()))

    def of_former_key(self, key_id: bytes) -> CrlPlan:
        """Of one that has issued: in the file that has its CKA_ID in its name, whatever the configuration says."""
        if _KEY in self.file.name:
            return self.of_key(key_id)
        return replace(self, file=self.file.with_name(f"{self.file.stem}-{key_id.hex()}{self.file.suffix}"))


def _url(value: Any) -> str:
    if value == "":
        return ""
    text = string(value)
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname or not all("!" <= char <= "~" for char in text):
        raise ValueError("a CRL that has to be fetched over TLS could not be had without a CRL")
    return text


def read_plan(name: str, table: Table) -> CrlPlan:
    """The CRL's keys of the table [ca.NAME]; what is wrong with them goes into the table's problems."""
    plan = CrlPlan(
        on=table.flag("crl", False),
        validity_seconds=table.seconds("crl_validity", "7d"),
        renew_seconds=table.seconds("crl_renew", "1d"),
        delay_seconds=table.seconds("crl_delay", "5s"),
        file=table.file("crl_file", f"crl/{name}.crl"),
        url=table.take("crl_url", _url, "", "an address such as http://crl.example.com/root.crl"),
    )
    if plan.renew_seconds is not None and plan.validity_seconds is not None:
        if plan.renew_seconds < 60:
            table.wrong("crl_renew", "must be a minute or more")
        if plan.renew_seconds >= plan.validity_seconds:
            table.wrong("crl_renew", "must be shorter than crl_validity, or there would be times without a valid CRL")
    if plan.url and not plan.on:
        table.wrong("crl_url", "needs crl = true: certificates would name a CRL that nobody makes")
    if plan.url and plan.file is not None and _KEY in plan.url and _KEY not in plan.file.name:
        table.wrong("crl_url", "has {key}, so crl_file needs it in its name too: the CRL of each key is another one")
    return plan


def check_signs_crls(certificate: x509.Certificate) -> None:
    """Raises ValueError where the CA's certificate does not let its key sign CRLs (RFC 5280 §4.2.1.3)."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.crl_sign:
        raise ValueError("crl = true, but the CA's certificate does not let its key sign CRLs (keyUsage cRLSign)")
