"""The registry in its parts: the CSV, the rows in the ledger, secrets, rules and the names they make."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from estd import config, device_file, enquiry, importing, ledger, ledger_link, material, name_map, registry
from estd.device_file import DeviceFile, FileError, LineError
from estd.device_rules import RegistryRule
from estd.devices import Claim, Device, DeviceKey, Use, key_of_identity, pack_claim, unpack_claim
from estd.enquiry import WINDOW_SECONDS, WRONG_MAX, WrongSecrets
from estd.errors import EstError, Forbidden, Reason
from estd.frames import FRAME_MAX
from estd.labels import Allow
from estd.ledger import LedgerError, Reader, Writer
from estd.ledger_link import WriterService
from estd.ledger_requests import Decision, Held, Waiting
from estd.names import Names
from estd.registry import Told
from tests import make
from tests.test_config import problems, text
from tests.test_ledger import row

NOW = 1_800_000_000
SECRET = "one time"
SHA256 = hashlib.sha256(SECRET.encode()).digest()
KEY = DeviceKey("here", "Acme", "S1")


@pytest.fixture
def writer(folder: Path) -> Iterator[Writer]:
    path = folder / "ledger.sqlite3"
    ledger.create(path)
    with closing(Writer(path)) as opened:
        yield opened


def device(**changes: Any) -> Device:
    return Device(
        label="here", manufacturer="Acme", serial_number="S1", profile=None, names="", enabled=True, secret=SHA256,
        secret_until=NOW + 60, secret_used_ms=None, added_at=NOW,
    )._replace(**changes)  # fmt: skip


def add(writer: Any, *devices: Device) -> None:
    importing.write(devices, writer, at=NOW, secrets_out=None, secret_until=0, step=lambda _: None)


def csv(folder: Path, data: str | bytes) -> DeviceFile:
    path = folder / "devices.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return DeviceFile(path, label="here", labels={"here", "there"}, profiles={"device"}, added_at=NOW)


def test_a_line_is_a_device(folder: Path) -> None:
    """Columns in any order, quoted cells, several names in one cell; what is absent has its default."""
    found = csv(
        folder,
        'subject,serial_number,dns,ip,uri,profile,state,label,manufacturer\r\n"CN=a,O=Acme",S1,a.example b.example,'
        '192.0.2.1,urn:dev:1,device,disabled,there,"Acme, Inc"\r\nplain,S2,,,,,,,\n',
    )
    first, second = (line.found for line in found)
    assert isinstance(first, Device)
    assert isinstance(second, Device)
    assert (first.key, first.profile, first.enabled) == (DeviceKey("there", "Acme, Inc", "S1"), "device", False)
    names = registry.given_names.unpack(first.names)
    assert names is not None
    assert names.text == "CN=a,O=Acme"
    assert [str(name.value) for name in names.san] == ["a.example", "b.example", "192.0.2.1", "urn:dev:1"]
    assert (second.key, second.enabled) == (DeviceKey("here", "", "S2"), True)
    assert [line.number for line in found] == [2, 3]


BAD_LINES = {
    "empty": ("", "cells"),
    "a cell more": ("S1,,,,,,,,x", "cells"),
    "no serial number": (",,,,,,,", "serial number"),
    "a serial number with a space before": (" S1,,,,,,,", "serial number"),
    "a serial number beyond ASCII": ("Sé,,,,,,,", "serial number"),
    "a serial number too long": ("S" * 65 + ",,,,,,,", "serial number"),
    "a manufacturer with a slash": ("S1,a/b,,,,,,", "manufacturer"),
    "an unknown label": ("S1,,nowhere,,,,,", "[label.nowhere]"),
    "an unknown profile": ("S1,,,nothing,,,,", "[profile.nothing]"),
    "an odd state": ("S1,,,,,,,on", "state"),
    "a name that no certificate may say": ("S1,,,,,-bad-.example,,", "DNSName"),
    "a wildcard": ("S1,,,,,*.example,,", "DNSName"),
    "a URI without a scheme": ("S1,,,,,,example,", "URI"),
    "a subject that is none": ("S1,,,,CN=,,,", "RFC 4514"),
    "a subject with a space behind": ("S1,,,,CN=a ,,,", "'CN=a ' is not as RFC 4514 has it"),
    "names apart by another kind of space": ("S1,,,,,a.example\u00a0b.example,,", "DNSName"),
    "names apart by a control character": ("S1,,,,,a.example\x1cb.example,,", "DNSName"),
    "an attribute that estd does not know": ("S1,,,,1.2.3.4=a,,,", "1.2.3.4"),
    "two common names": ('S1,,,,"CN=a,CN=b",,,', "CN"),
    "an open quote": ('"S1,,,,,,,', "CSV"),
    "text after a quote": ('"S1"x,,,,,,,', "CSV"),
    "a NUL": ("S1\0,,,,,,,", "NUL"),
    "a lone carriage return": ("S1,,\rS2,,,,,", "carriage"),
    "a formula is text, and no serial number": ("=cmd()\u2028,,,,,,,", "serial number"),
}
HEAD = "serial_number,manufacturer,label,profile,subject,dns,uri,state\n"


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_told_with_its_number(folder: Path, case: str) -> None:
    """Whatever is wrong with a line is that line's alone, with its number."""
    line, word = BAD_LINES[case]
    good, bad, last = (one.found for one in csv(folder, f"{HEAD}G1,,,,,,,\n{line}\nG2,,,,,,,\n"))
    assert isinstance(good, Device)
    assert isinstance(last, Device)
    assert isinstance(bad, LineError)
    assert str(bad).startswith("line 3: ")
    assert word in str(bad)


