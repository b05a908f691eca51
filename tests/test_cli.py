"""The command `estd`, as an operator and a device use it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
    load_pem_private_key,
)

from estd import __version__, cli, command
from estd import owner as whose
from estd.config import load
from estd.errors import ConfigError, Refused
from estd.ledger import LedgerError, Writer
from tests import make, servers
from tests.servers import Server, wait_for
from tests.test_ledger import row

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def estd(*arguments: str | Path, cwd: Path | None = None, status: int = 0, **environment: str) -> Done:
    """Run the command, which must end with that status and never in a traceback."""
    clean = {key: value for key, value in os.environ.items() if key != "SOFTHSM2_CONF"}
    done = subprocess.run(
        [sys.executable, "-m", "estd.cli", *map(str, arguments)], check=False, cwd=cwd or ROOT, timeout=60,
        env={**clean, "PYTHONPATH": str(ROOT), **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def commands(command: click.Command = cli.main, *words: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command and group: its words and what it says of itself."""
    yield words, command.help or ""
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from commands(one, *words, name)


@pytest.mark.parametrize(("words", "said"), [pytest.param(*one, id=" ".join(("estd", *one[0]))) for one in commands()])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(words: tuple[str, ...], said: str, option: str) -> None:
    """--help of every command exits with 0 and says in a sentence what it does."""
    result = CliRunner().invoke(cli.main, [*words, option])
    assert result.exit_code == 0
    assert said.strip().endswith(".")
    assert " ".join(said.split()[:3]) in result.output


def test_the_version_is_the_packages() -> None:
    """--version tells the version that /healthz and estd_build_info tell."""
    assert estd("--version").out == f"estd, version {__version__}\n"


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


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """An instance that nobody serves and no test changes."""
    return servers.init(tmp_path_factory.mktemp("cli") / "instance")


@pytest.fixture
def copy(bare: Server, folder: Path) -> Server:
    """A copy of it that a test may spoil."""
    shutil.copytree(bare.folder, folder / "instance")
    made = Server(folder=folder / "instance", port=bare.port, admin_port=bare.admin_port)
    conf = made.folder / "token" / "softhsm2.conf"
    conf.write_text(conf.read_text().replace(str(bare.folder.resolve()), str(made.folder.resolve())))
    return made


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


_SOMEBODY_ELSE = "import os; os.geteuid = lambda: 54321; from estd.cli import main; main()"


@pytest.mark.parametrize(
    "words",
    [
        ["check"],
        ["serve"],
        ["crl", "renew", "--config"],
        ["ca", "rollover", "prepare", "--config"],
        ["ca", "rollover", "finish", "--config"],
        ["device", "add", "pump-1", "--label", "registry", "--config"],
    ],
    ids=" ".join,
)
def test_another_user_than_the_servers_changes_nothing(bare: Server, words: list[str]) -> None:
    """Root, say: what it makes in an instance of somebody else's the server could not use. It hears whom to be."""
    shutil.rmtree(bare.folder / "run", ignore_errors=True)

    def written() -> dict[Path, bytes]:
        # Without what SQLite, for root as well, makes in the name of the ledger's owner.
        return {path: data for path, data in contents(bare.folder).items() if "sqlite3-" not in path.name}

    before = written()
    done = subprocess.run(
        [sys.executable, "-c", _SOMEBODY_ELSE, *words, str(bare.config)], check=False, cwd=ROOT, timeout=60,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"the instance in \S+ is another user's \(uid \d+\), .*: sudo -u '\S+' estd ...\n", done.stderr)
    assert written() == before
    assert not (bare.folder / "run").exists()


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


def _everything_wrong(copy: Server) -> None:
    folder = copy.folder
    (folder / "server.key").chmod(0o644)
    (folder / "server.pem").write_bytes(make.certificate().pem)
    (folder / "credentials").write_text("factory:secret\n")
    (folder / "demo" / "manufacturer.crl").unlink()
    (folder / "ledger.sqlite3").unlink()
    (folder / "token" / "pin").write_text("not-the-pin\n")


def _of_another_label(problem: str) -> bool:
    """The demonstration's other labels use the same files."""
    return problem.startswith("label.") and not problem.startswith("label.default.")


