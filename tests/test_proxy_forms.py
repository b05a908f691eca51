"""Whose word on a client certificate is taken, how each form of it is read, and what settings are wrong."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from ipaddress import ip_network
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from estd import config
from estd.errors import EstError, Reason
from estd.proxy import Proxy, check_sender, check_stands_for_device, device_address, is_sent, passed_on, validities
from tests import make
from tests.make import Identity
from tests.test_config import FOLDER, problems, text

CA = make.certificate(ca=True)
BETWEEN = make.certificate(CA, ca=True, subject=make.name("between"))
DEVICE, OTHER, FRONT, STRANGER = (make.certificate(CA) for _ in range(4))
NOW = DEVICE.certificate.not_valid_before_utc.timestamp() + 3600
NETWORKS = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))
INSIDE, OUTSIDE = "10.1.2.3", "192.0.2.1"
BY_ADDRESS = Proxy(name="front", form="rfc9440", networks=NETWORKS, certificates=None)
ENVOY = Proxy(name="envoy", form="xfcc", networks=NETWORKS, certificates=None)
BY_CERTIFICATE = Proxy(name="front", form="rfc9440", networks=(), certificates=validities([FRONT.certificate]))
BY_BOTH = Proxy(name="front", form="rfc9440", networks=NETWORKS, certificates=validities([FRONT.certificate]))
BY_NOTHING = Proxy(name="front", form="rfc9440", networks=(), certificates=None)


def sf(*identities: Identity) -> str:
    """RFC 9440's form."""
    return ", ".join(f":{base64.b64encode(one.der).decode()}:" for one in identities)


def pem(*identities: Identity) -> str:
    """Envoy's: PEM, URL-encoded."""
    return quote(b"".join(one.pem for one in identities), safe="")


