"""R19: the clients in the field through a root's change of keys: strongSwan, BouncyCastle, curl with openssl. Each
fetches cacerts, takes the right roots out of it, and enrolls and renews by whichever root it trusted before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estd import material
from estd.client import pem_of
from tests import make, servers
from tests.clients import judge
from tests.conftest import program
from tests.servers import Server
from tests.test_bouncycastle import _perform
from tests.test_reload import change, estd
from tests.test_rollover import Device, authority, change_of, identifier, rollover
from tests.test_strongswan import Pki
from tests.test_supervisor import instance

STAGES = ("prepared", "active")


class Site:
    """A server in a stage of its rollover, and each root in a file of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        found = change_of(server)
        self.links = [found.old_with_new, found.new_with_old]
        self.issuing = found.issuing
        self.roots = {"old": found.old, "new": found.new}

    def root(self, name: str, folder: Path) -> Path:
        path = folder / f"{name}-root.pem"
        path.write_bytes(self.roots[name].public_bytes(Encoding.PEM))
        return path

    def trusting(self) -> list[str]:
        """Which root a device may know alone: the TLS certificate is under the old one until `activate`."""
        return ["old"] if self.issuing == self.roots["old"] else ["old", "new"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its default label answers cacerts on one line, for strongSwan."""
    made = instance(tmp_path_factory.mktemp("clients") / "instance")
    toml = made.config.read_text()
    made.config.write_text(toml.replace("# cacerts_one_line = false", "cacerts_one_line = true", 1))
    with servers.running(made):
        rollover(made, "prepare")
        yield made


@pytest.fixture(scope="module", params=STAGES)
def site(request: pytest.FixtureRequest, server: Server) -> Site:
    if request.param == "active":
        rollover(server, "activate")
    return Site(server)


def believes(folder: Path, anchor: x509.Certificate, links: list[x509.Certificate], leaf: Path) -> bool:
    """openssl verifies what was enrolled, by that root and what cacerts joined it with."""
    (folder / "anchor.pem").write_bytes(anchor.public_bytes(Encoding.PEM))
    (folder / "links.pem").write_bytes(pem_of(links))
    done = judge.run(
        program("openssl"), "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", folder / "anchor.pem",
        "-untrusted", folder / "links.pem", leaf,
    )  # fmt: skip
    return done.returncode == 0


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_R19_strongswan_in_a_rollover(site: Site, folder: Path, tls: str) -> None:
    """`pki --estca` writes all four, tells the roots from what joins them, and trusts the server's own; `pki --est`
    enrolls and renews by the root that it knew."""
    for name in site.trusting():
        own = folder / name
        own.mkdir()
        pki = Pki(site.server, own, tls)
        pki.ca = site.root(name, own)
        status, _, why = pki(
            "--estca", "--url", pki.server.url, "--cacert", pki.ca, "--caout", own / "got", "--outform", "pem"
        )
        assert status == 0, why
        got = {x509.load_pem_x509_certificate(path.read_bytes()) for path in own.glob("got*")}
        assert got == {*site.roots.values(), *site.links}, why
        said = re.findall(r"(Root|Sub) CA cert is (trusted|untrusted), .*written to '(.*)'", why)
        trusted = [x509.load_pem_x509_certificate(Path(to).read_bytes()) for _, word, to in said if word == "trusted"]
        assert site.roots[name] in trusted
        assert set(trusted) <= {site.roots[name], *site.links}  # the other root it leaves to a person to trust
        who: tuple[str | Path, ...] = pki.factory()
        for stem in ("first", "renewed"):
            key, request = pki.request(stem)
            status, given, why = pki.est(request, *who)
            assert status == 0, why
            made = own / f"{stem}.pem"
            made.write_bytes(given)
            judge.certifies(made, request)
            assert authority(x509.load_pem_x509_certificate(given)) == identifier(site.issuing)
            for anchor in site.roots.values():
                assert believes(own, anchor, site.links, made)
            who = ("--cert", made, "--key", key)


def test_R19_bouncycastle_in_a_rollover(site: Site, folder: Path) -> None:
    """Java's path builder takes the server by either root, also to renew, and the answer to cacerts has all four."""
    factory = dict(zip(("user", "password"), site.server.basic, strict=True))
    for name in site.trusting():
        own = folder / name
        own.mkdir()
        scenarios = {
            f"{what}-{tls}": {"do": what, "tls": tls, "subject": "CN=device-1", **factory}
            for what in ("cacerts", "enroll")
            for tls in ("TLSv1.2", "TLSv1.3")
        }
        scenarios |= {
            f"renew-{tls}": {
                "do": "reenroll", "tls": tls, "subject": "CN=device-1",
                "cert": str(own / f"enroll-{tls}.pem"), "key": str(own / f"enroll-{tls}.key"),
            }
            for tls in ("TLSv1.2", "TLSv1.3")
        }  # fmt: skip
        outcomes = _perform(
            site.server, own, "BcEst", ["bcprov", "bcpkix", "bcutil"], scenarios, root=site.root(name, own)
        )
        for stem, outcome in outcomes.items():
            assert outcome.result == "ok", (stem, outcome.why)
            found = x509.load_pem_x509_certificates((own / f"{stem}.pem").read_bytes())
            if stem.startswith("cacerts"):
                assert set(found) == {*site.roots.values(), *site.links}
            else:
                assert [authority(one) for one in found] == [identifier(site.issuing)]
                for anchor in site.roots.values():
                    assert believes(own, anchor, site.links, own / f"{stem}.pem")


def test_R19_curl_and_openssl_in_a_rollover(site: Site, folder: Path) -> None:
    """curl takes the server by either root; openssl reads four certificates out of the answer, and s_client verifies
    the server with what the handshake brings and one root."""
    for name in site.trusting():
        root = site.root(name, folder)
        done = judge.run(program("curl"), "-sS", "--cacert", root, f"{site.server.url}/.well-known/est/cacerts")
        assert done.returncode == 0, done.stderr
        cms = judge.openssl("base64", "-d", "-A", data=done.stdout)
        found = [x509.load_pem_x509_certificate(one) for one in judge.certificates(cms)]
        assert len(found) == 4
        assert set(found) == {*site.roots.values(), *site.links}
        told = judge.run(
            program("openssl"), "s_client", "-connect", f"127.0.0.1:{site.server.port}", "-CAfile", root,
            "-verify_return_error", "-x509_strict", data=b"",
        )  # fmt: skip
        assert re.search(rb"Verif(y return code: 0|ication: OK)", told.stdout), told.stdout


def test_R19_a_label_whose_anchors_are_the_cas_own_file(folder: Path) -> None:
    """R19: who = "certificate" with anchors = "ca.pem": devices under either root are let in through the whole change,
    and so is one that renews in every stage; those of a manufacturer whose root is in that file too enroll, afterwards
    as well."""
    made = instance(folder / "instance")
    with (made.folder / "ca.pem").open("ab") as file:
        file.write(made.manufacturer.pem)
    change(
        made, "[label.default]\n",
        '[label.own]\nca = "root"\n[[label.own.allow]]\nwho = "certificate"\nanchors = "ca.pem"\nprofile = "idevid"\n\n'
        "[label.default]\n",
    )  # fmt: skip
    with servers.running(made):
        devices = [Device(made, folder, "early", [made.ca])]
        devices[0].enroll()
        renewing = Device(made, folder, "renewing", [made.ca])
        renewing.enroll()
        for step, options in (("prepare", []), ("activate", []), ("finish", ["--force"])):
            rollover(made, step, *options)
            devices.append(Device(made, folder, step, [made.ca]))
            devices[-1].enroll()
            before = renewing.certificate
            assert authority(renewing.enroll()) == authority(devices[-1].certificate)
            assert renewing.certificate.serial_number != before.serial_number
            assert made.rows()[-1].renews == before.serial_number.to_bytes(16, "big")
            under = devices if step != "finish" else devices[-1:]
            for files in [made.idevid_files, *(device.files for device in (*under, renewing))]:
                with made.client(cert=files, label="own") as client:
                    assert client.enroll(lambda _: make.csr()).issuer == made.ca.subject
    held = material.certificates(made.folder / "ca.pem")
    assert held[1:] == [made.manufacturer.certificate]


def test_R19_requests_of_every_kind_go_on_over_the_change(folder: Path) -> None:
    """R19, R27, R29, R35: a request that waits for a person when the key changes is answered under the new one; one
    that was answered before is answered the same again; csrattrs stay, and serverkeygen's certificate is the new
    key's."""
    with servers.running(instance(folder / "instance")) as server:
        waiting, done = make.csr(subject=make.name("waiting")), make.csr(subject=make.name("done"))
        body = {"body": make.body(waiting), "Content_Type": "application/pkcs10"}
        with server.client(basic=True, label="approval") as client:
            answer = client.request("POST", "simpleenroll", **body)
            assert answer.status == 202
            answer.read()
        with server.client(basic=True) as client:
            before = client.enroll(lambda _: done)
            wanted = client.csrattrs()
        for step, options in (("prepare", []), ("activate", []), ("finish", ["--force"])):
            rollover(server, step, *options)
            new = server.ca if step == "finish" else change_of(server).issuing
            if step == "activate":
                estd("requests", "approve", "1", "--config", server.config)
                with server.client(basic=True, label="approval") as client:
                    assert authority(client.enroll(lambda _: waiting)) == identifier(new)
            with server.client(basic=True) as client:
                assert client.csrattrs() == wanted
                assert client.enroll(lambda _: done) == before
                _, made = client.serverkeygen(lambda _: make.csr())
                assert authority(made) == identifier(new)
        assert authority(before) != identifier(server.ca)