def test_check_says_all_that_is_wrong_in_one_go(copy: Server) -> None:
    """TLS, credentials, CRL, file modes, ledger and token: one problem does not hide the next, each names its key."""
    _everything_wrong(copy)
    found = estd("check", copy.config, "--json", status=1).data
    assert not found["ok"]
    wanted = [
        "server.tls_certificate", "server.tls_key", "label.default.allow[1].crls", "label.default.allow[2].credentials",
        "ledger.path", "token",
    ]  # fmt: skip
    first = [one for one in found["problems"] if not _of_another_label(one)]
    assert sorted({one.partition(":")[0].partition(",")[0] for one in first}) == sorted(wanted)
    assert len(first) == len(wanted)
    assert "PinIncorrect" in found["problems"][-1]
    words = estd("check", copy.config, status=1)
    assert words.err.splitlines() == found["problems"]
    assert words.out == ""


def test_check_says_all_that_is_wrong_with_the_file(copy: Server) -> None:
    """Problems of the configuration itself come together too."""
    text = copy.config.read_text()
    copy.config.write_text(
        text.replace("[ledger]", "[ledger]\ncolour = 1").replace('ca = "root"', 'ca = "root"\npem = 1', 1)
    )
    lines = [line for line in estd("check", copy.config, status=1).err.splitlines() if not _of_another_label(line)]
    assert [line.partition(":")[0] for line in lines] == ["label.default.pem", "ledger.colour"]


def test_a_lost_ledger_is_made_anew_by_an_operators_word_alone(copy: Server) -> None:
    """`check` says what to do and makes none; `ledger create` makes an empty one, never over or beside what is there,
    nor while a process still writes the one that is gone."""
    path = copy.folder / "ledger.sqlite3"
    create = ("ledger", "create", "--config", copy.config)
    assert "cannot be made: File exists" in estd(*create, status=1).err
    with closing(Writer(path)) as writer:
        writer.record([row()])
        shutil.move(path, copy.folder / "moved")
        (log := path.with_name("ledger.sqlite3-wal")).rename(copy.folder / "moved-wal")
        assert "another process writes the ledger" in estd(*create, status=1).err
        assert not path.exists()
    told = estd("check", copy.config, status=1).err
    assert told == (
        f"ledger.path: there is no ledger {path}: restore a copy, or where there is none make an empty one by "
        "estd ledger create\n"
    )
    log.write_bytes(b"rows")
    assert "move it away" in estd(*create, status=1).err
    assert (path.exists(), log.read_bytes()) == (False, b"rows")
    log.unlink()
    assert "an empty ledger" in estd(*create).out
    assert (copy.rows(), mode(path)) == ([], 0o600)
    assert "nothing is wrong" in estd("check", copy.config).out


@pytest.mark.parametrize(
    ("ledger", "run", "folder", "owner"),
    [(1, 2, 3, 1), (None, 2, 3, 2), (None, None, 3, 3)],
    ids=["all", "lost", "new"],
)
def test_whose_instance_it_is(ledger: int | None, run: int | None, folder: int, owner: int) -> None:
    """The ledger's owner, and where that is lost, whose the server's folder of sockets is: a configuration may be
    root's."""

    def of(uid: int | None) -> Any:
        return SimpleNamespace(exists=lambda: uid is not None, stat=lambda: SimpleNamespace(st_uid=uid))

    with pytest.raises(ConfigError, match=rf"\(uid {owner}\)"):
        whose.check(SimpleNamespace(ledger=of(ledger), run=of(run), folder=of(folder)))  # type: ignore[arg-type]


def _ledger_of_another_kind(copy: Server) -> None:
    (copy.folder / "ledger.sqlite3").write_bytes(b"not a database " * 1000)


def _tls_expired(copy: Server) -> None:
    expired = make.certificate(starts=-timedelta(days=9), ends=-timedelta(days=1))
    (copy.folder / "server.pem").write_bytes(expired.pem)
    (copy.folder / "server.key").write_bytes(expired.key_pem)


