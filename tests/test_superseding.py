"""The old certificate after a renewal: it lives until its successor has been seen, and not a request longer (interop
complaint 12)."""

from __future__ import annotations

import base64
import os
import signal
import time
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from estd import metrics
from estd.client import Refused
from estd.identify import ClientCertificate
from estd.ledger import LedgerBroken, Row, Writer, create
from estd.superseding import Superseding
from tests import make, servers
from tests.make import Identity
from tests.servers import Server, wait_for

NOW = 1_800_000_000.0
CA = make.certificate(ca=True)
OLD, NEW, NEWER, STRANGE = (make.certificate(CA, subject=make.name("pump-7")) for _ in range(4))
WHEN_SEEN = "renewable"


def row(identity: Identity, renews: Identity | None = None, profile: str = WHEN_SEEN, **changes: Any) -> Row:
    found = ClientCertificate.parse(identity.der)
    return Row(
        serial=found.serial, certificate_der=identity.der, csr_sha256=bytes(32), repeat_key=bytes(32),
        identity="cert:x", subject=found.shown, label="renewal", profile=profile, not_before=0, not_after=1,
        issued_at_ms=0, renews=None if renews is None else serial_of(renews),
    )._replace(**changes)  # fmt: skip


def serial_of(identity: Identity) -> bytes:
    return ClientCertificate.parse(identity.der).serial


@dataclass
class Book:
    """The ledger as a dictionary."""

    rows: dict[bytes, Row]
    broken: bool = False
    writes: list[list[bytes]] = field(default_factory=list)

    def find_many(self, serials: Collection[bytes]) -> dict[bytes, Row]:
        return {serial: self.rows[serial] for serial in serials if serial in self.rows}

    def supersede(self, serials: Sequence[bytes], when: int) -> None:
        if self.broken:
            raise LedgerBroken("the disk is full")
        self.writes.append(list(serials))
        for serial in serials:
            self.rows[serial] = self.rows[serial]._replace(revoked_at=when, reason=4)


class Scene:
    def __init__(self, *rows: Row) -> None:
        self.book = Book({one.serial: one for one in rows})
        self.slot = metrics.Slot(memoryview(array("d", bytes(8 * metrics.SLOT_DOUBLES))))
        self.told: list[str] = []
        self.restart()

    def restart(self) -> None:
        self.superseding = Superseding(frozenset({WHEN_SEEN}), self.slot, lambda event, **_: self.told.append(event))

    def see(self, *identities: Identity) -> None:
        self.superseding.settle([one.der for one in identities], self.book, NOW)

    def revoked(self) -> set[bytes]:
        return {serial for serial, one in self.book.rows.items() if one.revoked_at is not None}


CHAIN = (row(OLD), row(NEW, OLD), row(NEWER, NEW))
SEEN: dict[str, tuple[Sequence[Row], Sequence[Identity], set[bytes]]] = {
    "the new one": (CHAIN[:2], [NEW], {serial_of(OLD)}),
    "the old one": (CHAIN[:2], [OLD], set()),
    "both at once": (CHAIN[:2], [OLD, NEW], {serial_of(OLD)}),
    "the newest of three": (CHAIN, [NEWER], {serial_of(OLD), serial_of(NEW)}),
    "the newest of three, whose second had another profile": (
        [row(OLD), row(NEW, OLD, "device"), row(NEWER, NEW)], [NEWER], {serial_of(NEW)},
    ),
    "the newest of three, whose second is revoked": (
        [row(OLD), row(NEW, OLD, revoked_at=5, reason=1), row(NEWER, NEW)], [NEWER], {serial_of(NEW)},
    ),
    "all three": (CHAIN, [OLD, NEW, NEWER], {serial_of(OLD), serial_of(NEW)}),
    "a profile without the switch": ([row(OLD), row(NEW, OLD, "device")], [NEW], set()),
    "the old one's profile does not matter": ([row(OLD, profile="device"), row(NEW, OLD)], [NEW], {serial_of(OLD)}),
    "a stranger": (CHAIN[:2], [STRANGE], set()),
    "a certificate with the new one's serial": (
        [row(OLD), row(NEW, OLD, certificate_der=STRANGE.der)], [NEW], set(),
    ),
    "a new one that is itself revoked": ([row(OLD), row(NEW, OLD, revoked_at=5, reason=1)], [NEW], {serial_of(NEW)}),
    "an old one that the ledger does not hold": ([row(NEW, OLD)], [NEW], set()),
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN)
def test_what_is_revoked_when_what_is_seen(case: str) -> None:
    """Exactly the certificates whose successors were seen, or those after these, are revoked, as superseded."""
    rows, identities, revoked = SEEN[case]
    scene = Scene(*rows)
    scene.see(*identities)
    assert scene.revoked() == revoked
    assert {one.reason for one in scene.book.rows.values() if one.revoked_at == int(NOW)} <= {4}


