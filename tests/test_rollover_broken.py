"""R19: a root's change of keys when something is in its way: two commands at once, a full disk, a token that is away, a
configuration that cannot be written, a server that is killed. What is left is sound, `status` tells what is true, and
the same command goes on to its end."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from estd import config, material, reload_report, transition
from tests import make, servers, tokens
from tests.servers import Server, wait_for
from tests.test_reload import estd, reload
from tests.test_rollover import Device, authority, change_of, died, identifier, rollover, verified
from tests.test_supervisor import ending, enrol, instance, log_text

_STOPPING = """
import os, signal, sys
at, happened, real = int(sys.argv[1]), 0, os.replace

def replace(*given, **named):
    global happened
    happened += 1
    if happened == at:
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*given, **named)

os.replace = replace
from estd.cli import main
main(sys.argv[2:], standalone_mode=False)
"""
"""The command, which stops before it replaces its `at`-th file, and goes on at SIGCONT."""


def pairs(server: Server, *more: str) -> None:
    """The token has the first key, these, and nothing else: nothing orphaned, nothing twice."""
    assert set(map(tuple, tokens.held(server).values())) == {tuple(sorted(["01", *more]))}


def new_id(server: Server) -> str:
    return change_of(server).state.new_key_id


def test_R19_one_command_at_a_time(folder: Path) -> None:
    """While one is at work another one says so and changes nothing; status can be asked; the first comes to its end."""
    server = servers.init(folder / "instance")
    command = [sys.executable, "-c", _STOPPING, "3", "ca", "rollover", "prepare", "--config", str(server.config)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, status = os.waitpid(first.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        for step in ("prepare", "activate", "finish"):
            assert "another estd ca rollover is at work" in rollover(server, step, status=1)
        assert rollover(server, "status")["stage"] == "preparing"
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait(timeout=60) == 0
    finally:
        if first.poll() is None:
            first.kill()
        first.communicate()
    assert rollover(server, "status")["stage"] == "prepared"
    pairs(server, new_id(server))


@pytest.mark.parametrize("lost", [("PRIVATE_KEY",), ("PUBLIC_KEY",), ("PRIVATE_KEY", "PUBLIC_KEY")])
def test_R19_half_a_pair_is_not_taken_for_the_key(folder: Path, lost: Sequence[tokens.Kind]) -> None:
    """A kill inside the token's C_GenerateKeyPair leaves a public key alone, in other modules a private one: the
    repeated command makes one whole pair, and no second key of the same CKA_ID."""
    server = servers.init(folder / "instance")
    state = server.folder / "ca.rollover"
    for at in range(1, 60):
        assert died(server, "prepare", at, [])
        found = transition.read_state(state)
        if found is not None and found.new_key_id in tokens.held(server)["PRIVATE_KEY"]:
            break
    assert found is not None
    tokens.destroy(server, found.new_key_id, *lost)
    assert rollover(server, "prepare")["stage"] == "prepared"
    pairs(server, new_id(server))
    assert rollover(server, "activate")["stage"] == "active"
    with servers.running(server):
        assert authority(enrol(server)) == identifier(change_of(server).new)


STAGES_OF = {
    "prepare": ("none", "preparing", "prepared"),
    "activate": ("prepared", "active"),
    "finish": ("active", "finished"),
}
"""Where a command that failed may have left the rollover: the count of certificates comes last, and needs room too."""


def key_signs(server: Server) -> None:
    """The key of a rollover that is prepared could issue."""
    folder = server.folder / "ca.rollover"
    kept = (folder / "state.json").read_text()
    (folder / "state.json").write_text(kept.replace("prepared", "active"))
    estd("check", server.config)
    (folder / "state.json").write_text(kept)


def test_R19_a_token_that_was_restored(folder: Path) -> None:
    """A token from before prepare, or with another key in the place: activate says so, and the old key goes on."""
    server = servers.init(folder / "instance")
    rollover(server, "prepare")
    tokens.destroy(server, new_id(server))
    assert "is not in the token as it was" in rollover(server, "activate", status=1)
    assert rollover(server, "status")["stage"] == "prepared"
    with servers.running(server):
        assert authority(enrol(server)) == identifier(server.ca)


def test_R19_a_full_disk(folder: Path) -> None:
    """Files that cannot grow beyond so many octets: each failure is a sentence and leaves a state from which the same
    command, once there is room, comes to its end; the token has one new pair."""
    server = servers.init(folder / "instance")

    def limited(octets: int, step: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "estd.cli", "ca", "rollover", step, "--config", str(server.config), *options]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (octets, octets)),
        )  # fmt: skip

    whole = server.config.read_bytes()
    for step, options, stage in (
        ("prepare", [], "prepared"),
        ("activate", [], "active"),
        ("finish", ["--force"], "none"),
    ):
        before = folder / f"before-{step}"
        shutil.copytree(server.folder, before)
        failed = 0
        for octets in (500, 700, 900):
            done = limited(octets, step, *options)
            assert "Traceback" not in done.stderr
            estd("check", server.config)
            told = rollover(server, "status")["stage"]
            if done.returncode != 0:
                failed += 1
                assert done.stderr.strip()
                assert told in STAGES_OF[step]
            else:
                assert told == stage
            left = [path for path in server.folder.rglob("*.new") if "crl" not in path.parts]
            assert left == []
            assert rollover(server, step, *options)["stage"] == stage
            estd("check", server.config)
            if step != "finish":
                pairs(server, new_id(server))
                key_signs(server)
            shutil.rmtree(server.folder)
            shutil.copytree(before, server.folder)
        assert failed
        assert server.config.read_bytes() == whole
        rollover(server, step, *options)
        whole = server.config.read_bytes()


def _without_pin(server: Server) -> Path:
    return server.folder / "token" / "pin"


def _without_token(server: Server) -> Path:
    return server.folder / "token" / "tokens"


def _without_configuration(server: Server) -> Path:
    return server.folder / "token" / "softhsm2.conf"


@pytest.mark.parametrize(
    ("away", "told"),
    [(_without_pin, "token.pin_file"), (_without_token, "libsofthsm2.so"), (_without_configuration, "")],
)
def test_R19_a_token_that_is_away(folder: Path, away: Callable[[Server], Path], told: str) -> None:
    """Without the PIN or the token prepare and activate say so, and nothing is begun; with it they go on."""
    server = servers.init(folder / "instance")
    path = away(server)
    gone = path.with_name("gone")
    path.rename(gone)
    said = rollover(server, "prepare", status=1)
    assert told in said
    assert said.strip()
    assert not (server.folder / "ca.rollover").exists()
    gone.rename(path)
    rollover(server, "prepare")
    path.rename(gone)
    kept = (server.folder / "server.pem").read_bytes()
    assert told in rollover(server, "activate", status=1)
    assert (server.folder / "server.pem").read_bytes() == kept
    assert rollover(server, "status")["stage"] == "prepared"
    gone.rename(path)
    assert rollover(server, "activate")["stage"] == "active"
    pairs(server, new_id(server))


def test_R19_what_comes_too_early_waits_for_nobody(folder: Path) -> None:
    """finish says so at once, and does not first wait until the generation before the last reload is gone."""
    server = servers.init(folder / "instance")
    rollover(server, "prepare")
    run = server.folder / "run"
    (run / "estd.pid").write_text(str(os.getpid()))
    with (run / "estd.pid").open() as held:  # as a supervisor with two generations
        fcntl.flock(held, fcntl.LOCK_EX)
        for generation in (1, 2):
            (run / f"issuer-0.{generation}.sock").touch()
        assert "activate comes first" in rollover(server, "finish", "--force", status=1)


def test_R19_the_order_of_the_commands(folder: Path) -> None:
    """What comes too early, or a second time with other options, is refused in a sentence; the same again is not."""
    server = servers.init(folder / "instance")
    for step in ("activate", "finish"):
        assert "begin with: estd ca rollover prepare" in rollover(server, step, status=1)
    made = rollover(server, "prepare", "--years", "30")
    assert "activate comes first" in rollover(server, "finish", "--force", status=1)
    assert rollover(server, "prepare", "--years", "30") == made == rollover(server, "prepare")
    for options, told in (
        (["--years", "31"], "with a root for 30 years, without --years 31"),
        (["--key", "rsa-3072"], "with a new key of ec-p256, without --key rsa-3072"),
        (["--key-id", "0202"], "without --key-id 0202"),
    ):
        assert told in rollover(server, "prepare", *options, status=1)
    active = rollover(server, "activate")
    assert rollover(server, "activate") == active
    assert "is active already: estd ca rollover finish ends it" in rollover(server, "prepare", status=1)
    assert rollover(server, "finish")["stage"] == "none"
    assert rollover(server, "finish")["stage"] == "none"
    assert "begin with" in rollover(server, "activate", status=1)
    pairs(server, active["new"]["key_id"])


def test_R19_a_repeated_prepare_has_the_options_of_the_first(folder: Path) -> None:
    """Interrupted anywhere, it is repeated without a word about the new key and its life."""
    server = servers.init(folder / "instance")
    options = ["--years", "30", "--key", "ec-p384"]
    before = folder / "before"
    shutil.copytree(server.folder, before)
    resumed = 0
    for at in range(1, 60):
        if not died(server, "prepare", at, options):
            break
        if transition.read_state(server.folder / "ca.rollover") is not None:
            resumed += 1
            rollover(server, "prepare")
            new = change_of(server).new
            assert new.public_key().key_size == 384  # type: ignore[union-attr]
            assert new.not_valid_after_utc - new.not_valid_before_utc == timedelta(days=30 * 365, seconds=-1)
            pairs(server, new_id(server))
        shutil.rmtree(server.folder)
        shutil.copytree(before, server.folder)
    assert resumed >= 10


def test_R19_a_refused_key_leaves_nothing_behind(folder: Path) -> None:
    """The old key, or one that is not there, named by --key-id: nothing is begun, and a plain prepare works."""
    server = servers.init(folder / "instance")
    assert "is the old one" in rollover(server, "prepare", "--key-id", "01", status=1)
    assert "holds no public key with CKA_ID 0909" in rollover(server, "prepare", "--key-id", "0909", status=1)
    assert rollover(server, "status")["stage"] == "none"
    assert rollover(server, "prepare")["stage"] == "prepared"
    pairs(server, new_id(server))


def test_R19_a_root_that_another_key_signed(folder: Path) -> None:
    """A CA whose name signs itself but whose key does not (a NewWithOld in its place): refused before a key is made."""
    server = servers.init(folder / "instance")
    root = make.certificate(ca=True, subject=make.name("root"))
    cross = make.certificate(root, ca=True, subject=make.name("root"))
    (server.folder / "ca.pem").write_bytes(cross.pem)
    said = rollover(server, "prepare", status=1)
    assert "is no root: another key of 'CN=root' signs" in said
    assert not (server.folder / "ca.rollover").exists()
    pairs(server)


def test_R19_a_configuration_that_is_not_ours_to_write(folder: Path) -> None:
    """Read-only, or on a full disk: finish says the line to write, the server has the new key all the same, and the
    command ends once the line is there. Comments and everything else stay."""
    server = servers.init(folder / "instance")
    rollover(server, "prepare")
    key_id = rollover(server, "activate")["new"]["key_id"]
    server.config.chmod(0o444)
    text = server.config.read_text()
    for _ in range(2):
        done = estd("ca", "rollover", "finish", "--force", "--json", "--config", server.config)
        assert json.loads(done.stdout)["stage"] == "finished"
        assert f'Now write key_id = "{key_id}" into [ca.root]' in done.stderr
        assert server.config.read_text() == text
        estd("check", server.config)
    server.config.chmod(0o644)
    assert rollover(server, "finish")["stage"] == "none"
    assert server.config.read_text() == text.replace('key_id = "01"', f'key_id = "{key_id}"')
    estd("check", server.config)


def test_R19_cas_of_one_certificate_change_together(folder: Path) -> None:
    """Two [ca.NAME] with the same certificate, such as with and without a CRL: both issue by the new key, and after
    finish the configuration says so of both. One whose files would be mixed up with another's is refused."""
    server = servers.init(folder / "instance")
    toml = server.config.read_text() + (
        '\n[ca.silent]  # the same, without a CRL\ncertificate = "ca.pem"\nkey_id = "01"\n'
        '\n[label.silent]\nca = "silent"\n[[label.silent.allow]]\nwho = "basic"\ncredentials = "credentials"\n'
        'profile = "factory"\n'
    )
    server.config.write_text(toml)
    with servers.running(server):
        assert "name one with --ca" in rollover(server, "prepare", status=1)
        for step, options in (("prepare", []), ("activate", []), ("finish", ["--force"])):
            rollover(server, step, "--ca", "root", *options)
            new = server.ca if step == "finish" else change_of(server).issuing
            for label in (None, "silent"):
                with server.client(basic=True, label=label) as client:
                    assert client.cacerts()
                    assert authority(client.enroll(lambda _: make.csr())) == identifier(new)
    assert (
        server.config.read_text().count(f'key_id = "{rollover(server, "status", "--ca", "root")["root"]["key_id"]}"')
        == 2
    )
    with servers.running(server):
        enrol(server)
    shutil.copy(server.folder / "ca.pem", server.folder / "ca.crt")
    before, _, after = server.config.read_text().rpartition('certificate = "ca.pem"')
    server.config.write_text(f'{before}certificate = "ca.crt"{after}')
    assert "would both have their rollover in" in rollover(server, "prepare", "--ca", "root", status=1)


