"""A root's change of keys (R19, R48): the certificates of RFC 4210 §4.4, and devices that enroll, renew and verify each
other through every stage of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from estd import key_update, rollover_toml, starting, transition
from estd import rollover as rollover_room
from estd.cli_rollover import ca_group
from estd.client import Access, EstClient, pem_of
from estd.errors import ConfigError, Refused
from tests import make, servers, tokens
from tests.conftest import program
from tests.servers import Server, wait_for
from tests.test_issuance import ca
from tests.test_reload import estd, retired
from tests.test_supervisor import instance, log_text, replaced

ROOT = Path(__file__).resolve().parent.parent


def rollover(server: Server, step: str, *options: str, status: int = 0) -> Any:
    """The command's data, or where it must fail, what it says."""
    done = estd("ca", "rollover", step, "--json", "--config", server.config, *options, status=status)
    return json.loads(done.stdout) if status == 0 else done.stderr


def change_of(server: Server) -> transition.Transition:
    found = transition.read(server.folder / "ca.pem")
    assert found is not None
    return found


Certificates = Sequence[x509.Certificate]


def verified(folder: Path, leaf: x509.Certificate, anchors: Certificates, untrusted: Certificates = ()) -> bool:
    """What openssl says of a certificate, for a verifier that trusts `anchors` and may look into `untrusted`."""
    program("openssl")
    files = {"leaf": [leaf], "anchors": anchors, "untrusted": untrusted}
    for name, certificates in files.items():
        (folder / f"{name}.pem").write_bytes(pem_of(certificates))
    command = ["openssl", "verify", "-no-CApath", "-no-CAstore", "-CAfile", "anchors.pem", "-x509_strict"]
    if untrusted:
        command += ["-untrusted", "untrusted.pem"]
    done = subprocess.run([*command, "leaf.pem"], check=False, cwd=folder, capture_output=True, text=True)
    assert (done.returncode == 0) == ("leaf.pem: OK" in done.stdout)
    return done.returncode == 0