def _ca_of_another_key(copy: Server) -> None:
    (copy.folder / "ca.pem").write_bytes(make.certificate(ca=True).pem)


def _no_module(copy: Server) -> None:
    copy.config.write_text(copy.config.read_text().replace("libsofthsm2.so", "libnowhere.so"))


def _no_pin(copy: Server) -> None:
    (copy.folder / "token" / "pin").write_text("\n")


def _no_tls_key(copy: Server) -> None:
    (copy.folder / "server.key").unlink()


def _tls_key_of_another(copy: Server) -> None:
    (copy.folder / "server.key").write_bytes(make.certificate().key_pem)


def _pin_in_latin_1(copy: Server) -> None:
    (copy.folder / "token" / "pin").write_bytes(b"\xfc\n")


def _no_softhsm_configuration(copy: Server) -> None:
    (copy.folder / "token" / "softhsm2.conf").unlink()


def _no_key_id(copy: Server) -> None:
    copy.config.write_text(copy.config.read_text().replace('key_id = "01"', 'key_id = "zz"'))


def _anchor_is_no_ca(copy: Server) -> None:
    (copy.folder / "demo" / "manufacturer.pem").write_bytes((copy.folder / "demo" / "idevid.pem").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_ledger_of_another_kind, "ledger.path: "),
        (_tls_expired, "server.tls_certificate: expired"),
        (_ca_of_another_key, "token: the key 01 in the token is not the key in the certificate of 'root'"),
        (_no_module, "token: there is no PKCS#11 module"),
        (_no_pin, "token.pin_file: "),
        (_pin_in_latin_1, "/pin is not UTF-8\n"),
        (_anchor_is_no_ca, "can let nobody in: basicConstraints.cA must be asserted"),
        (
            _no_tls_key,
            "server.tls_certificate, server.tls_key: [Errno 2] No such file or directory: '{0}/server.key'\n",
        ),
        (
            _tls_key_of_another,
            "{0}/server.key holds no private key in PEM that fits the certificate in {0}/server.pem\n",
        ),
        (
            _no_softhsm_configuration,
            "does not initialise (0x5): is what it reads there? SoftHSM's is the file in SOFTHSM2_CONF",
        ),
        (_no_key_id, "ca.root.key_id: 'zz' is not a CKA_ID in hexadecimal\n"),
    ],
)
def test_check_finds_what_is_wrong(copy: Server, spoil: Callable[[Server], None], told: str) -> None:
    """Each thing that would keep the server from serving is a sentence."""
    spoil(copy)
    assert told.replace("{0}", str(copy.folder)) in estd("check", copy.config, status=1).err


def test_check_says_which_key_names_a_file_that_is_missing(copy: Server) -> None:
    """And what makes it, or what it holds."""
    for name in ("approvers", "demo/manufacturer.pem", "demo/inventory.secret"):
        (copy.folder / name).unlink()
    told = estd("check", copy.config, status=1).err
    approvers = copy.folder / "approvers"
    assert f"admin.credentials: there is no {approvers}; this makes it: estd credential add {approvers} NAME\n" in told
    assert f"label.default.allow[1]: anchors: there is no {copy.folder}/demo/manufacturer.pem; it holds the" in told
    assert f": secret_file: there is no {copy.folder}/demo/inventory.secret; it holds a secret that" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["init", "new", "--host", "bad_host!"], "'bad_host!' is neither a DNS name nor an address"),
        (["init", "new", "--key-id", "zz"], "'zz' is not a CKA_ID in hexadecimal"),
        (
            ["ca", "rollover", "prepare", "--config", __file__, "--key-id", "0x01"],
            "'0x01' is not a CKA_ID in hexadecimal",
        ),
        (["enroll", "https://127.0.0.1:1", "--wait", "5x"], "a duration such as"),
    ],
)
def test_an_option_that_cannot_be_read_is_a_wrong_command_line(
    monkeypatch: pytest.MonkeyPatch, folder: Path, words: list[str], told: str
) -> None:
    """It is said in words before anything is done."""
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli.main, words)
    assert (result.exit_code, list(folder.iterdir())) == (2, [])
    assert told in " ".join(result.output.split())