def test_an_address_with_a_zone_is_no_name(folder: Path) -> None:
    """A certificate cannot say a zone: it would be left out in silence."""
    (line,) = csv(folder, "serial_number,ip\nS1,fe80::1%eth0\n")
    assert "the IPAddress 'fe80::1%eth0'" in str(line.found)


def test_a_ledger_without_a_registry_is_told(folder: Path, writer: Writer) -> None:
    """An older estd's ledger has none, until it is served."""
    writer._db.execute("DROP TABLE device")
    with pytest.raises(LedgerError, match="an old ledger gets one when it is served"):
        writer.find_devices([KEY])


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"serial\nS1\n", b"serial_number,serial_number\nS1,S1\n", b"manufacturer\nAcme\n",
     b"serial_number,colour\nS1,red\n", b"serial_number;label\nS1;here\n", b"\xff\xfes\0e\0r\0", b"PK\x03\x04"],
)  # fmt: skip
def test_a_file_that_is_no_list_of_devices_is_told(folder: Path, data: bytes) -> None:
    """The first line must name the columns."""
    with pytest.raises(FileError, match="first line must name the columns"):
        list(csv(folder, data))


def test_a_line_without_end_is_not_read_into_memory(folder: Path) -> None:
    """A line has a bound."""
    with pytest.raises(FileError, match="longer than"):
        list(csv(folder, b"serial_number\n" + b"x" * (device_file.LINE_MAX + 5)))


def test_a_byte_order_mark_is_none_of_the_first_columns_name(folder: Path) -> None:
    """What a spreadsheet saves as CSV is read."""
    (line,) = csv(folder, b"\xef\xbb\xbfserial_number\r\nS1\r\n")
    assert isinstance(line.found, Device)


@given(st.binary(max_size=300))
def test_any_bytes_are_devices_or_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """R39: no content of the file raises anything else than what the command says in words."""
    folder = tmp_path_factory.mktemp("any")
    for head in (b"", b"serial_number,subject,dns,ip,uri\n"):
        try:
            for line in csv(folder, head + data):
                assert isinstance(line.found, Device | LineError)
        except FileError:
            pass


def test_reading_finds_what_is_there_already(folder: Path, writer: Writer) -> None:
    """A device in the registry, or in an earlier line, is a bad line; the good ones come in the order of their keys."""
    add(writer, device(manufacturer="", serial_number="S2"))
    file = csv(folder, "serial_number\nS9\nS1\nS2\nS1\n S3\n")
    found = importing.read(file, writer, problems_max=2, step=lambda _: None)
    assert [one.serial_number for one in file.at(found.good)] == ["S1", "S9"]
    assert found.bad == 3
    assert [problem.split(":")[0] for problem in found.problems] == ["line 4", "line 5"]


