"""Requests that wait for a person (R27) over real TLS: the clients that poll, restarts, several issuers, and the
command that decides."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from estd.errors import Refused
from tests import make, servers
from tests.clients import judge
from tests.command import estd
from tests.conftest import program
from tests.servers import Server, wait_for
from tests.test_requests_desk import Device, newest
from tests.test_strongswan import Pki

ROOT = Path(__file__).resolve().parent.parent


def _holding(folder: Path, **settings: str) -> Server:
    """An instance whose default label holds first certificates too, as strongSwan's client knows no other label."""
    made = servers.init(folder)
    text = made.config.read_text()
    for key, default, value in (
        ("approval", '"off"', '"first"'), ("approval_retry", '"60s"', '"1s"'), ("deadline", '"10s"', '"60s"'),
        *((key, "1", value) for key, value in settings.items()),
    ):  # fmt: skip
        assert f"# {key} = {default}" in text
        text = text.replace(f"# {key} = {default}", f"{key} = {value}", 1)
    made.config.write_text(text)
    return made


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.running(_holding(tmp_path_factory.mktemp("held") / "instance")) as made:
        yield made


def _last(server: Server) -> int:
    """The number of the newest request; 0 where there is none."""
    found = newest(server)
    return found.id if found is not None else 0


def decide(server: Server, word: str, number: int, *more: str) -> dict[str, Any]:
    done = estd("requests", word, str(number), "--config", server.config, "--json", *more)
    return dict(json.loads(done.out))


def shown(server: Server, number: int) -> dict[str, Any]:
    return dict(json.loads(estd("requests", "show", str(number), "--config", server.config, "--json").out))


def test_R27_strongswan_polls_until_a_person_approves(held: Server, folder: Path) -> None:
    """R27: `pki --est` is told 202, asks again on new connections, and gets its certificate after the approval, made
    while it polls."""
    pki = Pki(held, folder)
    _, request = pki.request("polled")
    before = held.metric("estd_requests_total", status="202")
    command = [
        program("pki"), "--est", "--url", held.url, "--cacert", str(pki.ca), "--in", str(request), "--outform", "pem",
        "--interval", "1", "--maxpolltime", "60", *map(str, pki.factory()),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=pki._environment)
    try:
        wait_for(lambda: held.metric("estd_requests_total", status="202") >= before + 2, 30)
        assert process.poll() is None
        one = newest(held)
        assert one is not None
        assert (one.state, one.subject) == ("pending", "CN=device-1")
        decide(held, "approve", one.id)
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said.decode()
    certificate = folder / "polled.pem"
    certificate.write_bytes(out)
    judge.chain_holds(pki.ca, certificate)
    judge.certifies(certificate, request)
    assert shown(held, one.id)["state"] == "issued"


