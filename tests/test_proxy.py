"""Behind a load balancer: who may pass certificates on, what each form may hold, and a real proxy in between
(interop complaints 7 and 14)."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from estd import challenges, config
from estd.client import EstClient, Refused
from estd.errors import EstError, Reason
from estd.proxy import Proxy, check_sender, check_stands_for_device, device_address, is_sent, passed_on, validities
from tests import docs, make, servers
from tests.conftest import program
from tests.make import Identity
from tests.servers import Server, free_port, wait_for
from tests.test_config import FOLDER, problems, text
from tests.test_hostile import Line, basic, get, request

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "proxy.md").read_text()
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


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@dataclass
class Stage:
    """The page's demonstration, served, with its HAProxy in front."""

    server: Server
    folder: Path
    front: Server
    """The same instance as devices reach it."""

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        script = script.replace("https://127.0.0.1:8444", self.front.url)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{self.folder}:{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", "-ec", script], check=False, cwd=self.folder, capture_output=True, text=True, timeout=120,
            env=environment,
        )  # fmt: skip


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or program("haproxy")
    folder = tmp_path_factory.mktemp("proxy")
    server = servers.init(folder / "demo")
    front = Server(folder=server.folder, port=free_port(), admin_port=server.admin_port)
    made = Stage(server, folder, front)
    (folder / "estd").write_text(f'#!/bin/sh\nexec {sys.executable} -m estd.cli "$@"\n')
    (folder / "estd").chmod(0o755)
    assert made.run(blocks("sh")[0]).returncode == 0
    with server.config.open("a") as file:
        proxy_table, label = re.fullmatch(r"(.*)\[label\.default\]\n(.*)", blocks("toml")[0], re.DOTALL).groups()  # type: ignore[union-attr]
        file.write("\n" + proxy_table + servers.LABELS.read_text())
    text_ = server.config.read_text().replace("\n[label.default]\n", f"\n[label.default]\n{label}")
    server.config.write_text(text_.replace("\n[label.trimmed]\n", '\n[label.trimmed]\nproxies = ["front"]\n'))
    settings_ = blocks("haproxy")[0].replace(":8444", f":{front.port}").replace(":8443", f":{server.port}")
    (folder / "haproxy.cfg").write_text(settings_)
    with servers.running(server), (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([haproxy, "-db", "-f", "haproxy.cfg"], cwd=folder, stdout=log, stderr=log)
        try:
            wait_for(lambda: is_up(front), 20, (folder / "haproxy.log").read_text)
            yield made
        finally:
            process.terminate()
            process.wait(20)


def is_up(server: Server) -> bool:
    try:
        with server.client() as client:
            return client.cacerts() == [server.ca]
    except Exception:
        return False


def test_the_pages_commands_enroll_through_haproxy(stage: Stage) -> None:
    """The page's commands enroll by certificate and by password and renew, through HAProxy; the ledger has the device,
    not the proxy."""
    done = stage.run(blocks("sh")[1])
    assert done.returncode == 0, done.stdout + done.stderr
    identities = [row.identity for row in stage.server.rows()]
    assert [one.partition(":")[0] for one in identities] == ["idevid", "cert", "basic"]
    assert "DEMO-0001" in identities[0]
    assert not any("front proxy" in one for one in identities)


def refusal(act: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value.status, caught.value.sentence


def enroll(server: Server, **options: Any) -> x509.Certificate:
    asked = options.pop("asked", {"subject": x509.Name([])})
    with server.client(**options) as client:
        return client.enroll(lambda _: make.csr(**asked))


def test_what_estd_judges_it_judges_behind_the_proxy_too(stage: Stage, folder: Path) -> None:
    """Nobody, a stranger and an expired device are refused through the proxy with the sentences that they get without;
    the proxy's own certificate opens nothing, at a label that does not name the proxy neither, though estd issued it:
    there it would get another."""
    assert refusal(lambda: enroll(stage.front))[0] == 401
    stranger = make.certificate().write(folder, "stranger")
    assert "no path" in refusal(lambda: enroll(stage.front, cert=stranger))[1]
    old = make.certificate(stage.server.manufacturer, starts=timedelta(minutes=-30), ends=timedelta(minutes=-15))
    assert "expired" in refusal(lambda: enroll(stage.front, cert=old.write(folder, "old")))[1]
    asked = {"signer": (key := make.key())}
    issued = enroll(stage.server, label="sites", basic=True, asked=asked)
    with (stage.server.folder / "front.pem").open("ab") as file:
        file.write(issued.public_bytes(make.Encoding.PEM))
    assert stage.run("estd reload demo/estd.toml").returncode == 0
    own = Identity(issued, key).write(folder, "own")
    assert refusal(lambda: enroll(stage.server, cert=own))[0] == 401
    status, sentence = refusal(lambda: enroll(stage.server, label="sites", cert=own, asked=asked))
    assert (status, "a proxy's own" in sentence) == (403, True), sentence


def post(
    server: Server, label: str | None, given_: dict[str, str], *, operation: str = "simpleenroll", **options: Any
) -> tuple[int, str]:
    with server.client(label=label, **options) as client:
        body = make.body(make.csr(subject=make.name("device-1")))
        response = client.request("POST", operation, body, Content_Type="application/pkcs10", **given_)
        told = response.read().decode(errors="replace")
        return response.status, response.headers.get("Estd-Error") or told


def test_a_device_that_writes_the_header_is_refused(stage: Stage) -> None:
    """Without the proxy the header is a 403, at labels that name it and at others, with and without a credential of the
    device's own; through the proxy it is what the proxy says."""
    idevid = x509.load_pem_x509_certificate(stage.server.idevid_files[0].read_bytes())
    written = {"Client_Cert": f":{base64.b64encode(idevid.public_bytes(make.Encoding.DER)).decode()}:"}
    signed = stage.server.metric("estd_certificates_total")
    counted = stage.server.metric("estd_rejections_total", reason="proxy")
    enrolments = ((None, "simpleenroll"), ("strict", "simpleenroll"), ("sites", "simpleenroll"))
    for label, operation in (*enrolments, (None, "serverkeygen"), ("keys", "serverkeygen")):
        for options in ({}, {"cert": stage.server.idevid_files}, {"basic": True}):
            status, sentence = post(stage.server, label, written, operation=operation, **options)
            assert (status, "proxies alone" in sentence) == (403, True)
    for operation in ("simpleenroll", "serverkeygen"):
        assert post(stage.front, None, written, operation=operation)[0] == 401
    assert stage.server.metric("estd_certificates_total") == signed
    assert stage.server.metric("estd_rejections_total", reason="proxy") == counted + 15


OPERATIONS = [
    *(("GET", one) for one in ("cacerts", "csrattrs", "crls", "renewal-info/AA.AA")),
    *(("POST", one) for one in ("simpleenroll", "simplereenroll", "serverkeygen")),
]
WRITTEN = [
    ["Client-Cert: ::"], ["client-cert: x"], ["CLIENT-CERT-CHAIN: x"], ["X-Forwarded-Client-Cert: "],
    ["x-forwarded-client-cert: Hash=00"], ["Client-Cert: ::", "client-CERT: ::"],
    ["Client-Cert-Chain:", "Client-Cert: ::"],
]  # fmt: skip


@pytest.fixture(scope="module")
def proxyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose configuration has no [proxy]."""
    made = servers.init(tmp_path_factory.mktemp("proxyless") / "instance")
    toml = made.config.read_text().replace('proxies = ["balancer"]\n', "")
    toml = re.sub(r"^\[proxy\.balancer\]\n(?:[^\n]+\n)+", "", toml, flags=re.MULTILINE)
    made.config.write_text(toml + servers.LABELS.read_text())
    with servers.running(made):
        yield made


@pytest.mark.parametrize(
    ("label", "operation"),
    [
        (label, one)
        for label in ("", "strict/", "keys/")
        for one in OPERATIONS
        if (label, one[1]) != ("strict/", "serverkeygen")  # it makes no keys
    ],
    ids=str,
)
def test_without_any_proxy_the_header_is_refused_all_the_same(
    operation: tuple[str, str], label: str, proxyless: Server
) -> None:
    """A server whose configuration has no [proxy]: each of the headers, in any letters, once or twice, empty or junk,
    is a 403 at every operation that the label has, with a right credential too, and no token is asked."""
    server = proxyless
    assert not config.load(server.config).proxies
    signed, counted = server.metric("estd_sign_seconds_count"), server.metric("estd_rejections_total", reason="proxy")
    method, path = operation[0], f"/.well-known/est/{label}{operation[1]}"
    body = make.body(make.csr()) if method == "POST" else None
    for lines in WRITTEN:
        for given_ in ((), (basic(server),)):
            with Line(server) as line:
                line.send(request(body, *given_, *lines, method=method, path=path))
                answer = line.answer()
            assert answer is not None
            assert (answer.status, "proxies alone" in answer.sentence) == (403, True), (lines, answer)
    assert server.metric("estd_sign_seconds_count") == signed
    assert server.metric("estd_rejections_total", reason="proxy") == counted + 2 * len(WRITTEN)
    with server.client(label=label.rstrip("/") or None) as client:
        assert client.cacerts() == [server.ca]


def test_what_everybody_may_read_a_proxy_may_ask_for(stage: Stage) -> None:
    """cacerts and csrattrs through the proxy, which sends the header for a device that shows a certificate: 200. The
    same at a label that does not name the proxy, and from a device that wrote it itself: 403."""
    with stage.front.client(cert=stage.server.idevid_files) as client:
        assert client.cacerts() == [stage.server.ca]
        client.csrattrs()
    with stage.front.client(cert=stage.server.idevid_files, label="sites") as client:
        assert refusal(client.cacerts)[0] == 403
    with stage.front.client(label="sites") as client:
        assert client.cacerts() == [stage.server.ca]
    with Line(stage.server, cert=stage.server.idevid_files) as line:
        line.send(get("/.well-known/est/cacerts", "GET", "Client-Cert: ::"))
        answer = line.answer()
    assert answer is not None
    assert answer.status == 403


def test_linking_ends_at_the_proxy(stage: Stage) -> None:
    """Where a label demands linking, a request through the proxy is a 400 that says why; elsewhere a linked one is a
    400 as any wrong value is."""
    status, sentence = post(stage.front, "trimmed", {}, basic=True)
    assert (status, "a proxy ends the TLS connection" in sentence) == (400, True)
    with stage.front.client(basic=True) as client:
        found = refusal(lambda: client.enroll(lambda value: make.csr(challenge_password=value), link=True))
    assert found[0] == 400


def test_the_proxys_own_connection_links_nobody(stage: Stage) -> None:
    """Behind a Client-Cert the value of the proxy's connection is as wrong as any, in either attribute, and so is an
    empty one; the same request without it is served."""
    own = (stage.server.folder / "front.pem", stage.server.folder / "front.key")
    device = x509.load_pem_x509_certificate(stage.server.idevid_files[0].read_bytes())
    passed_on = {"Client_Cert": f":{base64.b64encode(device.public_bytes(make.Encoding.DER)).decode()}:"}
    with stage.server.client(cert=own) as client:
        value = client.channel_binding()
        for more, status in (
            ({"challenge_password": value}, 400),
            ({"challenge_password": b""}, 400),
            ({"attributes": [(challenges.IDENTITY_LINKING.oid, value)]}, 400),
            ({}, 200),
        ):
            body = make.body(make.csr(subject=device.subject, **more))
            response = client.request("POST", "simpleenroll", body, Content_Type="application/pkcs10", **passed_on)
            told = response.read()
            assert response.status == status, told
            assert status == 200 or b"channel-binding value" in told


@pytest.mark.parametrize("value", ["::", ":AAAA:", "x", ":%%%:"])
def test_the_proxys_broken_headers_are_a_400(value: str, stage: Stage) -> None:
    """Over the proxy's own connection: a header that is not as its form has it is a 400, with a right password too."""
    own = (stage.server.folder / "front.pem", stage.server.folder / "front.key")
    status, sentence = post(stage.server, None, {"Client_Cert": value}, cert=own, basic=True)
    assert (status, "Client-Cert" in sentence) == (400, True)
    assert post(stage.server, None, {}, cert=own, basic=True)[0] == 200


BY_ADDRESS_ALONE = """
[proxy.here]
addresses = ["127.0.0.1/32"]
form = "xfcc"

[proxy.elsewhere]
addresses = ["192.0.2.0/24"]
form = "xfcc"
"""
LABEL_BEHIND = """
[label.{0}]
ca = "root"
proxies = ["{0}"]
[[label.{0}.allow]]
who = "issued"
[[label.{0}.allow]]
who = "certificate"
anchors = "demo/manufacturer.pem"
profile = "idevid"
[[label.{0}.allow]]
who = "basic"
credentials = "credentials"
profile = "factory"
"""


@pytest.fixture(scope="module")
def envoys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes whoever comes from this machine for Envoy, at one label, and nobody from here at another."""
    made = servers.init(tmp_path_factory.mktemp("envoys") / "instance")
    make.certificate(subject=make.name("front proxy")).write(made.folder, "front")
    (page,) = docs.blocks("docs/proxy.md", "toml", section="With nginx")
    with made.config.open("a") as file:
        file.write(BY_ADDRESS_ALONE + page.partition("[label.")[0])
        file.write("".join(map(LABEL_BEHIND.format, ("here", "elsewhere", "nginx"))))
    with servers.running(made):
        yield made


def envoy(leaf: bytes, *above: bytes) -> dict[str, str]:
    """The header as Envoy sets it: the certificate's hash, then PEM, URL-encoded and in quotes (SANITIZE_SET with cert,
    chain and subject)."""
    der_ = x509.load_pem_x509_certificate(leaf).public_bytes(make.Encoding.DER)
    cert, chain = quote(leaf, safe=""), quote(leaf + b"".join(above), safe="")
    value = f'Hash={hashlib.sha256(der_).hexdigest()};Cert="{cert}";Chain="{chain}";Subject="serialNumber=DEMO-0001"'
    return {"X_Forwarded_Client_Cert": value}


def test_a_proxy_that_is_known_by_its_address_passes_certificates_on(envoys: Server) -> None:
    """From a listed address each enrolment on one connection is the device's whose certificate the header holds, with
    what stands above it; without the header it is nobody's, and a stranger's certificate opens nothing."""
    idevid, ca = envoys.idevid_files[0].read_bytes(), envoys.ca.public_bytes(make.Encoding.PEM)

    def told(client: EstClient, passed_on: dict[str, str], subject: x509.Name, operation: str) -> tuple[int, bytes]:
        body = make.body(make.csr(subject=subject))
        answer = client.request("POST", operation, body, Content_Type="application/pkcs10", **passed_on)
        return answer.status, answer.read()

    with envoys.client(label="here") as client:
        given_ = envoy(idevid, envoys.manufacturer.pem)
        status, answer = told(client, given_, make.name("whatever"), "simpleenroll")
        assert status == 200, answer
        first = envoys.rows()[-1]
        assert first.identity.startswith("idevid:")
        assert "DEMO-0001" in first.subject
        issued = x509.load_der_x509_certificate(first.certificate_der)
        given_ = envoy(issued.public_bytes(make.Encoding.PEM), ca)
        status, answer = told(client, given_, issued.subject, "simplereenroll")
        assert status == 200, answer
        assert envoys.rows()[-1].renews == first.serial
    assert post(envoys, "here", {})[0] == 401
    status, sentence = post(envoys, "here", envoy(make.certificate().pem))
    assert (status, "no path" in sentence) == (401, True)


def test_a_proxy_of_another_address_is_a_stranger(envoys: Server) -> None:
    """The same header from an address that is not listed is a 403, with a right password too; without the header the
    device is a client of its own."""
    passed_on = envoy(envoys.idevid_files[0].read_bytes(), envoys.manufacturer.pem)
    made = len(envoys.rows())
    for options in ({}, {"basic": True}, {"cert": envoys.idevid_files}):
        status, sentence = post(envoys, "elsewhere", passed_on, **options)
        assert (status, "proxies alone" in sentence) == (403, True)
    assert len(envoys.rows()) == made
    assert post(envoys, "elsewhere", {}, cert=envoys.idevid_files)[0] == 200


NGINX = """
daemon off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {0}
}}
"""


@pytest.fixture(scope="module")
def nginx(envoys: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same instance as devices reach it through nginx, which writes Envoy's header."""
    folder = tmp_path_factory.mktemp("nginx")
    front = Server(folder=envoys.folder, port=free_port(), admin_port=envoys.admin_port)
    (page,) = docs.blocks("docs/proxy.md", "nginx")
    for word, here in (("demo/", f"{envoys.folder}/"), ("127.0.0.1:8443", f"127.0.0.1:{envoys.port}"),
                       ("127.0.0.1:8445", f"127.0.0.1:{front.port}")):  # fmt: skip
        assert word in page
        page = page.replace(word, here)
    (folder / "nginx.conf").write_text(NGINX.format(page))
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(
            [program("nginx"), "-p", folder, "-c", "nginx.conf", "-e", "stderr"], stdout=log, stderr=log
        )
    try:
        wait_for(lambda: is_up(front), 20, (folder / "nginx.log").read_text)
        yield front
    finally:
        process.terminate()
        process.wait(20)


def test_a_device_enrolls_and_renews_through_nginx(nginx: Server, folder: Path) -> None:
    """By the page's configuration: nginx passes on whatever certificate a device shows; what the device writes itself
    does not come through."""
    key = make.key()
    made = enroll(nginx, label="nginx", cert=nginx.idevid_files, asked={"signer": key})
    first = nginx.rows()[-1]
    assert first.identity.startswith("idevid:")
    own = Identity(made, key).write(folder, "own")
    with nginx.client(label="nginx", cert=own) as client:
        client.enroll(lambda _: make.csr(subject=made.subject), renew=True)
    assert nginx.rows()[-1].renews == first.serial
    assert post(nginx, "nginx", envoy(nginx.idevid_files[0].read_bytes()))[0] == 401
    stranger = make.certificate().write(folder, "stranger")
    assert "no path" in refusal(lambda: enroll(nginx, label="nginx", cert=stranger))[1]
