"""The configuration: everything that is wrong is said at once, each with its path, and the template tells the truth."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from string import Template

import pytest

from estd import config, toml_table
from estd.config import Config, parse
from estd.errors import ConfigError
from estd.labels import OPERATIONS, NameRule
from estd.toml_table import Address, address, duration, size

FOLDER = Path("/srv/estd")
_BASE = {
    "server": [],
    "token": ['module = "m.so"', 'label = "estd"', 'pin_file = "pin"'],
    "ca.root": ['certificate = "ca.pem"', 'key_id = "01"'],
    "profile.device": [],
    "label.default": ['ca = "root"'],
}


def _key(line: str) -> str:
    return line.partition(" = ")[0]


def text(section: str = "server", *lines: str, without: str = "") -> str:
    """A configuration with nothing but what is required, and these lines in that section (less the key `without`)."""
    sections = {**_BASE, section: _BASE.get(section, [])}
    taken = {without, *map(_key, lines)}
    return "".join(
        f"[{name}]\n" + "".join(f"{line}\n" for line in kept)
        for name, base in sections.items()
        for kept in [
            [line for line in base if name != section or _key(line) not in taken] + [*lines] * (name == section)
        ]
    )


def problems(toml: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(toml, FOLDER)
    return error.value.problems


def test_what_is_required_is_enough() -> None:
    """A token, a CA and a label make a configuration; paths begin in the file's folder."""
    made = parse(text(), FOLDER)
    assert made.server.listen == Address(host="127.0.0.1", port=8443)
    assert made.token.pin_file == FOLDER / "pin"
    assert made.cas["root"].key_id == b"\x01"
    assert made.ledger == FOLDER / "ledger.sqlite3"
    assert made.labels["default"].allow == ()
    assert made.run == FOLDER / "run"


def test_everything_that_is_wrong_is_said_at_once() -> None:
    """One problem does not hide another: each table's are there, in one error."""
    told = problems(
        """
        colour = "red"
        [server]
        listen = "8443"
        edges = 0
        idle = 75
        [token]
        label = ""
        [ca.root]
        certificate = "ca.pem"
        key_id = "xyz"
        [profile.device]
        validity = "30s"
        keys = ["dsa"]
        [label.default]
        ca = "root"
        body_limit = "64kb"
        [[label.default.allow]]
        who = "anybody"
        [[label.default.allow]]
        who = "basic"
        """
    )
    assert sorted(re.split(r": ", one)[0] for one in told) == sorted(
        [
            "colour", "server.listen", "server.edges", "server.idle", "token.module", "token.label", "token.pin_file",
            "ca.root.key_id", "profile.device.validity", "profile.device.keys", "label.default.body_limit",
            "label.default.allow[0].who", "label.default.allow[1].credentials", "label.default.allow[1].profile",
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ("server", "server.bodylimit"),
        ("token", "token.bodylimit"),
        ("ledger", "ledger.bodylimit"),
        ("ca.root", "ca.root.bodylimit"),
        ("profile.device", "profile.device.bodylimit"),
        ("label.default", "label.default.bodylimit"),
        ("[label.default.allow]", "label.default.allow[0].bodylimit"),
    ],
)
def test_an_unknown_key_is_named_with_its_path(section: str, path: str) -> None:
    """A misspelt limit is an error, never silently the default."""
    lines = ['bodylimit = "1KiB"'] + ['who = "issued"'] * section.startswith("[")
    assert problems(text(section, *lines)) == [f"{path}: is not a key that estd knows"]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("server", "edges = true"),
        ("server", "edges = 65"),
        ("server", 'issuers = "2"'),
        ("server", "queue = 0"),
        ("server", "deadline = 10"),
        ("server", "default_label = 1"),
        ("server", 'listen = "localhost"'),
        ("server", 'admin = "127.0.0.1:99999"'),
        ("token", "pin_file = 1234"),
        ("token", "sessions = 0"),
        ("token", 'timeout = "1"'),
        ("ca.root", "key_id = 1"),
        ("ca.root", 'key_id = "0"'),
        ("ledger", 'path = ""'),
        ("profile.device", 'validity = "59s"'),
        ("profile.device", 'keys = "ec-p256"'),
        ("profile.device", 'keys = ["rsa-1024"]'),
        ("profile.device", 'key_usage = ["keyCertSign"]'),
        ("profile.device", 'extended_key_usage = ["clientauth"]'),
        ("profile.device", 'extended_key_usage = ["1.2"]'),
        ("profile.device", 'subject = "any"'),
        ("profile.device", 'subject_attributes = ["emailAddress"]'),
        ("profile.device", 'dns = "*.example.com"'),
        ("profile.device", "dns = [1]"),
        ("profile.device", "max_names = -1"),
        ("profile.device", 'supersede = "always"'),
        ("label.default", 'linking = "on"'),
        ("label.default", 'renew = "never"'),
        ("label.default", 'pem = "no"'),
        ("label.default", 'body_limit = "64KB"'),
        ("label.default", 'csrattrs = "yes"'),
        ("label.default", "csrattrs_profile = 1"),
        ("label.default", 'enforce_csrattrs = "yes"'),
        ("label.default", "serverkeygen = 1"),
        ("label.default", "serverkeygen = []"),
        ("label.default", 'serverkeygen = ["ec-p256", "dsa-1024"]'),
        ("label.default", 'expired_window = "30"'),
        ("label.default", 'change_names = "yes"'),
        ("label.default", "allow = 1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(section: str, line: str) -> None:
    """Each value is of its kind and inside its bounds, or one problem names its path."""
    (told,) = problems(text(section, line))
    assert told.startswith(f"{section}.{_key(line)}: ")


@pytest.mark.parametrize("key", ["module", "label", "pin_file"])
def test_what_has_no_default_is_demanded(key: str) -> None:
    """A token's module, label and PIN file have no default."""
    assert problems(text("token", without=key)) == [
        f"token.{key}: is missing (needs {'a string' if key == 'label' else 'a path'})"
    ]


@pytest.mark.parametrize("line", ['pin = "1234"', 'password = "x"'])
def test_secrets_stand_in_files_of_their_own(line: str) -> None:
    """The configuration has no key for a PIN or a password."""
    assert problems(text("token", line)) == [f"token.{_key(line)}: is not a key that estd knows"]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("0s", 0), ("30s", 30), ("10m", 600), ("12h", 43200), ("90d", 7776000), ("2y", 63072000)],
)
def test_durations_carry_their_unit(given: str, seconds: int) -> None:
    """A duration is a whole number and s, m, h, d or y."""
    assert duration(given) == seconds