def sign_issuing(server: Server, root: x509.Certificate, key_id: str) -> None:
    """The certificate of [ca.issuing], whose key is made at first, signed by that key of the token."""
    script = (
        "import sys; from pathlib import Path; from datetime import timedelta\n"
        "from cryptography import x509; from cryptography.hazmat.primitives import hashes, serialization\n"
        "from estd import config, rollover; from hsm import keys\n"
        "file = Path(sys.argv[1]); token = rollover._token(config.load(file))\n"
        "if not keys.remove_half(token, b'\\2'): keys.generate(token, kind='ec-p256', key_id=b'\\2', label='issuing')\n"
        "root = x509.load_pem_x509_certificate(sys.stdin.buffer.read())\n"
        "builder = x509.CertificateBuilder(root.subject, x509.Name.from_rfc4514_string('CN=issuing'),\n"
        "    keys.signer(token, b'\\2').public_key(), 7, root.not_valid_before_utc, root.not_valid_after_utc)\n"
        "builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)\n"
        "made = builder.sign(keys.signer(token, bytes.fromhex(sys.argv[2])), hashes.SHA256())\n"
        "(file.parent / 'issuing.pem').write_bytes(made.public_bytes(serialization.Encoding.PEM))\n"
    )
    command = [sys.executable, "-c", script, str(server.config), key_id]
    subprocess.run(command, check=True, input=root.public_bytes(Encoding.PEM), capture_output=True)