def test_a_file_that_changes_meanwhile_is_not_imported(folder: Path, writer: Writer) -> None:
    """What is written is what was looked at."""
    file = csv(folder, "serial_number,subject\nS1,CN=a\n")
    found = importing.read(file, writer, problems_max=2, step=lambda _: None)
    file.path.write_text("serial_number,subject\nS1,CN=b,\n")
    with pytest.raises(FileError, match="changed"):
        list(file.at(found.good))


def test_an_import_is_seen_at_its_end(folder: Path, writer: Writer) -> None:
    """Nobody sees a device of an import that is not done; the next import clears away what such a one left."""

    def fails() -> Iterator[Device]:
        yield from (device(serial_number=f"A{number}") for number in range(importing.PART))
        raise OSError("the disk went away")

    out = folder / "secrets"
    with pytest.raises(OSError, match="went away"):
        importing.write(fails(), writer, at=NOW, secrets_out=out, secret_until=NOW, step=lambda _: None)
    assert not out.exists()
    assert list(writer.search_devices(label=None, manufacturer=None, part=None, enabled=None, limit=-1)) == []
    assert writer.find_devices([KEY._replace(serial_number="A1")]) == {}
    add(writer, device(serial_number="A1"))
    with closing(Reader(folder / "ledger.sqlite3")) as reader:
        (only,) = reader.search_devices(label="here", manufacturer="Acme", part="a", enabled=True, limit=5)
        assert only.serial_number == "A1"
        assert reader._db.execute("SELECT count(*) FROM device").fetchone() == (1,)


def test_a_part_of_an_import_fits_into_a_message(writer: Writer) -> None:
    """However long the rows are, a running server takes them."""
    long = [f"urn:{'x' * 2000}:{number}" for number in range(8)]
    names = registry.given_names.pack("", [], [], long)
    sizes: list[int] = []

    class Near:
        find_devices = writer.find_devices

        def change_devices(self, message: dict[str, Any]) -> dict[str, Any]:
            sizes.append(len(ledger_link.frame({"do": "devices", **message})))
            return writer.change_devices(message)

    add(Near(), *(device(serial_number=str(number), names=names) for number in range(2 * importing.PART)))
    assert max(sizes) < FRAME_MAX
    assert len(list(writer.search_devices(label=None, manufacturer=None, part=None, enabled=None, limit=-1))) == 1000


def test_a_device_is_added_once(writer: Writer) -> None:
    """A second row under the same key is refused, and the writer goes on."""
    add(writer, device())
    with pytest.raises(LedgerError, match="already"):
        add(writer, device(secret=None))
    assert writer.find_devices([KEY])[KEY].secret == SHA256
    assert WriterService(writer).answer([{"do": "devices", "change": "dance"}])[0]["ok"] is False
    writer.record([row()])


def test_R39_a_secret_is_used_with_its_certificate_or_not_at_all(writer: Writer) -> None:
    """R39: one transaction marks the secret and records the certificate; the second of two is left out."""
    add(writer, device())
    first, second, free = row(), row(), row()
    at_ms = NOW * 1000
    uses = [Use(one.serial, KEY, SHA256, at_ms) for one in (first, second)]
    assert writer.record([first, second, free], uses=uses) == {second.serial: "spent"}
    assert {one.serial for one in writer.search()} == {first.serial, free.serial}
    assert writer.find_devices([KEY])[KEY].secret_used_ms == at_ms


@pytest.mark.parametrize(
    "changed",
    [{"enabled": False}, {"secret": bytes(32)}, {"secret": None}, {"secret_until": NOW}, {"serial_number": "S2"},
     {"secret_used_ms": 1}],
    ids=str,
)  # fmt: skip
def test_R39_what_changed_since_the_issuer_looked_counts(writer: Writer, changed: dict[str, Any]) -> None:
    """R39: a device disabled, a secret made anew, used or expired while the issuer signed: no certificate."""
    add(writer, device(**changed))
    one = row()
    assert writer.record([one], uses=[Use(one.serial, KEY, SHA256, NOW * 1000)]) == {one.serial: "spent"}
    assert list(writer.search()) == []