@pytest.mark.parametrize("given", ["", "90", "d", "-1d", "1.5h", "1 d", "1D", "90days", "1d2h", 90, None])
def test_other_durations_are_none(given: object) -> None:
    """Nothing else is a duration."""
    with pytest.raises(ValueError, match=r"^$"):
        duration(given)


@pytest.mark.parametrize(("given", "octets"), [("512B", 512), ("64KiB", 65536), ("1MiB", 1048576)])
def test_sizes_carry_their_unit(given: str, octets: int) -> None:
    """A size is a whole number and B, KiB or MiB."""
    assert size(given) == octets


@pytest.mark.parametrize("given", ["", "64", "64KB", "64kib", "-1B", "1.5MiB", 64])
def test_other_sizes_are_none(given: object) -> None:
    """Nothing else is a size."""
    with pytest.raises(ValueError, match=r"^$"):
        size(given)


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [("127.0.0.1:8443", "127.0.0.1", 8443), ("[::1]:443", "::1", 443), ("est.example.com:1", "est.example.com", 1)],
)
def test_addresses_are_host_and_port(given: str, host: str, port: int) -> None:
    """An address is read and shown alike, IPv6 in brackets."""
    assert address(given) == Address(host=host, port=port)
    assert str(address(given)) == given


@pytest.mark.parametrize("given", ["", "8443", ":8443", "::1:8443", "a:65536", "a:b", "[::1]", 8443])
def test_other_addresses_are_none(given: object) -> None:
    """Nothing else is an address."""
    with pytest.raises(ValueError, match=r"^$"):
        address(given)


@pytest.mark.parametrize("name", OPERATIONS)
def test_R4_a_label_named_like_an_operation_is_refused(name: str) -> None:
    """R4: a label cannot have an operation's name (RFC 7030 §3.2.2), served here or not."""
    assert problems(text(f"label.{name}", 'ca = "root"')) == [
        f"label.{name}: a label cannot have the name of an operation (RFC 7030 §3.2.2)"
    ]


