"""R49: ML-DSA keys from the request to the certificate and its renewal (RFC 9881), and hybrid groups in TLS."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL

from estd import config, csr
from estd.client import Refused
from tests import make
from tests.clients import judge
from tests.command import ROOT, estd
from tests.conftest import program
from tests.csr_forms import KINDS, ml_dsa_spki, spki
from tests.servers import Server
from tests.test_config import FOLDER, problems, text
from tests.test_csr import proved
from tests.test_pkilint import _lint, _lint_pair

ML_DSA = {"ml-dsa-44": 17, "ml-dsa-65": 18, "ml-dsa-87": 19}
"""The last arc of each kind's OID, 2.16.840.1.101.3.4.3."""
DAY = timedelta(days=1)
HYBRID = ("X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024")


def enroll(server: Server, key: Any, *, label: str | None = None, **request: Any) -> x509.Certificate:
    with server.client(basic=True, label=label) as client:
        return client.enroll(lambda _: make.csr(key, **request))


def write(folder: Path, certificate: x509.Certificate, key: Any) -> tuple[Path, Path]:
    files = folder / "one.pem", folder / "one.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@pytest.mark.parametrize("kind", ML_DSA)
def test_R49_an_ml_dsa_key_is_certified(server: Server, kind: str) -> None:
    """R49: the certificate has the request's SubjectPublicKeyInfo byte for byte, its OID without parameters, and is
    for signatures; openssl 3.0, which does not know the key, reads it, and pkilint finds no fault."""
    key = KINDS[kind]()
    made = enroll(server, key, san=[x509.DNSName("pq.example.com")])
    der = made.public_bytes(Encoding.DER)
    assert spki(key) in der
    assert made.public_key() == key.public_key()
    assert made.public_key_algorithm_oid.dotted_string == f"2.16.840.1.101.3.4.3.{ML_DSA[kind]}"
    algorithm = spki(key)[4:17]
    assert algorithm == bytes.fromhex("300b06096086480165030403") + bytes([ML_DSA[kind]]), "a SEQUENCE of one OID"
    made.verify_directly_issued_by(server.ca)
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_encipherment, usage.key_agreement) == (True, False, False)
    shown = judge.openssl("x509", "-inform", "DER", "-noout", "-subject", "-serial", "-ext", "keyUsage", data=der)
    assert b"Digital Signature" in shown
    assert _lint(der) + _lint_pair(server.ca.public_bytes(Encoding.DER), der) == []


@pytest.mark.parametrize("kind", ML_DSA)
def test_R49_a_device_with_an_ml_dsa_key_renews(server: Server, folder: Path, kind: str) -> None:
    """R49: its certificate authenticates it in TLS 1.3: it renews with the same key, linked too, and with another."""
    key = KINDS[kind]()
    files = write(folder, enroll(server, key), key)
    for link, new in ((False, key), (True, KINDS["ml-dsa-65"]()), (False, make.key())):
        with server.client(cert=files, tls=SSL.TLS1_3_VERSION) as client:
            made = client.enroll(
                lambda binding, new=new: make.csr(new, challenge_password=binding), renew=True, link=link
            )
        assert made.public_key() == new.public_key()


def identity(maker: Any, signer: Any, key: Any) -> x509.Certificate:
    """A factory's certificate that names `maker` as its issuer, signed by `signer`."""
    now = datetime.now(UTC)
    algorithm = None if isinstance(signer, mldsa.MLDSA65PrivateKey) else hashes.SHA256()
    return (
        x509.CertificateBuilder(maker.certificate.subject, make.name("device-1"), key.public_key(), 5, now, now + DAY)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(maker.key.public_key()), critical=False)
        .sign(signer, algorithm)
    )


@pytest.mark.parametrize("kind", ML_DSA)
def test_R49_an_identity_with_an_ml_dsa_key_enrolls(server: Server, folder: Path, kind: str) -> None:
    """R49: a factory's certificate with an ML-DSA key, by a CA with an EC key, lets its device in; by a key of
    ML-DSA that nobody knows it is a 401, and never a fault."""
    key, maker = KINDS[kind](), server.manufacturer
    with server.client(cert=write(folder, identity(maker, maker.key, key), key), tls=SSL.TLS1_3_VERSION) as client:
        made = client.enroll(lambda _: make.csr(key, subject=make.name("device-1")))
    assert made.public_key() == key.public_key()
    forged = identity(maker, KINDS["ml-dsa-65"](), key)
    with server.client(cert=write(folder, forged, key)) as client, pytest.raises(Refused, match="no path") as refused:
        client.enroll(lambda _: make.csr(key, subject=make.name("device-1")))
    assert refused.value.status == 401


