"""R51: renewal-info over TLS: what whoever knows a serial number is told, through restarts, reloads, several issuers, a
busy queue and a root's change of keys; what everybody else is told; and the command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from estd import renewal_info
from estd.client import EstClient
from estd.errors import ClientError, Refused
from tests import make, servers
from tests.conftest import program
from tests.make import Identity
from tests.servers import Server, wait_for
from tests.test_clients_refused import revoke
from tests.test_reload import change, reload
from tests.test_renewal_info import HOSTILE
from tests.test_rollover import rollover
from tests.test_supervisor import instance, log_text, replaced

STRANGE = str(renewal_info.CertId(b"k" * 20, b"\1" * 16))


def enrolled(server: Server, common_name: str = "pump-7", label: str | None = None) -> Identity:
    key = make.key()
    with server.client(basic=True, label=label) as client:
        return Identity(client.enroll(lambda _: make.csr(key, subject=make.name(common_name))), key)


def get(
    server: Server, text: str, *, label: str | None = None, method: str = "GET", client: EstClient | None = None
) -> tuple[int, Message, bytes]:
    """Status, headers and body of the answer to renewal-info, without a certificate or a credential."""
    with server.client(label=label) as own:
        answer = (client or own).request(method, f"renewal-info/{text}")
        return answer.status, answer.headers, answer.read()


def window(server: Server, certificate: x509.Certificate, label: str | None = None) -> renewal_info.Window:
    with server.client(label=label) as client:
        return client.renewal_info(certificate)[0]


def due(certificate: x509.Certificate, found: renewal_info.Window) -> bool:
    """Whether it is the usual window, of 60 to 80 percent of a life that began just now."""
    end = certificate.not_valid_after_utc.timestamp()
    life = end - certificate.not_valid_before_utc.timestamp() - 3600
    return end - 0.4 * life - 60 <= found.start < found.end <= end - 0.2 * life + 60


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two edges, two issuers, and a ledger process that writes for both. What waits for processes that are made anew
    waits as long as a busy machine takes for that."""
    folder = tmp_path_factory.mktemp("double") / "instance"
    with servers.running(instance(folder, edges=2, issuers=2, deadline="60s")) as made:
        yield made


def openssl_name(folder: Path, certificate: Identity) -> str:
    """A certificate's identifier as openssl's own words make it, with no code of ours."""
    path, _ = certificate.write(folder, "asked")
    command = [program("openssl"), "x509", "-in", path, "-noout", "-serial", "-ext", "authorityKeyIdentifier"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    serial = re.search(r"serial=([0-9A-F]+)", said)
    key_id = re.search(r"((?:[0-9A-F]{2}:)+[0-9A-F]{2})", said)
    assert serial is not None
    assert key_id is not None
    octets = bytes.fromhex(serial[1])
    parts = bytes.fromhex(key_id[1].replace(":", "")), b"\0" * (octets[0] >> 7) + octets
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def test_R51_openssl_makes_the_same_identifier(server: Server, folder: Path) -> None:
    """R51: what openssl prints of a certificate of ours, and of one whose serial number's first bit is set, makes the
    identifier that our client makes, and the server knows its certificate by it."""
    device = enrolled(server)
    assert str(renewal_info.cert_id(device.certificate)) == openssl_name(folder, device)
    assert get(server, openssl_name(folder, device))[0] == 200
    while (high := make.certificate()).certificate.serial_number.bit_length() % 8:
        pass
    assert str(renewal_info.cert_id(high.certificate)) == openssl_name(folder, high)
    assert get(server, openssl_name(folder, high))[0] == 404


def test_R51_the_answer(server: Server) -> None:
    """R51: a 200 with exactly the standard's JSON and a Retry-After, to somebody without certificate or credential,
    under the path with its label and without one; HEAD has the same head. The token is not asked, and the log says
    which serial number it was."""
    device = enrolled(server)
    text = str(renewal_info.cert_id(device.certificate))
    signed = server.metric("estd_sign_seconds_count")
    status, headers, body = get(server, text)
    assert (status, headers["Content-Type"], headers["Server"]) == (200, "application/json", "estd")
    assert "Content-Transfer-Encoding" not in headers
    assert 21600 <= int(headers["Retry-After"]) <= 43200
    told = json.loads(body)
    assert list(told) == ["suggestedWindow"]
    assert list(told["suggestedWindow"]) == ["start", "end"]
    for one in told["suggestedWindow"].values():
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one)
    assert due(device.certificate, renewal_info.read_body(body))
    assert get(server, text, label="default")[2] == body
    assert get(server, text, label="strict")[2] == body, "another label of the same CA"
    head = get(server, text, method="HEAD")
    assert (head[0], head[2], head[1]["Content-Length"]) == (200, b"", str(len(body)))
    assert server.metric("estd_sign_seconds_count") == signed
    assert server.metric("estd_requests_total", operation="renewal-info", status="200") >= 4
    serial = f"{device.certificate.serial_number:032x}"

    def logged() -> int:
        lines = server.log_lines()
        return sum(line.get("operation") == "renewal-info" and line.get("serial") == serial for line in lines)

    wait_for(lambda: logged() == 4, 10)


