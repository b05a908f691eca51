"""Behind a load balancer, on real servers: HAProxy and nginx pass certificates on, and nobody else does
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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509

from estd import challenges, config
from estd.client import EstClient, Refused
from tests import docs, make, servers
from tests.conftest import program
from tests.line import Line, basic, get, request
from tests.make import Identity
from tests.servers import Server, free_port, wait_for

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "proxy.md").read_text()


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
    with servers.running(server), proxying(front, folder, haproxy, "-db", "-f", "haproxy.cfg"):
        yield made


@contextmanager
def proxying(front: Server, folder: Path, *command: str | Path) -> Iterator[None]:
    """A proxy that runs in the folder, from when devices reach estd through it."""
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_for(lambda: is_up(front), 20, (folder / "proxy.log").read_text)
        yield
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
    with proxying(front, folder, program("nginx"), "-p", folder, "-c", "nginx.conf", "-e", "stderr"):
        yield front


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
