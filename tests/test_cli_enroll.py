"""`estd enroll`, as a device uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests import make, servers
from tests.command import ROOT, enrolled, estd, mode
from tests.servers import Server


def test_enroll_writes_key_certificate_and_ca(server: Server, folder: Path) -> None:
    """A device gets its key (0600), its certificate for the names it asked for, and the CA's certificates."""
    done = enrolled(
        server, folder, "--subject", "CN=cli-1", "--dns", "a.example.com", "--ip", "10.1.2.3", "--uri", "urn:x:1"
    ).data  # fmt: skip
    assert {key: done[key] for key in ("key", "certificate", "ca", "subject")} == {
        "key": "device.key", "certificate": "device.pem", "ca": "device.ca.pem", "subject": "CN=cli-1",
    }  # fmt: skip
    certificate = x509.load_pem_x509_certificate((folder / "device.pem").read_bytes())
    key = load_pem_private_key((folder / "device.key").read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [one.value for one in names] == ["a.example.com", ip_address("10.1.2.3"), "urn:x:1"]
    assert (folder / "device.ca.pem").read_bytes() == (server.folder / "ca.pem").read_bytes()
    assert mode(folder / "device.key") == 0o600


@pytest.mark.parametrize("kind", ["ec-p384", "ed25519", "rsa-2048"])
def test_enroll_makes_each_kind_of_key(server: Server, folder: Path, kind: str) -> None:
    """--key-type makes such a key."""
    enrolled(server, folder, "--subject", "CN=cli-kind", "--key-type", kind)
    key = load_pem_private_key((folder / "device.key").read_bytes(), None)
    wanted = {"ec": ec.EllipticCurvePrivateKey, "ed": ed25519.Ed25519PrivateKey, "rs": rsa.RSAPrivateKey}[kind[:2]]
    assert isinstance(key, wanted)


def test_a_device_enrolls_and_renews(server: Server, folder: Path) -> None:
    """With the factory's certificate, then with its own: a new key by default, the same with --same-key."""
    certificate, key = server.idevid_files
    enrolled(server, folder, "--cert", certificate, "--key", key, out="a")
    enrolled(server, folder, "--cert", "a.pem", "--key", "a.key", "--renew", out="b")
    done = enrolled(server, folder, "--cert", "a.pem", "--key", "a.key", "--renew", "--same-key", out="c").data
    assert "key" not in done
    assert not (folder / "c.key").exists()
    a, b, c = (x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes()) for name in "abc")
    assert a.subject == b.subject == c.subject
    assert a.public_key() == c.public_key() != b.public_key()
    assert len({a.serial_number, b.serial_number, c.serial_number}) == 3


_ENDS_BEFORE = """
import os, sys
from pathlib import Path
from estd.cli import main
replace, name = os.replace, sys.argv.pop(1)
os.replace = lambda old, new: os._exit(137) if Path(new).name == name else replace(old, new)
main()
"""


@pytest.mark.parametrize("last", ["a.key", "a.pem"])
def test_a_renewal_in_place_outlives_its_end(server: Server, folder: Path, last: str) -> None:
    """Whoever renews into the files that hold its only identity, and ends before the key has its name or between key
    and certificate, renews with the next command all the same; key and certificate keep their modes."""
    certificate, key = server.idevid_files
    enrolled(server, folder, "--cert", certificate, "--key", key, out="a")
    (folder / "a.key").chmod(0o640)
    (folder / "a.pem").chmod(0o604)
    before = {name: (folder / name).read_bytes() for name in ("a.key", "a.pem")}
    command = (
        "enroll", server.url, "--cacert", str(server.folder / "ca.pem"), "--cert", "a.pem", "--key", "a.key", "--renew",
        "--out", "a",
    )  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", _ENDS_BEFORE, last, *command], check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 137
    assert {name for name in before if (folder / name).read_bytes() == before[name]} == {last, "a.pem"}
    estd(*command, cwd=folder)
    renewed = x509.load_pem_x509_certificate((folder / "a.pem").read_bytes())
    assert renewed.public_key() == load_pem_private_key((folder / "a.key").read_bytes(), None).public_key()
    assert sorted(path.name for path in folder.iterdir()) == ["a.ca.pem", "a.key", "a.pem"]
    assert (mode(folder / "a.key"), mode(folder / "a.pem")) == (0o640, 0o604)


_ENDS_AFTER_ASKING = """
import os
from estd import client
from estd.cli import main
enroll = client.EstClient.enroll
client.EstClient.enroll = lambda *given, **options: os._exit(137) if enroll(*given, **options) else None
main()
"""


def test_an_answer_that_is_lost_is_had_by_the_same_command(server: Server, folder: Path) -> None:
    """The key is on the disk before the request is sent: whoever ends, or loses the answer, asks again with it and gets
    the same certificate."""
    command = (
        "enroll", server.url, "--cacert", str(server.folder / "ca.pem"), "--credential",
        str(server.folder / "demo" / "basic"), "--subject", "CN=cli-lost", "--json",
    )  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", _ENDS_AFTER_ASKING, *command], check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 137
    kept = folder / "device.request.key"
    assert (sorted(path.name for path in folder.glob("*.key")), mode(kept)) == (["device.request.key"], 0o600)
    key = kept.read_bytes()
    serial = estd(*command, cwd=folder).data["serial"]
    assert [row.serial.hex() for row in server.rows() if row.subject == "CN=cli-lost"] == [serial]
    assert ((folder / "device.key").read_bytes(), kept.exists()) == (key, False)


