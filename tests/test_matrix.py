"""D20: the authorisation matrix, route × credential × certificate state × label, against a real server with a SoftHSM
token; default deny; a refusal makes no call to the token; who is shut out is out within 5 s, on live connections too.

The cells and the rules that they are held to are in tests/matrix.py, which knows nothing of estd; tests/matrix_world.py
makes the certificates, the labels and the requests.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from estd.client import EstClient
from tests import docs, make, matrix, matrix_world, servers
from tests.make import Identity
from tests.matrix import ENROLMENTS, LABELS, PUBLIC, Cell
from tests.matrix_world import Counts, KeyFile, World, files, password_of
from tests.servers import Server, wait_for
from tests.test_webhook import Service, says

ROOT = Path(__file__).resolve().parent.parent
DEAD_SECONDS = 5.0
WORDS = {"allow": says(allow=True), "deny": says(allow=False), "away": lambda _: (500, b"")}
GRANTED = Counts(rows=1, signatures=1, certificates=1, token_errors=0, rejections=Counter())
PROBE_SECONDS = 2.0
"""An issuer signs for its health that often."""


@dataclass(frozen=True)
class Told:
    """What a cell's client was told, and what that cost."""

    cell: Cell
    status: int
    sentence: str
    moved: Counts
    identity: str
    """Who has the certificate, by the ledger; empty without one."""
    key_reads: int
    """As an outside witness counted them: signatures, and health probes that fell into this moment."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Iterator[World]:
    server = matrix_world.build(tmp_path_factory.mktemp("matrix") / "instance", f"http://127.0.0.1:{service.port}/who")
    with servers.running(server):
        found = World(server)
        wait_for(lambda: found.ask(0, Cell("", "GET", "crls", "nobody"))[0] == 200, 10)  # the first CRL is signed
        yield found
        found.close()


@pytest.fixture(scope="module")
def run(world: World, service: Service) -> tuple[list[Told], float]:
    """What each cell was told, one after the other, and how many seconds all of it took."""
    witness = KeyFile(world.server.folder)
    found: list[Told] = []
    began = time.monotonic()
    before = world.counts()
    witness.reads()
    for number, cell in enumerate(matrix.cells()):
        service.reply = WORDS[cell.word]
        status, sentence = world.ask(number, cell)
        after = world.counts()
        moved = after.since(before)
        identity = world.last_identity() if moved.rows else ""
        found.append(Told(cell, status, sentence, moved, identity, witness.reads()))
        before = after
    witness.close()
    return found, time.monotonic() - began


def test_D20_every_cell_is_told_what_the_rules_say(
    run: tuple[list[Told], float], capsys: pytest.CaptureFixture[str]
) -> None:
    """D20: status, reason and cost of each cell: a grant is one signature, one certificate and one row of the ledger,
    to the one whom the rules let in; anything else is none of them, and one reason counted."""
    wrong: list[str] = []
    for one in run[0]:
        status, reason = matrix.expected(one.cell)
        cost = GRANTED if one.cell.signs else Counts(0, 0, 0, 0, Counter([reason] if reason else []))
        if (one.status, one.moved) != (status, cost):
            wrong.append(f"{one.cell}: {one.status} {one.moved} {one.sentence!r}, not {status} {cost}")
        elif one.cell.signs and not one.identity.startswith(matrix.identity(one.cell)):
            wrong.append(f"{one.cell}: issued to {one.identity!r}, not to {matrix.identity(one.cell)!r}")
    granted = sum(one.moved == GRANTED for one in run[0])
    with capsys.disabled():
        print(f"\nauthorisation matrix: {len(run[0])} cells, {granted} granted, {run[1]:.1f} s", file=sys.stderr)
    assert not wrong, f"{len(wrong)} cells:\n" + "\n".join(wrong[:40])
    assert len({one.cell for one in run[0]}) == len(run[0]) >= 300
    assert granted >= 100


def test_D20_default_deny(run: tuple[list[Told], float]) -> None:
    """D20, R20: whatever the rules in tests/matrix.py say: a label without a rule grants nothing, nor does any to one
    who shows nothing or only what is expired for good, not yet valid, revoked, not for clients, or a stranger's."""
    bad = {*matrix.STATES, *matrix.MAKERS_STATES} - {"valid", "expired"}
    refused: Counter[str] = Counter()
    for one in run[0]:
        shown = one.cell.shown
        certificate = matrix.CERTIFICATES.get(shown.header or shown.certificate)
        why = {
            "no rule": one.cell.label == "closed",
            "nothing shown": shown == matrix.Who(),
            "bad certificate": certificate is not None and certificate.state in bad,
            "stranger": certificate is not None and certificate.issuer == "strangers",
            "dead device": certificate is not None
            and certificate.row in ("disabled", "gone")
            and (certificate.under != "" or one.cell.label == "registry"),
        }
        if one.cell.operation not in ENROLMENTS or (shown.basic and one.cell.label != "closed"):
            continue
        assert not any(why.values()) or one.moved.rows == one.moved.signatures == 0, one
        assert not any(why.values()) or one.status >= 400, one
        refused.update(name for name, is_so in why.items() if is_so)
    assert min(refused[name] for name in why) >= 10, refused


