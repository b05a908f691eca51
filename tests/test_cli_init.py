"""`estd init`: an instance that is right, private and new, with a CA of its own or one that is there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    load_der_public_key,
)

from tests import make, servers
from tests.command import ROOT, Done, contents, estd, mode
from tests.servers import Server


@pytest.mark.parametrize(
    ("kind", "key"),
    [("ec-p256", ec.EllipticCurvePublicKey), ("ec-p384", ec.EllipticCurvePublicKey), ("rsa-3072", rsa.RSAPublicKey)],
)
def test_init_makes_an_instance_that_is_right(folder: Path, kind: str, key: type) -> None:
    """With each kind of CA key the new instance has nothing that `estd check` finds wrong, and its TLS certificate is
    under its root."""
    made = servers.init(folder / "instance", "--ca-key", kind, "--ca-name", "A Root", "--host", "est.example.com")
    assert isinstance(made.ca.public_key(), key)
    assert made.ca.public_key().key_size == int(kind.lstrip("ecrsap-"))  # type: ignore[union-attr]
    made.ca.verify_directly_issued_by(made.ca)
    tls = x509.load_pem_x509_certificate((made.folder / "server.pem").read_bytes())
    tls.verify_directly_issued_by(made.ca)
    names = tls.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "est.example.com" in names.get_values_for_type(x509.DNSName)
    assert estd("check", made.config).out == f"{made.config}: nothing is wrong\n"
    assert estd("check", made.config, "--json").data == {"ok": True, "problems": []}


def test_what_init_writes_is_private(bare: Server) -> None:
    """Keys, PINs, passwords and the ledger are their owner's alone; only certificates may be read by others."""
    assert mode(bare.folder) == 0o700
    for path in bare.folder.rglob("*"):
        if path.suffix in (".pem", ".crl"):
            assert b"PRIVATE" not in path.read_bytes()
            continue
        assert mode(path) & 0o077 == 0, path
    for name in ("server.key", "token/pin", "token/so-pin", "demo/idevid.key", "demo/manufacturer.key", "demo/basic"):
        assert mode(bare.folder / name) == 0o600


def test_init_never_overwrites(copy: Server) -> None:
    """An instance that exists is said to exist, and stays as it is byte for byte."""
    before = contents(copy.folder)
    assert "already holds an instance" in estd("init", copy.folder, status=1).err
    assert contents(copy.folder) == before


def test_init_takes_an_empty_folder_only(folder: Path) -> None:
    """A folder with anything in it is refused and left alone."""
    (folder / "photo.jpg").write_bytes(b"x")
    assert "not empty" in estd("init", folder, status=1).err
    assert contents(folder) == {folder / "photo.jpg": b"x"}
    (folder / "new").mkdir()
    estd("init", folder / "new")


_GENERATE = """
import os, sys
from pathlib import Path
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hsm import keys
from hsm.token import Token
pin = Path("t/pin").read_text().strip()
token = Token.open(module=Path(os.environ["PKCS11_MODULE"]), label="corp", pin=pin, rw=True)
for key_id in (b"\\xca\\x01", b"\\xca\\x02"):
    made = keys.generate(token, kind="ec-p384", key_id=key_id, label="issuing")
    print(made.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex())
"""


@dataclass(frozen=True)
class Corporate:
    """Somebody's root, and an issuing CA under it whose key is in a token that was there before estd."""

    folder: Path
    root: make.Identity
    environment: dict[str, str]

    def init(self, name: str, *options: str | Path, status: int = 0, key_id: str = "ca01") -> Done:
        return estd(
            "init", name, "--demo", "--module", self.environment["PKCS11_MODULE"], "--token-label", "corp",
            "--pin-file", "t/pin", "--key-id", key_id, "--ca-cert", "issuing.pem", *options,
            cwd=self.folder, status=status, **self.environment,
        )  # fmt: skip


