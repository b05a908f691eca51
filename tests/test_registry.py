"""The registry with a real server: devices enrol with a one-time secret or their factory's certificate, and only those
that have a row. curl with openssl, BouncyCastle and our own client; kills and races."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estd.enquiry import WRONG_MAX
from estd.errors import ClientError, Refused
from tests import docs, make, servers
from tests.clients import judge
from tests.servers import Server, wait_for
from tests.test_bouncycastle import _perform
from tests.test_curl_openssl import Curl
from tests.test_kill import recorded

MAKER = "Demo Manufacturer"


def estd(server: Server, *words: str | Path, code: int = 0) -> str:
    """What the command says; of `estd device`, with the server's configuration."""
    command = [sys.executable, "-m", "estd.cli", *map(str, words), "--config", str(server.config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr + done.stdout
    return (done.stdout if code == 0 else done.stderr).strip()


def add(server: Server, number: str, *options: str, manufacturer: str = "") -> None:
    estd(server, "device", "add", number, "--label", "registry", "--manufacturer", manufacturer, *options)


def secret(server: Server, number: str) -> str:
    return estd(server, "device", "secret", number, "--label", "registry")


def shown(server: Server, number: str, manufacturer: str = "") -> dict[str, object]:
    return json.loads(
        estd(server, "device", "show", number, "--label", "registry", "--manufacturer", manufacturer, "--json")
    )  # type: ignore[no-any-return]


def enroll(
    server: Server, number: str, password: str, *, key: object = None, csr_der: bytes | None = None,
    cert: tuple[Path, Path] | None = None,
) -> x509.Certificate:  # fmt: skip
    with server.client(label="registry", user=number, password=password, cert=cert) as client:
        return client.enroll(lambda _: csr_der or make.csr(key, subject=make.name("whatever")))


def status(attempt: Callable[[], object]) -> int:
    try:
        attempt()
    except Refused as refused:
        return refused.status
    return 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = servers.init(tmp_path_factory.mktemp("registry") / "instance")
    with servers.running(made):
        yield made


def test_R39_a_device_enrols_once_with_its_secret(server: Server) -> None:
    """R39: a secret works once; the same request gets the same certificate again, another one nothing, at no cost of
    the token's; a new secret works again. Without a row there is neither secret nor file."""
    out = server.folder / "secret-of-A1"
    to_file = ("device", "secret", "A1", "--label", "registry", "--out", out)
    assert "has no device 'A1'" in estd(server, *to_file, code=1)
    add(server, "A1")
    estd(server, *to_file)
    assert len(out.read_text()) == 33
    one, key = secret(server, "A1"), make.key()
    first = enroll(server, "A1", one, key=key)
    assert first.subject == make.name("A1")
    san = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in san] == ["A1.devices.example.com", "urn:dev:A1"]
    signatures = server.metric("estd_sign_seconds_count")
    assert enroll(server, "A1", one, key=key) == first
    assert status(lambda: enroll(server, "A1", one)) == 401
    assert server.metric("estd_sign_seconds_count") == signatures
    assert shown(server, "A1")["secret"].startswith("used ")  # type: ignore[attr-defined]
    assert shown(server, "A1")["certificates"] == [server.rows()[-1].serial.hex()]
    second = enroll(server, "A1", secret(server, "A1"))
    assert second.serial_number != first.serial_number
    assert one not in server.log_path.read_text()


def test_a_registered_device_enrols_with_its_factorys_certificate(server: Server) -> None:
    """R20: no row, no certificate; with one, the names that the rule makes; disabled, nothing any more, on the
    connection that is open too."""
    with server.client(label="registry", cert=server.idevid_files) as client:
        csr_der = make.csr(subject=make.name("boss"))
        with pytest.raises(Refused, match="not in the registry") as unknown:
            client.enroll(lambda _: csr_der)
        assert unknown.value.status == 403
        add(server, "DEMO-0001")
        assert status(lambda: client.enroll(lambda _: csr_der)) == 403, "a row of another manufacturer"
        add(server, "DEMO-0001", manufacturer=MAKER)
        own = client.enroll(lambda _: csr_der)
        assert own.subject == make.name("DEMO-0001.devices.example.com")
        estd(server, "device", "disable", "DEMO-0001", "--label", "registry", "--manufacturer", MAKER)
        signatures = server.metric("estd_sign_seconds_count")
        assert status(lambda: client.enroll(lambda _: csr_der)) == 403
        assert server.metric("estd_sign_seconds_count") == signatures
        estd(server, "device", "enable", "DEMO-0001", "--label", "registry", "--manufacturer", MAKER)
        assert client.enroll(lambda _: csr_der) == own


def test_a_disabled_device_renews_no_more(server: Server, folder: Path) -> None:
    """A certificate dies with its device's row: at the next request, of the renewed one's too."""
    add(server, "R1")
    key = make.key()
    first = make.Identity(enroll(server, "R1", secret(server, "R1"), key=key), key)
    names = first.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    def renew(own: make.Identity, new: object = None) -> x509.Certificate:
        with server.client(label="registry", cert=own.write(folder, "own")) as client:
            csr_der = make.csr(new or own.key, subject=own.certificate.subject, san=list(names))
            return client.enroll(lambda _: csr_der, renew=True)

    new_key = make.key()
    second = make.Identity(renew(first, new_key), new_key)
    assert server.rows()[-1].identity == "device:registry//R1"
    estd(server, "device", "disable", "R1", "--label", "registry")
    for own in (first, second):
        with pytest.raises(Refused, match="disabled") as caught:
            renew(own, make.key())
        assert caught.value.status == 403
    estd(server, "device", "enable", "R1", "--label", "registry")
    renew(second, make.key())


def test_wrong_secrets_are_slowed_down(server: Server, folder: Path) -> None:
    """R39: after some wrong secrets a serial number is told 429 and when to come back, right or wrong, known or not,
    whatever certificate is shown beside them; other devices are not, nor is a renewal by a good certificate."""
    add(server, "T1")
    right, key = secret(server, "T1"), make.key()
    own = make.Identity(enroll(server, "T1", right, key=key), key)
    beside = make.certificate(ca=True).write(folder, "beside")
    for number, cert in (("T1", None), ("nobody", None), ("beside", beside)):
        answers = [
            status(lambda: enroll(server, number, "wrong", cert=cert))  # noqa: B023
            for _ in range(WRONG_MAX + 1)
        ]
        assert answers == [401] * WRONG_MAX + [429]
    with pytest.raises(Refused) as caught:
        enroll(server, "T1", right)
    assert caught.value.status == 429
    assert 0 < int(caught.value.retry_after or 0) <= 60
    add(server, "T2")
    enroll(server, "T2", secret(server, "T2"))
    assert server.metric("estd_rejections_total", reason="throttled") == 4
    with server.client(label="registry", user="T1", password=right, cert=own.write(folder, "own")) as client:
        names = own.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        client.enroll(lambda _: make.csr(key, subject=own.certificate.subject, san=list(names)), renew=True)


def test_R39_a_curl_device(server: Server, folder: Path) -> None:
    """R39: curl with openssl enrols with a one-time secret, over TLS 1.2 and 1.3, and OpenSSL judges what it got."""
    curl = Curl(server, folder)
    for tls in ("1.2", "1.3"):
        number = f"CURL-{tls.replace('.', '-')}"
        add(server, number)
        login = folder / "login"
        login.write_text(f'user = "{number}:{secret(server, number)}"\n')
        _, request = curl.request(number)
        options = ("-K", login, "--tls-max", tls, *(["--tlsv1.3"] if tls == "1.3" else []))
        curl.certificate(number, request, curl.send("registry/simpleenroll", request, *options))
        _, other = curl.request("other")
        got = curl.send("registry/simpleenroll", other, *options)
        assert (got.status, got.body) == (401, b"")
        assert "used" in got.headers["estd-error"]


def test_R39_a_bouncycastle_device(server: Server, folder: Path) -> None:
    """R39: BouncyCastle's client, which shows a password only after a 401, enrols with a one-time secret."""
    add(server, "BC-1")
    right = secret(server, "BC-1")
    first = {"do": "enroll", "subject": "CN=device-1", "label": "registry", "user": "BC-1"}
    scenarios = {
        "wrong": {**first, "password": "wrong"},
        "right": {**first, "password": right},
        "again": {**first, "password": right},
    }
    outcomes = _perform(server, folder, "BcEst", ["bcprov", "bcpkix", "bcutil"], scenarios)
    assert judge.openssl("x509", "-in", outcomes["right"].certificate, "-noout", "-subject").decode().endswith("BC-1\n")
    assert outcomes["wrong"].result != "ok"
    assert outcomes["again"].result != "ok"


OTP_CONFIG = """
[req]
distinguished_name = dn
attributes = attributes
prompt = no
[dn]
serialNumber = {number}
[attributes]
1.2.840.113549.1.9.16.2.56 = {secret}
"""


def test_R44_an_openssl_device_with_an_otp_challenge(server: Server, folder: Path) -> None:
    """R39, R44: the secret in the request's otpChallenge, with no HTTP authentication at all; once, and of the device
    that the request names."""
    curl = Curl(server, folder)
    add(server, "OTP-1")
    add(server, "OTP-2")
    right = secret(server, "OTP-1")

    def ask(number: str, text: str) -> tuple[Path, int]:
        (folder / "req.cnf").write_text(OTP_CONFIG.format(number=number, secret=text))
        key, request = folder / "otp.key", folder / "otp.csr"
        judge.openssl("genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
        judge.openssl("req", "-new", "-key", key, "-config", folder / "req.cnf", "-outform", "DER", "-out", request)
        got = curl.send("registry/simpleenroll", request)
        if got.status == 200:
            curl.certificate("otp", request, got)
        return request, got.status

    assert ask("OTP-1", "wrong")[1] == 401
    assert ask("OTP-2", right)[1] == 401
    assert ask("OTP-1", right)[1] == 200
    assert ask("OTP-1", right)[1] == 401
    _, plain = curl.request("plain")
    assert curl.send("registry/simpleenroll", plain).status == 401
    assert right not in server.log_path.read_text()


def test_R39_two_requests_with_one_secret_at_once(server: Server) -> None:
    """R39: however many keys come with one secret at the same time, one certificate is made."""
    numbers = [f"RACE-{number}" for number in range(4)]
    secrets = {}
    for number in numbers:
        add(server, number)
        secrets[number] = secret(server, number)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: status(lambda: enroll(server, number, secrets[number])), numbers * 8))
    assert sorted(answers) == [200] * 4 + [401] * 28
    for number in numbers:
        assert sum(row.identity == f"device:registry//{number}" for row in server.rows()) == 1


