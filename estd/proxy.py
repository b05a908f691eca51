"""Behind a load balancer: the client certificate that a named proxy passes on in a header.

Who may say so is settled first: a proxy is known by its address, by the certificate that it shows in the TLS connection
to estd, or by both. From anybody else such a header is refused, never ignored: a device that writes one is wrong or
worse. Two forms are read, each in its strictest reading: RFC 9440's Client-Cert and Client-Cert-Chain, and Envoy's
x-forwarded-client-cert (XFCC) with one element. Pure.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estd import der
from estd.attributes import UNREADABLE
from estd.errors import BadRequest, Forbidden, Reason
from estd.proxy_settings import Form, Network

_CERTIFICATES_MAX = 8
CHAIN_OCTETS_MAX = 24 * 1024
"""Of the certificates that a client shows, in a header or in TLS: with ML-DSA three of them."""
_HEADERS: dict[Form, tuple[str, ...]] = {
    "rfc9440": ("Client-Cert", "Client-Cert-Chain"), "xfcc": ("X-Forwarded-Client-Cert",),
}  # fmt: skip
_NAMES = tuple(name for names in _HEADERS.values() for name in names)
_BYTE_SEQUENCE = re.compile(r":([A-Za-z0-9+/]+={0,2}):")
"""RFC 8941 §3.3.5, not empty and without parameters."""
_XFCC_PAIR = re.compile(r'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;=]*))')
_XFCC_KEYS = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns"})
_XFCC_REPEATABLE = frozenset({"by", "uri", "dns"})
_URL_ENCODED = re.compile(r"(?:[A-Za-z0-9._~!*'()/:+=-]|%[0-9A-Fa-f]{2})+")
_PEM = re.compile(
    rb"(?:-----BEGIN CERTIFICATE-----\r?\n(?:[A-Za-z0-9+/=]{1,76}\r?\n)+-----END CERTIFICATE-----(?:\r?\n)*)+"
)


class Headers(Protocol):
    """A request's headers."""

    def __contains__(self, key: object) -> bool: ...
    def getall(self, key: str, default: list[str]) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One proxy, or several that are alike. With addresses and certificates it must have both."""

    name: str
    form: Form
    networks: tuple[Network, ...]
    certificates: Mapping[bytes, tuple[float, float]] | None
    """The proxies' own, DER, each with its validity; None where the address is enough."""
    address_header: str | None = None
    """Where it writes the device's address, as the last one."""

    def is_peer(self, address: str, chain: bytes, now: float) -> bool:
        """Whether the connection from `address`, whose client showed `chain` (DER after DER), is this proxy's."""
        if self.networks and not _inside(address, self.networks):
            return False
        if self.certificates is None:
            return bool(self.networks)
        since, until = self.certificates.get(_leaf(chain) if chain else b"", (0.0, 0.0))
        return since <= now < until


def validities(found: Sequence[x509.Certificate]) -> dict[bytes, tuple[float, float]]:
    """Certificates as a Proxy has them; the last second of a validity counts."""
    return {
        one.public_bytes(Encoding.DER): (one.not_valid_before_utc.timestamp(), one.not_valid_after_utc.timestamp() + 1)
        for one in found
    }


def is_sent(headers: Headers) -> bool:
    """Whether such a header is there, in any letters: asked of each request, so three look-ups and nothing else."""
    return "Client-Cert" in headers or "Client-Cert-Chain" in headers or "X-Forwarded-Client-Cert" in headers


def check_sender(proxies: Sequence[Proxy], headers: Headers, address: str, chain: bytes, now: float) -> None:
    """A 403 for such a header of anybody but one of `proxies`; what it holds is not looked at."""
    if not any(proxy.is_peer(address, chain, now) for proxy in proxies):
        raise _stranger(next(name for name in _NAMES if name in headers))


def check_stands_for_device(listed: tuple[bytes, ...], chain: bytes) -> None:
    """A 403 for who shows in its own name a certificate that is `listed` (DER) as any proxy's: it is no device's."""
    if chain.startswith(listed):
        raise Forbidden(
            Reason.PROXY,
            "The client certificate is a proxy's own, and here it is expired, from another address, or of a proxy "
            "that this label does not name; it stands for no device.",
        )


def passed_on(proxies: Sequence[Proxy], headers: Headers, address: str, chain: bytes, now: float) -> bytes | None:
    """The device's certificates (DER after DER; empty without one) where the connection is a proxy's; None where it is
    the device's own. A 403 for a header of anybody else, a 400 for one that is not as its form has it."""
    found = next((proxy for proxy in proxies if proxy.is_peer(address, chain, now)), None)
    sent = [name for name in _NAMES if headers.getall(name, [])]
    if found is None:
        if sent:
            raise _stranger(sent[0])
        return None
    if other := [name for name in sent if name not in _HEADERS[found.form]]:
        raise _bad(other[0], f"is not the form that the proxy {found.name!r} passes certificates on in")
    if not sent:
        return b""
    parts = _rfc9440(headers) if found.form == "rfc9440" else _xfcc(headers)
    if len(parts) > _CERTIFICATES_MAX or sum(map(len, parts)) > CHAIN_OCTETS_MAX:
        raise _too_many(sent[0])
    for part in parts:
        try:
            x509.load_der_x509_certificate(part)
        except UNREADABLE:
            raise _bad(sent[0], "holds what is no certificate") from None
    return b"".join(part for index, part in enumerate(parts) if part not in parts[:index])