def test_one_transaction_for_what_was_seen_together_and_none_for_the_same_again() -> None:
    """What was seen between two batches is written at once; a device that shows itself again costs no write, also for a
    new process, and an earlier revocation keeps its reason."""
    others = [make.certificate(CA) for _ in range(3)]
    scene = Scene(*CHAIN, row(others[0], revoked_at=7, reason=1), row(others[1], others[0]), row(others[2], OLD))
    scene.see(NEW, NEWER, others[1], others[2])
    assert [set(one) for one in scene.book.writes] == [{serial_of(OLD), serial_of(NEW)}]
    assert (scene.book.rows[serial_of(others[0])].revoked_at, scene.book.rows[serial_of(others[0])].reason) == (7, 1)
    assert scene.slot.get(metrics.SUPERSEDED.at) == 2
    scene.see(NEWER)
    scene.restart()
    scene.see(NEWER)
    assert len(scene.book.writes) == 1


def test_a_disk_that_fails_ends_the_process_and_nothing_is_forgotten() -> None:
    """A revocation that was not written is not taken for done: whoever sees the device again writes it."""
    scene = Scene(*CHAIN[:2])
    scene.book.broken = True
    with pytest.raises(LedgerBroken):
        scene.see(NEW)
    scene.book.broken = False
    scene.restart()
    assert scene.revoked() == set()
    scene.see(NEW)
    assert scene.revoked() == {serial_of(OLD)}


@pytest.mark.parametrize("leaf", [b"", b"\x30\x00", b"\xff" * 40, NEW.der[:-1]])
def test_what_is_no_certificate_hurts_nobody(leaf: bytes) -> None:
    """Odd octets from an edge are nobody's certificate; the others in the same turn are seen."""
    scene = Scene(*CHAIN[:2])
    scene.superseding.settle([leaf, NEW.der], scene.book, NOW)
    assert scene.revoked() == {serial_of(OLD)}


def test_the_ledger_supersedes_once(folder: Path) -> None:
    """On disk: superseding is one write that changes neither what is revoked already nor other rows."""
    create(folder / "ledger")
    writer = Writer(folder / "ledger")
    rows = [row(OLD), row(NEW, OLD), row(NEWER, NEW)]
    writer.record(rows)
    writer.revoke(serial_of(NEW), 3, 1)
    for when in (10, 20):
        writer.supersede([serial_of(OLD), serial_of(NEW), b"nobody's"], when)
    found = {one.serial: (one.revoked_at, one.reason) for one in writer.search()}
    writer.close()
    assert found == {serial_of(OLD): (10, 4), serial_of(NEW): (3, 1), serial_of(NEWER): (None, None)}