def test_R51_a_client_with_a_certificate_is_told_the_same(server: Server, folder: Path) -> None:
    """R51: who asks makes no difference."""
    device = enrolled(server)
    text = str(renewal_info.cert_id(device.certificate))
    with server.client(cert=device.write(folder, "device")) as client:
        assert get(server, text, client=client)[2] == get(server, text)[2]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_R51_it_is_read_only(method: str, server: Server) -> None:
    """R51: anything but GET and HEAD is a 405 that says so, whatever the identifier."""
    for text in (STRANGE, "simpleenroll"):
        status, headers, _ = get(server, text, method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_R51_an_unknown_certificate_is_a_404(server: Server) -> None:
    """R51: a certificate that the ledger does not hold, or not under this key, is a 404 with one plain sentence."""
    known = renewal_info.cert_id(enrolled(server).certificate)
    unknown = [
        STRANGE, known._replace(serial=b"\1" * 16), known._replace(serial=b"\1"), known._replace(serial=b"\0"),
        known._replace(serial=b"\1" * 21), known._replace(key_id=b"k" * 20), known._replace(key_id=known.key_id[:19]),
    ]  # fmt: skip
    assert get(server, str(known))[0] == 200
    answers = [get(server, str(one)) for one in unknown]
    assert {(status, body) for status, _, body in answers} == {
        (404, b"This CA has issued no such certificate, as far as this label tells.\n")
    }


@pytest.mark.parametrize(
    "case", [one for one, text in HOSTILE.items() if text.isascii() and text.isprintable() and len(text) < 7000]
)
def test_R51_what_is_no_identifier_is_a_400(case: str, server: Server) -> None:
    """R51: hostile paths are a 400, the connection lives on, and no token or ledger was asked."""
    with server.client() as client:
        for _ in range(2):
            status, _, body = get(server, HOSTILE[case], client=client)
            assert status == 400
            assert b"base64url without padding" in body


def test_R51_paths_that_only_look_like_it(server: Server) -> None:
    """R51: more segments, an unknown label and a missing identifier are refused as such."""
    said = {
        "renewal-info": (400, "base64url"),
        "renewal-info/a/b": (404, ""),
        "renewal-info//": (404, "slash too many"),
        "nowhere/renewal-info/a.b": (404, "no label"),
        "cacerts/renewal-info/a.b": (404, "no label"),
        "renewal-info/renewal-info/a.b": (404, ""),
    }
    with server.client() as client:
        for path, (status, sentence) in said.items():
            answer = client.request("GET", path)
            assert (answer.status, sentence in answer.read().decode()) == (status, True), path


def test_R51_a_label_may_keep_it_to_itself(server: Server) -> None:
    """R51: with renewal_info = false the operation is not offered: a 404 that says so, whatever stands behind it."""
    text = str(renewal_info.cert_id(enrolled(server).certificate))
    for tail in (f"/{text}", "/x", ""):
        with server.client(label="silent") as client:
            answer = client.request("GET", f"renewal-info{tail}")
            assert answer.status == 404
            assert "renewal-info is not offered" in answer.read().decode()


def test_R51_a_revoked_certificate_is_over_at_once(server: Server) -> None:
    """R51: from `estd cert revoke` on its window is past, so that a device that asks comes, and hears why it cannot
    renew; the certificates beside it are told as before."""
    device, other = enrolled(server), enrolled(server)
    assert due(device.certificate, window(server, device.certificate))
    revoke(server, device.certificate.serial_number)
    found = window(server, device.certificate)
    assert found.start < found.end <= time.time()
    assert due(other.certificate, window(server, other.certificate))


def test_R51_a_proxys_query_is_no_part_of_the_identifier(server: Server) -> None:
    """R51: a query behind the identifier is not read, as behind every path."""
    assert get(server, f"{renewal_info.cert_id(enrolled(server).certificate)}?x=1")[0] == 200


def test_R51_the_command(server: Server, folder: Path) -> None:
    """R51: `estd renewal-info` prints the window in words and with --json as data; a refusal is a sentence."""
    device = enrolled(server)
    path, _ = device.write(folder, "device")
    server_ca = str(server.folder / "ca.pem")

    def said(*options: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "estd.cli", "renewal-info", server.url, "--cacert", server_ca, *options]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout or done.stderr

    told = json.loads(said("--cert", str(path), "--json"))
    start, end = window(server, device.certificate)
    times = [datetime.fromtimestamp(one, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for one in (start, end)]
    assert [told["start"], told["end"], told["begun"]] == [*times, False]
    assert 21600 <= told["ask_again_seconds"] <= 43200
    words = said("--cert", str(path))
    assert times[0][:10] in words
    assert words.splitlines()[-1].split() == ["renew", "then"]
    revoke(server, device.certificate.serial_number)
    assert said("--cert", str(path)).splitlines()[-1].split() == ["renew", "now"]
    strange, _ = make.certificate().write(folder, "strange")
    assert "no such certificate" in said("--cert", str(strange), status=1)
    assert "not offered" in said("--cert", str(path), "--label", "silent", status=1)


def test_R51_several_issuers_and_a_ledger_process(double: Server) -> None:
    """R51: whichever issuer a serial number falls to answers, of what either issued and what is revoked meanwhile."""
    devices = [
        enrolled(double, f"pump-{number}").certificate for number in range(12)
    ]  # for one issuer alone: once in 2048 runs
    assert all(due(one, window(double, one)) for one in devices)
    revoke(double, devices[0].serial_number)
    assert window(double, devices[0]).end <= time.time()
    assert due(devices[1], window(double, devices[1]))


def test_R51_questions_outlive_an_issuer(double: Server) -> None:
    """R51: while issuers are stopped questions wait; after SIGKILL the next issuers answer them all, more than are
    taken in one go."""
    device = enrolled(double).certificate
    told = window(double, device)
    count = 80
    pids = [pid for name, pid in double.pids().items() if name.startswith("issuer")]
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        clients = [stack.enter_context(double.client()) for _ in range(count)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        waiting = [pool.submit(client.renewal_info, device) for client in clients]
        wait_for(lambda: double.metric("estd_queue_depth") == count, 30, lambda: log_text(double))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert {one.result()[0] for one in waiting} == {told}
    wait_for(double.is_ready, 60, lambda: log_text(double))


def test_R51_a_reload_and_a_restart(double: Server) -> None:
    """R51: a reload tells another window of certificates that there are, and a restart the same as before it."""
    device = enrolled(double).certificate
    before = window(double, device)
    change(double, "[profile.factory]", '[profile.factory]\nrenewal_window = ["10%", "20%"]')
    reload(double)
    early = window(double, device)
    assert early.end < before.start
    assert double.stop() == 0
    double.start()
    assert window(double, device) == early
    change(double, "# renewal_info = true", "renewal_info = false")
    reload(double)
    with pytest.raises(Refused, match="not offered"):
        window(double, device)
    change(double, "renewal_info = false", "renewal_info = true")
    reload(double)
    assert window(double, device) == early
    assert replaced(double, "ledger-0", signal.SIGKILL)
    assert window(double, device) == early


def test_R51_enrolments_come_first(folder: Path) -> None:
    """R51: while half of an edge's queue is taken questions are a 503 at once, with a Retry-After of a minute or two,
    and enrolments are taken and answered; then questions are answered again."""
    with servers.running(instance(folder / "instance", queue=4)) as made:
        device = enrolled(made).certificate
        issuer = made.pids()["issuer-0"]
        with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
            clients = [stack.enter_context(made.client(basic=True)) for _ in range(3)]
            os.kill(issuer, signal.SIGSTOP)
            try:
                waiting = [pool.submit(clients[one].enroll, lambda _: make.csr()) for one in range(2)]
                wait_for(lambda: made.metric("estd_queue_depth") == 2, 10)
                with made.client() as client, pytest.raises(Refused) as caught:
                    client.renewal_info(device)
                waiting.append(pool.submit(clients[2].enroll, lambda _: make.csr()))
                wait_for(lambda: made.metric("estd_queue_depth") == 3, 10)
            finally:
                os.kill(issuer, signal.SIGCONT)
            assert len({one.result().serial_number for one in waiting}) == 3
        assert caught.value.status == 503
        assert 60 <= int(caught.value.retry_after or 0) <= 120
        assert made.metric("estd_rejections_total", reason="overloaded") == 1
        assert due(device, window(made, device))


def test_R51_R19_through_a_rollover(folder: Path) -> None:
    """R51, R19: through a root's change of keys, and after the old one is put away, certificates under either key are
    told windows that end before their root does."""
    with servers.running(servers.init(folder / "instance")) as made:
        old_root = made.ca
        known: list[tuple[x509.Certificate, x509.Certificate]] = [(enrolled(made).certificate, old_root)]

        def all_told() -> None:
            for certificate, root in known:
                found = window(made, certificate)
                assert due(certificate, found)
                assert found.end < root.not_valid_after_utc.timestamp()

        rollover(made, "prepare")
        all_told()
        rollover(made, "activate")
        all_told()
        with made.client() as client:
            roots = [one for one in client.cacerts() if one.issuer == one.subject and one != old_root]
        new_root = max(roots, key=lambda one: one.not_valid_after_utc)
        known.append((enrolled(made).certificate, new_root))
        ids = [renewal_info.cert_id(certificate).key_id for certificate, _ in known]
        assert ids[0] != ids[1]
        all_told()
        # Each key with the other's serial number names nothing.
        swapped = renewal_info.CertId(ids[1], renewal_info.cert_id(known[0][0]).serial)
        assert get(made, str(swapped))[0] == 404
        rollover(made, "finish", "--force")
        all_told()


def test_R51_our_client_says_what_is_wrong(server: Server) -> None:
    """R51: a certificate that cannot be named is a sentence before anything is sent."""
    root: Any = make.certificate(ca=True)
    builder = x509.CertificateBuilder(
        root.certificate.issuer, root.certificate.subject, root.key.public_key(), 5,
        root.certificate.not_valid_before_utc, root.certificate.not_valid_after_utc,
    )  # fmt: skip
    bare = builder.sign(root.key, root.certificate.signature_hash_algorithm)
    with server.client() as client, pytest.raises(ClientError, match="no AuthorityKeyIdentifier"):
        client.renewal_info(bare)