@pytest.mark.parametrize("chain", ["ca.pem", "copy.pem"])
def test_R19_an_issuing_CA_under_the_root_that_changes(folder: Path, chain: str) -> None:
    """Another CA of the configuration under that root, by the root's own file or a copy: its cacerts joins the two
    roots as well, and finish, forced or not, changes nothing while it is under the old one."""
    server = servers.init(folder / "instance")
    old = server.ca
    sign_issuing(server, old, "01")
    (server.folder / "copy.pem").write_bytes(old.public_bytes(Encoding.PEM))
    table = f'\n[ca.issuing]\ncertificate = "issuing.pem"\nchain = "{chain}"\nkey_id = "02"\n'
    server.config.write_text(server.config.read_text() + table)

    def cacerts() -> list[x509.Certificate]:
        own, *above = material.load(config.load(server.config)).cas["issuing"].chain
        assert own.subject == make.name("issuing")
        return above

    assert cacerts() == [old]
    for step in ("prepare", "activate"):
        assert rollover(server, step, "--ca", "root")["cas_under_old"] == ["issuing"]
        change = change_of(server)
        assert cacerts() == [old, change.new, change.old_with_new, change.new_with_old]
    before = {path: path.read_bytes() for path in server.folder.rglob("*.pem")}
    for options in ([], ["--force"]):
        assert "ca.issuing is under the old root" in rollover(server, "finish", "--ca", "root", *options, status=1)
    assert {path: path.read_bytes() for path in server.folder.rglob("*.pem")} == before
    assert change_of(server).state.stage == "active"
    (server.folder / "issuing.pem").rename(folder / "away")
    assert "ca.issuing: " in rollover(server, "finish", "--ca", "root", "--force", status=1)
    sign_issuing(server, change.new, change.state.new_key_id)
    server.config.write_text(server.config.read_text().replace("copy.pem", "ca.pem"))
    assert cacerts() == [change.new, old, change.old_with_new, change.new_with_old]
    assert rollover(server, "finish", "--ca", "root")["stage"] == "none"
    assert cacerts() == [change.new]
    estd("check", server.config)


