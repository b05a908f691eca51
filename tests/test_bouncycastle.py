"""BouncyCastle's EST client against the server: it demands Content-Transfer-Encoding, a 401 before it shows a password,
and nothing in that 401's body. One Java process performs all scenarios, a second one those that link."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import servers
from tests.clients import judge
from tests.conftest import program
from tests.servers import Server

_JARS = Path("/usr/share/java")
_SOURCES = Path(__file__).with_name("clients")
_NAME = "device-1.devices.example.com"


@dataclass(frozen=True)
class Outcome:
    """What became of one scenario (tests/clients/README.md)."""

    result: str
    tls: str
    why: str
    folder: Path
    stem: str

    @property
    def certificate(self) -> Path:
        """What it got, judged by OpenSSL: one certificate, for the key that it made."""
        assert self.result == "ok", self.why
        found = self.folder / f"{self.stem}.pem"
        assert found.read_bytes().count(b"-----BEGIN CERTIFICATE-----") == 1
        own = judge.openssl("pkey", "-in", self.folder / f"{self.stem}.key", "-pubout")
        assert judge.openssl("x509", "-in", found, "-noout", "-pubkey") == own
        judge.chain_holds(self.folder / "ca.pem", found)
        return found


def _jar(name: str) -> str:
    path = _JARS / f"{name}.jar"
    if not path.exists():
        pytest.fail(f"{path} is not installed: apt-get install lib{name}-java")
    return str(path)


def _perform(
    server: Server, folder: Path, main: str, jars: list[str], scenarios: dict[str, dict[str, str]],
    *, root: Path | None = None,
) -> dict[str, Outcome]:  # fmt: skip
    """Compile `main` into the folder and perform the scenarios in one process; they trust `root`, or the CA's file."""
    path = ":".join([str(folder), *map(_jar, jars)])
    built = judge.run(program("javac"), "-d", folder, "-cp", path, "-sourcepath", _SOURCES, _SOURCES / f"{main}.java")
    assert built.returncode == 0, built.stderr.decode()
    (folder / "ca.pem").write_bytes((root or server.folder / "ca.pem").read_bytes())
    lines = "".join(
        " ".join(f"{key}={value}" for key, value in {"name": stem, **words}.items()) + "\n"
        for stem, words in scenarios.items()
    )
    java = [program("java"), "-XX:TieredStopAtLevel=1", "-cp", path, main]
    done = judge.run(*java, f"127.0.0.1:{server.port}", folder / "ca.pem", folder, data=lines.encode())
    assert done.returncode == 0, done.stderr.decode()
    outcomes = {}
    for line in done.stdout.decode().splitlines():
        stem, result, tls, why = (*line.split("\t"), "")[:4]
        outcomes[stem] = Outcome(result, tls, why, folder, stem)
    return outcomes


@pytest.fixture(scope="module")
def outcomes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All scenarios that Java's own TLS is enough for."""
    folder = tmp_path_factory.mktemp("bouncycastle")
    device = dict(zip(("cert", "key"), map(str, server.idevid_files), strict=True))
    factory = dict(zip(("user", "password"), server.basic, strict=True))
    first = {"do": "enroll", "subject": "CN=device-1", "dns": _NAME}
    scenarios = {
        "cacerts-TLSv1.2": {"do": "cacerts", "tls": "TLSv1.2"},
        "cacerts-TLSv1.3": {"do": "cacerts", "tls": "TLSv1.3"},
        "cacerts-label": {"do": "cacerts", "label": "sites"},
        "csrattrs-asking": {"do": "csrattrs", "label": "asking", "tls": "TLSv1.3"},
        "csrattrs-enforced": {"do": "csrattrs", "label": "enforced", "tls": "TLSv1.2"},
        "csrattrs-challenged": {"do": "csrattrs", "label": "challenged"},
        "csrattrs-closed": {"do": "csrattrs", "label": "closed"},
        "csrattrs-silent": {"do": "csrattrs", "label": "silent"},
        "nobody": first,
        "wrong": {**first, "user": "factory", "password": "wrong"},
        "generated-rsa": {**first, **factory, "do": "serverkeygen", "label": "keys", "key-type": "rsa-2048"},
        "generated-nowhere": {**first, **device, "do": "serverkeygen", "label": "strict"},
        "big": {
            **first, **factory, "key-type": "rsa-2048",
            "dns": ",".join(f"port-{number}.devices.example.com" for number in range(12)),
        },
        "kept": {**first, **factory, "label": "sleepers"},
        "kept-renamed": {
            **first, "do": "reenroll", "label": "sleepers", "rename": "CN=device-2",
            "cert": str(folder / "kept.pem"), "key": str(folder / "kept.key"),
        },
    }  # fmt: skip
    for tls in ("TLSv1.2", "TLSv1.3"):
        scenarios |= {
            f"device-{tls}": {**first, **device, "tls": tls},
            f"factory-{tls}": {**first, **factory, "tls": tls},
            f"generated-{tls}": {**first, **factory, "do": "serverkeygen", "label": "keys", "tls": tls},
            f"again-{tls}": {
                **first, "do": "reenroll", "tls": tls,
                "cert": str(folder / f"factory-{tls}.pem"), "key": str(folder / f"factory-{tls}.key"),
            },
            f"renamed-{tls}": {
                **first, "do": "reenroll", "tls": tls, "rename": "CN=device-2",
                "cert": str(folder / f"again-{tls}.pem"), "key": str(folder / f"again-{tls}.key"),
            },
        }  # fmt: skip
    return _perform(server, folder, "BcEst", ["bcprov", "bcpkix", "bcutil"], scenarios)


