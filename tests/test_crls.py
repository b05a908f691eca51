"""R45 on a real server: /crls over TLS, the file for a web server, the distribution point in certificates; openssl and
pkilint judge."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pkilint import loader, pkix
from pkilint.pkix import crl, extension, name

from estd.client import EstClient, Refused
from estd.ledger import Row
from tests import make, servers
from tests.clients import judge
from tests.command import ROOT, estd
from tests.servers import Server, wait_for
from tests.test_pkilint import _lint, _wrong

URL = "http://127.0.0.1:{port}/root.crl"
_PROFILES = """
[profile.plain]                      # names no distribution point
crl_distribution_point = false
subject = "csr"

[profile.short]
subject = "csr"
validity = "60s"
backdate = "1h"

[ca.silent]                          # the same CA, without a CRL
certificate = "ca.pem"
key_id = "01"

[label.silent]
ca = "silent"
"""
_LABEL = """
[label.{name}]
ca = "root"
[[label.{name}.allow]]
who = "basic"
credentials = "credentials"
profile = "{name}"
"""


@dataclass
class Site:
    """A server whose CRL a web server publishes."""

    server: Server
    port: int

    @property
    def file(self) -> Path:
        return self.server.folder / "crl" / "root.crl"

    def enroll(self, label: str | None = None) -> tuple[x509.Certificate, Row]:
        with self.server.client(basic=True, label=label) as client:
            made = client.enroll(lambda _: make.csr())
        (row,) = (one for one in self.server.rows() if int.from_bytes(one.serial, "big") == made.serial_number)
        return made, row

    def revoke(self, row: Row, *options: str) -> None:
        """And wait for the CRL that lists it."""
        estd("cert", "revoke", row.serial.hex(), "--config", self.server.config, *options)
        wait_for(lambda: int.from_bytes(row.serial, "big") in self.listed(), 20)

    def crl(self) -> x509.CertificateRevocationList:
        return x509.load_der_x509_crl(self.file.read_bytes())

    def listed(self) -> set[int]:
        return {one.serial_number for one in self.crl()}

    def fetched(self, label: str = "") -> bytes:
        """The CRL as /crls answers it."""
        with self.server.client(label=label or None) as client:
            status, kind, body = get(client)
        assert (status, kind) == (200, "application/pkcs7-mime; smime-type=crls-only")
        return crl_of(base64.b64decode(body))


def get(client: EstClient, method: str = "GET") -> tuple[int, str, bytes]:
    answer = client.request(method, "crls")
    return answer.status, answer.headers["Content-Type"], answer.read()


def crl_of(cms_der: bytes) -> bytes:
    """The one CRL of a crls-only message, as openssl takes it out."""
    text = judge.openssl("pkcs7", "-inform", "DER", "-print_certs", data=cms_der)
    assert b"CERTIFICATE-----" not in text
    assert text.count(b"BEGIN X509 CRL") == 1
    return judge.openssl("crl", "-outform", "DER", data=text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """crl_delay is 0; the folder of the CRL is served over plain HTTP."""
    server = servers.init(tmp_path_factory.mktemp("crls") / "instance")
    port = servers.free_port()
    keys = f'crl = true\ncrl_delay = "0s"\ncrl_url = "{URL.format(port=port)}"\n'
    text = server.config.read_text()
    assert text.count("crl = true\n") == 1
    labels = "".join(_LABEL.format(name=one) for one in ("plain", "short"))
    server.config.write_text(text.replace("crl = true\n", keys) + _PROFILES + labels)
    assert "nothing is wrong" in estd("check", server.config).out
    handler = functools.partial(Quiet, directory=str(server.folder / "crl"))
    with servers.running(server), http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        try:
            made = Site(server, port)
            wait_for(made.file.exists, 30)
            yield made
        finally:
            web.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


def lint(crl_der: bytes) -> list[str]:
    """What pkilint finds wrong with a CRL, put together as its own lint_crl does."""
    validator = crl.create_pkix_crl_validator_container(
        [
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [
            crl.create_issuer_validator_container([]),
            crl.create_validity_validator_container([]),
            crl.create_extensions_validator_container([]),
        ],
    )
    return _wrong(validator.validate(loader.RFC5280CertificateListDocumentLoader().load_der_document(crl_der).root))


def test_R45_crls_is_for_everybody(site: Site) -> None:
    """R45: GET and HEAD without any credential, with and without a label; the CRL is the file's, and openssl finds the
    CA's signature on it."""
    published = site.file.read_bytes()
    assert site.fetched() == site.fetched("plain") == published
    ca = site.server.folder / "ca.pem"
    assert b"verify OK" in judge.run("openssl", "crl", "-inform", "DER", "-noout", "-CAfile", ca, data=published).stderr
    with site.server.client() as client:
        status, kind, body = get(client, "HEAD")
        assert (status, kind, body) == (200, "application/pkcs7-mime; smime-type=crls-only", b"")
        assert get(client, "POST")[0] == 405
        last = client.request("GET", "crls", Connection="close")
        assert crl_of(base64.b64decode(last.read())) == published


