"""The keys of a rule that asks the registry or a webhook (`who = "registry"`, `who = "webhook"`), and of `names`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from estd import name_map
from estd.devices import is_manufacturer
from estd.name_map import NameMap
from estd.toml_table import Table, string

SECRET_WAYS = ("basic", "otpChallenge")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryRule:
    """Which rows of the registry a rule means, and how a device shows which is its own."""

    manufacturer: str
    match: str
    """The field of the certificate, or with otpChallenge of the request, that holds the serial number."""
    match_prefix: str
    """What stands before the serial number in that field, and must."""
    secrets: tuple[str, ...]
    """How a one-time secret may come; empty where a certificate under the anchors shows who it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A service that is asked who may have what."""

    url: str
    secret_file: Path
    """Its first line goes out as the header Authorization: Bearer."""
    tls_ca: Path | None
    """The anchors for its TLS certificate; None: the system's."""
    deadline_seconds: int
    profiles: tuple[str, ...]
    """The profiles that it may choose from."""


def _hook_url(value: Any) -> str:
    text = string(value)
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None or parts.fragment or not parts.hostname:
        raise ValueError("has a user, a fragment or no host")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError("plain http is for loopback alone")
    if parts.scheme not in ("http", "https"):
        raise ValueError
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_registry(table: Table) -> RegistryRule:
    """The registry's keys in a rule; what is wrong goes into the table's problems."""
    neither_or_both = ("anchors" in table.left) == bool(table.left.get("secrets"))
    rule = RegistryRule(
        manufacturer=table.take("manufacturer", _manufacturer, "", "up to 64 visible ASCII characters without a slash"),
        match=table.choice("match", "subject.serialNumber", name_map.CERTIFICATE_FIELDS),
        match_prefix=table.take("match_prefix", string, "", "a string"),
        secrets=table.strings("secrets", (), SECRET_WAYS),
    )
    if neither_or_both:
        table.wrong("secrets", 'a registry rule has either anchors, or secrets such as ["basic"]')
    return rule


def _manufacturer(value: Any) -> str:
    if not isinstance(value, str) or not is_manufacturer(value):
        raise ValueError
    return value


def read_hook(table: Table, profile: str) -> Hook:
    """The webhook's keys in a rule; what is wrong goes into the table's problems."""
    return Hook(
        url=table.take("url", _hook_url, None, "an https URL, or an http one of a loopback address"),
        secret_file=table.file("secret_file"),
        tls_ca=table.optional_file("tls_ca"),
        deadline_seconds=table.seconds("deadline", "2s", "1m"),
        profiles=table.strings("profiles", (profile,)),
    )


def read_names(table: Table, who: str, *, with_anchors: bool) -> NameMap | None:
    """`names` of a rule, whose fields are what such a rule knows of a device; None without."""
    if "names" not in table.left:
        return None
    fields = (name_map.REGISTRY_FIELDS if who == "registry" else ()) + (
        name_map.CERTIFICATE_FIELDS if with_anchors else ()
    )
    return table.take("names", lambda value: name_map.read(value, fields), None, "a table of names with fields")