@pytest.fixture(scope="module")
def linked(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The scenarios that need BouncyCastle's own TLS, for the channel binding."""
    device = dict(zip(("cert", "key"), map(str, server.idevid_files), strict=True))
    factory = dict(zip(("user", "password"), server.basic, strict=True))
    asked = {"do": "enroll", "subject": "CN=device-1", "tls": "TLSv1.2"}
    scenarios = {
        "device": {**asked, **device, "link": "tls-unique"},
        "replayed": {**asked, **device, "link": "replayed"},  # what was right for the one above
        "demanded": {**asked, **factory, "link": "tls-unique", "label": "trimmed"},
        "told": {**asked, **factory, "link": "tls-unique", "label": "trimmed", "csrattrs": "first"},
        "untold": {**asked, **factory, "link": "another", "csrattrs": "first"},
        "absent": {**asked, **factory, "label": "trimmed"},
        "other": {**asked, **device, "link": "tls-server-end-point"},
    }
    folder = tmp_path_factory.mktemp("linked")
    return _perform(server, folder, "BcLinkedEst", ["bcprov", "bcpkix", "bcutil", "bctls"], scenarios)


@pytest.mark.parametrize("stem", ["cacerts-TLSv1.2", "cacerts-TLSv1.3", "cacerts-label"])
def test_R17_R18_bouncycastle_fetches_the_ca_without_a_credential(
    server: Server, outcomes: dict[str, Outcome], stem: str
) -> None:
    """R4, R17, R18: the root, over either version of TLS, with a label and without."""
    outcome = outcomes[stem]
    assert outcome.result == "ok", outcome.why
    der = judge.openssl("x509", "-in", outcome.folder / f"{stem}.pem", "-outform", "DER")
    assert der == judge.openssl("x509", "-in", server.folder / "ca.pem", "-outform", "DER")


@pytest.mark.parametrize("tls", ["TLSv1.2", "TLSv1.3"])
def test_R2_R10_bouncycastle_enrolls_with_the_factory_identity(outcomes: dict[str, Outcome], tls: str) -> None:
    """R2, R10: a device that shows its IDevID in TLS gets a certificate in that name."""
    outcome = outcomes[f"device-{tls}"]
    assert "serialNumber=DEMO-0001" in judge.subject(outcome.certificate)
    assert outcome.tls == tls


@pytest.mark.parametrize("tls", ["TLSv1.2", "TLSv1.3"])
def test_R5_bouncycastle_goes_through_the_401(server: Server, outcomes: dict[str, Outcome], tls: str) -> None:
    """R5: the first request comes without a password; the 401 asks for it and the second one gets the certificate."""
    certificate = outcomes[f"factory-{tls}"].certificate
    assert judge.subject(certificate) == "subject=CN=device-1"
    assert _NAME in judge.alternative_names(certificate)
    serial = judge.serial(certificate)

    def requests() -> list[dict[str, object]]:
        return [line for line in server.log_lines() if line["event"] == "request"]

    servers.wait_for(lambda: any(line["serial"] == serial for line in requests()), 5)
    lines = requests()
    at = next(index for index, line in enumerate(lines) if line["serial"] == serial)
    assert [(line["operation"], line["status"], line["reason"]) for line in lines[at - 1 : at + 1]] == [
        ("simpleenroll", 401, "no_credential"),
        ("simpleenroll", 200, ""),
    ]


@pytest.mark.parametrize("tls", ["TLSv1.2", "TLSv1.3"])
def test_R2_R22_bouncycastle_re_enrolls(outcomes: dict[str, Outcome], tls: str) -> None:
    """R2, R22: the certificate that was issued renews itself under another key, with its names."""
    first, second = outcomes[f"factory-{tls}"].certificate, outcomes[f"again-{tls}"].certificate
    assert judge.serial(second) != judge.serial(first)
    assert judge.subject(second) == judge.subject(first)
    assert judge.alternative_names(second) == judge.alternative_names(first)


@pytest.mark.parametrize("tls", ["TLSv1.2", "TLSv1.3"])
def test_R23_bouncycastle_asks_for_another_name(outcomes: dict[str, Outcome], tls: str) -> None:
    """R23: by ChangeSubjectName it has another subject, and the alternative name that it did not mention stays."""
    certificate = outcomes[f"renamed-{tls}"].certificate
    assert judge.subject(certificate) == "subject=CN=device-2"
    assert _NAME in judge.alternative_names(certificate)


def test_R23_bouncycastle_is_refused_another_name(outcomes: dict[str, Outcome]) -> None:
    """R23: where the label does not let names change: 403."""
    assert outcomes["kept"].certificate
    assert outcomes["kept-renamed"].result == "status 403", outcomes["kept-renamed"].why


def test_bouncycastle_takes_a_long_answer(outcomes: dict[str, Outcome]) -> None:
    """An answer of more than 1,022 characters, in the form of the request, is read whole."""
    found = judge.openssl("x509", "-in", outcomes["big"].certificate, "-outform", "DER")
    assert len(found) * 4 // 3 > 1022


@pytest.mark.parametrize("stem", ["nobody", "wrong"])
def test_R20_bouncycastle_is_told_401(outcomes: dict[str, Outcome], stem: str) -> None:
    """R20: nobody, and a wrong password, are told 401 in a form that BouncyCastle can read."""
    assert outcomes[stem].result == "status 401", outcomes[stem].why


@pytest.mark.parametrize(
    ("stem", "named"),
    [
        ("csrattrs-asking", {"1.2.840.113549.1.9.7", "1.2.840.10045.2.1", "1.2.840.113549.1.9.16.2.61"}),
        ("csrattrs-enforced", {"1.2.840.10045.2.1", "1.2.840.113549.1.9.14", "1.2.840.10045.4.3.3"}),
        ("csrattrs-challenged", {"1.2.840.113549.1.9.7", *(f"1.2.840.113549.1.9.16.2.{arc}" for arc in (56, 57, 58))}),
        ("csrattrs-closed", set()),
    ],
)
def test_R35_R36_R43_R44_bouncycastle_reads_csrattrs(outcomes: dict[str, Outcome], stem: str, named: set[str]) -> None:
    """R35, R36, R37, R43, R44: the list, both forms, RFC 7894's attributes and nothing to say, without a credential."""
    outcome = outcomes[stem]
    assert outcome.result == "ok", outcome.why
    told = (outcome.folder / f"{stem}.txt").read_text().strip("[]").split(", ")
    assert named <= set(told)
    assert bool(named) == (told != [""])


def test_R3_bouncycastle_is_told_404(outcomes: dict[str, Outcome]) -> None:
    """R3: a label that has csrattrs switched off is a 404 to it, whose body it does not read."""
    assert outcomes["csrattrs-silent"].result == "status 404", outcomes["csrattrs-silent"].why


@pytest.mark.parametrize("stem", ["told", "untold"])
def test_R37_bouncycastle_links_where_csrattrs_asks(linked: dict[str, Outcome], stem: str) -> None:
    """R13, R37: it asks for csrattrs, and links where challengePassword is named; elsewhere it does not, or the binding
    of another kind that the scenario names would be a 400."""
    assert linked[stem].certificate


@pytest.mark.parametrize("stem", ["generated-TLSv1.2", "generated-TLSv1.3", "generated-rsa"])
def test_R29_R33_bouncycastle_is_given_a_key(outcomes: dict[str, Outcome], stem: str) -> None:
    """R29, R33: the key in the answer, which is not the one that it had made, is its certificate's."""
    certificate = outcomes[stem].certificate
    kind = judge.openssl("x509", "-in", certificate, "-noout", "-text").decode()
    assert ("2048 bit" if stem == "generated-rsa" else "P-256") in kind


def test_R34_bouncycastle_is_given_no_key_where_it_is_switched_off(outcomes: dict[str, Outcome]) -> None:
    """R34: off unless the label switches it on: 404."""
    assert outcomes["generated-nowhere"].result == "status 404", outcomes["generated-nowhere"].why


@pytest.mark.parametrize("stem", ["device", "demanded"])
def test_R13_bouncycastle_links_its_request_to_the_connection(linked: dict[str, Outcome], stem: str) -> None:
    """R13, R14: tls-unique in the request is found to be this connection's, also after a 401 on another one."""
    assert linked[stem].certificate
    assert linked[stem].tls == "TLSv1.2"


@pytest.mark.parametrize("stem", ["absent", "other", "replayed"])
def test_R13_R14_bouncycastle_without_the_right_binding_is_refused(linked: dict[str, Outcome], stem: str) -> None:
    """R13, R14: no binding where the label demands one, a binding of another kind, and one that was right on another
    connection are 400."""
    assert linked[stem].result == "status 400", linked[stem].why