def test_R49_tls_1_2_has_no_ml_dsa(server: Server, folder: Path) -> None:
    """R49: a TLS 1.2 client cannot sign its handshake with ML-DSA; without a certificate it is told 401."""
    key = KINDS["ml-dsa-44"]()
    files = write(folder, enroll(server, key), key)
    with server.client(cert=files, tls=SSL.TLS1_2_VERSION) as client, pytest.raises(Refused) as refused:
        client.enroll(lambda _: make.csr(key), renew=True)
    assert refused.value.status == 401


def test_R49_a_request_sent_again_gets_the_same_certificate(server: Server) -> None:
    """R49: ML-DSA's signatures are randomised, and still a new request with the same key is the same request."""
    key = KINDS["ml-dsa-87"]()
    assert make.csr(key) != make.csr(key)
    assert enroll(server, key) == enroll(server, key)


def test_R49_a_profile_says_which_keys(server: Server) -> None:
    """R49: a profile that does not name the kind refuses it with 400."""
    with pytest.raises(Refused, match="ml-dsa-65") as refused:
        enroll(server, KINDS["ml-dsa-65"](), label="sites")
    assert refused.value.status == 400


def test_R49_a_small_limit_refuses_a_large_request(server: Server) -> None:
    """R49: an ML-DSA-87 request has 10 kB in base64: one over a label's limit is 413, and the default has room."""
    with pytest.raises(Refused) as refused:
        enroll(server, KINDS["ml-dsa-87"](), label="trimmed")
    assert refused.value.status == 413
    largest = make.csr(KINDS["ml-dsa-87"](), san=[x509.DNSName(f"{n}.example.com") for n in range(16)])
    assert len(make.body(largest)) < config.parse(text(), FOLDER).labels["default"].body_bytes / 4


def test_R49_the_key_of_the_rfcs_example() -> None:
    """R49: the public key of RFC 9881 Appendix C for the seed 00 01 … 1f, made by another implementation (here its
    first and last line), is what a request carries, and is taken as it is."""
    key = mldsa.MLDSA44PrivateKey.from_seed_bytes(bytes(range(32)))
    raw = key.public_key().public_bytes_raw()
    assert raw[:27] == base64.b64decode("17K0clSq4NtF55MNSpjSyX2PE5fReJ2voXAk")
    assert raw[-37:] == base64.b64decode("76Z5NpoiAnZhUfFqll+fgeznbMBwtVhp5NuXhM8FyDCzJCyDEg==")
    assert proved(make.csr(key)).spki_der == ml_dsa_spki(raw)
    assert csr.key_kind(key.public_key()) == "ml-dsa-44"


@pytest.mark.parametrize("usage", ["key_encipherment", "key_agreement"])
def test_R49_an_ml_dsa_key_is_not_for_encryption(usage: str) -> None:
    """R49: a profile cannot give such a key a usage that RFC 9881 §5 forbids; it is said when it is read."""
    lines = ('keys = ["ml-dsa-44"]', f'key_usage = ["digital_signature", "{usage}"]')
    (told,) = problems(text("profile.device", *lines))
    assert told.startswith("profile.device.key_usage: an ML-DSA key is for signatures alone")


@contextmanager
def agreed(server: Server, groups: str, version: int) -> Iterator[SSL.Connection]:
    """A connection by a client that offers these groups alone."""
    library: Any = SSL._lib  # pyOpenSSL has no call for it
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    assert library.SSL_CTX_set1_curves_list(context._context, groups.encode()) == 1
    connection = SSL.Connection(context, socket.create_connection(("127.0.0.1", server.port)))
    try:
        connection.set_connect_state()
        connection.do_handshake()
        connection.sendall(b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("groups", "wanted"),
    [
        *((one, one) for one in HYBRID),
        ("X25519", "x25519"),
        ("P-256", "secp256r1"),
        ("P-384", "secp384r1"),
        ("P-521", "secp521r1"),
        ("X448", "x448"),
        ("X25519:X25519MLKEM768", "X25519MLKEM768"),
        ("P-256:X25519MLKEM768:SecP256r1MLKEM768", "X25519MLKEM768"),
        ("P-384:X25519:P-256", "secp384r1"),
        ("MLKEM768:P-256", "secp256r1"),
    ],
)
def test_a_connection_is_hybrid_where_the_client_can(server: Server, groups: str, wanted: str) -> None:
    """A client that offers a hybrid group gets one, though its first choice is classical; a client of one classical
    group alone is served with that."""
    with agreed(server, groups, SSL.TLS1_3_VERSION) as connection:
        assert connection.get_group_name() == wanted