@pytest.mark.parametrize("name", ["a/b", "a b", ".hidden", "é", "a%20b", "a" * 65])
def test_a_labels_name_is_one_path_segment(name: str) -> None:
    """A label stands in a path as it is: no slash, no space, nothing to be escaped."""
    (told,) = problems(text(f'label."{name}"', 'ca = "root"'))
    assert told.startswith(f"label.{name}: a label's name is one path segment")


@pytest.mark.parametrize("name", ["devices", "A-1_b.c~d", "a" * 64, "SimpleEnroll"])
def test_other_names_are_labels(name: str) -> None:
    """Letters, digits and . _ ~ - make a label."""
    assert name in parse(text(f'label."{name}"', 'ca = "root"'), FOLDER).labels


@pytest.mark.parametrize(
    "rules",
    [
        [],
        ['who = "issued"'],
        ['who = "issued"', 'profile = "other"'],
        ['who = "registry"', 'profile = "device"', 'secrets = ["basic"]'],
        ['who = "issued"', 'profile = "device"', "[[label.default.allow]]", 'who = "issued"', 'labels = ["default"]'],
    ],
)
def test_a_profile_that_the_label_may_lead_to(rules: list[str]) -> None:
    """csrattrs may tell the wishes of a profile that a rule names, a device's row may, or a certificate keeps."""
    rules = ["[[label.default.allow]]", *rules] if rules else []
    lines = ('ca = "root"', 'csrattrs_profile = "other"', *rules, "[profile.other]")
    assert parse(text("label.default", *lines), FOLDER).labels["default"].csrattrs_profile == "other"


@pytest.mark.parametrize(
    ("section", "lines", "told"),
    [
        ("server", ['default_label = "x"'], "server.default_label: there is no [label.x]"),
        ("label.default", ['ca = "x"'], "label.default.ca: there is no [ca.x]"),
        (
            "label.default", ['ca = "root"', 'csrattrs_profile = "x"'],
            "label.default.csrattrs_profile: there is no [profile.x]",
        ),
        (
            "label.default",
            ['ca = "root"', 'csrattrs_profile = "other"', "[[label.default.allow]]", 'who = "issued"',
             'profile = "device"', "[profile.other]"],
            "label.default.csrattrs_profile: no rule of the label leads to [profile.other], but to device",
        ),
        (
            "label.default", ['ca = "root"', "serverkeygen = true"],
            "label.default.serverkeygen: no profile of the label's rules takes a key of these kinds",
        ),
        (
            "[label.default.allow]", ['who = "issued"', 'profile = "x"'],
            "label.default.allow[0].profile: there is no [profile.x]",
        ),
        (
            "[label.default.allow]", ['who = "issued"', 'labels = ["default", "x"]'],
            "label.default.allow[0].labels: there is no [label.x]",
        ),
    ],
)  # fmt: skip
def test_a_reference_leads_somewhere(section: str, lines: list[str], told: str) -> None:
    """A label, CA or profile that is named must be there."""
    assert problems(text(section, *lines)) == [told]


def test_what_nobody_is_told_cannot_be_enforced() -> None:
    """A label that tells no csrattrs has nothing to hold requests to."""
    (problem,) = problems(text("label.default", 'ca = "root"', 'csrattrs = "off"', "enforce_csrattrs = true"))
    assert problem.startswith("label.default.enforce_csrattrs: has nothing to enforce")


@pytest.mark.parametrize(
    ("who", "line"),
    [
        ("issued", 'credentials = "file"'),
        ("issued", 'anchors = "file"'),
        ("basic", 'crls = ["file"]'),
        ("certificate", 'labels = ["default"]'),
        ("certificate", 'certificates = "file"'),
        ("issued", 'certificates = "file"'),
    ],
)
def test_a_rule_has_only_the_keys_of_its_kind(who: str, line: str) -> None:
    """A key that a rule of this kind would ignore is an error."""
    needed = {"basic": ['credentials = "c"'], "certificate": ['anchors = "a"'], "issued": []}[who]
    lines = [f'who = "{who}"', 'profile = "device"', *needed, line]
    assert problems(text("[label.default.allow]", *lines)) == [
        f"label.default.allow[0].{_key(line)}: is not a key that estd knows"
    ]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ('"none"', NameRule(source="none", patterns=())),
        ('"identity"', NameRule(source="identity", patterns=())),
        ('"csr"', NameRule(source="csr", patterns=())),
        ('["*.example.com"]', NameRule(source="csr", patterns=("*.example.com",))),
    ],
)
def test_names_come_from_a_source_or_a_list(value: str, rule: NameRule) -> None:
    """A list of patterns is the request's names inside them."""
    assert parse(text("profile.device", f"dns = {value}"), FOLDER).profiles["device"].dns == rule