def test_an_import_goes_through_the_running_server(server: Server, folder: Path) -> None:
    """All or nothing, or the good lines alone; devices enrol meanwhile and afterwards with their secrets."""
    lines = [f"IMP-{number},registry" for number in range(3000)]
    bad = folder / "bad.csv"
    bad.write_text("serial_number,label\n" + "\n".join([*lines, "IMP-1,registry", "IMP-x,nowhere"]) + "\n")
    said = estd(server, "device", "import", bad, code=1)
    assert "line 3002: the device 'IMP-1' stands in an earlier line" in said
    assert "line 3003: there is no [label.nowhere]" in said
    assert "nothing was imported" in said
    assert estd(server, "device", "list", "--serial-number", "IMP-") == ""
    out = folder / "secrets.csv"
    done = json.loads(estd(server, "device", "import", bad, "--skip-bad", "--secrets-out", out, "--json"))
    assert (done["added"], done["bad"]) == (3000, 2)
    assert out.stat().st_mode & 0o777 == 0o600
    number, _, _, one = out.read_text().splitlines()[-1].split(",")
    enroll(server, number, one)
    assert len(estd(server, "device", "list", "--serial-number", "IMP-").splitlines()) == 3000
    again = estd(server, "device", "import", bad, code=1)
    assert "line 2: the device 'IMP-0' is in the registry already" in again


