"""Requirements that openssl and curl can judge from outside, where other tests use a client of our own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from estd import credentials
from tests.clients import judge
from tests.conftest import program
from tests.servers import Server, wait_for
from tests.test_curl_openssl import Curl

_P384 = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes")
_USAGE = ("-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=clientAuth")


@pytest.fixture
def curl(server: Server, folder: Path) -> Curl:
    return Curl(server, folder)


def s_client(port: int, *options: str | Path) -> tuple[int, str]:
    """openssl's exit status and what it said of a connection to that port."""
    done = judge.run(program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *options, data=b"")
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def made(folder: Path, stem: str, *options: str) -> Path:
    """A request (DER) by `openssl req` with these options, its new key beside it."""
    judge.openssl(
        "req", "-new", *options, "-keyout", folder / f"{stem}.key", "-outform", "DER", "-out", folder / f"{stem}.csr"
    )
    return folder / f"{stem}.csr"


def test_R12_tls_srp_is_not_offered(server: Server) -> None:
    """R12: an openssl that offers SRP suites and a name is refused where it offers nothing else (a server with SRP
    would ask for its password or not know the name), and where it offers more, gets a suite without SRP."""
    srp = ("-tls1_2", "-srpuser", "device", "-srppass", "pass:secret", "-cipher")
    status, said = s_client(server.port, *srp, "SRP:@SECLEVEL=0")
    assert status != 0
    assert "alert handshake failure" in said
    status, said = s_client(server.port, *srp, "SRP:ECDHE+AESGCM:@SECLEVEL=0")
    assert status == 0
    assert "Cipher is ECDHE-ECDSA" in said


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_R9_openssl_gets_a_full_handshake_each_time(version: str, server: Server, folder: Path) -> None:
    """R9: what openssl keeps of its first connection resumes nothing, and brings no alert."""
    session = folder / "session"
    assert s_client(server.port, version, "-sess_out", session)[0] == 0
    offered = ("-sess_in", session) if session.exists() else ("-reconnect",)
    status, said = s_client(server.port, version, *offered)
    assert status == 0, said
    assert "New, TLSv1" in said
    assert "Reused, TLSv1" not in said


def test_R15_openssl_knows_the_server_by_its_names(server: Server) -> None:
    """R15: openssl verifies the server as localhost and by its addresses, by no other name, never as a client."""
    ca, own = server.folder / "ca.pem", server.folder / "server.pem"
    for named in (("-verify_hostname", "localhost"), ("-verify_ip", "127.0.0.1"), ("-verify_ip", "::1")):
        assert s_client(server.port, "-CAfile", ca, "-verify_return_error", *named)[0] == 0
    wrong = s_client(server.port, "-CAfile", ca, "-verify_return_error", "-verify_hostname", "est.example.org")
    assert wrong[0] != 0
    for purpose, holds in (("sslserver", True), ("sslclient", False)):
        found = judge.run(program("openssl"), "verify", "-CAfile", ca, "-purpose", purpose, own)
        assert (found.returncode == 0) is holds
    assert b"CMC" in judge.openssl("x509", "-in", own, "-noout", "-ext", "extendedKeyUsage")


def test_R6_curl_needs_no_user_name(curl: Curl) -> None:
    """R6: curl with `-u :secret` enrols once the credentials file has a secret for the empty name."""
    path = curl.server.folder / "credentials"
    old = path.read_text()
    _, request = curl.request("nameless")
    path.write_text(old + credentials.line("", "no-name-secret", generated=True) + "\n")
    try:
        wait_for(lambda: curl.send("simpleenroll", request, "-u", ":no-name-secret").status == 200, 10)
        assert curl.send("simpleenroll", request, "-u", ":another").status == 401
    finally:
        path.write_text(old)


def test_R7_curl_is_told_which_type_a_request_has(curl: Curl) -> None:
    """R7: curl's own type for a POST is a 415, whose sentence names application/pkcs10."""
    _, request = curl.request("device")
    text = judge.openssl("base64", "-in", request)
    got = curl("simpleenroll", *curl.factory(), "--data-binary", "@-", data=text)
    assert got.status == 415
    assert b"application/pkcs10" in got.body


def test_R14_curl_is_told_to_link(curl: Curl) -> None:
    """R14: where the label demands linking, openssl's request without is a 400 that says what to put where."""
    _, request = curl.request("device")
    got = curl.send("trimmed/simpleenroll", request, *curl.factory())
    assert got.status == 400
    assert b"tls-unique" in got.body