def test_R39_an_approval_that_was_withdrawn_gives_the_secret_back(writer: Writer) -> None:
    """R27, R39: a certificate needs its approval and its secret; where one is gone, the other is not used up."""
    add(writer, device())
    one, two = row(), row()
    use = Use(one.serial, KEY, SHA256, NOW * 1000)
    assert writer.record([one], Held((), {one.serial: 1}), [use]) == {one.serial: "withdrawn"}  # there is no request 1
    assert writer.find_devices([KEY])[KEY].secret_used_ms is None
    writer.record([], Held([_waiting()], {}))
    assert writer.decide(1, "pending", Decision("approved", NOW * 1000, "cli:a", ""))
    lost = use._replace(certificate=two.serial, secret=bytes(32))
    assert writer.record([two], Held((), {two.serial: 1}), [lost]) == {two.serial: "spent"}
    assert writer.record([one], Held((), {one.serial: 1}), [use]) == {}
    assert [found.serial for found in writer.search()] == [one.serial]


def _waiting() -> Waiting:
    return Waiting(
        key=b"k", label="default", profile="device", renews=None, identity="device", peer="192.0.2.1",
        subject="CN=device", names="[]", key_kind="ec-p256", spki_sha256=bytes(32), asked_at=NOW * 1000,
        expires_at=NOW * 1000 + 9000,
    )  # fmt: skip


def test_R39_several_issuers_race_through_one_writer(writer: Writer) -> None:
    """R39: uses of one secret that arrive in two messages end with one certificate, and each asker is told."""
    add(writer, device())
    rows = [row(), row()]
    answers = WriterService(writer).answer(
        [
            {
                "do": "record",
                "rows": [ledger_row],
                "uses": [[one.serial.hex(), list(KEY), SHA256.hex(), NOW * 1000]],
            }
            for one in rows
            for ledger_row in [_row_out(one)]
        ]
    )
    assert answers[0]["left_out"] == answers[1]["left_out"] == {rows[1].serial.hex(): "spent"}
    assert [one.serial for one in writer.search()] == [rows[0].serial]


def _row_out(one: ledger.Row) -> dict[str, Any]:
    from estd import ledger_link

    return ledger_link._row_out(one)


def test_a_secret_is_shown_by_its_hash_alone(folder: Path, writer: Writer) -> None:
    """R39: 160 random bits, of which the ledger has the SHA-256; the file is its owner's."""
    out = folder / "secrets"
    importing.write(
        [device(secret=None)], writer, at=NOW, secrets_out=out, secret_until=NOW + 9, step=lambda _: None
    )  # fmt: skip
    head, line = out.read_text().splitlines()
    assert head == "serial_number,manufacturer,label,secret"
    number, manufacturer, label, secret = line.split(",")
    assert (number, manufacturer, label, len(secret)) == ("S1", "Acme", "here", 32)
    kept = writer.find_devices([KEY])[KEY]
    assert (kept.secret, kept.secret_until) == (hashlib.sha256(secret.encode()).digest(), NOW + 9)
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(LedgerError, match="never written over"):
        add_with_secrets(writer, out)


def add_with_secrets(writer: Writer, out: Path) -> None:
    importing.write(
        [device(serial_number="S5")], writer, at=NOW, secrets_out=out, secret_until=NOW, step=lambda _: None
    )  # fmt: skip


def rule(**changes: Any) -> RegistryRule:
    fields: dict[str, Any] = {
        "manufacturer": "Acme", "match": "subject.serialNumber", "match_prefix": "", "secrets": ("basic",), **changes,
    }  # fmt: skip
    return RegistryRule(**fields)


def allow(names: dict[str, Any] | None = None, **changes: Any) -> Allow:
    made = name_map.read(names, name_map.REGISTRY_FIELDS + name_map.CERTIFICATE_FIELDS) if names else None
    return Allow(who="registry", profile="device", registry=rule(**changes), names=made)


def told(*devices: Device, secret: bytes = SHA256, number: str = "S1") -> Told:
    return registry.NOTHING._replace(
        claim=Claim(number, secret, "basic"), devices={one.key: one for one in devices}
    )  # fmt: skip