def test_our_own_client_is_hybrid(server: Server) -> None:
    """Nothing needs to be said for it on either side."""
    with server.client() as client:
        client.cacerts()
        assert client.connection.get_group_name() == "X25519MLKEM768"


@pytest.mark.parametrize("groups", ["MLKEM768", "ffdhe2048"])
def test_other_groups_are_not_offered(server: Server, groups: str) -> None:
    """ML-KEM alone, with no classical half to fall back on, and finite fields end in an alert."""
    with pytest.raises(SSL.Error), agreed(server, groups, SSL.TLS1_3_VERSION):
        pass


@pytest.mark.parametrize("groups", ["P-256", "P-384:P-256", "X25519:P-256"])
def test_tls_1_2_goes_on_as_before(server: Server, groups: str) -> None:
    """TLS 1.2 knows no hybrids; its clients are served with what they offer."""
    with agreed(server, groups, SSL.TLS1_2_VERSION) as connection:
        assert connection.get_protocol_version_name() == "TLSv1.2"


@pytest.mark.parametrize("group", ["P-256", "X25519"])
def test_a_classical_openssl_is_served(server: Server, group: str) -> None:
    """The system's own openssl, which may know no hybrid, connects with one classical group alone, and curl too."""
    ca = server.folder / "ca.pem"
    done = judge.run(
        program("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", "-groups", group, "-CAfile", ca,
        "-verify_return_error", data=b"",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    url = f"{server.url}/.well-known/est/cacerts"
    got = judge.run(
        program("curl"), "-sS", "--cacert", ca, "--curves", group, "-o", "/dev/null", "-w", "%{http_code}", url
    )
    assert got.stdout == b"200"


def test_R49_the_documents_example_runs(server: Server, folder: Path) -> None:
    """R49: the commands of docs/post-quantum.md enroll and renew a device with an ML-DSA key."""
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "post-quantum.md").read_text(), re.DOTALL)
    script = re.sub(r"(?<= )demo/", f"{server.folder}/", block).replace("127.0.0.1:8443", f"127.0.0.1:{server.port}")
    script = script.replace("estd enroll", f"{sys.executable} -m estd.cli enroll")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = judge.run("sh", "-e", "-c", f"cd {folder}\n{script}", environment=environment)
    assert done.returncode == 0, done.stderr
    first, second = (x509.load_pem_x509_certificate((folder / f"{one}.pem").read_bytes()) for one in ("pq", "pq-2"))
    assert first.subject == second.subject == make.name("pq-1")
    assert isinstance(second.public_key(), mldsa.MLDSA65PublicKey)


def test_R49_the_command_makes_each_kind(server: Server, folder: Path) -> None:
    """R49: `estd enroll --key-type` knows the kinds, and what it wrote is shown by `estd cert show`."""
    for kind in ML_DSA:
        done = estd(
            "enroll", server.url, "--cacert", server.folder / "ca.pem", "--credential", server.folder / "demo/basic",
            "--subject", f"CN={kind}", "--key-type", kind, "--out", folder / kind, "--json",
        )  # fmt: skip
        shown = estd("cert", "show", done.data["serial"], "--config", server.config, "--json").data
        made = x509.load_pem_x509_certificate(shown["certificate"].encode())
        assert csr.key_kind(made.public_key()) == kind


def test_the_bench_measures_each_group() -> None:
    """`python -m bench.groups` has a figure for every group that an edge offers, hybrids among them."""
    done = judge.run(sys.executable, "-m", "bench.groups", "--loops", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(HYBRID) <= set(found)
    assert len(found) == 8
    assert all(spent > 0 for spent in found.values())