def test_an_import_shows_its_progress_on_a_terminal(server: Server, folder: Path) -> None:
    """Reading and writing have a bar each on standard error, which moves, where that is a terminal and the answer is no
    data; a pipe gets none."""
    listed = folder / "listed.csv"

    def said(name: str, stderr: int, *options: str) -> bytes | None:
        """What a pipe gets of it."""
        listed.write_text("serial_number\n" + "".join(f"{name}-{number}\n" for number in range(2500)))
        command = ["device", "import", listed, "--label", "registry", "--config", server.config, *options]
        done = subprocess.run(
            [sys.executable, "-m", "estd.cli", *map(str, command)], check=True, stdout=subprocess.DEVNULL,
            stderr=stderr, timeout=120,
        )  # fmt: skip
        return done.stderr

    def on_terminal(name: str, *options: str) -> str:
        master, slave = pty.openpty()
        with ThreadPoolExecutor(1) as pool, os.fdopen(master, "rb", buffering=0) as terminal:
            shown = pool.submit(lambda: b"".join(iter(lambda: read(terminal), b"")))
            try:
                said(name, slave, *options)
            finally:
                os.close(slave)
            return shown.result().decode()

    def read(terminal: FileIO) -> bytes:
        try:
            return terminal.read(4096) or b""
        except OSError:  # nobody has the other end open any more
            return b""

    bars = on_terminal("BAR")
    for what in ("reading", "writing"):
        assert re.search(rf"{what} +\[-+\] +0%", bars), bars
        assert re.search(rf"{what} +\[#+-+\] +[1-9]\d%", bars), bars
        assert re.search(rf"{what} +\[#+\] +100%", bars), bars
    assert on_terminal("DATA", "--json") == ""
    assert said("PIPE", subprocess.PIPE) == b""


