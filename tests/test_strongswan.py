"""strongSwan's `pki` against the server: it takes no wrapped base64, no chunks and no status but 200.

`pki --est` asks at simpleenroll, and at simplereenroll as soon as it is given a certificate (`--cert`), so its first
enrolment is by name and password. It knows no labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.clients import judge
from tests.conftest import program
from tests.servers import Server

_NAME = "device-1.devices.example.com"


@pytest.fixture(scope="module")
def long_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An instance whose root is RSA-3072 and whose default label answers cacerts on one line."""
    made = servers.init(tmp_path_factory.mktemp("long") / "instance", "--ca-key", "rsa-3072")
    text = made.config.read_text()
    off = "# cacerts_one_line = false"
    assert off in text
    made.config.write_text(text.replace(off, "cacerts_one_line = true", 1))
    with servers.running(made):
        yield made


class Pki:
    """strongSwan's tool, told to speak one version of TLS."""

    def __init__(self, server: Server, folder: Path, tls: str = "1.2") -> None:
        self.server = server
        self.folder = folder
        self.ca = server.folder / "ca.pem"
        settings = folder / "strongswan.conf"
        settings.write_text(f"libtls {{\n version_min = {tls}\n version_max = {tls}\n}}\n")
        self._environment = {"PATH": "/usr/bin:/bin", "STRONGSWAN_CONF": str(settings)}

    def __call__(self, *arguments: str | Path) -> tuple[int, bytes, str]:
        """Status, standard output and standard error."""
        done = judge.run(program("pki"), *arguments, environment=self._environment)
        return done.returncode, done.stdout, done.stderr.decode()

    def request(self, stem: str, *, kind: str = "ecdsa", size: int = 256, san: str | None = _NAME) -> tuple[Path, Path]:
        """A new key (PEM) and a request (DER) of CN=device-1."""
        key, request = self.folder / f"{stem}.key", self.folder / f"{stem}.csr"
        status, made, why = self("--gen", "--type", kind, "--size", str(size), "--outform", "pem")
        assert status == 0, why
        key.write_bytes(made)
        names = ["--san", san] if san else []
        status, made, why = self("--req", "--in", key, "--type", "priv", "--dn", "CN=device-1", *names)
        assert status == 0, why
        request.write_bytes(made)
        return key, request

    def est(self, request: Path, *who: str | Path) -> tuple[int, bytes, str]:
        return self("--est", "--url", self.server.url, "--cacert", self.ca, "--in", request, "--outform", "pem", *who)

    def enroll(self, stem: str, request: Path, *who: str | Path) -> Path:
        """The certificate that it got for the request, judged by OpenSSL."""
        status, given, why = self.est(request, *who)
        assert status == 0, why
        assert "certificate is trusted" in why
        certificate = self.folder / f"{stem}.pem"
        certificate.write_bytes(given)
        judge.chain_holds(self.ca, certificate)
        judge.certifies(certificate, request)
        return certificate

    def factory(self) -> tuple[str, str]:
        return "--userpass", ":".join(self.server.basic)


def _anchors(pki: Pki) -> list[bytes]:
    """What `pki --estca` wrote."""
    status, _, why = pki(
        "--estca", "--url", pki.server.url, "--cacert", pki.ca, "--caout", pki.folder / "got", "--outform", "pem"
    )
    assert status == 0, why
    return [one.read_bytes() for one in sorted(pki.folder.glob("got*"))]


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_R17_R18_strongswan_fetches_the_ca_without_a_credential(server: Server, folder: Path, tls: str) -> None:
    """R17, R18: `pki --estca` needs no credential and writes the root, which it finds to be the TLS server's."""
    assert _anchors(Pki(server, folder, tls)) == [(server.folder / "ca.pem").read_bytes()]


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_R2_strongswan_enrolls_and_re_enrolls(server: Server, folder: Path, tls: str) -> None:
    """R2, R22: `pki --est` gets a first certificate by password, then another for a new key by showing the first."""
    pki = Pki(server, folder, tls)
    key, request = pki.request("first")
    first = pki.enroll("first", request, *pki.factory())
    _, request = pki.request("second")
    second = pki.enroll("second", request, "--cert", first, "--key", key)
    assert judge.serial(second) != judge.serial(first)
    assert judge.subject(second) == judge.subject(first) == "subject=CN=device-1"
    assert judge.alternative_names(second) == judge.alternative_names(first)
    assert _NAME in judge.alternative_names(second)


def test_R24_strongswan_renews_with_the_same_key(server: Server, folder: Path) -> None:
    """R24: the request that got the certificate may be sent again to renew it."""
    pki = Pki(server, folder)
    key, request = pki.request("first")
    first = pki.enroll("first", request, *pki.factory())
    second = pki.enroll("second", request, "--cert", first, "--key", key)
    assert judge.serial(second) != judge.serial(first)


def test_strongswan_takes_a_long_answer_on_its_one_line(server: Server, folder: Path) -> None:
    """An answer beyond 1,022 characters comes on one line, as the request did: strongSwan fails on a wrapped one."""
    pki = Pki(server, folder)
    _, request = pki.request("big", kind="rsa", size=4096)
    certificate = pki.enroll("big", request, *pki.factory())
    assert len(judge.openssl("x509", "-in", certificate, "-outform", "DER")) * 4 // 3 > 1022


def test_strongswan_takes_a_long_cacerts_where_the_label_says_one_line(long_server: Server, folder: Path) -> None:
    """With `cacerts_one_line` a root that is longer than 1,022 characters is fetched and trusted, and signs."""
    pki = Pki(long_server, folder)
    assert len(judge.openssl("x509", "-in", pki.ca, "-outform", "DER")) * 4 // 3 > 1022
    assert _anchors(pki) == [(long_server.folder / "ca.pem").read_bytes()]
    key, request = pki.request("first")
    first = pki.enroll("first", request, *pki.factory())
    _, request = pki.request("second")
    pki.enroll("second", request, "--cert", first, "--key", key)


def test_R26_strongswan_is_told_the_status_of_a_refusal(server: Server, folder: Path) -> None:
    """R20, R26: a wrong password and no credential at all are 401; renewing another CA's certificate is 403."""
    pki = Pki(server, folder)
    _, request = pki.request("refused")
    certificate, key = server.idevid_files
    for who, status in (
        (("--userpass", "factory:wrong"), 401),
        ((), 401),
        (("--cert", certificate, "--key", key), 403),
    ):
        code, given, why = pki.est(request, *who)
        assert (code, given) == (1, b"")
        assert f"EST request failed: HTTP {status}" in why
