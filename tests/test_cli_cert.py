"""`estd cert`: what the ledger knows of certificates, and their end."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
)

from estd.errors import Refused
from estd.ledger import Writer
from tests import make
from tests.command import Done, enrolled, estd
from tests.servers import Server
from tests.test_ledger import row


@pytest.fixture(scope="module")
def issued(server: Server) -> list[x509.Certificate]:
    """Three certificates of devices that only these tests know."""
    made = []
    with server.client(basic=True) as client:
        for number in range(3):
            subject = make.name(f"cli-listed-{number}")
            made.append(client.enroll(lambda _, subject=subject: make.csr(subject=subject)))  # type: ignore[misc]
    return made


def serial(certificate: x509.Certificate) -> str:
    return certificate.serial_number.to_bytes(16, "big").hex()


def cert(server: Server, command: str, *options: str | Path, status: int = 0) -> Done:
    return estd("cert", command, "--config", server.config, *options, status=status)


def test_list_shows_what_the_ledger_knows(server: Server, issued: list[x509.Certificate]) -> None:
    """One JSON object a line, oldest first, with who asked, for what, and until when."""
    found = cert(server, "list", "--subject", "cli-listed", "--json").lines
    assert [one["serial"] for one in found] == [serial(one) for one in issued]
    one = found[0]
    assert (one["subject"], one["identity"]) == ("CN=cli-listed-0", "basic:factory")
    assert (one["label"], one["profile"], one["renews"]) == ("default", "factory", None)
    assert one["not_after"] == issued[0].not_valid_after_utc.isoformat().replace("+00:00", "Z")
    words = cert(server, "list", "--subject", "cli-listed").out.splitlines()
    assert [line.split()[0] for line in words] == [serial(one) for one in issued]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--limit", "2"], 2),
        (["--identity", "basic:"], 3),
        (["--identity", "idevid:"], 0),
        (["--since", "2020-01-01"], 3),
        (["--since", "2999-01-01T00:00"], 0),
        (["--until", "2020-01-01"], 0),
    ],
)
def test_list_filters(server: Server, issued: list[x509.Certificate], options: list[str], count: int) -> None:
    """Each filter narrows the list."""
    assert len(cert(server, "list", "--subject", "cli-listed", "--json", *options).lines) == count


def test_what_a_client_chose_does_not_reach_the_terminal_as_it_is(copy: Server) -> None:
    """A factory's certificate may have any characters in its subject: none of them moves the cursor, turns the text
    round or begins a line. Between a device and who renewed it for it stands a space."""
    evil = "CN=\x1b[31mred\x07\u202eevil\r\n0000  forged"
    certificate_der = copy.ca.public_bytes(Encoding.DER)
    made = row(subject=evil, identity=f"device:default//1\tidevid:{evil}", certificate_der=certificate_der)
    with closing(Writer(copy.folder / "ledger.sqlite3")) as writer:
        writer.record([made])
    for out in (cert(copy, "list").out, cert(copy, "show", made.serial.hex()).out):
        assert all(line.isprintable() for line in out.splitlines())
        assert "device:default//1 idevid:CN=\N{REPLACEMENT CHARACTER}[31mred" in out
    assert len(cert(copy, "list").out.splitlines()) == 1
    assert cert(copy, "list", "--json").lines[0]["subject"] == evil


@pytest.mark.parametrize("number", ["99999999999999999999", "-5"])
def test_a_number_that_no_ledger_has_is_a_wrong_command_line(server: Server, number: str) -> None:
    """Numbers end where the ledger's do."""
    for words in (["requests", "list", "--limit"], ["cert", "list", "--limit"], ["device", "list", "--limit"]):
        assert "is not in the range" in estd(*words, number, "--config", server.config, status=2).err
    assert "is not in the range" in estd("requests", "show", "--config", server.config, "--", number, status=2).err


def test_a_time_that_is_none_is_a_wrong_command_line(server: Server) -> None:
    """--since takes a date or a time."""
    assert "a time such as" in cert(server, "list", "--since", "yesterday", status=2).err