def test_who_writes_the_ledger_is_told_from_what_is_wrong_with_it(copy: Server) -> None:
    """A ledger that cannot be written is said to be that; one that another process has is asked for on its socket, and
    where nobody is there the sentence says where to look."""
    config, path = load(copy.config), copy.folder / "ledger.sqlite3"
    with closing(Writer(path)), command.writer(config) as asked, pytest.raises(LedgerError, match="in another folder"):
        asked.revoke(b"\1" * 16, 1, 1)
    _ledger_of_another_kind(copy)
    with pytest.raises(LedgerError, match="cannot be opened for writing: file is not a database"):
        command.writer(config)


def test_who_has_read_enough_is_told_nothing(copy: Server) -> None:
    """`estd cert list | head -1` ends in silence."""
    with closing(Writer(copy.folder / "ledger.sqlite3")) as writer:
        writer.record([row()])
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "estd.cli", "cert", "list", "--json", "--config", copy.config], check=False, cwd=ROOT,
        stdout=writing, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_configuration_that_is_missing_is_a_sentence(folder: Path, command: str) -> None:
    """Without its file a command says so and ends with 1."""
    assert "nowhere.toml" in estd(command, folder / "nowhere.toml", status=1).err


def enrolled(server: Server, folder: Path, *options: str | Path, status: int = 0, out: str = "device") -> Done:
    """`estd enroll` with the demonstration's Basic credential unless options name another identity."""
    identity: list[str | Path] = [] if "--cert" in options else ["--credential", server.folder / "demo" / "basic"]
    return estd(
        "enroll", server.url, "--cacert", server.folder / "ca.pem", "--out", out, "--json", *identity, *options,
        cwd=folder, status=status,
    )  # fmt: skip


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


def test_a_credential_lets_in_within_a_second(server: Server, folder: Path) -> None:
    """A generated password is shown once, kept as a hash, and the running server takes it; added again, the old one
    is worth nothing."""
    path = server.folder / "credentials"
    before = path.read_text()
    passwords = [estd("credential", "add", path, "cli-user").out.strip() for _ in range(2)]
    stored = path.read_text()
    assert stored.startswith(before.rstrip("\n"))
    assert stored.count("cli-user:") == 1
    assert not any(one.partition(":")[2] in stored for one in passwords)
    assert mode(path) == 0o600

    def taken(pair: str) -> bool:
        user, _, password = pair.partition(":")
        try:
            with server.client(user=user, password=password) as client:
                client.enroll(lambda _: make.csr())
        except Refused:
            return False
        return True

    wait_for(lambda: taken(passwords[1]), 20)
    assert not taken(passwords[0])


def test_a_credentials_file_keeps_what_else_is_in_it(folder: Path) -> None:
    """Comments and other names stay; a password of one's own is kept as scrypt and not shown."""
    path = folder / "credentials"
    path.write_text("# factory in Graz\nother:$sha256$00\n")
    (folder / "password").write_text("correct horse\n")
    done = estd("credential", "add", path, "me", "--password-file", folder / "password")
    assert "horse" not in done.out
    first, second, third = path.read_text().splitlines()
    assert [first, second] == ["# factory in Graz", "other:$sha256$00"]
    assert third.startswith("me:$scrypt$")


@pytest.mark.parametrize("user", ["a:b", "a\nb"])
def test_a_name_that_cannot_stand_in_a_credential_is_refused(folder: Path, user: str) -> None:
    """A colon or a line's end in a name would make another credential of it (RFC 7617)."""
    assert "user name" in estd("credential", "add", folder / "credentials", user, status=1).err
    assert not (folder / "credentials").exists()


@pytest.fixture(scope="module")
def issued(server: Server) -> list[x509.Certificate]:
    """Three certificates of devices that only these tests know."""
    made = []
    with server.client(basic=True) as client:
        for number in range(3):
            subject = make.name(f"cli-listed-{number}")
            made.append(client.enroll(lambda _, subject=subject: make.csr(subject=subject)))  # type: ignore[misc]
    return made


def serial(certificate: x509.Certificate) -> str:
    return certificate.serial_number.to_bytes(16, "big").hex()