_UNASKED = """
import os, signal, sys
from estd import reload_report
reload_report.ask = lambda run: os.kill(os.getpid(), signal.SIGKILL)
from estd.cli import main
main(sys.argv[1:], standalone_mode=False)
"""
"""The command, killed when it has written everything and is to have the server reload."""


def reported(server: Server) -> tuple[set[str], bytes]:
    """What the server itself shows: the certificates in cacerts, and the identifier of the key that issues."""
    with server.client() as client:
        shown = {one.fingerprint(SHA256()).hex() for one in client.cacerts()}
    return shown, authority(enrol(server))


def test_R19_status_says_what_the_server_does_not_serve_yet(folder: Path) -> None:
    """Killed between its last file and the reload, a command leaves a server that goes on with what it had: status says
    so and what to repeat. A reload, or a new start, is as good."""
    with servers.running(instance(folder / "instance")) as server:
        assert rollover(server, "status")["served"] is True
        for step, word in (("prepare", "has the old root alone"), ("activate", "issues with the old key yet")):
            before = reported(server)
            command = ["ca", "rollover", step, "--config", str(server.config)]
            done = subprocess.run([sys.executable, "-c", _UNASKED, *command], check=False, capture_output=True)
            assert done.returncode == -signal.SIGKILL
            assert reported(server) == before
            told = rollover(server, "status")
            assert told["served"] is False
            assert word in told["next"]
            assert f"repeat estd ca rollover {step}" in told["next"]
            estd("check", server.config)
            rollover(server, step)
            assert rollover(server, "status")["served"] is True
            found = config.load(server.config)
            files = material.load_ca(found.cas["root"], material.read_changes(found))
            assert reported(server) == (set(files.fingerprints()), identifier(files.certificate))
        assert rollover(server, "status")["served"] is True
    assert rollover(server, "status")["served"] is None