def test_R21_a_request_that_openssl_finds_badly_signed(curl: Curl) -> None:
    """R21: with its signature's last octet changed openssl fails to verify it, and the server answers 400."""
    _, request = curl.request("device")
    good = request.read_bytes()
    for content, holds in ((good, True), (good[:-1] + bytes((good[-1] ^ 1,)), False)):
        request.write_bytes(content)
        found = judge.run(program("openssl"), "req", "-inform", "DER", "-in", request, "-verify", "-noout")
        assert (b"verify OK" in found.stdout + found.stderr) is holds
        assert curl.send("simpleenroll", request, *curl.factory()).status == (200 if holds else 400)


@pytest.mark.parametrize(("label", "same", "other"), [("strict", 403, 200), ("sites", 200, 403), ("default", 200, 200)])
def test_R24_renew_or_rekey_by_policy(label: str, same: int, other: int, curl: Curl) -> None:
    """R24: curl renews with openssl's same key or another one, as each label's policy says."""
    key, request = curl.request("first")
    shown: tuple[str | Path, ...] = curl.factory()
    if label == "strict":
        certificate, secret = curl.server.idevid_files
        shown = ("--cert", certificate, "--key", secret)
        judge.openssl("req", "-new", "-key", key, "-subj", "/", "-outform", "DER", "-out", request)
    first = curl.certificate("first", request, curl.send(f"{label}/simpleenroll", request, *shown))
    _, another = curl.request("second")
    if label == "strict":
        names = ("-subj", "/O=Demo Manufacturer/serialNumber=DEMO-0001/CN=device DEMO-0001")
        for one, secret in ((request, key), (another, curl.folder / "second.key")):
            judge.openssl("req", "-new", "-key", secret, *names, "-outform", "DER", "-out", one)
    for asked, status in ((request, same), (another, other)):
        got = curl.send(f"{label}/simplereenroll", asked, "--cert", first, "--key", key)
        assert got.status == status, got.body


def test_R38_curl_follows_no_redirection(curl: Curl) -> None:
    """R38: curl, told to follow wherever it is sent, is sent nowhere: 404 at the first answer."""
    _, request = curl.request("device")
    for path in ("simpleenroll/", "/simpleenroll", "default/simpleenroll/"):
        got = curl.send(path, request, *curl.factory(), "-L", "--post301", "--post302", "--post303")
        assert got.status == 404
        assert "location" not in got.headers
        assert got.said.count("< HTTP/1.1") == 1


def test_R47_openssl_makes_what_csrattrs_asks_for(curl: Curl) -> None:
    """R47: at a label that enforces its csrattrs a request of openssl's with the key, usages and signature that they
    name is served; each without one of them is a 400 that says which."""
    told = judge.openssl("asn1parse", "-inform", "DER", data=judge.openssl(
        "base64", "-d", data=curl("enforced/csrattrs").body)).decode()  # fmt: skip
    for named in ("secp384r1", "ecdsa-with-SHA384", "Key Usage", "Extended Key Usage"):
        assert named in told
    right = made(curl.folder, "right", *_P384, "-sha384", "-subj", "/CN=device-1", *_USAGE)
    curl.certificate("right", right, curl.send("enforced/simpleenroll", right, *curl.factory()))
    wrong = {
        "signature": (*_P384, "-sha256", "-subj", "/CN=device-1", *_USAGE),
        "common name": (*_P384, "-sha384", "-subj", "/O=Acme", *_USAGE),
        "2.5.29.37": (*_P384, "-sha384", "-subj", "/CN=device-1", *_USAGE[:2]),
    }
    for word, options in wrong.items():
        got = curl.send("enforced/simpleenroll", made(curl.folder, "wrong", *options), *curl.factory())
        assert (got.status, word in got.body.decode()) == (400, True), got.body


def test_R16_curl_enrolls_for_a_machine(renewal_server: Server, folder: Path) -> None:
    """R16: a gateway with curl and openssl gets an RA's certificate, and once that is listed, one for its machine."""
    curl = Curl(renewal_server, folder)
    key, request = curl.request("gateway")
    judge.openssl("req", "-new", "-key", key, "-subj", "/CN=gateway-3", "-outform", "DER", "-out", request)
    gateway = curl.certificate("gateway", request, curl.send("registrars/simpleenroll", request, *curl.factory()))
    shown = ("--cert", gateway, "--key", key)
    _, asked = curl.request("machine")
    listed = renewal_server.folder / "ras.pem"
    assert curl.send("line/simpleenroll", asked, *shown).status in (401, 403)
    listed.write_bytes(gateway.read_bytes())
    try:
        time.sleep(1.1)  # the file is looked at again within a second
        machine = curl.certificate("machine", asked, curl.send("line/simpleenroll", asked, *shown))
    finally:
        listed.write_bytes(b"")
    assert judge.subject(machine) == "subject=CN=device-1"