def roots(certificates: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The self-signed ones of an answer to cacerts: what a device trusts."""
    found = []
    for one in certificates:
        try:
            one.verify_directly_issued_by(one)
        except Exception:
            continue
        found.append(one)
    return found


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    return certificate.extensions.get_extension_for_class(kind).value


def authority(certificate: x509.Certificate) -> bytes:
    found: bytes = extension(certificate, x509.AuthorityKeyIdentifier).key_identifier
    return found


def identifier(certificate: x509.Certificate) -> bytes:
    found: bytes = extension(certificate, x509.SubjectKeyIdentifier).digest
    return found


class Device:
    """What a device knows: its certificate and key, the roots it trusts, and what joins them."""

    def __init__(self, server: Server, folder: Path, name: str, anchors: Sequence[x509.Certificate]) -> None:
        self.server = server
        self.folder = folder
        self.name = name
        self.anchors = list(anchors)
        self.links: list[x509.Certificate] = []
        self.files: tuple[Path, Path] | None = None
        self.certificate: x509.Certificate

    def _client(self) -> EstClient:
        user, password = (None, None) if self.files else self.server.basic
        certificate, key = self.files or (None, None)
        return EstClient(
            Access(
                url=self.server.url, anchors=self.anchors, certificate=certificate, key=key, user=user,
                password=password,
            )
        )  # fmt: skip

    def fetch(self) -> list[x509.Certificate]:
        """cacerts: what the device trusts from here on."""
        with self._client() as client:
            found = client.cacerts()
        self.anchors = roots(found)
        self.links = [one for one in found if one not in self.anchors]
        return found

    def enroll(self) -> x509.Certificate:
        """A certificate; with one, another for it."""
        key = make.key()
        subject = self.certificate.subject if self.files else make.name(self.name)
        with self._client() as client:
            self.certificate = client.enroll(lambda _: make.csr(key, subject=subject), renew=bool(self.files))
        self.files = make.Identity(self.certificate, key).write(self.folder, self.name)
        return self.certificate

    def believes(self, other: Device) -> bool:
        """Verifies the other's certificate, which comes with what the other knows to join roots by."""
        return verified(self.folder, other.certificate, self.anchors, [*self.links, *other.links])


@pytest.mark.parametrize(
    ("ca_key", "options"),
    [("ec-p256", []), ("ec-p384", []), ("rsa-3072", []), ("ec-p256", ["--key", "rsa-3072", "--years", "30"])],
    ids=["p256", "p384", "rsa", "p256 to rsa"],
)
def test_R48_the_four_certificates(folder: Path, ca_key: str, options: list[str]) -> None:
    """R48: OldWithNew is the old key signed by the new over the old root's life; NewWithOld the new key signed by the
    old from the new key's birth until the old expires; subject equals issuer in all; each verifies as it must."""
    server = servers.init(folder / "instance", "--ca-key", ca_key)
    before = server.ca
    told = rollover(server, "prepare", *options)
    change = change_of(server)
    assert told["stage"] == "prepared"
    assert change.old == before == server.ca
    every = (change.old, change.new, change.old_with_new, change.new_with_old)
    assert {one.subject.public_bytes() for one in every} == {one.issuer.public_bytes() for one in every}
    assert len({one.issuer.public_bytes() for one in every}) == 1
    assert len({one.serial_number for one in every}) == 4
    old, new = change.old, change.new
    for one, key_of, signer in ((change.old_with_new, old, new), (change.new_with_old, new, old)):
        assert one.public_key() == key_of.public_key()
        assert identifier(one) == identifier(key_of)
        assert authority(one) == identifier(signer)
        one.verify_directly_issued_by(signer)
        assert verified(folder, one, [signer])
        assert not verified(folder, one, [key_of])
    assert change.old_with_new.not_valid_before_utc == old.not_valid_before_utc
    assert change.old_with_new.not_valid_after_utc == old.not_valid_after_utc
    assert change.new_with_old.not_valid_before_utc == new.not_valid_before_utc
    assert change.new_with_old.not_valid_after_utc == old.not_valid_after_utc
    assert new.not_valid_after_utc > old.not_valid_after_utc
    if "--years" in options:
        assert new.not_valid_after_utc - new.not_valid_before_utc == timedelta(days=30 * 365, seconds=-1)
    for one in every:
        assert extension(one, x509.BasicConstraints) == extension(old, x509.BasicConstraints)
        assert extension(one, x509.KeyUsage) == extension(old, x509.KeyUsage)
    assert type(new.public_key()) is type(old.public_key()) or "--key" in options
    again = rollover(server, "prepare", *options)
    assert again == told
    assert estd("check", server.config).stdout.strip().endswith("nothing is wrong")


def test_R19_the_eight_cases_of_verifying(folder: Path) -> None:
    """R19 and RFC 4210 §4.4.2: a verifier that trusts the new or the old root, a certificate under the new or the old
    key, a repository with both keys or the old alone: cases 1 to 5 and 8 verify, 6 and 7 cannot."""
    with servers.running(instance(folder / "instance")) as server:
        early = Device(server, folder, "early", [server.ca])
        only_old = early.fetch()
        signed_by_old = early.enroll()
        rollover(server, "prepare")
        rollover(server, "activate")
        late = Device(server, folder, "late", [server.ca])
        both = late.fetch()
        signed_by_new = late.enroll()
        change = change_of(server)
    assert only_old == [change.old]
    four = [change.old, change.new, change.old_with_new, change.new_with_old]
    assert sorted(map(hash, both)) == sorted(map(hash, four))
    assert all(one in four for one in both)
    assert authority(signed_by_old) == identifier(change.old)
    assert authority(signed_by_new) == identifier(change.new)
    # A self-signed certificate is nothing on the way to another anchor, so a repository is what joins.
    joins = [one for one in both if one not in (change.old, change.new)]
    new, old = [change.new], [change.old]
    cases = {
        1: (signed_by_new, new, joins, True),
        2: (signed_by_old, new, joins, True),
        3: (signed_by_new, old, joins, True),
        4: (signed_by_old, old, joins, True),
        5: (signed_by_new, new, only_old, True),
        6: (signed_by_old, new, only_old, False),
        7: (signed_by_new, old, only_old, False),
        8: (signed_by_old, old, only_old, True),
    }
    assert {case: verified(folder, *given[:3]) for case, given in cases.items()} == {
        case: given[3] for case, given in cases.items()
    }


def test_R19_devices_go_through_a_rollover_under_load(folder: Path) -> None:
    """R19: through prepare, activate and finish devices that know the old root, the new one or both enroll, renew and
    verify each other, each as the stage allows, while a fleet enrolls and not one of its requests fails."""
    with servers.running(instance(folder / "instance", edges=2)) as server:
        command = [
            sys.executable, "-m", "bench.fleet", server.url, "--instance", str(server.folder), "--json", "--rate",
            "150", "--connections", "16", "--seconds", "180", "--timeout", "360",
        ]  # fmt: skip
        load = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            wait_for(lambda: server.metric("estd_certificates_total") > 50, 60)
            through_the_stages(server, folder)
            assert load.poll() is None, "the load ended before the rollover"
            load.terminate()  # enough: what it has begun is answered and told
            report = json.loads(load.communicate(timeout=120)[0])
        finally:
            if load.poll() is None:
                load.terminate()
            load.wait(timeout=60)
        assert report["errors"] == {}
        wait_for(lambda: retired(server), 60, lambda: log_text(server))
        events = {line["event"] for line in server.log_lines()}
        assert events & {"child_died", "child_killed", "request_failed", "issuer_ends", "reload_refused"} == set()


def through_the_stages(server: Server, folder: Path) -> None:
    old_root = server.ca
    assert rollover(server, "status")["stage"] == "none"
    sleeper = Device(server, folder, "sleeper", [old_root])
    sleeper.fetch()
    sleeper.enroll()
    forgotten = Device(server, folder, "forgotten", [old_root])
    forgotten.enroll()

    assert rollover(server, "prepare")["generation"] == 2
    change = change_of(server)
    early = Device(server, folder, "early", [old_root])
    assert len(early.fetch()) == 4
    assert authority(early.enroll()) == identifier(change.old)
    assert authority(early.enroll()) == identifier(change.old)  # a renewal
    assert sleeper.believes(early)
    assert early.believes(sleeper)

    assert rollover(server, "activate")["generation"] == 3
    late = Device(server, folder, "late", [change.new])  # made in a factory that knows the new root alone
    assert authority(late.enroll()) == identifier(change.new)
    assert sleeper.believes(sleeper)
    assert not sleeper.believes(late)  # neither knows what joins the roots
    assert not verified(folder, early.certificate, late.anchors)  # RFC 4210's case 6
    assert late.believes(early)  # early brings OldWithNew: case 2
    late.fetch()
    assert sleeper.believes(late)
    assert late.believes(sleeper)
    assert late.believes(early)
    assert early.believes(late)
    other = Device(server, folder, "other", [old_root])
    other.files, other.certificate = early.files, make.certificate(subject=make.name("other")).certificate
    with pytest.raises(Refused, match="403"):
        other.enroll()
    before = early.certificate
    assert authority(early.enroll()) == identifier(change.new)  # a renewal, with the certificate under the old root
    assert early.certificate.subject == before.subject
    assert sleeper.believes(early)

    assert "have not expired" in rollover(server, "finish", status=1)
    status = rollover(server, "status")
    assert status["stage"] == "active"
    assert status["unexpired_under_old"] >= 3
    told = rollover(server, "finish", "--force")
    assert told["stage"] == "none"
    assert told["generation"] == 4
    assert told["root"]["key_id"] == change.state.new_key_id
    assert server.ca == change.new
    assert late.fetch() == [change.new]
    assert late.believes(early)
    assert not late.believes(sleeper)
    assert sleeper.believes(early)  # which still knows NewWithOld
    for device in (sleeper, forgotten):  # their certificates are known by the ledger, and they know the server
        assert authority(device.enroll()) == identifier(change.new)
        assert late.believes(device)
    assert device.fetch() == [change.new]
    assert "begin with" in rollover(server, "activate", status=1)
    assert rollover(server, "finish")["root"]["key_id"] == change.state.new_key_id


_DYING = """
import os, signal, sys
at, happened = int(sys.argv[1]), 0

def dying(real):
    def called(*given, **named):
        global happened
        for moment in ("before", "after"):
            happened += 1
            if happened == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if moment == "before":
                made = real(*given, **named)
        return made
    return called

from hsm import keys
os.replace, os.mkdir, keys.generate = dying(os.replace), dying(os.mkdir), dying(keys.generate)
from estd.cli import main
main(sys.argv[2:], standalone_mode=False)
"""
"""The command, killed at its `at`-th moment: before and after each file it replaces, each folder and key it makes."""


STEPS = (("prepare", [], "prepared"), ("activate", [], "active"), ("finish", ["--force"], "none"))
MOMENTS = {"prepare": 16, "activate": 4, "finish": 8}
"""At least: prepare makes a folder, a key and four certificates and writes its state twice, each with two moments;
activate writes a certificate and its state; finish its state, a certificate and the configuration, and renames."""


def died(server: Server, step: str, at: int, options: Sequence[str]) -> bool:
    """The command, killed at that moment; False where it was through before."""
    command = [sys.executable, "-c", _DYING, str(at), "ca", "rollover", step, "--config", str(server.config), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("first", range(1, 5))
@pytest.mark.parametrize("which", range(len(STEPS)), ids=[step for step, _, _ in STEPS])
def test_R19_a_command_that_is_killed_is_repeated(folder: Path, which: int, first: int) -> None:
    """kill -9 before and after every change that a command makes: what is left is sound, and the same command goes on
    to the same end. Each moment takes five processes, so each test has one in four of a command's moments."""
    server = servers.init(folder / "instance")
    for done, options, _ in STEPS[:which]:
        rollover(server, done, *options)
    step, options, stage = STEPS[which]
    before = folder / "before"
    shutil.copytree(server.folder, before)
    at = first
    while died(server, step, at, options):
        estd("check", server.config)
        assert rollover(server, step, *options)["stage"] == stage
        estd("check", server.config)
        held = tokens.held(server)
        assert held["PRIVATE_KEY"] == held["PUBLIC_KEY"]
        assert len(set(held["PRIVATE_KEY"])) == len(held["PRIVATE_KEY"]) == 2  # nothing orphaned, nothing twice
        shutil.rmtree(server.folder)
        shutil.copytree(before, server.folder)
        at += 4
        assert at < 60
    assert at > MOMENTS[step]


def test_R19_the_server_outlives_commands_that_are_killed(folder: Path) -> None:
    """The same with the server at work: after each kill it issues, a device that knows the root in ca.pem trusts it,
    and another process that takes over at that moment issues too."""
    with servers.running(instance(folder / "instance")) as server:
        for step, options, stage in STEPS:
            for at in range(1, 60):
                if not died(server, step, at, options):
                    break
                if at % 4 == 0:
                    replaced(server, "issuer-0", signal.SIGKILL)
                device = Device(server, folder, f"{step}-{at}", [server.ca])
                device.enroll()
                assert verified(folder, device.certificate, device.anchors, links(server))
            assert rollover(server, "status")["stage"] == stage
            assert at > MOMENTS[step] // 2  # fewer, for what a killed command made stays made


def links(server: Server) -> list[x509.Certificate]:
    """What joins the roots, wherever the rollover's files are now."""
    folders = sorted(server.folder.glob("ca.rollover*"))
    found = [folder / f"{name}.pem" for folder in folders for name in ("old-with-new", "new-with-old")]
    return [x509.load_pem_x509_certificate(path.read_bytes()) for path in found if path.exists()]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """An instance that nobody serves."""
    return servers.init(tmp_path_factory.mktemp("bare") / "instance")


def test_an_intermediate_is_told_what_to_do(bare: Server, folder: Path) -> None:
    """A CA under somebody else's root has no key update of its own: a sentence says what to do instead."""
    root = make.certificate(ca=True)
    below = make.certificate(root, ca=True, subject=make.name("issuing ca"))
    kept = (bare.folder / "ca.pem").read_bytes()
    try:
        (bare.folder / "ca.pem").write_bytes(below.pem)
        said = rollover(bare, "prepare", status=1)
    finally:
        (bare.folder / "ca.pem").write_bytes(kept)
    assert "is no root" in said
    assert "estd reload" in said
    assert not (bare.folder / "ca.rollover").exists()


@pytest.mark.parametrize(
    ("options", "told", "status"),
    [
        (["--ca", "nobody"], "there is no [ca.nobody]; there are root", 1),
        (["--years", "1"], "would not outlive", 1),
        (["--key-id", "zz"], "is not a CKA_ID", 2),
        (["--key-id", ""], "is not a CKA_ID", 2),
    ],
)
def test_what_cannot_be_prepared_is_a_sentence(bare: Server, options: list[str], told: str, status: int) -> None:
    """A wrong option changes nothing and says why."""
    assert told in rollover(bare, "prepare", *options, status=status)
    assert rollover(bare, "status")["stage"] == "none"
    (bare.folder / "ca.rollover-given-up").mkdir(exist_ok=True)
    assert "begin with" in rollover(bare, "activate", status=1)
    assert "begin with" in rollover(bare, "finish", status=1)


def test_a_kind_of_key_that_estd_does_not_make_is_asked_for(bare: Server) -> None:
    """A root of such a key is followed by another kind only where somebody says so."""
    own_key: Any = rsa.generate_private_key(65537, 2048)
    kept = (bare.folder / "ca.pem").read_bytes()
    try:
        (bare.folder / "ca.pem").write_bytes(make.certificate(ca=True, own_key=own_key).pem)
        said = rollover(bare, "prepare", status=1)
    finally:
        (bare.folder / "ca.pem").write_bytes(kept)
    assert "the old key is rsa-2048, of which estd makes none" in said
    assert not (bare.folder / "ca.rollover").exists()


NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("old_ends", "years", "ends"),
    [
        (datetime(2100, 1, 1, tzinfo=UTC), None, datetime(2150, 1, 1, tzinfo=UTC)),
        (datetime(2100, 1, 1, tzinfo=UTC), 100, datetime(2119, 12, 7, 23, 59, 59, tzinfo=UTC)),
        (datetime(2100, 1, 1, tzinfo=UTC), 30, None),
        (datetime(9990, 1, 1, tzinfo=UTC), None, NO_END),
        (NO_END, None, NO_END),
        (NO_END, 100, None),
    ],
)
def test_R48_how_long_a_new_root_lives(old_ends: datetime, years: int | None, ends: datetime | None) -> None:
    """As long as the old one, from 1970 on, or so many years of 365 days, and longer than it; a root without an end
    (99991231235959Z, RFC 5280 §4.1.2.5) is followed by one without."""
    old = ca(ends=int(old_ends.timestamp())).certificate
    began = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp())
    state = transition.State(stage="preparing", old_key_id="01", new_key_id="02", began=began, years=years)
    if ends is None:
        with pytest.raises(ConfigError, match="would not outlive the old one"):
            key_update.life_ends(old, state)
    else:
        assert key_update.life_ends(old, state) == ends