def test_R45_crls_is_not_there_where_the_ca_keeps_none(site: Site) -> None:
    """R45: 404 at a label whose CA has no CRL, with a sentence."""
    with site.server.client(label="silent") as client:
        answer = client.request("GET", "crls")
        assert (answer.status, answer.read()) == (404, b"The operation crls is not offered here.\n")


def test_R45_a_new_crl_is_served_without_a_restart(site: Site) -> None:
    """R45: within seconds of a revocation the CRL lists it, numbered higher, and edges serve that one on a connection
    that was open before."""
    _, row = site.enroll()
    with site.server.client() as client:
        before = crl_of(base64.b64decode(get(client)[2]))
        site.revoke(row, "--reason", "keyCompromise")
        wait_for(lambda: crl_of(base64.b64decode(get(client)[2])) != before, 10)
        after = x509.load_der_x509_crl(crl_of(base64.b64decode(get(client)[2])))
    entry = after.get_revoked_certificate_by_serial_number(int.from_bytes(row.serial, "big"))
    assert entry is not None
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise
    numbers = [
        one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for one in (x509.load_der_x509_crl(before), after)
    ]
    assert numbers[0] < numbers[1]


def verify(site: Site, certificate: x509.Certificate, folder: Path, *options: str) -> tuple[int, str]:
    """openssl verify, with the CRL fetched from where the certificate says it is."""
    path = folder / "one.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    done = judge.run(
        "openssl", "verify", "-x509_strict", "-crl_check", "-crl_download", "-CAfile", site.server.folder / "ca.pem",
        *options, path,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode()


def test_R45_openssl_follows_the_distribution_point(site: Site, folder: Path) -> None:
    """R45: openssl fetches the CRL from the certificate's own distribution point, over plain HTTP: a good certificate
    passes, a revoked one does not, an expired one that was revoked is called that, and one without a CRL is refused."""
    good, _ = site.enroll()
    bad, row = site.enroll()
    short, short_row = site.enroll("short")
    site.revoke(row)
    site.revoke(short_row)
    assert verify(site, good, folder)[0] == 0
    status, said = verify(site, bad, folder)
    assert status != 0
    assert "certificate revoked" in said
    later = str(int(short.not_valid_after_utc.timestamp()) + 1)
    status, said = verify(site, short, folder, "-attime", later)
    assert status != 0
    assert "error 23 at 0 depth lookup: certificate revoked" in said
    assert verify(site, good, folder, "-attime", str(int(time.time()) + 8 * 86400))[0] != 0, "past its nextUpdate"
    plain, _ = site.enroll("plain")
    status, said = verify(site, plain, folder)
    assert status != 0
    assert "unable to get certificate CRL" in said


def test_R45_R50_a_certificate_names_its_crl_where_the_profile_says_so(site: Site) -> None:
    """R45, R50: cRLDistributionPoints has the CA's crl_url and nothing else, not critical; a profile can leave it out;
    pkilint finds no fault."""
    made, _ = site.enroll()
    found = made.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    (point,) = found.value
    assert not found.critical
    assert point.full_name == [x509.UniformResourceIdentifier(URL.format(port=site.port))]
    assert (point.reasons, point.crl_issuer) == (None, None)
    plain, _ = site.enroll("plain")
    with pytest.raises(x509.ExtensionNotFound):
        plain.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    assert _lint(made.public_bytes(Encoding.DER)) == []


def test_R45_pkilint_finds_no_fault_in_the_crl(site: Site) -> None:
    """R45: the published CRL, with entries of several reasons, is as RFC 5280 §5 has it; and the linter is awake."""
    for reason in ("unspecified", "superseded"):
        site.revoke(site.enroll()[1], "--reason", reason)
    published = site.file.read_bytes()
    assert lint(published) == []
    bare = x509.CertificateRevocationListBuilder(make.name("ca"), datetime(2026, 1, 1), datetime(2026, 1, 2))
    signed = bare.sign(make.key(), x509.load_der_x509_crl(published).signature_hash_algorithm)
    assert lint(signed.public_bytes(Encoding.DER)) != []


