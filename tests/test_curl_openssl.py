"""curl and openssl, as a person would script EST: a request made, sent, unpacked and verified from a shell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients import judge
from tests.conftest import program
from tests.servers import Server

_NAME = "device-1.devices.example.com"
_TYPE = ("-H", "Content-Type: application/pkcs10")


@dataclass(frozen=True)
class Got:
    """curl's answer: exit status, HTTP status, headers of the last answer (lower case), body, and what it said."""

    code: int
    status: int
    headers: dict[str, str]
    body: bytes
    said: str


def _decoded(body: bytes) -> bytes:
    """OpenSSL wants to be told of a single line (-A)."""
    return judge.openssl("base64", "-d", *(["-A"] if body.count(b"\n") == 1 else []), data=body)


class Curl:
    """curl, told to trust the server's CA and to say everything."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.ca = server.folder / "ca.pem"

    def __call__(self, operation: str, *options: str | Path, data: bytes | None = None) -> Got:
        """Ask for the operation; `data` is curl's standard input."""
        url = f"{self.server.url}/.well-known/est/{operation}"
        body, head = self.folder / "body", self.folder / "head"
        body.write_bytes(b"")
        command = [
            program("curl"), "-sS", "-v", "--max-time", "20", "--noproxy", "*", "--cacert", self.ca, "-o", body,
            "-D", head, "-w", "%{http_code}", *options, url,
        ]  # fmt: skip
        done = judge.run(*command, data=data)
        last = head.read_text().strip().split("\n\n")[-1] if head.exists() else ""
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in last.splitlines()[1:])
        }
        return Got(done.returncode, int(done.stdout), headers, body.read_bytes(), done.stderr.decode(errors="replace"))

    def request(self, stem: str, *how: str, key: Path | None = None) -> tuple[Path, Path]:
        """A key (new unless given) and a request (DER) by `openssl req`."""
        key_file, request = key or self.folder / f"{stem}.key", self.folder / f"{stem}.csr"
        if key is None:
            judge.openssl(
                "genpkey",
                "-quiet",
                *(how or ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")),
                "-out",
                key_file,
            )
        judge.openssl(
            "req", "-new", "-key", key_file, "-subj", "/CN=device-1", "-addext", f"subjectAltName=DNS:{_NAME}",
            "-outform", "DER", "-out", request,
        )  # fmt: skip
        return key_file, request

    def factory(self) -> tuple[str, str]:
        return "-u", ":".join(self.server.basic)

    def send(self, operation: str, request: Path, *options: str | Path, form: tuple[str, ...] = ()) -> Got:
        """POST the request in base64: wrapped at 64, or `form=("-A",)` on one line."""
        text = judge.openssl("base64", *form, "-in", request)
        return self(operation, *_TYPE, "--data-binary", "@-", *options, data=text)

    def certificate(self, stem: str, request: Path, got: Got) -> Path:
        """The certificate in the answer, judged by OpenSSL: alone, under the CA, for the request's key."""
        assert (got.code, got.status) == (0, 200), got.said
        found = judge.certificates(_decoded(got.body))
        assert len(found) == 1
        certificate = self.folder / f"{stem}.pem"
        certificate.write_bytes(found[0])
        judge.chain_holds(self.ca, certificate)
        judge.certifies(certificate, request)
        return certificate


_TLS = {"TLS 1.2": ("--tls-max", "1.2"), "TLS 1.3": ("--tlsv1.3",)}
_FORMS = {"wrapped at 64": (), "one line": ("-A",)}
_SENDING = {
    "sized": (),
    "chunked": ("-H", "Transfer-Encoding: chunked"),
    "Connection: close": ("-H", "Connection: close"),
    "Expect: 100-continue": ("-H", "Expect: 100-continue"),
    "HTTP/1.0": ("--http1.0",),
    "HTTP/2 asked for": ("--http2",),
    "no Content-Type": ("-H", "Content-Type:"),
}


@pytest.fixture
def curl(server: Server, folder: Path) -> Curl:
    return Curl(server, folder)


@pytest.mark.parametrize("tls", _TLS.values(), ids=_TLS)
def test_R17_R18_curl_fetches_the_ca_without_a_credential(curl: Curl, tls: tuple[str, ...]) -> None:
    """R1, R17, R18: cacerts without a credential is the root, in the media type and encoding that RFC 7030 names."""
    got = curl("cacerts", *tls)
    assert (got.code, got.status) == (0, 200), got.said
    assert got.headers["content-type"] == "application/pkcs7-mime; smime-type=certs-only"
    assert got.headers["content-transfer-encoding"] == "base64"
    assert judge.certificates(_decoded(got.body)) == [curl.ca.read_bytes()]


@pytest.mark.parametrize("tls", _TLS.values(), ids=_TLS)
@pytest.mark.parametrize("form", _FORMS.values(), ids=_FORMS)
def test_R2_curl_enrolls_and_re_enrolls(curl: Curl, tls: tuple[str, ...], form: tuple[str, ...]) -> None:
    """R2, R22, R24, R25: a first certificate by password, one for a new key by showing it, and one for the same key."""
    key, request = curl.request("first")
    first = curl.certificate("first", request, curl.send("simpleenroll", request, *curl.factory(), *tls, form=form))
    new_key, new_request = curl.request("second")
    shown = ("--cert", first, "--key", key)
    second = curl.certificate("second", new_request, curl.send("simplereenroll", new_request, *shown, *tls, form=form))
    shown = ("--cert", second, "--key", new_key)
    third = curl.certificate("third", new_request, curl.send("simplereenroll", new_request, *shown, *tls, form=form))
    assert len({judge.serial(one) for one in (first, second, third)}) == 3
    for one in (first, second, third):
        assert judge.subject(one) == "subject=CN=device-1"
        assert f"DNS:{_NAME}" in judge.alternative_names(one)


@pytest.mark.parametrize("tls", _TLS.values(), ids=_TLS)
def test_R10_curl_enrolls_with_the_factory_identity(curl: Curl, tls: tuple[str, ...]) -> None:
    """R10: a device that shows its IDevID in TLS gets a certificate in that name, whatever its request says."""
    _, request = curl.request("device")
    certificate, key = curl.server.idevid_files
    got = curl.send("simpleenroll", request, "--cert", certificate, "--key", key, *tls)
    assert "serialNumber=DEMO-0001" in judge.subject(curl.certificate("device", request, got))


@pytest.mark.parametrize("how", _SENDING.values(), ids=_SENDING)
def test_R40_curl_may_send_its_request_as_it_likes(curl: Curl, how: tuple[str, ...]) -> None:
    """R40: sized or chunked, HTTP/1.0, an announced close and an Expect all end in one certificate."""
    _, request = curl.request("device")
    got = curl.send("simpleenroll", request, *curl.factory(), *how)
    assert curl.certificate("device", request, got)
    assert "transfer-encoding" not in got.headers
    assert int(got.headers["content-length"]) == len(got.body)


def test_curl_is_told_to_continue(curl: Curl) -> None:
    """A client that waits for 100 Continue before its body gets it."""
    _, request = curl.request("device")
    got = curl.send("simpleenroll", request, *curl.factory(), "-H", "Expect: 100-continue", "--expect100-timeout", "15")
    assert "< HTTP/1.1 100 Continue" in got.said
    assert curl.certificate("device", request, got)


def test_curl_sees_the_connection_closed_when_it_asks(curl: Curl) -> None:
    """`Connection: close` is answered in kind, and curl finds no fault with the end of TLS."""
    got = curl("cacerts", "-H", "Connection: close")
    assert (got.code, got.status, got.headers["connection"]) == (0, 200, "close")
    assert "Closing connection" in got.said


def test_curl_asks_again_on_the_same_connection(curl: Curl) -> None:
    """Connections are kept: two requests of one curl share one."""
    got = curl("cacerts", f"{curl.server.url}/.well-known/est/sites/cacerts", "-o", curl.folder / "other")
    assert (got.code, "Re-using existing connection" in got.said) == (0, True), got.said


def test_R5_curl_answers_the_401(curl: Curl) -> None:
    """R5: a curl that is to find out by itself (--anyauth) sends its password after the 401, by Basic."""
    _, request = curl.request("device")
    data = curl.folder / "request.b64"
    data.write_bytes(judge.openssl("base64", "-in", request))
    got = curl("simpleenroll", *_TYPE, "--anyauth", *curl.factory(), "--data-binary", f"@{data}")
    assert "< HTTP/1.1 401" in got.said
    assert "Basic realm=" in got.said
    assert curl.certificate("device", request, got)


_KEYS = {
    "P-384": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "P-521": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"),
    "Ed25519": ("-algorithm", "ED25519"),
    "RSA-2048": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "RSA-4096": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"),
}


@pytest.mark.parametrize("how", _KEYS.values(), ids=_KEYS)
@pytest.mark.parametrize("form", _FORMS.values(), ids=_FORMS)
def test_curl_enrolls_any_kind_of_key(curl: Curl, how: tuple[str, ...], form: tuple[str, ...]) -> None:
    """Whatever the key and however long the answer, OpenSSL decodes it in the form in which the request went out."""
    _, request = curl.request("device", *how)
    got = curl.send("simpleenroll", request, *curl.factory(), form=form)
    curl.certificate("device", request, got)
    if len(got.body) > 1023:
        assert (got.body.count(b"\n") == 1) == bool(form)


def test_R26_curl_reads_why_it_was_refused(curl: Curl) -> None:
    """R22, R26: a re-enrolment under another name is 403, and its body is a sentence that says so."""
    key, request = curl.request("first")
    first = curl.certificate("first", request, curl.send("simpleenroll", request, *curl.factory()))
    other = curl.folder / "other.csr"
    judge.openssl("req", "-new", "-key", key, "-subj", "/CN=device-2", "-outform", "DER", "-out", other)
    got = curl.send("simplereenroll", other, "--cert", first, "--key", key)
    assert (got.code, got.status) == (0, 403)
    assert got.headers["content-type"] == "text/plain; charset=utf-8"
    assert b"A re-enrolment keeps its names" in got.body


@pytest.mark.parametrize("how", [(), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect:")])
def test_R26_curl_is_told_that_its_body_is_too_large(curl: Curl, how: tuple[str, ...]) -> None:
    """R26: two MiB are refused with a 413 that arrives, although nobody reads the rest of the body."""
    got = curl("simpleenroll", *_TYPE, *curl.factory(), "--data-binary", "@-", *how, data=b"A" * (2 << 20))
    assert (got.code, got.status) == (0, 413), got.said
    assert got.body == b"The body may have 65536 bytes.\n"