def test_a_key_that_is_in_the_token_already(folder: Path) -> None:
    """Where only a token's officer makes keys, prepare takes one by its CKA_ID; the old one itself is refused."""
    server = servers.init(folder / "instance")
    assert "is the old one" in rollover(server, "prepare", "--key-id", "01", status=1)
    script = (
        "import os, sys; from pathlib import Path; from hsm import keys; from hsm.token import Token\n"
        "folder = Path(sys.argv[1]); os.environ['SOFTHSM2_CONF'] = str(folder / 'token' / 'softhsm2.conf')\n"
        "from estd import instance\n"
        "token = Token.open(module=instance.softhsm_module(), label='estd', rw=True,\n"
        "                   pin=(folder / 'token' / 'pin').read_text().strip())\n"
        "keys.generate(token, kind='ec-p384', key_id=bytes.fromhex('0202'), label='next')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(server.folder)], check=True, capture_output=True)
    told = rollover(server, "prepare", "--key-id", "0202")
    assert told["new"]["key_id"] == "0202"
    assert change_of(server).new.public_key().key_size == 384  # type: ignore[union-attr]


def test_files_of_another_rollover_are_refused(folder: Path) -> None:
    """A certificate or a state that is not this rollover's makes `estd check` say so, and no process takes it."""
    server = servers.init(folder / "instance")
    rollover(server, "prepare")
    files = server.folder / "ca.rollover"
    kept = {path: path.read_bytes() for path in files.iterdir()}
    stranger = make.certificate(ca=True, subject=server.ca.subject).pem
    for name, data, told in (
        ("new.pem", stranger, "not of one rollover"),
        ("old-with-new.pem", stranger, "not of one rollover"),
        ("old-with-new.pem", kept[files / "new.pem"], "not of one rollover: a key"),
        ("new-with-old.pem", kept[files / "old.pem"], "not of one rollover: a key"),
        ("state.json", b"{}", "not a rollover's state"),
        ("state.json", kept[files / "state.json"].replace(b"prepared", b"done"), "not a rollover's state"),
        ("state.json", kept[files / "state.json"].replace(b'"01"', b'"0"'), "not a rollover's state"),
        ("state.json", b"[1]", "not a rollover's state"),
        ("state.json", b"\xff", "not a rollover's state"),
    ):
        (files / name).write_bytes(data)
        assert told in estd("check", server.config, status=1).stderr, (name, data)
        (files / name).write_bytes(kept[files / name])
    estd("check", server.config)
    other = make.certificate(ca=True).pem
    root = (server.folder / "ca.pem").read_bytes()
    (server.folder / "ca.pem").write_bytes(other)
    assert "the rollover of another certificate" in estd("check", server.config, status=1).stderr
    (server.folder / "ca.pem").write_bytes(root)


CONFIG = (
    '[server]\nlisten = "a"\n\n[ca.other]\nkey_id = "01"\n\n# the CA\n[ca.root]  # ours\n{}\n\n[label.x]\nca = "root"\n'
)


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ('key_id = "01"', 'key_id = "0a0b"'),
        ("key_id='01' # in the token", "key_id='0a0b' # in the token"),
        ('certificate = "ca.pem"\nkey_id = "01"', 'certificate = "ca.pem"\nkey_id = "0a0b"'),
        ('key_id = "0A0B"', 'key_id = "0A0B"'),
        ('"key_id" = "01"', None),
        ('key_id = """01"""', None),
        ('note = """\nkey_id = "01"\n"""\nkey_id = "01"', None),
        ('key_id = "03"', None),
    ],
)
def test_one_line_of_the_configuration_changes(line: str, changed: str | None) -> None:
    """The key_id of the one CA changes and every other character stays; what is not plain is left to a person."""
    got = rollover_toml.with_key_id(CONFIG.format(line), "root", "01", "0a0b")
    assert got == (None if changed is None else CONFIG.format(changed))