SECRETS: dict[str, tuple[Told, Reason | None]] = {
    "right": (told(device()), None),
    "used a moment ago": (told(device(secret_used_ms=NOW * 1000 - 599_000)), None),
    "used before": (told(device(secret_used_ms=NOW * 1000 - 601_000)), Reason.SECRET_SPENT),
    "expired": (told(device(secret_until=NOW)), Reason.SECRET_SPENT),
    "wrong": (told(device(), secret=bytes(32)), Reason.WRONG_CREDENTIAL),
    "of a device without one": (told(device(secret=None), secret=bytes(32)), Reason.WRONG_CREDENTIAL),
    "of nobody": (told(), Reason.WRONG_CREDENTIAL),
    "of another label": (told(device(label="there")), Reason.WRONG_CREDENTIAL),
    "of another manufacturer": (told(device(manufacturer="")), Reason.WRONG_CREDENTIAL),
    "wrong and disabled: says no more than wrong": (
        told(device(enabled=False), secret=bytes(32)), Reason.WRONG_CREDENTIAL,
    ),
    "disabled": (told(device(enabled=False)), Reason.DEVICE_DISABLED),
    "right, after too many wrong ones": (told(device())._replace(throttled={"S1": 9}), Reason.THROTTLED),
    "right, after too many wrong ones of another": (told(device())._replace(throttled={"S2": 9}), None),
}  # fmt: skip


@pytest.mark.parametrize("case", SECRETS)
def test_R39_a_one_time_secret(case: str) -> None:
    """R39: the right secret of an enabled device, unused and in time; and used within the repeat window, which only
    the same request gets through."""
    given_told, reason = SECRETS[case]
    if reason is not None:
        with pytest.raises(EstError) as caught:
            registry.by_secret(allow(), "here", given_told, NOW, 600)
        assert caught.value.reason is reason
        return
    found = registry.by_secret(allow(), "here", given_told, NOW, 600)
    assert found is not None
    assert (found.key, found.names.text, found.spent) == (KEY, "CN=S1", case == "used a moment ago")


def test_R44_an_otp_challenge_is_of_whom_the_request_names() -> None:
    """R44: with otpChallenge the serial number stands in the request; without one the secret is nobody's."""
    otp = Told(None, SHA256, Names(subject=make.name("x", SERIAL_NUMBER="S1"), san=()), {KEY: device()}, None, {})
    heard = allow(secrets=("otpChallenge",))
    assert registry.by_secret(heard, "here", otp, NOW, 600) is not None
    assert registry.by_secret(allow(), "here", otp, NOW, 600) is None
    anonymous = otp._replace(asked=Names(subject=make.name("x"), san=()))
    assert registry.by_secret(heard, "here", anonymous, NOW, 600) is None