def cert(server: Server, command: str, *options: str | Path, status: int = 0) -> Done:
    return estd("cert", command, "--config", server.config, *options, status=status)


def test_list_shows_what_the_ledger_knows(server: Server, issued: list[x509.Certificate]) -> None:
    """One JSON object a line, oldest first, with who asked, for what, and until when."""
    found = cert(server, "list", "--subject", "cli-listed", "--json").lines
    assert [one["serial"] for one in found] == [serial(one) for one in issued]
    one = found[0]
    assert (one["subject"], one["identity"]) == ("CN=cli-listed-0", "basic:factory")
    assert (one["label"], one["profile"], one["renews"]) == ("default", "factory", None)
    assert one["not_after"] == issued[0].not_valid_after_utc.isoformat().replace("+00:00", "Z")
    words = cert(server, "list", "--subject", "cli-listed").out.splitlines()
    assert [line.split()[0] for line in words] == [serial(one) for one in issued]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--limit", "2"], 2),
        (["--identity", "basic:"], 3),
        (["--identity", "idevid:"], 0),
        (["--since", "2020-01-01"], 3),
        (["--since", "2999-01-01T00:00"], 0),
        (["--until", "2020-01-01"], 0),
    ],
)
def test_list_filters(server: Server, issued: list[x509.Certificate], options: list[str], count: int) -> None:
    """Each filter narrows the list."""
    assert len(cert(server, "list", "--subject", "cli-listed", "--json", *options).lines) == count


def test_what_a_client_chose_does_not_reach_the_terminal_as_it_is(copy: Server) -> None:
    """A factory's certificate may have any characters in its subject: none of them moves the cursor, turns the text
    round or begins a line. Between a device and who renewed it for it stands a space."""
    evil = "CN=\x1b[31mred\x07\u202eevil\r\n0000  forged"
    certificate_der = copy.ca.public_bytes(Encoding.DER)
    made = row(subject=evil, identity=f"device:default//1\tidevid:{evil}", certificate_der=certificate_der)
    with closing(Writer(copy.folder / "ledger.sqlite3")) as writer:
        writer.record([made])
    for out in (cert(copy, "list").out, cert(copy, "show", made.serial.hex()).out):
        assert all(line.isprintable() for line in out.splitlines())
        assert "device:default//1 idevid:CN=\N{REPLACEMENT CHARACTER}[31mred" in out
    assert len(cert(copy, "list").out.splitlines()) == 1
    assert cert(copy, "list", "--json").lines[0]["subject"] == evil


@pytest.mark.parametrize(
    "words",
    [
        ["requests", "deny", "1", "--reason", os.fsdecode(b"Gr\xf6\xdfe")],
        ["device", "disable", os.fsdecode(b"\xe9")],
        ["device", "add", "1", "--dns", os.fsdecode(b"\xe9.example.com")],
        ["cert", "list", "--subject", os.fsdecode(b"\xff")],
    ],
    ids=" ".join,
)
def test_words_that_are_not_UTF_8_are_a_sentence(server: Server, words: list[str]) -> None:
    """What a shell of another encoding hands on is refused before anybody else hears it; the server goes on."""
    pids = server.pids()
    assert "is not UTF-8" in estd(*words, "--config", server.config, status=1).err
    assert server.pids() == pids


@pytest.mark.parametrize("number", ["99999999999999999999", "-5"])
def test_a_number_that_no_ledger_has_is_a_wrong_command_line(server: Server, number: str) -> None:
    """Numbers end where the ledger's do."""
    for words in (["requests", "list", "--limit"], ["cert", "list", "--limit"], ["device", "list", "--limit"]):
        assert "is not in the range" in estd(*words, number, "--config", server.config, status=2).err
    assert "is not in the range" in estd("requests", "show", "--config", server.config, "--", number, status=2).err


def test_a_time_that_is_none_is_a_wrong_command_line(server: Server) -> None:
    """--since takes a date or a time."""
    assert "a time such as" in cert(server, "list", "--since", "yesterday", status=2).err