def test_D20_the_token_itself_is_not_asked(run: tuple[list[Told], float]) -> None:
    """D20: an outside witness, the key's file, agrees with the server's own counters: it was read for each certificate,
    and in all refusals together no more often than by the health probes of that time."""
    told, seconds = run
    refused = [one.key_reads for one in told if not one.moved.signatures]
    granted = [one.key_reads for one in told if one.moved.signatures]
    assert min(granted) >= 1
    assert sum(refused) + sum(granted) - len(granted) <= seconds / PROBE_SECONDS + 1
    assert len(refused) > 10 * seconds / PROBE_SECONDS, "too slow for this witness to tell"


def test_D20_the_page_lists_what_is_told() -> None:
    """docs/authorisation.md has each status and reason of the matrix, and beside them what other tests are about."""
    rows = docs.refusals("docs/authorisation.md")
    told = {matrix.expected(cell) for cell in matrix.cells()}
    beside = {(403, "cert_expired"), (403, "rekey_refused"), (403, "denied")}
    assert set(rows) == {one for one in told if one[1]} | beside


# Who is shut out while a connection is kept.


def estd(server: Server, *arguments: object) -> str:
    group, command, *rest = map(str, arguments)
    done = subprocess.run(
        [sys.executable, "-m", "estd.cli", group, command, "--config", str(server.config), *rest],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


class Kept:
    """A connection of one client that must last: the server may refuse on it, not close it."""

    def __init__(self, client: EstClient, subject: x509.Name, **headers: str) -> None:
        self.client, self._subject, self._headers = client, subject, headers
        self._tls = client.connection

    def ask(self, operation: str, label: str) -> int:
        """The status of an enrolment with a fresh key."""
        body = make.body(make.csr(subject=self._subject))
        headers = {"Content_Type": "application/pkcs10", **self._headers}
        return self._status(self.client.request("POST", f"{label}/{operation}", body, **headers))

    def get(self, operation: str, label: str) -> int:
        return self._status(self.client.request("GET", f"{label}/{operation}"))

    def _status(self, response: Any) -> int:
        response.read()
        assert not response.will_close
        assert self.client.connection is self._tls
        return int(response.status)

    def everywhere(self) -> set[int]:
        """The statuses of all enrolments that any label offers."""
        offered = {label: ENROLMENTS if found.keygen else ENROLMENTS[:2] for label, found in LABELS.items()}
        return {self.ask(operation, label) for label, operations in offered.items() for operation in operations}


Opens = Callable[..., Kept]


@pytest.fixture
def opens(world: World) -> Iterator[Opens]:
    """Opens kept connections."""
    opened: list[EstClient] = []

    def open_one(cert: tuple[Path, Path] | None, subject: x509.Name, **headers: str) -> Kept:
        opened.append(world.server.client(cert=cert))
        return Kept(opened[-1], subject, **headers)

    yield open_one
    for client in opened:
        client.__exit__()


def enrolled(server: Server, label: str, name: str, user: str, password: str) -> Identity:
    key = make.key()
    with server.client(label=label, user=user, password=password) as client:
        return Identity(client.enroll(lambda _: make.csr(key, subject=make.name(name))), key)


def revoke(server: Server, own: Identity) -> None:
    estd(server, "cert", "revoke", f"{own.certificate.serial_number:032x}", "--reason", "keyCompromise")


def out_in_time(kept: Kept, operation: str, label: str) -> int:
    """The status of the first refusal, which must come within the promise."""
    found = [200]

    def is_out() -> bool:
        found.append(kept.ask(operation, label))
        return found[-1] != 200

    wait_for(is_out, DEAD_SECONDS, lambda: f"still let in at {label}")
    return found[-1]


@pytest.mark.parametrize("label", ["keys", "default", "slept"])
def test_D20_a_revoked_certificate_is_dead_on_its_connections(
    label: str, world: World, opens: Opens, folder: Path
) -> None:
    """D20, R10: `estd cert revoke` returns, and the next request is a 403 on each connection of that certificate: one
    for each route, used before and idle since. So it is at all labels, without a signature; what is public stays so."""
    name = f"live {label}"
    own = enrolled(world.server, label, name, "factory", password_of("factory"))
    routes = ENROLMENTS if LABELS[label].keygen else ENROLMENTS[:2]
    kept = {route: opens(own.write(folder, "own"), make.name(name)) for route in routes}
    assert [one.ask(route, label) for route, one in kept.items()] == [200] * len(routes)
    revoke(world.server, own)
    before = world.counts()
    assert [one.ask(route, label) for route, one in kept.items()] == [403] * len(routes)
    assert kept["simpleenroll"].everywhere() == {401, 403}
    moved = world.counts().since(before)
    assert moved[:4] == (0, 0, 0, 0)
    assert moved.rejections["revoked"] > len(routes)
    assert {kept["simpleenroll"].get(one, label) for one in PUBLIC} == {200}


def test_D20_a_revoked_certificate_is_dead_behind_its_proxy(world: World, opens: Opens) -> None:
    """D20: the same on the connection that a proxy keeps for all its devices, on which the others go on."""
    names = ("live behind 1", "live behind 2")
    both = [enrolled(world.server, "proxied", name, "factory", password_of("factory")) for name in names]
    front = files(world.server.folder, "the proxy's")
    kept = [
        opens(front, make.name(name), Client_Cert=f":{base64.b64encode(own.der).decode()}:")
        for name, own in zip(names, both, strict=True)
    ]
    for route in ENROLMENTS[:2]:
        assert [one.ask(route, "proxied") for one in kept] == [200, 200]
    revoke(world.server, both[0])
    for route in ENROLMENTS[:2]:
        assert [one.ask(route, "proxied") for one in kept] == [403, 200]


def test_D20_a_disabled_device_is_dead_on_its_connections(world: World, opens: Opens, folder: Path) -> None:
    """D20: `estd device disable` returns, and the device is out at its next request, with the certificate that it was
    given, at all labels, and with its factory's; enabled again, it is in on the same connections."""
    server, label = world.server, ("--label", "registry")
    estd(server, "device", "add", "LIVE-1", *label)
    estd(server, "device", "secret", "LIVE-1", *label, "--out", folder / "secret")
    own = enrolled(server, "registry", "LIVE-1", "LIVE-1", (folder / "secret").read_text().strip())
    estd(server, "device", "add", "LIVE-2", *label, "--manufacturer", "Maker")
    factory = make.certificate(server.manufacturer, subject=make.name("idevid", SERIAL_NUMBER="LIVE-2"))
    given = {route: opens(own.write(folder, "own"), make.name("LIVE-1")) for route in ENROLMENTS}
    idevid = {
        route: opens(factory.write(folder, "idevid"), make.name("LIVE-2")) for route in ("simpleenroll", "serverkeygen")
    }
    kept = [*given.items(), *idevid.items()]
    rows = (("LIVE-1", *label), ("LIVE-2", *label, "--manufacturer", "Maker"))
    assert [one.ask(route, "registry") for route, one in kept] == [200] * len(kept)
    for row in rows:
        estd(server, "device", "disable", *row)
    before = world.counts()
    assert [one.ask(route, "registry") for route, one in kept] == [403] * len(kept)
    assert given["simpleenroll"].everywhere() == {401, 403}
    assert world.counts().since(before)[:4] == (0, 0, 0, 0)
    for row in rows:
        estd(server, "device", "enable", *row)
    assert [one.ask(route, "registry") for route, one in kept] == [200] * len(kept)


def test_D20_a_registration_authority_that_is_struck_is_out(world: World, opens: Opens) -> None:
    """D20, R16: struck from the file, it is out within 5 s on the connections that it keeps, on both routes of both
    labels, and stays out; listed again, it is in."""
    people = world.server.folder / "people"
    certificate = files(world.server.folder, "RA")[0]
    all_of_them = (people / "ras.pem").read_bytes()
    kept = {
        label: opens(files(world.server.folder, "RA"), make.name(f"ours valid of {label}"))
        for label in ("ra", "linked")
    }
    for label, one in kept.items():
        assert [one.ask(route, label) for route in ENROLMENTS[:2]] == [200, 200]
    (people / "ras.pem").write_bytes(all_of_them.replace(certificate.read_bytes(), b""))
    try:
        for label, one in kept.items():
            assert out_in_time(one, "simpleenroll", label) == 403
            before = world.counts()
            assert [one.ask(route, label) for route in ENROLMENTS[:2]] == [403, 403]
            assert world.counts().since(before)[:4] == (0, 0, 0, 0)
    finally:
        (people / "ras.pem").write_bytes(all_of_them)
    wait_for(lambda: kept["ra"].ask("simpleenroll", "ra") == 200, DEAD_SECONDS)


def test_D20_a_certificate_that_comes_onto_the_anchors_CRL_is_dead(world: World, opens: Opens, folder: Path) -> None:
    """D20, R10: an operator puts a factory's certificate onto its CA's CRL, and it is out within 5 s on its connection,
    then at all labels."""
    maker = world.server.manufacturer
    own = make.certificate(maker, subject=make.name("idevid", SERIAL_NUMBER="idevid enabled"))
    listed = servers.identity_of(*files(world.server.folder, "idevid on the CRL"))
    kept = opens(own.write(folder, "idevid"), make.name("anything"))
    labels = ("anchors", "default", "registry")
    assert [kept.ask("simpleenroll", label) for label in labels] == [200] * len(labels)
    (world.server.folder / "demo" / "manufacturer.crl").write_bytes(make.crl(maker, [listed, own]))
    assert [out_in_time(kept, "simpleenroll", label) for label in labels] == [403] * len(labels)
    before = world.counts()
    assert kept.everywhere() == {401, 403}
    assert world.counts().since(before)[:4] == (0, 0, 0, 0)