def test_a_key_id_that_is_not_plain_is_left_to_the_operator(folder: Path) -> None:
    """Finish says which line to write, issues with the new key all the same, and ends when it is written."""
    server = servers.init(folder / "instance")
    toml = server.config.read_text()
    server.config.write_text(toml.replace('key_id = "01"', '"key_id" = "01"'))
    rollover(server, "prepare")
    key_id = rollover(server, "activate")["new"]["key_id"]
    done = estd("ca", "rollover", "finish", "--json", "--config", server.config)
    assert json.loads(done.stdout)["stage"] == "finished"
    assert f'Now write key_id = "{key_id}" into [ca.root]' in done.stderr
    estd("check", server.config)
    server.config.write_text(toml.replace('key_id = "01"', f'"key_id" = "{key_id}"'))
    assert rollover(server, "finish")["stage"] == "none"
    estd("check", server.config)
    assert (server.folder / "ca.pem").read_bytes() == server.ca.public_bytes(Encoding.PEM)


def test_the_commands_of_the_document(folder: Path) -> None:
    """docs/rollover.md: its commands, pasted one after the other beside a running server, change the root's key."""
    text = (ROOT / "docs" / "rollover.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 5
    binaries = folder / "bin"
    binaries.mkdir()
    (binaries / "estd").write_text(f'#!/bin/sh\nexec {sys.executable} -m estd.cli "$@"\n')
    (binaries / "estd").chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with servers.running(instance(folder / "instance")) as server:
        before = server.ca
        Device(server, folder, "device", [before]).enroll()
        for command in commands:
            subprocess.run(["sh", "-c", command], check=True, cwd=server.folder, env=environment, capture_output=True)
        assert server.ca.subject == before.subject
        assert server.ca != before
        with server.client() as client:
            assert client.cacerts() == [server.ca]


def test_R19_finish_counts_once_the_old_key_issues_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R19: a connection from before `activate` is still answered under the old key; `finish` waits until there is none,
    and then counts what such a one got last."""
    server = instance(folder / "instance", drain="2s")
    issuing: list[set[str]] = []
    hanging = rollover_room.hanging

    def counted(*arguments: Any) -> int:
        issuing.append(starting.generations(server.folder / "run"))
        return hanging(*arguments)

    monkeypatch.setattr(rollover_room, "hanging", counted)
    with servers.running(server):
        rollover(server, "prepare")
        with server.client(basic=True) as late, server.client() as idle:
            idle.cacerts()  # it is the old generation's, and keeps it
            late.cacerts()
            rollover(server, "activate")
            made = late.enroll(lambda _: make.csr(subject=make.name("late")))
            done = CliRunner().invoke(ca_group, ["rollover", "finish", "--config", str(server.config)])
    assert authority(made) == identifier(change_of(server).old)
    assert [len(one) for one in issuing] == [1]
    assert done.exit_code == 1
    assert "1 certificates under the old root have not expired" in done.stderr