@pytest.mark.parametrize("shape", ["plain", "colons", "upper"])
def test_show_finds_a_serial_however_it_is_written(server: Server, issued: list[x509.Certificate], shape: str) -> None:
    """A serial number is taken in hexadecimal as openssl and browsers show it."""
    text = serial(issued[0])
    if shape == "colons":
        text = ":".join(text[at : at + 2] for at in range(0, 32, 2))
    shown = cert(server, "show", text.upper() if shape == "upper" else text, "--json").data
    assert shown["subject"] == "CN=cli-listed-0"
    assert x509.load_pem_x509_certificate(shown["certificate"].encode()) == issued[0]
    assert shown["certificate"] in cert(server, "show", serial(issued[0])).out


def test_show_takes_the_serial_that_enroll_prints(server: Server, folder: Path) -> None:
    """What one command prints as the serial number the other finds."""
    printed = enrolled(server, folder, "--subject", "CN=cli-serial").data["serial"]
    assert cert(server, "show", printed, "--json").data["subject"] == "CN=cli-serial"


@pytest.mark.parametrize("text", ["00" * 16, "ff" * 20])
@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_serial_that_nobody_has_is_a_sentence(server: Server, command: str, text: str) -> None:
    """An unknown serial number is told as such."""
    assert cert(server, command, text, status=1).err.startswith("estd: no certificate has the serial number")


@pytest.mark.parametrize("text", ["xyz", ""])
@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_malformed_serial_is_a_usage_error(server: Server, command: str, text: str) -> None:
    """What is no serial number is wrong usage, and says what one looks like."""
    assert "a serial number in hexadecimal" in cert(server, command, text, status=2).err


def test_list_finds_one_serial(server: Server, folder: Path) -> None:
    """list and export find by serial number, as by subject, identity and time."""
    printed = enrolled(server, folder, "--subject", "CN=cli-one").data["serial"]
    assert cert(server, "list", "--serial", printed, "--json").data["subject"] == "CN=cli-one"
    assert cert(server, "export", "--serial", printed).out.count("BEGIN CERTIFICATE") == 1


def test_export_writes_pem(server: Server, issued: list[x509.Certificate], folder: Path) -> None:
    """All that were asked for, as PEM, to a file or standard output."""
    cert(server, "export", "--subject", "cli-listed", "--out", folder / "all.pem")
    assert x509.load_pem_x509_certificates((folder / "all.pem").read_bytes()) == issued
    assert cert(server, "export", "--subject", "cli-listed").out == (folder / "all.pem").read_text()


def test_a_revoked_certificate_is_dead_at_its_next_request(server: Server, folder: Path) -> None:
    """While the server runs, revoke goes through its writer, and the device's next renewal on the connection that it
    holds is refused."""
    enrolled(server, folder, "--subject", "CN=cli-revoked")
    certificate = x509.load_pem_x509_certificate((folder / "device.pem").read_bytes())
    with server.client(cert=(folder / "device.pem", folder / "device.key")) as client:
        client.enroll(lambda _: make.csr(subject=certificate.subject), renew=True)
        done = cert(server, "revoke", serial(certificate), "--reason", "keyCompromise", "--json").data
        assert (done["reason"], done["revoked"] is not None) == ("keyCompromise", True)
        with pytest.raises(Refused, match="403: The client certificate is revoked"):
            client.enroll(lambda _: make.csr(subject=certificate.subject), renew=True)
    again = cert(server, "revoke", serial(certificate), "--json").data
    assert again == done
    (found,) = cert(server, "list", "--revoked", "--subject", "cli-revoked", "--json").lines
    assert found == done
    assert "revoked" in cert(server, "list", "--revoked", "--subject", "cli-revoked").out


def test_revoke_works_while_nobody_serves(copy: Server) -> None:
    """Without a server the command writes the ledger itself."""
    with closing(Writer(copy.folder / "ledger.sqlite3")) as writer:
        writer.record([one := row()._replace(certificate_der=make.certificate().der)])
    done = cert(copy, "revoke", one.serial.hex(), "--reason", "superseded", "--json").data
    assert (done["serial"], done["reason"]) == (one.serial.hex(), "superseded")
    assert copy.rows()[0].reason == 4
