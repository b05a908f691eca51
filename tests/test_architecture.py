"""Imports go one way, and what a room may know is written down here with its reason."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES_MAX = 400

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "attributes", "costs", "demo_devices", "demo_renewal", "demo_ways", "der", "device_keys", "devices", "doors",
        "durable", "errors", "frames", "ledger_challenges", "ledger_crls", "ledger_requests", "ledger_subjects",
        "name_map", "ras", "repeats", "rollover_toml", "starting", "tls", "toml_table", "verdicts",
    ),
    (
        "challenges", "crl", "crl_plan", "device_rules", "http", "ledger_devices", "markup", "metrics", "name_bounds",
        "proxy_settings", "reload_report", "renewal_info", "side_thread", "sizing", "sockets", "transition", "wire",
    ),
    (
        "asked", "cli_reload", "cli_size", "credentials", "csr", "issuer_link", "labels", "logs", "requests_page",
        "revocation",
    ),
    ("client", "config", "issuance", "keygen", "names", "proxy"),
    (
        "credential_files", "crl_file", "crl_list", "crl_signers", "csrattrs", "enrolling", "generation",
        "given_names", "identify", "ledger", "owner", "renaming",
    ),
    ("crl_keeper", "device_file", "instance", "ledger_link", "registry", "superseding", "supervisor"),
    ("command", "exposition", "importing", "ledger_process", "policy", "requests_desk"),
    ("admin", "admission", "cli_device", "cli_renewal", "cli_requests", "enquiry", "holding", "material", "registrar"),
    ("items", "key_update", "turnover", "webhook"),
    ("batch", "renewal_windows", "rollover", "serve", "served"),
    ("cli_rollover", "issuer", "routes"),
    ("checks", "cli_crl", "edge"),
    ("cli", "edge_process"),
    ("child",),
)  # fmt: skip
"""The rooms of estd, lowest first. A room imports from lower layers only, so there is no cycle."""

HSM_LAYERS: tuple[tuple[str, ...], ...] = (("errors",), ("token",), ("session",), ("keys", "pool"))

TOKEN_USERS: dict[str, tuple[set[str], str]] = {
    "issuer": ({"errors", "pool", "session", "token"}, "it alone signs certificates, and logs in for that"),
    "batch": ({"errors", "session"}, "the types at its seam: a Job goes in, a signature or a TokenError comes out"),
    "checks": ({"errors", "session"}, "estd check makes a test signature through the issuer's own opening"),
    "instance": ({"keys", "token"}, "estd init makes the token and the CA's key"),
    "command": ({"errors"}, "a TokenError becomes a sentence and an exit status"),
    "crl_keeper": ({"errors", "session"}, "the same seam as batch's, for CRLs"),
    "rollover": ({"errors", "keys", "token"}, "estd ca rollover makes the new key"),
    "key_update": ({"keys", "token"}, "it signs the certificates between the two keys"),
}
"""Which rooms of estd import which rooms of hsm, and why."""

OUTSIDE: dict[str, dict[str, str]] = {
    "aiohttp": {
        "http": "HTTP/1.1 as EST needs it",
        "edge": "requests and responses",
        "edge_process": "whether its parser is the one in C",
        "admin": "the admin port",
        "requests_desk": "the admin port's page for a person",
        "serve": "the way to that page",
        "webhook": "its client",
    },
    "uvloop": {"edge_process": "the loop that serves devices"},
    "sqlite3": {
        "ledger": "the one database",
        "ledger_crls": "its part about CRLs",
        "ledger_requests": "its part about requests that wait for a person",
        "ledger_devices": "the registry's tables in it",
        "ledger_subjects": "one of its indexes",
        "ledger_challenges": "its table of hashed revocation challenges",
    },
    "prometheus_client": {"admin": "the text format", "exposition": "the families"},
    "OpenSSL": {
        "tls": "the transport",
        "edge_process": "a TLS certificate that does not load",
        "checks": "the same, said by estd check",
        "client": "our client's TLS",
        "enrolling": "its names of TLS versions",
    },
    "pkcs11": {},
    "pyasn1": {},
    "asn1crypto": {},
}
"""Libraries, and the rooms of estd that may import them, each with what for. Nothing parses DER in Python."""

PURE = (
    "asked", "csr", "csrattrs", "wire", "names", "policy", "proxy", "registrar", "renaming", "identify", "issuance",
    "der", "repeats", "frames", "crl_list", "costs", "sizing", "devices", "name_map", "given_names", "registry",
    "verdicts", "device_rules", "challenges", "renewal_info", "attributes", "name_bounds",
)  # fmt: skip
IMPURE = {
    "asyncio", "socket", "aiohttp", "sqlite3", "hsm", "time", "os", "random", "secrets", "threading", "subprocess",
    "uvloop", "selectors", "multiprocessing",
}  # fmt: skip
GRANTED: dict[str, dict[str, set[str]]] = {
    "issuance": {
        "time": {"gmtime", "strftime"},  # they format a time that is given
        "os": {"urandom"},  # the serials' random bits; `serials` is the one function that is not pure
    },
}
"""What a pure room may still use, by name."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def rooms(package: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted((ROOT / package).glob("*.py")) if path.stem != "__init__"}