@pytest.fixture(scope="module")
def corporate(tmp_path_factory: pytest.TempPathFactory) -> Corporate:
    folder = tmp_path_factory.mktemp("corporate")
    printed = subprocess.run(
        ["sh", str(ROOT / "softhsm-setup.sh"), "t", "corp"], check=True, cwd=folder, capture_output=True, text=True
    ).stdout
    environment = dict(shlex.split(line)[1].split("=", 1) for line in printed.splitlines())
    generated = subprocess.run(
        [sys.executable, "-c", _GENERATE], check=True, cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
    ).stdout.split()  # fmt: skip
    public_key = load_der_public_key(bytes.fromhex(generated[0]))
    in_token: Any = SimpleNamespace(public_key=lambda: public_key)
    root = make.certificate(subject=make.name("Corporate Root"), ca=True)
    issuing = make.certificate(root, subject=make.name("Issuing CA"), ca=True, own_key=in_token)
    (folder / "root.pem").write_bytes(root.pem)
    (folder / "issuing.pem").write_bytes(issuing.pem)
    return Corporate(folder, root, environment)


def test_an_issuing_ca_that_is_there_already(corporate: Corporate) -> None:
    """An existing key in an existing token, under somebody's root: cacerts has the whole chain, and a device that
    knows the root alone enrolls."""
    port, admin_port = servers.free_port(), servers.free_port()
    corporate.init(
        "here", "--ca-chain", "root.pem", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin_port}"
    )
    made = Server(folder=corporate.folder / "here", port=port, admin_port=admin_port)
    assert estd("check", made.config).out.endswith("nothing is wrong\n")
    with servers.running(made):
        done = estd(
            "enroll", made.url, "--cacert", "root.pem", "--credential", "here/demo/basic", "--subject", "CN=device-1",
            "--json", cwd=corporate.folder,
        ).data  # fmt: skip
    assert sorted(done["ca_subjects"]) == ["CN=Corporate Root", "CN=Issuing CA"]
    got = x509.load_pem_x509_certificates((corporate.folder / "device.ca.pem").read_bytes())
    assert corporate.root.certificate in got  # the order in a certs-only CMS means nothing: it is a SET
    (issuing,) = (one for one in got if one != corporate.root.certificate)
    issuing.verify_directly_issued_by(corporate.root.certificate)
    x509.load_pem_x509_certificate((corporate.folder / "device.pem").read_bytes()).verify_directly_issued_by(issuing)


@pytest.mark.parametrize(
    ("options", "key_id", "told"),
    [
        ([], "ca01", "chain"),
        (["--ca-chain", "issuing.pem"], "ca01", "chain"),
        (["--ca-chain", "root.pem"], "ca02", "not the key of"),
        (["--ca-chain", "root.pem"], "ca03", "no public key"),
    ],
    ids=["no chain", "no root", "other key", "no key"],
)
def test_an_existing_ca_that_does_not_fit_is_refused(
    corporate: Corporate, folder: Path, options: list[str], key_id: str, told: str
) -> None:
    """A key that is not the certificate's, or a chain that does not reach its root, is said before or by `check`."""
    name = folder / "refused"
    done = corporate.init(str(name), *options, key_id=key_id, status=0 if told == "chain" else 1)
    if told == "chain":
        done = estd("check", name / "estd.toml", status=1)
    assert told in done.err


def test_an_existing_ca_may_be_named_by_relative_paths(corporate: Corporate, folder: Path) -> None:
    """What `init` was told from where it ran still holds where the instance is: module, PIN file, token."""
    (corporate.folder / "m.so").symlink_to(corporate.environment["PKCS11_MODULE"])
    name = str(folder / "relative")
    corporate.init(name, "--ca-chain", "root.pem", "--module", "m.so")
    assert estd("check", f"{name}/estd.toml").out.endswith("nothing is wrong\n")


def test_an_existing_ca_needs_all_its_options(folder: Path) -> None:
    """A token that is named in part is a wrong command line, and nothing is made."""
    assert "--pin-file" in estd("init", folder / "new", "--token-label", "corp", status=2).err
    assert not (folder / "new").exists()
