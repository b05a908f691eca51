"""R19, R45: revocation through a root's change of keys. openssl, which takes a CRL from no other key than those on a
certificate's path, judges certificates under either key for verifiers that trust either root, at every stage."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estd.client import pem_of
from tests import make, servers, tokens
from tests.clients import judge
from tests.servers import Server, wait_for
from tests.test_reload import change, estd, reload, retired
from tests.test_rollover import change_of, rollover
from tests.test_supervisor import instance, log_text

URL = "http://crl.example.com/"


def enroll(server: Server, name: str) -> x509.Certificate:
    with server.client(basic=True) as client:
        return client.enroll(lambda _: make.csr(subject=make.name(name)))


def revoke(server: Server, one: x509.Certificate) -> None:
    """And wait until every CRL lists it."""
    estd("cert", "revoke", "--config", server.config, one.serial_number.to_bytes(16, "big").hex())
    wait_for(lambda: all(one.serial_number in listed(crl) for crl in published(server)), 30, lambda: log_text(server))


def published(server: Server) -> list[x509.CertificateRevocationList]:
    """What `estd crl show` shows."""
    shown = estd("crl", "show", "--json", "--config", server.config).stdout
    return [x509.load_der_x509_crl(Path(json.loads(line)["file"]).read_bytes()) for line in shown.splitlines()]


def listed(crl: x509.CertificateRevocationList) -> set[int]:
    return {one.serial_number for one in crl}


def number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def named(one: x509.Certificate) -> str:
    """The file at its distribution point."""
    (point,) = one.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    return str(point.full_name[0].value).removeprefix(URL)


Certificates = Sequence[x509.Certificate]


def said(
    folder: Path, one: x509.Certificate, anchors: Certificates, untrusted: Certificates, crls: Sequence[bytes]
) -> str:
    """What openssl says, which has these CRLs at hand."""
    for name, certificates in (("leaf", [one]), ("anchors", anchors), ("untrusted", untrusted)):
        (folder / f"{name}.pem").write_bytes(pem_of(certificates))
    pem = b"".join(x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM) for crl in crls)
    (folder / "crls.pem").write_bytes(pem)
    command = [
        "openssl", "verify", "-x509_strict", "-crl_check", "-no-CApath", "-no-CAstore", "-CAfile", "anchors.pem",
        "-CRLfile", "crls.pem", *(["-untrusted", "untrusted.pem"] if untrusted else []), "leaf.pem",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    return "OK" if done.returncode == 0 and "leaf.pem: OK" in done.stdout else done.stderr


@pytest.fixture
def site(folder: Path) -> Server:
    """An instance whose CRLs have the key in their names."""
    server = instance(folder / "instance")
    keys = f'crl = true\ncrl_delay = "0s"\ncrl_file = "crl/root-{{key}}.crl"\ncrl_url = "{URL}root-{{key}}.crl"\n'
    change(server, "crl = true\n", keys)
    return server


def test_R19_R45_revocations_stay_verifiable_at_every_stage(site: Server, folder: Path) -> None:
    """R19, R45: a certificate's own distribution point has a CRL that openssl takes, whichever key signed the
    certificate and whichever root the verifier trusts; what was revoked is refused, before and after the change."""
    held: dict[str, list[x509.Certificate]] = {"good": [], "bad": []}

    def more(stage: str) -> None:
        held["good"].append(enroll(site, f"good-{stage}"))
        held["bad"].append(enroll(site, f"bad-{stage}"))
        revoke(site, held["bad"][-1])

    def judged(anchors: Certificates, links: Certificates, below: Certificates) -> int:
        """How many there are under the keys of `below`, each judged right."""
        count = 0
        for kind, told in (("good", "OK"), ("bad", "certificate revoked")):
            for one in held[kind]:
                if one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier in {
                    root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest for root in below
                }:
                    crl = (site.folder / "crl" / named(one)).read_bytes()
                    assert told in said(folder, one, anchors, links, [crl])
                    count += 1
        return count

    with servers.running(site):
        more("none")
        old = site.ca
        assert judged([old], [], [old]) == 2
        rollover(site, "prepare")
        more("prepared")
        roots = change_of(site)
        new, links = roots.new, [roots.old_with_new, roots.new_with_old]
        assert {named(one) for one in held["good"]} == {"root-01.crl"}
        assert [judged(anchors, links, [old]) for anchors in ([old], [new], [old, new])] == [4] * 3
        rollover(site, "activate")
        more("active")
        assert named(held["good"][-1]) == f"root-{roots.state.new_key_id}.crl"
        assert [judged(anchors, links, [old, new]) for anchors in ([old], [new], [old, new])] == [6] * 3
        late = held["good"].pop(0)  # signed by the old key, revoked while the new one issues
        revoke(site, late)
        held["bad"].append(late)
        assert [judged(anchors, links, [old, new]) for anchors in ([old], [new], [old, new])] == [6] * 3
        estd("crl", "renew", "--config", site.config)
        rollover(site, "finish", "--force")
        more("finished")
        assert judged([new], [], [new]) == 4
        assert len(published(site)) == 1


def test_R45_crls_answers_through_a_rollover(folder: Path) -> None:
    """R45: /crls answers at every moment, with the CRLs of both keys while there are two; where the configuration does
    not name the key, the file is the issuing key's and the old one's has its CKA_ID in its name; a key's CRLs are
    numbered upwards, over the change too, and no two CRLs have one number."""
    server = instance(folder / "instance")
    change(server, "crl = true\n", 'crl = true\ncrl_delay = "0s"\n')
    seen: list[tuple[int, bytes]] = []
    through = threading.Event()

    def look() -> None:
        while not through.is_set():
            with server.client() as client:
                answer = client.request("GET", "crls")
                seen.append((answer.status, answer.read()))

    with servers.running(server):
        wait_for((server.folder / "crl" / "root.crl").exists, 30)
        looking = threading.Thread(target=look)
        looking.start()
        try:
            old = server.ca
            rollover(server, "prepare")
            revoke(server, enroll(server, "early"))
            new = change_of(server).new
            rollover(server, "activate")
            files = [server.folder / "crl" / name for name in ("root.crl", "root-01.crl")]

            def signed_by(path: Path, root: x509.Certificate) -> bool:
                crl = x509.load_der_x509_crl(path.read_bytes())
                return crl.is_signature_valid(root.public_key())  # type: ignore[arg-type]

            wait_for(lambda: files[1].exists() and signed_by(files[0], new), 30, lambda: log_text(server))
            assert signed_by(files[1], old)
            revoke(server, enroll(server, "late"))
            both = {path.read_bytes() for path in files}
            wait_for(lambda: set(crls_of(seen[-1][1])) == both, 30)
            rollover(server, "finish", "--force")
            wait_for(lambda: crls_of(seen[-1][1]) == [files[0].read_bytes()], 30)
        finally:
            through.set()
            looking.join(timeout=60)
        assert {status: body for status, body in seen if status != 200} == {}
        for root in (old, new):
            numbers = [
                number(crl)
                for _, body in seen
                for crl in map(x509.load_der_x509_crl, crls_of(body))
                if crl.is_signature_valid(root.public_key())  # type: ignore[arg-type]
            ]
            # An edge that retires may answer once more with what it knew.
            assert list(dict.fromkeys(numbers)) == sorted(set(numbers))
            assert len(set(numbers)) > 1
        every = {crl for _, body in seen for crl in crls_of(body)}
        assert len({number(x509.load_der_x509_crl(crl)) for crl in every}) == len(every)
        wait_for(lambda: retired(server), 60, lambda: log_text(server))


def crls_of(body: bytes) -> list[bytes]:
    """The CRLs of an answer of /crls, as openssl takes them out."""
    text = judge.openssl("pkcs7", "-inform", "DER", "-print_certs", data=base64.b64decode(body)).decode()
    end = "-----END X509 CRL-----"
    parts = [part + end + "\n" for part in text.split(end)[:-1]]
    return [x509.load_pem_x509_crl(part.encode()).public_bytes(Encoding.DER) for part in parts]


def test_R19_an_old_key_that_is_gone_stops_nothing(folder: Path) -> None:
    """An old key that was destroyed after the change: the server reloads and issues, and keeps the new key's CRL;
    `estd crl renew` makes that alone, and says so."""
    server = instance(folder / "instance")
    rollover(server, "prepare")
    rollover(server, "activate")
    tokens.destroy(server, "01")
    with servers.running(server):
        enroll(server, "one")
        reload(server)
        enroll(server, "two")
        wait_for((server.folder / "crl" / "root.crl").exists, 30, lambda: log_text(server))
        assert not (server.folder / "crl" / "root-01.crl").exists()
    made = map(json.loads, estd("crl", "renew", "--config", server.config, "--json").stdout.splitlines())
    assert {one["key_id"]: one["made"] for one in made} == {"01": False, change_of(server).state.new_key_id: True}
    words = estd("crl", "renew", "--config", server.config).stdout.splitlines()
    assert sorted(line.partition(" of ")[0] for line in words) == [
        "made a new CRL", "the token holds the key no more, so there is no new CRL"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('crl_url = "http://crl.example.com/{key}.crl"', "crl_file needs it in its name too"),
        (
            'crl_url = "http://crl.example.com/{key}.crl"\ncrl_file = "{key}/root.crl"',
            "crl_file needs it in its name too",
        ),
    ],
)
def test_a_key_in_the_address_alone_is_refused(folder: Path, keys: str, told: str) -> None:
    server = servers.init(folder / "instance")
    change(server, "crl = true\n", f"crl = true\n{keys}\n")
    assert told in estd("check", server.config, status=1).stderr