@pytest.mark.parametrize("tls", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_R27_R13_a_linked_request_is_found_on_another_connection(held: Server, tls: int) -> None:
    """R13, R27: each connection has its own binding value, so each poll its own CSR; it is one request."""
    key = make.key()
    seen: list[bytes] = []

    def build(binding: bytes | None) -> bytes:
        assert binding
        seen.append(binding)
        return make.csr(key, subject=make.name("linked"), challenge_password=binding)

    def ask() -> x509.Certificate:
        with held.client(basic=True, tls=tls) as client:
            return client.enroll(build, link=True)

    numbers = set()
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            ask()
        assert refused.value.status == 202
        numbers.add(_last(held))
    assert len(numbers) == 1
    decide(held, "approve", *numbers)
    ask()
    assert len(set(seen)) == 3


def test_R27_a_202_has_its_form(held: Server) -> None:
    """R27: 202, a jittered Retry-After, a sentence as plain text; no Estd-Error, as it is none."""
    key = make.key()
    told = set()
    with held.client(basic=True) as client:
        for _ in range(20):
            answer = client.request(
                "POST", "simpleenroll", make.body(make.csr(key, subject=make.name("formed"))),
                Content_Type="application/pkcs10",
            )  # fmt: skip
            body = answer.read().decode()
            assert answer.status == 202
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert answer.headers["Estd-Error"] is None
            assert body == "The request waits for a person's approval; ask again later, with the same key and names.\n"
            told.add(answer.headers["Retry-After"])
    assert told == {"1", "2"}


def test_R27_a_request_outlives_restarts_and_issuers(folder: Path) -> None:
    """R27: what waits is there after a restart, is decided on while the server is stopped, and is known to each of
    several issuers through the ledger's process; a kill of all issuers in between changes nothing."""
    server = _holding(folder / "instance", issuers="2")
    devices = [Device(server, f"device-{number}", label=None) for number in range(4)]
    with servers.running(server):
        numbers = [device.waits().id for device in devices]
        assert numbers == [1, 2, 3, 4]
        assert [device.waits().id for device in devices] == [4] * 4  # the newest is still the fourth
        assert shown(server, 1)["state"] == "pending"
    assert decide(server, "approve", 1)["state"] == "approved"
    decide(server, "deny", 2, "--reason", "not ours")
    with servers.running(server):
        assert devices[0].ask()
        assert devices[1].is_told() == (403, "The request was denied: not ours.")
        decide(server, "approve", 3, "--by", "Ada")
        for name, pid in server.pids().items():
            if name.startswith("issuer"):
                os.kill(pid, 9)
        wait_for(server.is_ready, 30)
        certificate = devices[2].ask()
        one = shown(server, 3)
        assert (one["state"], one["decided_by"]) == ("issued", "cli:Ada")
        assert int(one["serial"], 16) == certificate.serial_number
        assert devices[3].is_told()[0] == 202
        wait_for(lambda: server.metric("estd_approvals_waiting") == 1, 10)
        assert server.metric("estd_approval_decisions_total", decision="approved") == 1
        assert server.metric("estd_approvals_oldest_wait_seconds") > 0


def test_R27_the_command_lists_and_decides(held: Server) -> None:
    """`estd requests`: what waits and its search, all that a person needs, who decided (the user without --by), and a
    sentence for what cannot be."""
    number = Device(held, "listed", (x509.DNSName("listed.example.com"),), label=None).waits().id
    config = ("--config", held.config)
    line = estd("requests", "list", *config, "--search", "listed.example").out
    assert re.search(rf"{number}  20\S+Z  pending   default +basic:factory +CN=listed, DNS:listed.example.com\n", line)
    (data,) = estd("requests", "list", *config, "--search", "LISTED", "--json").lines
    one = shown(held, number)
    assert {**data, "decisions": []} == one
    assert one["names"] == ["DNS:listed.example.com"]
    assert (one["peer"], one["key"], one["state"]) == ("127.0.0.1", "ec-p256", "pending")
    assert "needs a reason" in estd("requests", "deny", str(number), *config, "--reason", " ", status=2).err
    assert "at most" in estd("requests", "approve", str(number), *config, "--reason", "x" * 301, status=2).err
    told = estd("requests", "deny", str(number), *config, "--reason", "a\nlong\x1b[2J story").out
    assert told == f"request {number} is denied: CN=listed\n"
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    said = f"request {number} was denied by cli:{user}: a long\N{REPLACEMENT CHARACTER}[2J story"
    assert said in estd("requests", "deny", str(number), *config, "--reason", "again", status=1).err
    assert f"{said}; with --overturn" in estd("requests", "approve", str(number), *config, status=1).err
    assert shown(held, number)["state"] == "denied", "nobody's decision is overturned unawares"
    assert decide(held, "approve", number, "--by", "Ada", "--overturn")["decided_by"] == "cli:Ada"
    assert [(one["state"], one["by"]) for one in shown(held, number)["decisions"]] == [
        ("denied", f"cli:{user}"), ("approved", "cli:Ada"),
    ]  # fmt: skip
    words = estd("requests", "show", str(number), *config).out
    assert "approved by cli:Ada" in words
    assert "\x1b" not in words
    assert "no request 99999" in estd("requests", "approve", "99999", *config, status=1).err
    assert "no such request" in estd("requests", "list", *config, "--search", "nothing like this").err


def test_R27_the_documents_commands_work(held: Server, folder: Path) -> None:
    """The commands of docs/approval.md, pasted: one terminal waits with `estd enroll --wait`, another decides."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "approval.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    (enroll,), deciding = (
        [shlex.split(line) for line in block.replace("\\\n", "").strip().splitlines()] for block in blocks
    )
    (folder / "demo").symlink_to(held.folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def command(words: list[str], number: int = 1) -> list[str]:
        assert words[0] == "estd"
        swapped = [held.url if word.startswith("https:") else str(number) if word == "1" else word for word in words]
        return [sys.executable, "-m", "estd.cli", *swapped[1:]]

    before = _last(held)
    device = subprocess.Popen(
        command(enroll), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: _last(held) > before, 30)
        number = _last(held)
        for words in deciding:
            done = subprocess.run(
                command(words, number), check=False, cwd=folder, env=environment, capture_output=True, text=True
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert "gateway-1" in done.stdout
        out, said = device.communicate(timeout=60)
    finally:
        device.kill()
        device.wait()
    assert device.returncode == 0, said
    assert "Asking again in" in said
    assert "CN=gateway-1" in out
    judge.chain_holds(held.folder / "ca.pem", folder / "gateway.pem")


@pytest.mark.parametrize("label", [None, "approval"])
def test_R27_R29_a_key_is_made_once_a_person_has_approved(held: Server, folder: Path, label: str | None) -> None:
    """`estd enroll --serverkeygen --wait`: the same request each time; no signature and no certificate before somebody
    approves, then the key with its certificate, once. The page says that the server will make the key."""
    basic = folder / "basic"
    basic.write_text(":".join(held.basic) + "\n")
    words = ["enroll", held.url, "--cacert", str(held.folder / "ca.pem"), "--credential", str(basic), "--out",
             str(folder / "sensor"), "--subject", "CN=sensor-1", "--serverkeygen", "--key-type", "ec-p384",
             "--wait", "10m"]  # fmt: skip
    words += ["--label", label] if label else []
    before, rows = _last(held), len(held.rows())
    device = subprocess.Popen(
        [sys.executable, "-m", "estd.cli", *words], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: _last(held) > before, 30)
        time.sleep(3)  # polls meanwhile
        assert (_last(held), len(held.rows())) == (before + 1, rows)
        one = shown(held, before + 1)
        assert (one["key"], one["subject"], one["state"]) == ("serverkeygen", "CN=sensor-1", "pending")
        decide(held, "approve", before + 1)
        _, said = device.communicate(timeout=60)
    finally:
        device.kill()
        device.wait()
    assert device.returncode == 0, said
    assert "Asking again in" in said
    key: Any = load_pem_private_key((folder / "sensor.key").read_bytes(), None)
    got = x509.load_pem_x509_certificate((folder / "sensor.pem").read_bytes())
    assert key.curve.name == "secp384r1"
    assert key.public_key() == got.public_key()
    assert shown(held, before + 1)["state"] == "issued"
    assert len(held.rows()) == rows + 1


def test_R27_R29_a_request_for_a_key_is_found_by_the_requests_own_key(held: Server) -> None:
    """Whoever has the same credential and asks for the same names with another key in the request does not fetch what
    was approved for somebody else; a denial is told, and after one key the next request waits anew."""
    csr_der, other = (make.csr(subject=make.name("sensor-2")) for _ in range(2))

    def told(request: bytes) -> int:
        with held.client(basic=True) as client:
            try:
                client.serverkeygen(lambda _: request)
            except Refused as refusal:
                return refusal.status
        return 200

    before = _last(held)
    assert [told(csr_der), told(csr_der), told(other), told(csr_der)] == [202] * 4
    assert _last(held) == before + 2
    decide(held, "approve", before + 1)
    decide(held, "deny", before + 2, "--reason", "not this one")
    assert [told(other), told(csr_der), told(csr_der)] == [403, 200, 202]
    assert _last(held) == before + 3


@pytest.mark.parametrize("keygen", [(), ("--serverkeygen",)], ids=["simpleenroll", "serverkeygen"])
def test_R27_estd_enroll_asks_again_by_another_command(held: Server, folder: Path, keygen: tuple[str, ...]) -> None:
    """Without --wait, and when it is over, the command ends with what the server said and keeps the request's key: run
    again it asks for the same request, and fetches what was approved. It is never the device's key unheard of."""
    basic = folder / "basic"
    basic.write_text(":".join(held.basic) + "\n")
    command = (
        "enroll", held.url, "--cacert", held.folder / "ca.pem", "--credential", basic, "--out", folder / "late",
        "--subject", "CN=late", *keygen,
    )  # fmt: skip
    assert "a duration such as" in estd(*command, "--wait", "5x", status=2).err
    before = _last(held)
    said = estd(*command, status=1).err
    assert said.startswith("estd: the server answered 202: The request waits")
    assert said.endswith(" Run the same command again for that, or with --wait 10m\n")
    request_key = folder / "late.request.key"
    assert request_key.stat().st_mode & 0o777 == 0o600
    kept = request_key.read_bytes()
    assert "Asking again" in estd(*command, "--wait", "3s", status=1).err
    assert (_last(held), request_key.read_bytes()) == (before + 1, kept)
    assert not (folder / "late.key").exists()
    decide(held, "approve", before + 1)
    estd(*command)
    assert shown(held, before + 1)["state"] == "issued"
    assert not request_key.exists()
    assert ((folder / "late.key").read_bytes() == kept) is not bool(keygen)
    assert "202: " in estd(*command, "--key-type", "ec-p384", status=1).err
    assert request_key.read_bytes() != kept