def test_R45_a_renewal_with_a_revoked_certificate_is_refused_while_the_crl_lists_it(site: Site, folder: Path) -> None:
    """R45: the CRL changes nothing about the ledger's own word: a revoked certificate is 403 at its next request."""
    key = make.key()
    with site.server.client(basic=True) as client:
        first = make.Identity(client.enroll(lambda _: make.csr(key)), key)
    (row,) = (r for r in site.server.rows() if int.from_bytes(r.serial, "big") == first.certificate.serial_number)
    site.revoke(row)
    with site.server.client(cert=first.write(folder, "first")) as client, pytest.raises(Refused) as refused:
        client.enroll(lambda _: make.csr(), renew=True)
    assert refused.value.status == 403


def test_R45_the_metrics_tell_of_the_crl(site: Site) -> None:
    """R45: when the CRL ends, when it was made and how many it lists are on /metrics, as the file has them."""

    def told() -> list[float]:
        names = ("next_update_timestamp_seconds", "this_update_timestamp_seconds", "entries")
        return [site.server.metric(f"estd_crl_{one}") for one in names]

    def is_so() -> bool:
        now = site.crl()
        assert now.next_update_utc is not None
        return told() == [now.next_update_utc.timestamp(), now.last_update_utc.timestamp(), len(now)]

    wait_for(is_so, 5, lambda: f"{told()}")
    site.fetched()
    assert site.server.metric("estd_requests_total", operation="crls", status="200") > 0
    assert site.server.metric("estd_crls_made_total") >= 1


def test_R45_the_command_shows_and_renews(site: Site) -> None:
    """R45: `estd crl show` tells what is published, and `estd crl renew` has the server make another; a CA without one
    is named."""

    def shown() -> Any:
        return json.loads(estd("crl", "show", "--config", site.server.config, "--json").out)

    before = shown()
    assert before["entries"] == len(site.crl())
    assert before["file"] == str(site.file)
    assert "asked the server" in estd("crl", "renew", "--config", site.server.config).out
    wait_for(lambda: shown()["number"] == before["number"] + 1, 10)
    refused = estd("crl", "renew", "--ca", "silent", "--config", site.server.config, status=1)
    assert refused.err == "[ca.silent] keeps no CRL: say crl = true there\n"


def test_R45_the_documents_example_runs(site: Site) -> None:
    """R45: the commands of docs/crl.md do what they say on an instance of one's own."""
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "crl.md").read_text(), re.DOTALL)
    script = block.replace("demo/", f"{site.server.folder}/").replace("127.0.0.1:8443", f"127.0.0.1:{site.server.port}")
    script = script.replace("estd crl", f"{sys.executable} -m estd.cli crl")
    done = judge.run("sh", "-e", "-c", script)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    number = site.crl().extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert f"number       {number}\n" in said
    assert "verify OK" in said
    assert f"crlNumber=0x{number:02X}\n" in said


@pytest.mark.parametrize("issuers", [1, 2])
def test_R45_numbers_go_on_over_restarts(folder: Path, issuers: int) -> None:
    """R45: with one issuer or several: the CRL of a server that comes back is numbered on, its entries are there, and
    `estd crl renew` works while it is stopped, with what was revoked meanwhile."""
    server = servers.init(folder / "instance", "--ca-key", "ec-p384")
    text = server.config.read_text().replace("# issuers = 1 ", f"issuers = {issuers} ")
    server.config.write_text(text.replace("crl = true\n", 'crl = true\ncrl_delay = "0s"\n'))
    site = Site(server, 0)
    with servers.running(server):
        wait_for(site.file.exists, 10)
        _, first = site.enroll()
        _, second = site.enroll()
        site.revoke(first)
    number = json.loads(estd("crl", "show", "--config", server.config, "--json").out)["number"]
    assert number == 2
    estd("cert", "revoke", second.serial.hex(), "--config", server.config)
    made = estd("crl", "renew", "--config", server.config, "--json").lines
    assert [(one["ca"], one["key_id"], one["made"]) for one in made] == [("root", "01", True)]
    assert site.listed() == {int.from_bytes(one.serial, "big") for one in (first, second)}
    with servers.running(server):
        third = site.enroll()[1]
        site.revoke(third)
        with server.client() as client:
            wait_for(lambda: len(x509.load_der_x509_crl(crl_of(base64.b64decode(get(client)[2])))) == 3, 10)
    told = json.loads(estd("crl", "show", "--config", server.config, "--json").out)
    assert (told["number"], told["entries"]) == (number + 2, 3)
    assert datetime.fromisoformat(told["this_update"]) <= datetime.now(UTC)
