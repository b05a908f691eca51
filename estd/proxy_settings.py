"""The tables [proxy.NAME]: who may pass devices' certificates on, and in which form (docs/proxy.md)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from estd.toml_table import Table, string

Form = Literal["rfc9440", "xfcc"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    name: str
    form: Form
    networks: tuple[Network, ...]
    certificates: Path | None
    address_header: str | None
    """Where the proxy writes the device's address, as the last one."""


def _header(value: Any) -> str:
    if not _HEADER.fullmatch(string(value)):
        raise ValueError
    return string(value)


def _networks(value: Any) -> tuple[Network, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    networks = tuple(ipaddress.ip_network(string(one)) for one in value)
    for one in networks:
        if isinstance(one, ipaddress.IPv6Network) and one.network_address.ipv4_mapped is not None:
            raise ValueError(f"{one} holds addresses of IPv4, which are written as such: name that network")
    return networks


def read_proxy(name: str, table: Table) -> ProxySettings:
    """What is wrong with the table goes into its problems."""
    forms: tuple[Form, ...] = ("rfc9440", "xfcc")
    if "form" not in table.left:
        table.wrong("form", "is missing (needs one of " + ", ".join(forms) + ")")
    is_known = "addresses" in table.left or "certificates" in table.left
    settings = ProxySettings(
        name=name,
        form=table.choice("form", "rfc9440", forms),
        networks=table.take("addresses", _networks, (), 'a list of networks such as "10.0.0.0/8"'),
        certificates=table.optional_file("certificates"),
        address_header=table.take("address_header", _header, None, 'the name of a header, such as "X-Forwarded-For"')
        if "address_header" in table.left
        else None,
    )
    if not is_known:
        table.wrong("addresses", "a proxy is known by addresses, by certificates or by both: name some")
    table.done()
    return settings