@pytest.mark.parametrize("again", ["started", "repeated"])
def test_R19_the_server_is_killed_while_it_changes(folder: Path, again: str) -> None:
    """kill -9 of the supervisor as soon as the state says that the new key issues: the command ends, with a sentence if
    it waited, and the server that is started next issues with the new key."""
    server = instance(folder / "instance")
    with ending(server):
        server.start()
        early = enrol(server)
        rollover(server, "prepare")
        command = [sys.executable, "-m", "estd.cli", "ca", "rollover", "activate", "--config", str(server.config)]
        activating = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        state = server.folder / "ca.rollover"
        wait_for(lambda: "active" in (state / "state.json").read_text(), 60)
        assert server.process is not None
        server.process.kill()
        server.process.wait(timeout=60)
        _, said = activating.communicate(timeout=240)
        assert activating.returncode == 0 or "the server ended while it was to reload" in said
        told = rollover(server, "status")
        assert (told["stage"], told["served"]) == ("active", None)
        if again == "repeated":
            rollover(server, "activate")
        server.start()
        roots = change_of(server)
        assert authority(early) == identifier(roots.old)
        assert authority(enrol(server, "late")) == identifier(roots.new)
        assert rollover(server, "status")["served"] is True
        assert server.stop() == 0


def test_D22_a_reload_while_the_server_starts(folder: Path) -> None:
    """D22: SIGHUP from the moment at which the server can be found does not end it."""
    server = instance(folder / "instance")
    run = server.folder / "run"
    with ending(server):
        server.log_path = server.folder / "serve.log"
        with server.log_path.open("ab") as log:
            server.process = subprocess.Popen(
                [sys.executable, "-m", "estd.cli", "serve", str(server.config)], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip
        wait_for(lambda: reload_report.serving(run) is not None, 60)
        server.process.send_signal(signal.SIGHUP)
        reload(server)
        wait_for(server.is_ready, 60, lambda: log_text(server))
        enrol(server)
        assert server.stop() == 0


def test_R48_one_rollover_after_the_other(folder: Path) -> None:
    """The new root is an old one some day: a second change works as the first, and both are kept aside. A device that
    slept through both, and knows the first root alone, trusts the server and renews."""
    server = servers.init(folder / "instance")
    sleeper = Device(server, folder, "sleeper", [server.ca])
    with servers.running(server):
        sleeper.enroll()
    keys = []
    for _ in range(2):
        rollover(server, "prepare", "--years", str(30 + len(keys)))
        keys.append(rollover(server, "activate")["new"]["key_id"])
        assert rollover(server, "finish", "--force")["root"]["key_id"] == keys[-1]
        for path in list(server.folder.glob("ca.rollover-*")):  # so that the two have not one name
            if not path.name.endswith("-kept"):
                path.rename(path.with_name(f"ca.rollover-0{len(keys)}-kept"))
    pairs(server, *keys)
    leaf, *joins = material.certificates(server.folder / "server.pem")
    assert len(joins) == 2
    assert all(verified(folder, leaf, [root], joins) for root in [*sleeper.anchors, server.ca])
    with servers.running(server):
        assert authority(sleeper.enroll()) == identifier(server.ca)


def test_R48_R50_no_validity_reaches_beyond_its_root(folder: Path) -> None:
    """R48, R50: an old root with a day left: what it signs ends with it, NewWithOld and OldWithNew too; what the new
    one signs has its whole life, and begins no earlier than the new root, which goes on when the old has expired."""
    server = instance(folder / "instance")
    ending_soon(server, timedelta(days=1))
    with servers.running(server):
        early = enrol(server, "early")
        old = server.ca
        rollover(server, "prepare", "--years", "20")
        assert enrol(server, "second").not_valid_after_utc == early.not_valid_after_utc == old.not_valid_after_utc
        rollover(server, "activate")
        roots = change_of(server)
        late = enrol(server, "late")
        assert (
            roots.new_with_old.not_valid_after_utc == roots.old_with_new.not_valid_after_utc == old.not_valid_after_utc
        )
        assert late.not_valid_after_utc - datetime.now(UTC) > timedelta(days=80)
        assert roots.new.not_valid_before_utc <= late.not_valid_before_utc
        assert late.not_valid_after_utc <= roots.new.not_valid_after_utc
    found = config.load(server.config)
    after = old.not_valid_after_utc + timedelta(seconds=1)
    assert material.load_ca(found.cas["root"], material.read_changes(found), after).certificate == roots.new


def ending_soon(server: Server, left: timedelta) -> None:
    """The same root, but with so little of its life left."""
    script = (
        "import sys; from pathlib import Path; from datetime import datetime, timedelta, UTC\n"
        "from cryptography import x509; from cryptography.hazmat.primitives import hashes, serialization\n"
        "from estd import config, rollover; from hsm import keys\n"
        "found = config.load(Path(sys.argv[1])); path = found.cas['root'].certificate\n"
        "old = x509.load_pem_x509_certificate(path.read_bytes())\n"
        "key = keys.signer(rollover._token(found), b'\\1')\n"
        "ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=float(sys.argv[2]))\n"
        "made = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), old.serial_number,\n"
        "    old.not_valid_before_utc, ends, list(old.extensions)).sign(key, hashes.SHA256())\n"
        "path.write_bytes(made.public_bytes(serialization.Encoding.PEM))\n"
    )
    command = [sys.executable, "-c", script, str(server.config), str(left.total_seconds())]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