def device_address(proxies: Sequence[Proxy], headers: Headers, address: str, chain: bytes, now: float) -> str:
    """For a person to see: the address that a proxy of `proxies` wrote last into the header that its table names; else
    the connection's, of anybody else too."""
    found = next((proxy for proxy in proxies if proxy.is_peer(address, chain, now)), None)
    if found is None or found.address_header is None:
        return address
    lines = headers.getall(found.address_header, [""])
    written = _address(lines[-1].rpartition(",")[2].strip(" \t"))
    return address if written is None else str(written)


def _leaf(chain: bytes) -> bytes:
    return chain[: der.element_end(chain, 0)]


def _stranger(header: str) -> Forbidden:
    return Forbidden(Reason.PROXY, f"The header {header} is taken from this label's proxies alone.")


def _bad(header: str, how: str) -> BadRequest:
    return BadRequest(Reason.PROXY, f"The header {header} {how}.")


def _too_many(header: str) -> BadRequest:
    return _bad(header, f"holds more than {_CERTIFICATES_MAX} certificates or {CHAIN_OCTETS_MAX} octets")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Without its zone, which may be any text and means something on one host alone; None where it is no address."""
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _inside(address: str, networks: Sequence[Network]) -> bool:
    found = _address(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found is not None and any(found in network for network in networks)


def _rfc9440(headers: Headers) -> list[bytes]:
    """The certificate, then those above it."""
    leaves = headers.getall("Client-Cert", [])
    if len(leaves) != 1:
        raise _bad("Client-Cert", "is there more than once, or absent beside Client-Cert-Chain")
    listed = ",".join(headers.getall("Client-Cert-Chain", [])).strip(" \t")  # a list may stand on several lines
    above = [one.strip(" \t") for one in listed.split(",")] if listed else []  # and be empty (RFC 8941 §4.2)
    if len(above) >= _CERTIFICATES_MAX:  # told before any is decoded
        raise _too_many("Client-Cert-Chain")
    return [
        _byte_sequence("Client-Cert", leaves[0].strip(" \t")),
        *(_byte_sequence("Client-Cert-Chain", one) for one in above),
    ]


def _byte_sequence(header: str, text: str) -> bytes:
    found = _BYTE_SEQUENCE.fullmatch(text)
    try:
        if found is not None:
            return base64.b64decode(found[1], validate=True)
    except binascii.Error:
        pass
    raise _bad(header, "is not a byte sequence between colons (RFC 9440 §2)")


def _xfcc(headers: Headers) -> list[bytes]:
    """Envoy's Cert or Chain (whose first is the leaf), of one element."""
    lines = headers.getall("X-Forwarded-Client-Cert", [])
    values = _xfcc_values(lines[0]) if len(lines) == 1 else None
    if values is None:
        raise _bad("x-forwarded-client-cert", "is not one element of KEY=VALUE; let the proxy set it, not append")
    if "cert" not in values and "chain" not in values:
        raise _bad("x-forwarded-client-cert", "has neither Cert nor Chain; let the proxy send the certificate itself")
    leaf = _pem_certificates(values["cert"]) if "cert" in values else []
    chain = _pem_certificates(values["chain"]) if "chain" in values else leaf
    if "cert" in values and (len(leaf) != 1 or leaf[0] != chain[0]):
        raise _bad("x-forwarded-client-cert", "has a Cert that is not one certificate, or not the first of its Chain")
    return chain


def _xfcc_values(text: str) -> dict[str, str] | None:
    """The pairs of the one element, keys in lower case; None where it is anything else."""
    values: dict[str, str] = {}
    at = 0
    while True:
        found = _XFCC_PAIR.match(text, at)
        key = found[1].lower() if found else ""
        if found is None or key not in _XFCC_KEYS or (key in values and key not in _XFCC_REPEATABLE):
            return None
        values[key] = found[2] if found[2] is not None else found[3]
        at = found.end()
        if at == len(text):
            return values
        if text[at] != ";":
            return None
        at += 1


def _pem_certificates(value: str) -> list[bytes]:
    data = unquote_to_bytes(value) if _URL_ENCODED.fullmatch(value) else b""
    if not _PEM.fullmatch(data):
        raise _bad("x-forwarded-client-cert", "has a Cert or Chain that is not URL-encoded PEM")
    try:
        return [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(data)]
    except UNREADABLE:
        raise _bad("x-forwarded-client-cert", "holds what is no certificate") from None