def test_what_is_not_there_is_said(server: Server) -> None:
    """A device that the registry does not have: a sentence that says where to look."""
    for command in ("show", "disable", "enable", "secret"):
        said = estd(server, "device", command, "nobody", "--label", "registry", code=1)
        assert "estd device list" in said
    add(server, "ONCE")
    assert "already" in estd(server, "device", "add", "ONCE", "--label", "registry", code=1)


def test_the_commands_work_while_the_server_is_stopped(folder: Path) -> None:
    """With no server the command writes the ledger itself, and the server finds what it wrote."""
    made = servers.init(folder / "instance")
    add(made, "S1")
    one = secret(made, "S1")
    with servers.running(made):
        enroll(made, "S1", one)
    assert shown(made, "S1")["secret"].startswith("used ")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("issuers", "victims"),
    [(1, ["issuer-0"] * 4), (2, ["issuer-0", "ledger-0", "issuer-1", "ledger-0", "issuer-0"])],
    ids=["one issuer", "two issuers"],
)
def test_R39_no_kill_parts_a_secret_from_its_certificate(folder: Path, issuers: int, victims: list[str]) -> None:
    """R39: issuers, and with several the ledger's process, are killed while devices enrol, each with two copies of its
    request and an impostor's with another key. In the end each secret is used exactly where one certificate is."""
    made = servers.init(folder / "instance")
    made.config.write_text(made.config.read_text().replace("# issuers = 1 ", f"issuers = {issuers} "))
    count = 150
    listed, out = folder / "devices.csv", folder / "secrets.csv"
    listed.write_text("serial_number\n" + "".join(f"K{number}\n" for number in range(count)))
    estd(made, "device", "import", listed, "--label", "registry", "--secrets-out", out)
    secrets = {line.split(",")[0]: line.split(",")[3] for line in out.read_text().splitlines()[1:]}
    held: dict[str, set[bytes]] = {}

    def answered(number: str, csr_der: bytes) -> None:
        """Ask until there is an answer, as devices do."""
        until = time.monotonic() + 200
        while True:
            try:
                certificate = enroll(made, number, secrets[number], csr_der=csr_der)
                held[number].add(certificate.public_bytes(Encoding.DER))
                return
            except Refused as refused:
                if refused.status != 503:
                    return
            except ClientError:
                pass
            assert time.monotonic() < until, f"{number} has no answer"
            time.sleep(0.1)

    def device(number: str) -> None:
        key = make.key()
        csr_der, impostor = make.csr(key), make.csr()
        held[number] = set()
        for csr in (csr_der, impostor, csr_der) if random.random() < 0.5 else (impostor, csr_der, csr_der):
            answered(number, csr)

    def kill() -> None:
        """Each in its turn, with the service at work again: a slot whose processes die in a row waits longer and
        longer for its next, so there is an end to them."""
        for name in victims:
            start = recorded(made)
            wait_for(
                lambda start=start, name=name: recorded(made) >= start + count // 25 and name in made.pids(), 60,
                lambda name=name: f"no work before {name} was to be killed:\n{made.log_path.read_text()[-4000:]}",
            )  # fmt: skip
            os.kill(made.pids()[name], signal.SIGKILL)

    with servers.running(made):
        with ThreadPoolExecutor(9) as pool:
            killer = pool.submit(kill)
            list(pool.map(device, secrets))
        killer.result()
        restarts = sum(made.metric("estd_process_restarts_total", process=name) for name in {*victims})
    rows = made.rows()
    assert restarts >= len(victims)
    used = {
        one["serial_number"]: one["secret"].startswith("used ")
        for one in map(json.loads, estd(made, "device", "list", "--json").splitlines())
    }
    for number in secrets:
        recorded_ders = [row.certificate_der for row in rows if row.identity == f"device:registry//{number}"]
        assert len(recorded_ders) == used[number] == 1, number
        assert held[number] <= set(recorded_ders), number


def test_the_documents_commands_do_what_they_say(folder: Path) -> None:
    """R39: docs/devices.md, its commands run one after the other as they stand there."""
    blocks = docs.blocks("docs/devices.md", "sh")
    assert len(blocks) >= 6
    with servers.running(servers.init(folder / "made")) as made:
        docs.Newcomer(made, folder).run("".join(blocks))
        assert [row.identity for row in made.rows()] == [
            "device:registry//SN-1001", "device:registry//SN-1002", "device:registry/Demo Manufacturer/DEMO-0001",
            "webhook:pump-4",
        ]  # fmt: skip
    judge.chain_holds(made.folder / "ca.pem", folder / "device.pem")
    assert len((folder / "secrets.csv").read_text().splitlines()) == 3