@pytest.mark.parametrize("pattern", ["10.0.0.0/33", "10.0.0.1/8", "device", ""])
def test_a_pattern_of_addresses_is_a_network(pattern: str) -> None:
    """What no address could be inside is found when the configuration is read, not at a device's request."""
    (told,) = problems(text("profile.device", f'ip = ["10.0.0.0/8", "{pattern}"]'))
    assert told.startswith("profile.device.ip: ")
    assert pattern in told


@pytest.mark.parametrize("data", [b"[server", b"a = 1\na = 2\n", b"\xff\xfe"])
def test_what_is_not_toml_is_one_problem(folder: Path, data: bytes) -> None:
    """A file that is not TOML, or not text, is said to be so."""
    path = folder / "estd.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert len(error.value.problems) == 1


def test_a_file_that_is_missing_is_a_problem(folder: Path) -> None:
    """A configuration that cannot be read names its path."""
    with pytest.raises(ConfigError, match=r"elsewhere\.toml"):
        config.load(folder / "elsewhere.toml")


def test_a_loaded_files_paths_begin_in_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs, paths in the file are relative to the file."""
    (folder / "estd.toml").write_text(text())
    monkeypatch.chdir(folder)
    assert config.load(Path("estd.toml")).token.pin_file == folder.resolve() / "pin"


_SETTINGS = ("server", "token", "ledger", "ca.root", "profile.device", "label.default")
"""The sections whose every key the template shows, with its default where it has one."""
_COMMENTED = re.compile(r'# (\w+) = ("[^"]*"|\[[^\]]*\]|[\w.]+)(\s+#.*)?')
_PLAIN = re.compile(r"(\w+) = ")


def _template() -> str:
    """What `estd init` writes, for a token that is there and no demonstration."""
    template = Template(resources.files("estd").joinpath("templates/estd.toml").read_text(encoding="utf-8"))
    return template.substitute(
        listen="127.0.0.1:8443", admin="127.0.0.1:9443", module="m.so", token_label="estd", pin_file="pin",
        token_environment="", key_id="01", chain="", profiles="", rules="", switches="",
    )  # fmt: skip


def _commented() -> dict[str, tuple[int, str]]:
    """Path of each key that is commented out, with its line's number and the line as it would be without the #."""
    found: dict[str, tuple[int, str]] = {}
    section = ""
    for number, line in enumerate(_template().splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        elif (match := _COMMENTED.fullmatch(line)) and section in _SETTINGS:
            found[f"{section}.{match[1]}"] = (number, line.removeprefix("# "))
    return found


def _uncommented(*paths: str) -> Config:
    lines = _template().splitlines()
    for path in paths:
        number, line = _commented()[path]
        lines[number] = line
    return parse("\n".join(lines), FOLDER)


@pytest.mark.parametrize("path", sorted(_commented()))
def test_the_template_shows_each_default_truthfully(path: str) -> None:
    """A key that is commented out in the file of `estd init` may be uncommented, and nothing changes."""
    assert _uncommented(path) == parse(_template(), FOLDER)


def test_all_defaults_of_the_template_stand_together() -> None:
    """All of them may be uncommented at once."""
    assert _uncommented(*_commented()) == parse(_template(), FOLDER)


def test_the_template_shows_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is a secret: what a section takes is in the template, set or commented out."""
    asked: set[str] = set()
    take = toml_table.Table.take

    def noted(self: toml_table.Table, key: str, *args: object) -> object:
        asked.add(self.where(key))
        return take(self, key, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(toml_table.Table, "take", noted)
    parse(_template(), FOLDER)
    shown = set(_commented())
    section = ""
    for line in _template().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif match := _PLAIN.match(line):
            shown.add(f"{section}.{match[1]}")
    wanted = {path for path in asked if path.rpartition(".")[0] in _SETTINGS}
    assert len(wanted) > 35
    assert wanted - shown == set()