_PEM = (Encoding.PEM, PrivateFormat.PKCS8)


@pytest.mark.parametrize(
    "kept",
    [
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ec.generate_private_key(ec.SECP256R1()).private_bytes(*_PEM, BestAvailableEncryption(b"word")),
        x25519.X25519PrivateKey.generate().private_bytes(*_PEM, NoEncryption()),
        ec.generate_private_key(ec.SECP256K1()).private_bytes(*_PEM, NoEncryption()),
    ],
    ids=["damaged", "encrypted", "no signature", "other curve"],
)
def test_a_requests_key_that_is_no_use_is_a_sentence(server: Server, folder: Path, kept: bytes) -> None:
    """It names the file and what to do, and the file stays."""
    (folder / "device.request.key").write_bytes(kept)
    told = enrolled(server, folder, "--subject", "CN=cli-kept", status=1).err
    assert told.startswith("estd: device.request.key holds no key that can be asked with (")
    assert told.endswith("); remove it, and a new one is made\n")
    assert (folder / "device.request.key").read_bytes() == kept


def test_a_key_that_has_its_certificate_asks_for_no_other(server: Server, folder: Path) -> None:
    """An end after the pair is written, and before the request's key is removed, does not make the next renewal one
    with the same key."""
    certificate, key = server.idevid_files
    enrolled(server, folder, "--cert", certificate, "--key", key, out="a")
    before = (folder / "a.key").read_bytes()
    (folder / "a.request.key").write_bytes(before)
    enrolled(server, folder, "--cert", "a.pem", "--key", "a.key", "--renew", out="a")
    assert (folder / "a.key").read_bytes() != before


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_enroll_links_the_request_to_its_connection(server: Server, folder: Path, tls: str) -> None:
    """R37: a label that demands linking and says so gets it unasked, on both TLS versions; one that is silent about it
    gets it by --link, and refuses without."""
    asked = ("--subject", "CN=device-1", "--tls", tls, "--key-type", "ec-p384")
    for options, linked in ((("trimmed",), True), (("silent", "--link"), True), (("default",), False)):
        assert enrolled(server, folder, *asked, "--label", *options).data["linked"] == linked
    refused = enrolled(server, folder, *asked, "--label", "silent", status=1)
    assert "linked proof of possession" in refused.err


def test_cacerts_only_asks_for_no_certificate(server: Server, folder: Path) -> None:
    """--cacerts-only needs no identity and writes the CA's certificates alone."""
    estd("enroll", server.url, "--cacert", server.folder / "ca.pem", "--cacerts-only", cwd=folder)
    assert [path.name for path in folder.iterdir()] == ["device.ca.pem"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--label", "nobody"], "404"),
        (["--label", "closed"], "401"),
        (["--renew"], "--renew needs the certificate"),
        (["--subject", "sensor-3"], "estd: the subject 'sensor-3' is not as RFC 4514 has it"),
        (["--ip", "10.0.0.300", "--subject", "CN=a"], "10.0.0.300"),
    ],
)
def test_a_refusal_is_a_sentence_and_leaves_no_key(server: Server, folder: Path, options: list[str], told: str) -> None:
    """What the server or the command refuses is told in words, with status 1, and no device's key lies about."""
    assert told in enrolled(server, folder, *options, status=1).err
    assert not (folder / "device.key").exists()
    assert not (folder / "device.pem").exists()


def test_a_server_that_is_not_trusted_gets_nothing(server: Server, folder: Path) -> None:
    """With another root the server is not believed, and no file is written."""
    (folder / "other.pem").write_bytes(make.certificate(ca=True).pem)
    done = estd("enroll", server.url, "--cacert", "other.pem", "--cacerts-only", cwd=folder, status=1)
    assert "is not trusted" in done.err
    told = estd("enroll", server.url, "--cacerts-only", cwd=folder, status=1).err
    assert len(told.splitlines()) == 1, "the system's own roots, however old, are nobody's warning"
    assert [path.name for path in folder.iterdir()] == ["other.pem"]


def test_a_server_that_is_away_is_a_sentence(folder: Path) -> None:
    """Nobody listens there: a sentence and status 1."""
    done = estd("enroll", f"https://127.0.0.1:{servers.free_port()}", "--cacerts-only", cwd=folder, status=1)
    assert "no TLS connection" in done.err


def test_a_certificate_without_its_key_is_a_sentence(bare: Server) -> None:
    """Before anybody is asked, with the file and the options."""
    path = bare.folder / "demo" / "idevid.pem"
    told = estd("enroll", "https://127.0.0.1:1", "--cert", path, status=1).err
    fault = f"{path} holds no private key in PEM that fits the certificate in {path}"
    assert told == f"estd: {fault}; --cert and --key name the files\n"