@pytest.mark.parametrize("shape", ["plain", "colons", "upper"])
def test_show_finds_a_serial_however_it_is_written(server: Server, issued: list[x509.Certificate], shape: str) -> None:
    """A serial number is taken in hexadecimal as openssl and browsers show it."""
    text = serial(issued[0])
    if shape == "colons":
        text = ":".join(text[at : at + 2] for at in range(0, 32, 2))
    shown = cert(server, "show", text.upper() if shape == "upper" else text, "--json").data
    assert shown["subject"] == "CN=cli-listed-0"
    assert x509.load_pem_x509_certificate(shown["certificate"].encode()) == issued[0]
    assert shown["certificate"] in cert(server, "show", serial(issued[0])).out


def test_show_takes_the_serial_that_enroll_prints(server: Server, folder: Path) -> None:
    """What one command prints as the serial number the other finds."""
    printed = enrolled(server, folder, "--subject", "CN=cli-serial").data["serial"]
    assert cert(server, "show", printed, "--json").data["subject"] == "CN=cli-serial"


@pytest.mark.parametrize("text", ["00" * 16, "ff" * 20])
@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_serial_that_nobody_has_is_a_sentence(server: Server, command: str, text: str) -> None:
    """An unknown serial number is told as such."""
    assert cert(server, command, text, status=1).err.startswith("estd: no certificate has the serial number")


@pytest.mark.parametrize("text", ["xyz", ""])
@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_malformed_serial_is_a_usage_error(server: Server, command: str, text: str) -> None:
    """What is no serial number is wrong usage, and says what one looks like."""
    assert "a serial number in hexadecimal" in cert(server, command, text, status=2).err


def test_list_finds_one_serial(server: Server, folder: Path) -> None:
    """list and export find by serial number, as by subject, identity and time."""
    printed = enrolled(server, folder, "--subject", "CN=cli-one").data["serial"]
    assert cert(server, "list", "--serial", printed, "--json").data["subject"] == "CN=cli-one"
    assert cert(server, "export", "--serial", printed).out.count("BEGIN CERTIFICATE") == 1


def test_export_writes_pem(server: Server, issued: list[x509.Certificate], folder: Path) -> None:
    """All that were asked for, as PEM, to a file or standard output."""
    cert(server, "export", "--subject", "cli-listed", "--out", folder / "all.pem")
    assert x509.load_pem_x509_certificates((folder / "all.pem").read_bytes()) == issued
    assert cert(server, "export", "--subject", "cli-listed").out == (folder / "all.pem").read_text()


def test_a_revoked_certificate_is_dead_at_its_next_request(server: Server, folder: Path) -> None:
    """While the server runs, revoke goes through its writer, and the device's next renewal on the connection that it
    holds is refused."""
    enrolled(server, folder, "--subject", "CN=cli-revoked")
    certificate = x509.load_pem_x509_certificate((folder / "device.pem").read_bytes())
    with server.client(cert=(folder / "device.pem", folder / "device.key")) as client:
        client.enroll(lambda _: make.csr(subject=certificate.subject), renew=True)
        done = cert(server, "revoke", serial(certificate), "--reason", "keyCompromise", "--json").data
        assert (done["reason"], done["revoked"] is not None) == ("keyCompromise", True)
        with pytest.raises(Refused, match="403: The client certificate is revoked"):
            client.enroll(lambda _: make.csr(subject=certificate.subject), renew=True)
    again = cert(server, "revoke", serial(certificate), "--json").data
    assert again == done
    (found,) = cert(server, "list", "--revoked", "--subject", "cli-revoked", "--json").lines
    assert found == done
    assert "revoked" in cert(server, "list", "--revoked", "--subject", "cli-revoked").out


def test_revoke_works_while_nobody_serves(copy: Server) -> None:
    """Without a server the command writes the ledger itself."""
    with closing(Writer(copy.folder / "ledger.sqlite3")) as writer:
        writer.record([one := row()._replace(certificate_der=make.certificate().der)])
    done = cert(copy, "revoke", one.serial.hex(), "--reason", "superseded", "--json").data
    assert (done["serial"], done["reason"]) == (one.serial.hex(), "superseded")
    assert copy.rows()[0].reason == 4
