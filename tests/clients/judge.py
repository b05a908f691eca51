"""OpenSSL's command line as the judge of what the clients in the field were given."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conftest import program

_SECONDS = 60


def run(*command: str | Path, data: bytes | None = None, environment: dict[str, str] | None = None) -> (
    subprocess.CompletedProcess[bytes]
):  # fmt: skip
    """The finished program, whatever its status; `data` is its standard input."""
    return subprocess.run(command, input=data, capture_output=True, env=environment, timeout=_SECONDS, check=False)


def openssl(*arguments: str | Path, data: bytes | None = None) -> bytes:
    """What `openssl` wrote; it must succeed."""
    done = run(program("openssl"), *arguments, data=data)
    assert done.returncode == 0, f"openssl {' '.join(map(str, arguments))}: {done.stderr.decode()}{done.stdout!r}"
    return done.stdout


def chain_holds(ca: Path, certificate: Path) -> None:
    """The certificate verifies, as a TLS client's, under the CA alone."""
    openssl("verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", ca, "-purpose", "sslclient", certificate)


def certifies(certificate: Path, request: Path) -> None:
    """The certificate's key is the request's."""
    form = "PEM" if request.read_bytes().startswith(b"-----BEGIN") else "DER"
    asked = openssl("req", "-in", request, "-inform", form, "-noout", "-pubkey")
    assert openssl("x509", "-in", certificate, "-noout", "-pubkey") == asked


def subject(certificate: Path) -> str:
    return openssl("x509", "-in", certificate, "-noout", "-subject", "-nameopt", "RFC2253").decode().strip()


def serial(certificate: Path) -> str:
    """In hexadecimal, as the ledger and the log write it."""
    return openssl("x509", "-in", certificate, "-noout", "-serial").decode().strip().removeprefix("serial=").lower()


def alternative_names(certificate: Path) -> str:
    return openssl("x509", "-in", certificate, "-noout", "-ext", "subjectAltName").decode()


def certificates(cms_der: bytes) -> list[bytes]:
    """The certificates, PEM, of a certs-only message."""
    text = openssl("pkcs7", "-inform", "DER", "-print_certs", data=cms_der)
    end = b"-----END CERTIFICATE-----\n"
    return [b"-----BEGIN" + part.split(b"-----BEGIN")[1] + end for part in text.split(end)[:-1]]