FIELDS: dict[str, tuple[dict[str, Any], Names, str | None]] = {
    "subject": ({}, Names(subject=make.name("x", SERIAL_NUMBER="S1"), san=()), "S1"),
    "common name": ({"match": "subject.CN"}, Names(subject=make.name("S1"), san=()), "S1"),
    "URI without its prefix": (
        {"match": "san.uri", "match_prefix": "urn:dev:"},
        Names(subject=x509.Name([]), san=(x509.UniformResourceIdentifier("urn:dev:S1"),)), "S1",
    ),
    "URI with another prefix": (
        {"match": "san.uri", "match_prefix": "urn:dev:"},
        Names(subject=x509.Name([]), san=(x509.UniformResourceIdentifier("urn:other:S1"),)), None,
    ),
    "absent": ({}, Names(subject=make.name("S1"), san=()), None),
    "twice": (
        {"match": "san.dns"},
        Names(subject=x509.Name([]), san=(x509.DNSName("S1"), x509.DNSName("S2"))), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_a_certificate_is_matched_by_one_field(case: str) -> None:
    """The serial number stands exactly once in the field that the rule names, or it is no device's."""
    changes, names, number = FIELDS[case]
    assert registry.serial_number(rule(**changes), names) == number
    if number is None:
        with pytest.raises(Forbidden) as caught:
            registry.by_certificate(allow(secrets=(), **changes), "here", told(device()), names)
        assert caught.value.reason is Reason.DEVICE_UNKNOWN


def test_a_row_says_more_than_the_rule() -> None:
    """The names and the profile in a row go before the rule's."""
    own = device(names=registry.given_names.pack("CN=given", ["a.example"], [], []), profile="special")
    found = registry.by_secret(allow({"CN": "{serialNumber}"}), "here", told(own), NOW, 600)
    assert found is not None
    assert (found.names.text, len(found.names.san), found.profile) == ("CN=given", 1, "special")


NAMES: dict[str, tuple[dict[str, Any], str, list[str] | None]] = {
    "all kinds": (
        {
            "CN": "{serialNumber}.x",
            "O": "{manufacturer}",
            "dns": ["{serialNumber}.a.example"],
            "uri": ["urn:dev:{label}:{serialNumber}"],
        },
        "S-1",
        ["S-1.a.example", "urn:dev:here:S-1"],
    ),
    "a URI is escaped": ({"uri": ["urn:dev:{serialNumber}"]}, "a/b?c#d e", ["urn:dev:a%2Fb%3Fc%23d%20e"]),
    "a dNSName is not broken out of": ({"dns": ["{serialNumber}.a.example"]}, "evil.example", None),
    "nor by a slash": ({"dns": ["{serialNumber}.a.example"]}, "evil/", None),
    "a dNSName alone is one label": ({"dns": ["{serialNumber}"]}, "www.bank.example", None),
    "a URI's path is not walked": ({"uri": ["https://dev.example/d/{serialNumber}/cert"]}, "..", None),
    "nor stayed in": ({"uri": ["https://dev.example/{serialNumber}?a"]}, ".", None),
    "nor by two fields": ({"uri": ["https://dev.example/{serialNumber}{serialNumber}"]}, ".", None),
    "a URI's dots are its own": ({"uri": ["https://dev.example/d-{serialNumber}"]}, "..", ["https://dev.example/d-.."]),
    "a URI's host is not broken out of": ({"uri": ["https://d{serialNumber}/"]}, ".evil.example", None),
    "a URI's host": ({"uri": ["https://{serialNumber}.example/"]}, "S1", ["https://S1.example/"]),
    "a part of an address": (
        {"ip": ["2001:db8::{serialNumber}", "192.0.2.{serialNumber}"]},
        "42",
        ["2001:db8::42", "192.0.2.42"],
    ),
    "an address is not broken out of": ({"ip": ["2001:db8::{serialNumber}"]}, "1:2:3:4%eth0", None),
    "nor one of IPv4": ({"ip": ["192.0.{serialNumber}"]}, "2.1", None),
    "a label too long": ({"dns": ["{serialNumber}.a.example"]}, "a" * 64, None),
    "a common name too long": ({"CN": "{serialNumber}.a.example"}, "a" * 60, None),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_are_made_of_fields(case: str) -> None:
    """A value stands in its place, escaped where that is possible; where it is not, there is no such name."""
    names, number, wanted = NAMES[case]
    own = device(serial_number=number)
    if wanted is None:
        with pytest.raises(Forbidden) as caught:
            registry.by_secret(allow(names), "here", told(own, number=number), NOW, 600)
        assert caught.value.reason is Reason.NAME_REFUSED
        return
    found = registry.by_secret(allow(names), "here", told(own, number=number), NOW, 600)
    assert found is not None
    assert [str(name.value) for name in found.names.san] == wanted


@pytest.mark.parametrize(
    ("kind", "value"), [("dns", "a.b.example"), ("ip", "2001:db8::1"), ("uri", "https://a.example/x?y")]
)
def test_a_name_of_the_kind_stands_as_it_is(kind: str, value: str) -> None:
    """The certificate's own name, alone; beside other text, or of another kind, it keeps to its place."""
    whole, beside = (
        name_map.read({kind: [text_]}, name_map.CERTIFICATE_FIELDS)
        for text_ in (f"{{san.{kind}}}", "{san.dns}x{san.ip}")
    )
    assert [str(name.value) for name in registry.mapped(whole, {f"san.{kind}": value}).san] == [value]
    with pytest.raises(Forbidden):
        registry.mapped(beside, {"san.dns": "a.example", "san.ip": "2001:db8::1"})


@pytest.mark.parametrize(
    "names",
    [{"ip": ["2001:db8::{serialNumber}", "192.0.2.{serialNumber}"]},
     {"dns": ["{serialNumber}.a.example", "{serialNumber}"]},
     {"uri": ["https://{serialNumber}.example/{serialNumber}"]}],
    ids=str,
)  # fmt: skip
def test_a_rule_that_makes_good_names_passes_the_check(names: dict[str, Any]) -> None:
    """What the check tries fits into every place."""
    registry.try_names(name_map.read(names, name_map.REGISTRY_FIELDS))


@given(st.text(max_size=70))
def test_any_field_makes_a_valid_name_or_none(value: str) -> None:
    """Whatever a factory wrote into a certificate, the names made of it end in the rule's own text."""
    made = name_map.read({"CN": "x", "dns": ["{subject.CN}.a.example"], "uri": ["urn:dev:{subject.CN}"]},
                         name_map.CERTIFICATE_FIELDS)  # fmt: skip
    try:
        names = registry.mapped(made, {"subject.CN": value})
    except Forbidden:
        return
    dns, uri = (str(name.value) for name in names.san)
    assert dns.endswith(".a.example")
    assert "." not in dns.removesuffix(".a.example")
    assert uri.startswith("urn:dev:")
    assert not set(uri[8:]) & set("/?#: ")


RULE = ['who = "registry"', 'profile = "device"', 'secrets = ["basic"]']
BAD_RULES: dict[str, tuple[list[str], str]] = {
    "neither anchors nor secrets": (RULE[:2], "secrets"),
    "both": ([*RULE, 'anchors = "a.pem"'], "secrets"),
    "another way of secrets": ([*RULE[:2], 'secrets = ["digest"]'], "secrets"),
    "another field": ([*RULE, 'match = "subject.L"'], "match"),
    "a manufacturer with a slash": ([*RULE, 'manufacturer = "a/b"'], "manufacturer"),
    "names that are no table": ([*RULE, 'names = "x"'], "names"),
    "names of another kind": ([*RULE, 'names = { email = ["x"] }'], "names"),
    "a field that there is not": ([*RULE, 'names = { CN = "{colour}" }'], "names"),
    "a certificate's field without one": ([*RULE, 'names = { CN = "{subject.CN}" }'], "names"),
    "a brace": ([*RULE, 'names = { CN = "{serialNumber" }'], "names"),
    "a format": ([*RULE, 'names = { CN = "{serialNumber!r}" }'], "names"),
    "an attribute of a field": ([*RULE, 'names = { CN = "{serialNumber.__class__}" }'], "names"),
    "a name that the profile does not take": ([*RULE, 'names = { dns = ["{serialNumber}.example"] }'], "names"),
    "a webhook without a secret": (
        ['who = "webhook"', 'profile = "device"', 'url = "https://x.example/"'], "secret_file",
    ),
    "a webhook in the clear": (
        ['who = "webhook"', 'profile = "device"', 'secret_file = "s"', 'url = "http://x.example/"'], "url",
    ),
    "a webhook in the clear, by name": (
        ['who = "webhook"', 'profile = "device"', 'secret_file = "s"', 'url = "http://localhost/"'], "url",
    ),
    "a webhook with a password in its URL": (
        ['who = "webhook"', 'profile = "device"', 'secret_file = "s"', 'url = "https://u:p@x.example/"'], "url",
    ),
    "a webhook's profile that there is not": (
        ['who = "webhook"', 'profile = "device"', 'secret_file = "s"', 'url = "https://x.example/"',
         'profiles = ["x"]'], "profiles",
    ),
    "names of a webhook": (
        ['who = "webhook"', 'profile = "device"', 'secret_file = "s"', 'url = "https://x.example/"',
         'names = { CN = "x" }'], "names",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RULES)
def test_a_rule_is_read_strictly(case: str) -> None:
    """What is wrong with a rule is said at start-up, with its path."""
    lines, key = BAD_RULES[case]
    (told_problem,) = problems(text("[label.default.allow]", *lines))
    assert told_problem.startswith(f"label.default.allow[0].{key}: ")


def test_a_rule_whose_names_no_certificate_may_say_is_found_at_start_up(folder: Path) -> None:
    """A template is tried once, whoever comes later."""
    profile = text("profile.device", 'dns = "identity"')
    lines = "\n".join([*RULE, 'names = { dns = ["{serialNumber}.bad_host.example"] }'])
    made = config.parse(f"{profile}[[label.default.allow]]\n{lines}\n", folder)
    (told_problem,) = [one for one in material.read(made)[1] if "allow" in one]
    assert "bad_host" in told_problem


def test_anchors_that_cannot_be_read_are_found_at_start_up(folder: Path) -> None:
    """A certificate of a version that there is not is a problem in words."""
    (folder / "maker.pem").write_bytes(make.as_pem(make.of_version_8(make.certificate(ca=True).der)))
    lines = '[[label.default.allow]]\nwho = "certificate"\nprofile = "device"\nanchors = "maker.pem"\n'
    (told_problem,) = [one for one in material.read(config.parse(text() + lines, folder))[1] if "allow" in one]
    assert "version" in told_problem


def test_a_tls_certificate_that_cannot_be_read_is_a_problem(folder: Path) -> None:
    """As the server's own, too: certificates of a PEM file are read in one place."""
    (folder / "server.pem").write_bytes(make.as_pem(make.of_version_8(make.certificate().der)))
    (told,) = material.tls_problems(config.parse(text(), folder))
    assert told.startswith("server.tls_certificate: ")
    assert "version" in told


def test_a_ca_with_an_extension_twice_is_a_problem(folder: Path) -> None:
    """It is told with the CA's name, and what else is wrong beside it."""
    root = make.certificate(ca=True)
    twice = make.with_an_extension_twice(root.der, lambda tbs: root.key.sign(tbs, ec.ECDSA(hashes.SHA256())))
    (folder / "ca.pem").write_bytes(make.as_pem(twice))
    (told,) = [one for one in material.read(config.parse(text(), folder))[1] if one.startswith("ca.root: ")]
    assert "uplicate" in told


def test_a_webhook_answers_within_the_servers_deadline(folder: Path) -> None:
    """A request's own time runs while the service is asked."""
    hook = (
        '[[label.default.allow]]\nwho = "webhook"\nprofile = "device"\nsecret_file = "s"\nurl = "https://x.example"\n'
    )
    config.parse(text() + hook + 'deadline = "9s"\n', folder)
    (told_problem,) = problems(text() + hook + 'deadline = "10s"\n')
    assert told_problem.startswith("label.default.allow[0].deadline: must be shorter than server.deadline (10 s)")


def test_a_label_has_one_webhook() -> None:
    """Two services of one label would have to be asked in turn."""
    hook = (
        '[[label.default.allow]]\nwho = "webhook"\nprofile = "device"\nsecret_file = "s"\nurl = "https://x.example"\n'
    )
    assert problems(text() + hook + hook) == ["label.default.allow: has more than one webhook; a label asks one"]


def test_wrong_secrets_are_counted_in_a_closed_table() -> None:
    """After some wrong secrets a serial number waits for the rest of the minute; others do not, and the table is
    bounded."""
    now = [0.0]
    wrong = WrongSecrets(lambda: now[0])
    for _ in range(WRONG_MAX):
        assert wrong.left(0, "S1") == 0
        wrong.add(0, "S1")
    now[0] = 20.5
    assert (wrong.left(0, "S1"), wrong.left(1, "S1"), wrong.left(0, "S2")) == (40, 0, 0)
    now[0] = WINDOW_SECONDS
    assert wrong.left(0, "S1") == 0
    for number in range(2 * enquiry._WATCHED_MAX):
        wrong.add(0, str(number))
    assert len(wrong) == enquiry._WATCHED_MAX


@given(st.binary(max_size=120))
def test_any_claim_is_read_or_refused(data: bytes) -> None:
    """A claim is read as it was packed; anything else is none, or an error that the request alone is answered with."""
    try:
        claim = unpack_claim(data)
    except UnicodeDecodeError:
        return
    assert pack_claim(claim) == (data if claim else b"")


@pytest.mark.parametrize("key", [KEY, KEY._replace(manufacturer=""), KEY._replace(serial_number="a/b//c")], ids=str)
def test_an_identity_leads_back_to_its_device(key: DeviceKey) -> None:
    """A certificate's identity is enough to find its device's row."""
    assert key_of_identity(key.identity) == key
    assert key_of_identity("cert:00 CN=device:x/y/z") is None


def test_the_rows_are_found_by_their_index(writer: Writer) -> None:
    """No enrolment looks through the registry."""
    from estd import ledger_devices

    plan = writer._db.execute("EXPLAIN QUERY PLAN " + ledger_devices._FIND, KEY).fetchall()
    assert all("SCAN" not in line[3] or "CONSTANT" in line[3] for line in plan), plan
    plan = writer._db.execute("EXPLAIN QUERY PLAN " + ledger_devices._USE, (1, *KEY, b"", 1)).fetchall()
    assert all("SEARCH" in line[3] for line in plan), plan