ESTD, HSM = rooms("estd"), rooms("hsm")


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file it does: `estd.csr`, `aiohttp.web`."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            assert node.module is not None
            if node.module in ("estd", "hsm"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
            else:
                found.add(node.module)
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def of_package(path: Path, package: str) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}


def test_the_tables_know_every_room() -> None:
    """A new room takes its place in the layers before anything else."""
    assert sorted(room for layer in LAYERS for room in layer) == sorted(ESTD)
    assert sorted(room for layer in HSM_LAYERS for room in layer) == sorted(HSM)
    assert set(PURE) <= set(ESTD)


@pytest.mark.parametrize("room", sorted(ESTD))
def test_imports_go_one_way(room: str) -> None:
    """A room of estd imports rooms of lower layers only."""
    at = next((index for index, layer in enumerate(LAYERS) if room in layer), -1)
    lower = {one for layer in LAYERS[:at] for one in layer}
    assert of_package(ESTD[room], "estd") - lower == set()


@pytest.mark.parametrize("room", sorted(HSM))
def test_the_token_knows_nothing_of_est(room: str) -> None:
    """hsm imports nothing from estd, and its own rooms one way."""
    at = next((index for index, layer in enumerate(HSM_LAYERS) if room in layer), -1)
    lower = {one for layer in HSM_LAYERS[:at] for one in layer}
    assert "estd" not in tops(HSM[room])
    assert of_package(HSM[room], "hsm") - lower == set()


def test_the_token_is_used_where_it_must_be() -> None:
    """In estd only the rooms of the table import hsm, and only the rooms of hsm that they have a reason for."""
    assert {room: of_package(path, "hsm") for room, path in ESTD.items() if "hsm" in tops(path)} == {
        room: used for room, (used, _) in TOKEN_USERS.items()
    }


@pytest.mark.parametrize("library", sorted(OUTSIDE))
def test_a_library_has_its_rooms(library: str) -> None:
    """Each of these libraries is imported by the rooms of the table, by all of them and by no other."""
    assert {room for room, path in ESTD.items() if library in tops(path)} == set(OUTSIDE[library])


def test_the_binding_is_behind_the_tokens_rooms() -> None:
    """The PKCS#11 binding is imported by three rooms of hsm; by its errors alone nobody loads it."""
    assert {room for room, path in HSM.items() if "pkcs11" in tops(path)} == {"token", "session", "keys"}


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_has_no_world(room: str) -> None:
    """No loop, no token, no clock, no randomness: but for what is granted, by name."""
    granted = GRANTED.get(room, {})
    assert tops(ESTD[room]) & IMPURE == set(granted)
    for node in ast.walk(tree(ESTD[room])):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in granted:
            assert node.attr in granted[node.value.id], f"{room} uses {node.value.id}.{node.attr}"
        if isinstance(node, ast.ImportFrom):
            assert node.module not in granted, f"{room}: import {node.module} whole, so that its use is seen"


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_does_not_ask_for_the_time(room: str) -> None:
    """The time is an argument: neither now nor today of datetime is called, and no file is opened."""
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree(ESTD[room]))
        if isinstance(node, ast.Call)
    }
    assert called & {"now", "utcnow", "today", "open", "read_text", "read_bytes", "write_text", "write_bytes"} == set()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("estd.edge_process", ("hsm", "pkcs11", "sqlite3", "estd.ledger", "estd.issuer")),
        ("estd.issuer", ("aiohttp", "uvloop", "OpenSSL", "estd.edge_process")),
        ("estd.ledger_process", ("aiohttp", "uvloop", "pkcs11", "estd.edge_process")),
        ("estd.serve", ("hsm", "pkcs11", "sqlite3", "estd.edge_process", "estd.issuer")),
        ("estd.child", ("hsm", "pkcs11", "aiohttp", "sqlite3")),
    ],
)
def test_a_process_loads_only_what_is_its_own(module: str, absent: tuple[str, ...]) -> None:
    """What a process has no use for is not in its memory: an edge has no PKCS#11 binding and no ledger, an issuer no
    HTTP."""
    script = f"import sys, {module}; print(*(name for name in {absent!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "path",
    [path for package in ("estd", "hsm", "bench") for path in rooms(package).values()],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_a_room_reads_in_one_sitting(path: Path) -> None:
    """No file of the server, the token or the load generator is longer than 400 lines, and each says its idea."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX
    assert ast.get_docstring(tree(path))