def headers(*pairs: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(pairs)


def from_device(value: str = sf(DEVICE)) -> CIMultiDict[str]:
    return headers(("Client-Cert", value))


@dataclass(frozen=True)
class Peer:
    proxies: tuple[Proxy, ...]
    address: str = INSIDE
    chain: bytes = b""
    status: int = 0
    """0: it is the proxy."""
    now: float = NOW


END = FRONT.certificate.not_valid_after_utc.timestamp()
PEERS: dict[str, Peer] = {
    "inside": Peer((BY_ADDRESS,)),
    "inside, IPv6": Peer((BY_ADDRESS,), "2001:db8::1"),
    "inside, IPv6 with a zone": Peer((BY_ADDRESS,), "2001:db8::1%eth0"),
    "inside, IPv4 in IPv6": Peer((BY_ADDRESS,), "::ffff:10.1.2.3"),
    "the first network's last address": Peer((BY_ADDRESS,), "10.255.255.255"),
    "the next address": Peer((BY_ADDRESS,), "11.0.0.0", status=403),
    "outside": Peer((BY_ADDRESS,), OUTSIDE, status=403),
    "outside with the certificate that is not asked for": Peer((BY_ADDRESS,), OUTSIDE, FRONT.der, 403),
    "no address": Peer((BY_ADDRESS,), "", status=403),
    "no address at all": Peer((BY_ADDRESS,), "localhost", status=403),
    "its certificate": Peer((BY_CERTIFICATE,), OUTSIDE, FRONT.der),
    "its certificate, and more above": Peer((BY_CERTIFICATE,), OUTSIDE, FRONT.der + CA.der),
    "its certificate's last second": Peer((BY_CERTIFICATE,), OUTSIDE, FRONT.der, now=END + 0.9),
    "its certificate, expired": Peer((BY_CERTIFICATE,), OUTSIDE, FRONT.der, 403, END + 1),
    "another's certificate, its own above": Peer((BY_CERTIFICATE,), OUTSIDE, STRANGER.der + FRONT.der, 403),
    "another's certificate": Peer((BY_CERTIFICATE,), INSIDE, STRANGER.der, 403),
    "no certificate": Peer((BY_CERTIFICATE,), INSIDE, b"", 403),
    "both": Peer((BY_BOTH,), INSIDE, FRONT.der),
    "both wanted, only the address": Peer((BY_BOTH,), INSIDE, b"", 403),
    "both wanted, only the certificate": Peer((BY_BOTH,), OUTSIDE, FRONT.der, 403),
    "one of several": Peer((BY_BOTH, BY_ADDRESS), INSIDE),
    "no proxy is named": Peer((), status=403),
    "a proxy's certificate where none is named": Peer((), INSIDE, FRONT.der + CA.der, 403),
    "a proxy known by nothing": Peer((BY_NOTHING,), INSIDE, FRONT.der, 403),
}  # fmt: skip


@pytest.mark.parametrize("case", PEERS)
def test_who_may_pass_certificates_on(case: str) -> None:
    """The header is taken from a named proxy alone, and is a 403 from anybody else; without one the stranger is a
    client of its own, and the proxy's client is nobody: never the proxy, whose certificate is a 403 where it does not
    make a connection the proxy's."""
    peer = PEERS[case]
    args = (peer.address, peer.chain, peer.now)
    if peer.status:
        for given_ in (from_device(), headers(("x-forwarded-client-cert", f"Cert={pem(DEVICE)}")), from_device("junk"),
                       headers(("CLIENT-CERT-CHAIN", sf(CA)))):  # fmt: skip
            with pytest.raises(EstError) as caught:
                passed_on(peer.proxies, given_, *args)
            assert (caught.value.status, caught.value.reason) == (403, Reason.PROXY)
            assert is_sent(given_)
            with pytest.raises(EstError, match="proxies alone"):
                check_sender(peer.proxies, given_, *args)
        assert passed_on(peer.proxies, headers(), *args) is None
        if peer.chain.startswith(FRONT.der):
            with pytest.raises(EstError, match="a proxy's own") as caught:
                check_stands_for_device((STRANGER.der, FRONT.der), peer.chain)
            assert (caught.value.status, caught.value.reason) == (403, Reason.PROXY)
        else:
            check_stands_for_device((FRONT.der,), peer.chain)
    else:
        check_sender(peer.proxies, from_device("junk"), *args)
        assert passed_on(peer.proxies, from_device(), *args) == DEVICE.der
        assert passed_on(peer.proxies, headers(("Host", "x")), *args) == b""


ADDRESSES = {
    "one": (["192.0.2.7"], "192.0.2.7"),
    "what the device wrote stands before": (["10.9.9.9, 192.0.2.7"], "192.0.2.7"),
    "on a line of its own": (["10.9.9.9", "192.0.2.7"], "192.0.2.7"),
    "IPv6": (["2001:DB8::7\t"], "2001:db8::7"),
    "IPv6 with a zone": (["fe80::1%eth0"], "fe80::1"),
    "IPv6 with a zone that is any text": (["fe80::1%\udcff<b>" + "x" * 300], "fe80::1"),
    "none": ([], INSIDE),
    "empty": (["192.0.2.7,"], INSIDE),
    "no address": (["<script>"], INSIDE),
    "a name": (["192.0.2.7, device.example"], INSIDE),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_the_address_that_a_person_sees(case: str) -> None:
    """The last one in the header that the proxy's table names, where it is an address; from a stranger, and by a proxy
    without such a header, the connection's."""
    lines, expected = ADDRESSES[case]
    sent = headers(*[("x-forwarded-for", one) for one in lines])
    telling = replace(BY_ADDRESS, address_header="X-Forwarded-For")
    assert device_address([telling], sent, INSIDE, b"", NOW) == expected
    assert device_address([telling], sent, OUTSIDE, b"", NOW) == OUTSIDE
    assert device_address([BY_ADDRESS], sent, INSIDE, b"", NOW) == INSIDE
    assert device_address([], sent, OUTSIDE, b"", NOW) == OUTSIDE


RIGHT: dict[str, tuple[Proxy, list[tuple[str, str]], list[Identity]]] = {
    "the certificate": (BY_ADDRESS, [("Client-Cert", sf(DEVICE))], [DEVICE]),
    "in other letters": (BY_ADDRESS, [("cLIENT-cERT", f" {sf(DEVICE)}\t")], [DEVICE]),
    "with those above": (
        BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", sf(BETWEEN, CA))], [DEVICE, BETWEEN, CA],
    ),
    "with those above on lines of their own": (
        BY_ADDRESS, [("Client-Cert-Chain", sf(BETWEEN)), ("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", sf(CA))],
        [DEVICE, BETWEEN, CA],
    ),
    "one above twice": (
        BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", sf(BETWEEN, DEVICE, BETWEEN))],
        [DEVICE, BETWEEN],
    ),
    "with an empty chain": (BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", " ")], [DEVICE]),
    "Envoy's Cert": (ENVOY, [("x-forwarded-client-cert", f'Hash=00ff;Cert="{pem(DEVICE)}"')], [DEVICE]),
    "Envoy's Cert without quotes": (ENVOY, [("X-Forwarded-Client-Cert", f"Cert={pem(DEVICE)}")], [DEVICE]),
    "Envoy's Chain": (ENVOY, [("x-forwarded-client-cert", f'Chain="{pem(DEVICE, BETWEEN)}"')], [DEVICE, BETWEEN]),
    "Envoy's, everything in it": (
        ENVOY, [(
            "x-forwarded-client-cert",
            f'By=spiffe://a/b;By=http://b.example;Hash=00;Cert="{pem(DEVICE)}";Chain="{pem(DEVICE, CA)}";'
            r'Subject="CN=\"x\", O=a;b=c,d";URI=urn:x;URI=urn:y;DNS=a.example;DNS=b.example',
        )], [DEVICE, CA],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_each_form_is_read(case: str) -> None:
    """Certificate and chain come out as TLS would have shown them."""
    by, pairs, expected = RIGHT[case]
    found = passed_on([by], headers(*pairs), INSIDE, b"", NOW)
    assert found == b"".join(one.der for one in expected)


PLAIN = base64.b64encode(DEVICE.der).decode()
PEM8 = make.as_pem(make.of_version_8(DEVICE.der))


def sf8(one: Identity) -> str:
    return f":{base64.b64encode(make.of_version_8(one.der)).decode()}:"


WRONG: dict[str, tuple[Proxy, list[tuple[str, str]]]] = {
    "two values": (BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("Client-Cert", sf(OTHER))]),
    "the same value twice": (BY_ADDRESS, [("Client-Cert", sf(DEVICE))] * 2),
    "two on one line": (BY_ADDRESS, [("Client-Cert", sf(DEVICE, OTHER))]),
    "a chain without its certificate": (BY_ADDRESS, [("Client-Cert-Chain", sf(CA))]),
    "both forms at once": (
        BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("x-forwarded-client-cert", f"Cert={pem(DEVICE)}")],
    ),
    "the other form": (BY_ADDRESS, [("x-forwarded-client-cert", f"Cert={pem(DEVICE)}")]),
    "the other form, from Envoy": (ENVOY, [("Client-Cert", sf(DEVICE))]),
    "both forms at once, from Envoy": (
        ENVOY, [("Client-Cert", sf(DEVICE)), ("x-forwarded-client-cert", f"Cert={pem(DEVICE)}")],
    ),
    "empty": (BY_ADDRESS, [("Client-Cert", "")]),
    "an empty byte sequence": (BY_ADDRESS, [("Client-Cert", "::")]),
    "no colons": (BY_ADDRESS, [("Client-Cert", PLAIN)]),
    "one colon": (BY_ADDRESS, [("Client-Cert", ":" + PLAIN)]),
    "a parameter": (BY_ADDRESS, [("Client-Cert", sf(DEVICE) + ";a=1")]),
    "a string": (BY_ADDRESS, [("Client-Cert", f'"{PLAIN}"')]),
    "PEM": (BY_ADDRESS, [("Client-Cert", pem(DEVICE))]),
    "spaces inside": (BY_ADDRESS, [("Client-Cert", f":{PLAIN[:40]} {PLAIN[40:]}:")]),
    "base64 for URLs": (BY_ADDRESS, [("Client-Cert", ":" + "-_" * 50 + ":")]),
    "base64 cut short": (BY_ADDRESS, [("Client-Cert", f":{PLAIN.rstrip('=')[:-1]}:")]),
    "no certificate": (BY_ADDRESS, [("Client-Cert", ":AAAA:")]),
    "octets behind the certificate": (
        BY_ADDRESS, [("Client-Cert", f":{base64.b64encode(DEVICE.der + b'x').decode()}:")],
    ),
    "two certificates as one": (
        BY_ADDRESS, [("Client-Cert", f":{base64.b64encode(DEVICE.der + CA.der).decode()}:")],
    ),
    "an empty place in the chain": (
        BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", sf(CA) + ",")],
    ),
    "of version 8": (BY_ADDRESS, [("Client-Cert", sf8(DEVICE))]),
    "one of version 8 in the chain": (BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", sf8(CA))]),
    "an odd one in the chain": (BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", ":AAAA:")]),
    "too many": (BY_ADDRESS, [("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", sf(*[CA] * 8))]),
    "too long": (BY_ADDRESS, [("Client-Cert", ":" + "A" * 40_000 + ":")]),
    "Envoy's, two elements": (ENVOY, [("x-forwarded-client-cert", f"Cert={pem(DEVICE)},Cert={pem(OTHER)}")]),
    "Envoy's, two lines": (ENVOY, [("x-forwarded-client-cert", f"Cert={pem(DEVICE)}")] * 2),
    "Envoy's, Cert twice": (ENVOY, [("x-forwarded-client-cert", f"Cert={pem(DEVICE)};cert={pem(OTHER)}")]),
    "Envoy's, a hash alone": (ENVOY, [("x-forwarded-client-cert", "By=x;Hash=00ff;Subject=\"CN=a\"")]),
    "Envoy's, an unknown key": (ENVOY, [("x-forwarded-client-cert", f"Cert={pem(DEVICE)};Boss=yes")]),
    "Envoy's, an open quote": (ENVOY, [("x-forwarded-client-cert", f'Cert="{pem(DEVICE)}')]),
    "Envoy's, a quote that ends early": (ENVOY, [("x-forwarded-client-cert", f'Subject="a"b;Cert={pem(DEVICE)}')]),
    "Envoy's, a semicolon at the end": (ENVOY, [("x-forwarded-client-cert", f"Cert={pem(DEVICE)};")]),
    "Envoy's, empty": (ENVOY, [("x-forwarded-client-cert", "")]),
    "Envoy's, an empty Cert": (ENVOY, [("x-forwarded-client-cert", "Cert=")]),
    "Envoy's, two in Cert": (ENVOY, [("x-forwarded-client-cert", f'Cert="{pem(DEVICE, CA)}"')]),
    "Envoy's, Cert is not Chain's first": (
        ENVOY, [("x-forwarded-client-cert", f"Cert={pem(DEVICE)};Chain={pem(OTHER, CA)}")],
    ),
    "Envoy's, half an escape": (ENVOY, [("x-forwarded-client-cert", f"Cert={pem(DEVICE)}%2")]),
    "Envoy's, words around the PEM": (ENVOY, [("x-forwarded-client-cert", f"Cert=hello%0A{pem(DEVICE)}")]),
    "Envoy's, a key for a certificate": (
        ENVOY, [("x-forwarded-client-cert", "Cert=" + quote(DEVICE.key_pem, safe=""))],
    ),
    "Envoy's, odd base64": (
        ENVOY, [("x-forwarded-client-cert", "Cert=" + quote(DEVICE.pem.replace(b"M", b"=", 3), safe=""))],
    ),
    "Envoy's, of version 8": (ENVOY, [("x-forwarded-client-cert", "Cert=" + quote(PEM8, safe=""))]),
    "Envoy's, too many": (ENVOY, [("x-forwarded-client-cert", f"Chain={pem(*[DEVICE] * 9)}")]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_anything_else_is_a_400(case: str) -> None:
    """Several values, the wrong form, a broken encoding, too much: a 400 that names the header, never a certificate."""
    by, pairs = WRONG[case]
    with pytest.raises(EstError) as caught:
        passed_on([by], headers(*pairs), INSIDE, b"", NOW)
    assert (caught.value.status, caught.value.reason) == (400, Reason.PROXY)
    assert re.match(r"The header (Client-Cert|x-forwarded-client-cert)", caught.value.sentence, re.IGNORECASE)


def test_too_many_are_told_before_one_is_decoded() -> None:
    """The bound keeps the work small, too."""
    given_ = headers(("Client-Cert", sf(DEVICE)), ("Client-Cert-Chain", "junk," * 8))
    with pytest.raises(EstError, match="more than 8"):
        passed_on([BY_ADDRESS], given_, INSIDE, b"", NOW)


_VALUES = st.text(st.sampled_from(':;,="\\%ABab09+/- \t'), max_size=60) | st.text(max_size=30)


@given(form=st.sampled_from([BY_ADDRESS, ENVOY]), values=st.lists(_VALUES, min_size=1, max_size=3), lead=st.booleans())
@settings(deadline=None, derandomize=True, max_examples=500)
def test_no_text_raises_anything_else(form: Proxy, values: list[str], lead: bool) -> None:
    """Whatever stands in the header, it is a 400 or a certificate that was in it."""
    name = "Client-Cert" if form is BY_ADDRESS else "X-Forwarded-Client-Cert"
    good = sf(DEVICE) if form is BY_ADDRESS else f"Cert={pem(DEVICE)};"
    pairs = [(name, good + one if lead else one) for one in values]
    try:
        outcome: object = passed_on([form], headers(*pairs), INSIDE, b"", NOW)
    except EstError as refusal:
        outcome = refusal.status
    assert outcome in (400, DEVICE.der)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['form = "rfc9440"'], "proxy.front.addresses: a proxy is known by"),
        (['addresses = ["10.0.0.0/8"]'], "proxy.front.form: is missing"),
        (["addresses = []", 'form = "xfcc"'], "proxy.front.addresses: "),
        (['addresses = ["10.0.0.1/8"]', 'form = "xfcc"'], "proxy.front.addresses: "),
        (['addresses = ["::ffff:10.0.0.0/104"]', 'form = "xfcc"'], "proxy.front.addresses: "),
        (['addresses = "10.0.0.0/8"', 'form = "xfcc"', 'certificates = "c"'], "proxy.front.addresses: "),
        (['addresses = ["10.0.0.0/8"]', 'form = "pem"'], "proxy.front.form: "),
        (['addresses = ["10.0.0.0/8"]', 'form = "xfcc"', 'address_header = "X: "'], "proxy.front.address_header: "),
        (['addresses = ["10.0.0.0/8"]', 'form = "xfcc"', "trusted = true"], "proxy.front.trusted: is not a key"),
    ],
)
def test_what_is_wrong_with_a_proxy_is_said(lines: list[str], told: str) -> None:
    """A proxy that is known by nothing, or has another form or key, is a problem with its path."""
    (found,) = problems(text("proxy.front", *lines))
    assert found.startswith(told)


def test_a_label_names_a_proxy_that_there_is() -> None:
    """A proxy that a label names must have its table."""
    assert problems(text("label.default", 'proxies = ["front"]')) == [
        "label.default.proxies: there is no [proxy.front]"
    ]
    made = config.parse(
        text("label.default", 'proxies = ["front"]') + '[proxy.front]\naddresses = ["::1"]\nform = "xfcc"\n', FOLDER
    )
    assert made.proxies["front"].networks == (ip_network("::1/128"),)