class Pump:
    """A device of the label `renewal`, with all certificates that it got."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.held: list[Identity] = []

    def enroll(self) -> Pump:
        key = make.key()
        with self.server.client(basic=True, label="renewal") as client:
            made = client.enroll(lambda _: make.csr(key, subject=make.name("pump-8")))
        self.held.append(Identity(made, key))
        return self

    def files(self, which: int) -> tuple[Path, Path]:
        identity = self.held[which]
        return identity.write(self.folder, f"{identity.certificate.serial_number:x}")

    def renew(self, which: int) -> None:
        key = make.key()
        with self.server.client(cert=self.files(which), label="renewal") as client:
            made = client.enroll(lambda _: make.csr(key, subject=make.name("pump-8")), renew=True)
        self.held.append(Identity(made, key))

    def ask_cacerts(self, which: int, label: str | None = "renewal", times: int = 1) -> None:
        with self.server.client(cert=self.files(which), label=label) as client:
            for _ in range(times):
                client.cacerts()

    def row(self, which: int) -> Row:
        wanted = self.held[which].certificate.serial_number
        return next(one for one in self.server.rows() if int.from_bytes(one.serial, "big") == wanted)

    def reason(self, which: int) -> int | None:
        return self.row(which).reason


@pytest.fixture
def pump(renewal_server: Server, folder: Path) -> Pump:
    return Pump(renewal_server, folder).enroll()


def test_the_old_one_lives_until_the_new_one_is_seen(pump: Pump) -> None:
    """A device that lost its answer renews with the old certificate again; once it shows the new one, with whatever
    request, the old one is revoked as superseded and is a 403."""
    pump.renew(0)
    pump.renew(0)
    assert pump.reason(0) is None
    superseded = pump.server.metric("estd_superseded_total")
    pump.ask_cacerts(2, times=3)
    wait_for(lambda: pump.reason(0) == 4, 10)
    assert [pump.reason(1), pump.reason(2)] == [None, None]
    assert pump.server.metric("estd_superseded_total") == superseded + 1
    with pytest.raises(Refused) as caught:
        pump.renew(0)
    assert (caught.value.status, caught.value.sentence) == (403, "The client certificate is revoked.")
    assert abs((pump.row(0).revoked_at or 0) - time.time()) < 60


def test_an_enrolment_is_a_sighting_too(pump: Pump) -> None:
    """The certificate that a renewal presents is seen with it: each renewal ends the one before."""
    for which in range(3):
        pump.renew(which)
    wait_for(lambda: [pump.reason(which) for which in range(4)] == [4, 4, None, None], 10)


def test_a_refused_request_is_a_sighting_too(pump: Pump) -> None:
    """It is the handshake that proves: a request that is refused for its names still showed the certificate."""
    pump.renew(0)
    with pump.server.client(cert=pump.files(1), label="renewal") as client, pytest.raises(Refused):
        client.enroll(lambda _: make.csr(subject=make.name("boss")), renew=True)
    wait_for(lambda: pump.reason(0) == 4, 10)


CSR = make.csr(subject=make.name("pump-8"))
BY_THE_EDGE: dict[str, tuple[int, str, str, bytes | None, dict[str, str]]] = {
    # case: status, method, operation, body, headers
    "an unknown operation": (404, "POST", "simplyenroll", make.body(CSR), {}),
    "enrolling by GET": (405, "GET", "simpleenroll", None, {}),
    "another media type": (415, "POST", "simplereenroll", make.body(CSR), {"Content_Type": "application/json"}),
    "a body that is no base64": (400, "POST", "simplereenroll", b"!!!!", {}),
    "a body that is no request": (400, "POST", "simplereenroll", b"AAAA", {}),
    "a signature that does not fit": (400, "POST", "simplereenroll", make.body(CSR[:-1] + bytes((CSR[-1] ^ 1,))), {}),
    "a wrong password beside it": (
        401, "POST", "simpleenroll", make.body(CSR),
        {"Authorization": "Basic " + base64.b64encode(b"factory:wrong").decode()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_THE_EDGE)
def test_what_the_edge_refuses_is_a_sighting_too(case: str, pump: Pump) -> None:
    """The same where an edge refuses a request that no issuer gets to see."""
    status, method, operation, body, headers = BY_THE_EDGE[case]
    pump.renew(0)
    with pump.server.client(cert=pump.files(1), label="renewal") as client:
        answer = client.request(method, operation, body, **{"Content_Type": "application/pkcs10", **headers})
        answer.read()
    assert answer.status == status
    wait_for(lambda: pump.reason(0) == 4, 10)
    assert pump.reason(1) is None


def test_the_old_one_seen_says_nothing(pump: Pump) -> None:
    """Neither the old certificate nor a stranger's revokes anything."""
    pump.renew(0)
    pump.ask_cacerts(0)
    pump.held.append(make.certificate(subject=make.name("pump-8")))
    pump.ask_cacerts(2)
    pump.ask_cacerts(1, label=None)  # what is seen under one label is seen
    wait_for(lambda: pump.reason(0) == 4, 10)
    assert pump.reason(1) is None


@pytest.fixture(scope="module")
def two_issuers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose ledger has a writer of its own, and several edges and issuers."""
    made = servers.init(tmp_path_factory.mktemp("supersede") / "demo")
    text = made.config.read_text()
    made.config.write_text(text.replace("# edges = 1 ", "edges = 2 ").replace("# issuers = 1 ", "issuers = 2 "))
    with servers.running(made):
        yield made


@pytest.mark.parametrize("which", ["issuer-0", "ledger-0"])
def test_killed_at_any_moment_it_comes_about(which: str, two_issuers: Server, folder: Path) -> None:
    """kill -9 of an issuer or of the writer while a certificate is being superseded: the device's next connection
    brings it about, once."""
    pump = Pump(two_issuers, folder).enroll()
    pump.renew(0)
    pump.ask_cacerts(1)
    os.kill(two_issuers.pids()[which], signal.SIGKILL)

    def is_superseded() -> bool:
        pump.ask_cacerts(1)
        return pump.reason(0) == 4

    wait_for(is_superseded, 30)

    def renews() -> bool:
        try:
            pump.renew(1)
        except Refused as refused:  # what was killed is being replaced
            return refused.status != 503
        return True

    when = pump.row(0).revoked_at
    wait_for(renews, 30)
    assert len(pump.held) == 3
    assert pump.row(0).revoked_at == when
    assert pump.reason(1) is None


def test_without_the_switch_both_live(server: Server, folder: Path) -> None:
    """A profile that does not say so supersedes nothing, whatever is seen."""
    keys = [make.key(), make.key()]
    with server.client(basic=True) as client:
        old = client.enroll(lambda _: make.csr(keys[0], subject=make.name("plain")))
    with server.client(cert=Identity(old, keys[0]).write(folder, "old")) as client:
        new = client.enroll(lambda _: make.csr(keys[1], subject=make.name("plain")), renew=True)
    with server.client(cert=Identity(new, keys[1]).write(folder, "new")) as client:
        client.cacerts()
        client.enroll(lambda _: make.csr(subject=make.name("plain")), renew=True)
    with server.client(cert=(folder / "old.pem", folder / "old.key")) as client:
        client.enroll(lambda _: make.csr(subject=make.name("plain")), renew=True)
