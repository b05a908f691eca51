"""R45: CRLs as an issuer keeps them. The list is cryptography's CertificateRevocationListBuilder's, byte for byte; the
keeper's times are a clock of the test's."""

from __future__ import annotations

import asyncio
import errno
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from estd import crl_file, crl_list, crl_plan, ledger, ledger_crls, metrics, wire
from estd.config import parse
from estd.crl_keeper import CrlKeeper
from estd.crl_plan import CrlPlan
from estd.crl_signers import CrlSigner
from estd.errors import Unavailable
from estd.issuance import CaCertificate
from estd.ledger import MIGRATIONS, LedgerBroken, LedgerError, Reader, Writer
from estd.ledger_crls import CrlRecord
from hsm.errors import TokenError, TokenFatal, TokenTransient
from hsm.session import Job
from tests import make
from tests.test_config import FOLDER, problems, text
from tests.test_issuance import DAY, NOW, ca, ca_key, issue
from tests.test_ledger import row
from tests.test_names import profile

REASONS = {0: None, 1: "keyCompromise", 3: "affiliationChanged", 4: "superseded", 5: "cessationOfOperation",
           9: "privilegeWithdrawn"}  # fmt: skip


def sign(kind: str, data: bytes) -> bytes:
    key = ca_key(kind)
    if kind.startswith("rsa"):
        return bytes(key.sign(data, padding.PKCS1v15(), hashes.SHA256()))
    return bytes(key.sign(data, ec.ECDSA(ca(kind).hash_algorithm)))


@given(
    kind=st.sampled_from(["ec-p256", "ec-p384", "rsa-2048"]),
    number=st.one_of(st.integers(1, 300), st.integers(0, 2**62)),
    at=st.integers(1_700_000_000, 3_000_000_000),
    listed=st.lists(
        st.tuples(
            st.integers(1, 2**159 - 1), st.integers(1_700_000_000, 3_000_000_000), st.sampled_from(list(REASONS))
        ),
        max_size=9,
    ),
)
@settings(deadline=None, derandomize=True, max_examples=150)
def test_R45_a_list_equals_the_builders(
    kind: str, number: int, at: int, listed: Sequence[tuple[int, int, int]]
) -> None:
    """R45: any CA, number, times and entries: the TBSCertList and the whole CRL are the builder's, byte for byte."""
    authority = ca(kind)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(datetime.fromtimestamp(at, UTC))
        .next_update(datetime.fromtimestamp(at + 7 * DAY, UTC))
        .add_extension(x509.AuthorityKeyIdentifier(authority.key_id, None, None), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, when, reason in listed:
        one = x509.RevokedCertificateBuilder(serial, datetime.fromtimestamp(when, UTC))
        if REASONS[reason] is not None:
            one = one.add_extension(x509.CRLReason(x509.ReasonFlags(REASONS[reason])), critical=False)
        builder = builder.add_revoked_certificate(one.build())
    other = builder.sign(ca_key(kind), authority.hash_algorithm)
    template = crl_list.ListTemplate(authority)
    tbs = template.prepare(
        number=number, this_update=at, next_update=at + 7 * DAY,
        entries=[crl_list.entry(serial.to_bytes(20, "big"), when, reason) for serial, when, reason in listed],
    )  # fmt: skip
    assert tbs == other.tbs_certlist_bytes
    assert template.complete(tbs, other.signature) == (crl_der := other.public_bytes(Encoding.DER))
    assert crl_file._is_signed(crl_der, other.signature, authority)


def test_the_issuer_is_read_from_a_certificate() -> None:
    """A certificate of ours says whose CRL lists it: its issuer's Name, as the CA's subject is encoded."""
    made = issue(ca("ec-p384"), profile(), signer="ec-p384")
    assert crl_list.issuer_of(made.public_bytes(Encoding.DER)) == ca("ec-p384").certificate.subject.public_bytes()


@dataclass
class World:
    """A ledger, software CAs, a token that may fail, and a clock."""

    folder: Path
    kinds: tuple[str, ...] = ("ec-p256",)
    keys: dict[str, str] = field(default_factory=dict)
    """In a change of a CA's key: whose CRL another kind of key signs."""
    now: float = float(NOW)
    trouble: list[TokenError] = field(default_factory=list)
    signed: int = 0
    told: list[dict[str, Any]] = field(default_factory=list)
    slot: metrics.Slot = field(default_factory=lambda: metrics.Block.create(1).slot(0))

    def __post_init__(self) -> None:
        self.path = self.folder / "ledger.sqlite3"
        if not self.path.exists():
            ledger.create(self.path)
        self.writer = Writer(self.path)
        self.keeper = self.start()

    def plan(self, kind: str) -> CrlPlan:
        return CrlPlan(
            on=True, validity_seconds=7 * DAY, renew_seconds=DAY, delay_seconds=5, url="",
            file=self.folder / "crl" / f"{kind}.crl",
        )  # fmt: skip

    def start(self) -> CrlKeeper:
        """As an issuer that was made anew."""
        self.keeper = CrlKeeper(
            crls=[
                CrlSigner(
                    name=kind, ca_name=kind.partition(" ")[0], ca=ca(self.keys.get(kind, kind)), key_id=b"\1",
                    plan=self.plan(kind),
                )
                for kind in self.kinds
            ],
            ledger=self.writer, signer=self, slot=self.slot, report=lambda _, **said: self.told.append(said),
            clock=lambda: self.now, ticks=lambda: self.now,
        )  # fmt: skip
        return self.keeper

    def sign_many(self, jobs: Sequence[Job]) -> list[bytes | TokenError]:
        if self.trouble:
            return [self.trouble.pop(0)]
        self.signed += len(jobs)
        return [sign(self.keys.get(job.key, job.key), job.data) for job in jobs]

    def settle(self, after: float = 0.0) -> None:
        """Let the time pass, then whatever is to be done be done."""
        self.now += after
        self.keeper.look_at = 0.0
        while self.keeper.step():
            pass

    def issue(self, *, kind: str = "ec-p256", ends: int = 90 * DAY) -> int:
        """A certificate in the ledger that ends so many seconds after NOW; its serial number."""
        made = issue(ca(kind), profile(validity_seconds=ends + 1, backdate_seconds=DAY), signer=kind)
        serial = made.serial_number.to_bytes(16, "big")
        self.writer.record([
            row(serial=serial, certificate_der=made.public_bytes(Encoding.DER), not_after=NOW + ends)
        ])  # fmt: skip
        return made.serial_number

    def revoke(self, serial: int, reason: int = 1) -> None:
        assert self.writer.revoke(serial.to_bytes(16, "big"), int(self.now), reason)

    def crl(self, kind: str = "ec-p256") -> x509.CertificateRevocationList:
        """What is published, which must be signed by its CA."""
        crl_file.read(self.plan(kind).file, ca(self.keys.get(kind, kind)))
        return x509.load_der_x509_crl(self.plan(kind).file.read_bytes())

    def number(self, kind: str = "ec-p256") -> int:
        return self.crl(kind).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    def listed(self, kind: str = "ec-p256") -> set[int]:
        return {one.serial_number for one in self.crl(kind)}


@pytest.fixture
def world(folder: Path) -> Any:
    made = World(folder)
    with closing(made.writer):
        yield made


def test_R45_a_crl_is_there_before_anything_is_revoked(world: World) -> None:
    """R45: a start makes the first CRL, empty; a second start finds it good and signs nothing."""
    world.settle()
    assert (world.number(), world.listed(), world.signed) == (1, set(), 1)
    made = world.crl()
    assert made.next_update_utc is not None
    assert made.next_update_utc - made.last_update_utc == timedelta(days=7)
    world.start()
    world.settle()
    assert (world.number(), world.signed) == (1, 1)
    assert world.slot.get(metrics.CRL_NEXT_UPDATE.at) == made.next_update_utc.timestamp()


def test_R45_revocations_are_listed_within_their_delay_and_together(world: World) -> None:
    """R45: what is revoked within crl_delay of the first goes into one CRL, each with its time and reason."""
    serials = [world.issue() for _ in range(3)]
    world.settle()
    world.revoke(serials[0], 4)
    world.settle(1)
    world.revoke(serials[1], 0)
    world.settle(3)
    assert world.number() == 1, "not before the delay is over"
    world.settle(2)
    assert (world.number(), world.listed()) == (2, set(serials[:2]))
    first, second = world.crl()
    assert first.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.superseded
    assert list(second.extensions) == [], "unspecified is left out (RFC 5280 §5.3.1)"
    world.settle(60)
    assert world.number() == 2, "nothing new, no new CRL"


def test_R45_a_crl_is_renewed_on_its_schedule(world: World) -> None:
    """R45: a new one crl_renew after the last, though nothing was revoked."""
    world.settle()
    world.settle(DAY - 1)
    assert world.number() == 1
    world.settle(1)
    assert world.number() == 2


def test_R45_numbers_grow_over_restarts_and_losses(world: World) -> None:
    """R45: cRLNumber never comes twice: not after a restart, a lost file, a number whose CRL was never signed, or with
    a ledger that was restored from a back-up."""
    world.settle()
    world.plan("ec-p256").file.unlink()
    world.start()
    world.settle()
    assert world.number() == 2
    world.trouble.append(TokenTransient("DeviceError", "for a moment"))
    world.settle(DAY)
    assert world.number() == 2
    assert "for a moment" in str(world.told[-1])
    world.settle(11)
    assert world.number() == 4, "3 was taken and is not given again"
    old = world.writer.crls.last("ec-p256")
    assert old is not None
    world.writer.store_crl(old._replace(number=1))
    world.start()
    world.settle()
    assert world.number() == 5


def test_R45_R19_numbers_grow_over_a_lost_ledger_and_a_change_of_keys(world: World) -> None:
    """R45, R19: a ledger that was restored from a back-up, and a new key since then: neither key goes back behind what
    the CA has published, whichever file has it."""
    for _ in range(6):
        world.settle(DAY)
    backup = world.writer.crls.last("ec-p256")
    assert backup is not None
    assert backup.number == 6
    world.writer.store_crl(backup._replace(number=2))
    world.kinds, world.keys = ("ec-p256", "ec-p256 01"), {"ec-p256": "ec-p384", "ec-p256 01": "ec-p256"}
    world.start()
    world.settle()
    assert (world.number("ec-p256"), world.number("ec-p256 01")) == (7, 8)
    world.start()
    world.settle()
    assert (world.number("ec-p256"), world.number("ec-p256 01")) == (7, 8), "both are published: nothing is to be made"


def test_R45_what_was_revoked_while_nobody_served_is_listed(world: World) -> None:
    """R45: a start goes on from the last revocation that a CRL lists."""
    serial, other = world.issue(), world.issue()
    world.revoke(other)
    world.settle()
    world.revoke(serial)
    world.start()
    world.settle()
    world.settle(6)
    assert (world.number(), world.listed()) == (2, {serial, other})


def test_R45_an_expired_certificate_leaves_after_one_more_crl(world: World) -> None:
    """R45: an entry stays until one CRL of the schedule was made after its certificate expired (RFC 5280 §3.3), over a
    restart too; one made for another's revocation does not count."""
    short, long = world.issue(ends=DAY + 100), world.issue()
    world.revoke(short)
    world.revoke(long)
    world.settle()
    world.settle(DAY)  # still valid
    other = world.issue()
    world.settle(200)  # expired
    world.revoke(other)
    world.settle()
    world.settle(6)
    assert world.listed() == {short, long, other}, "not of the schedule"
    world.start()
    world.settle(DAY - 206)
    assert world.listed() == {short, long, other}, "the first of the schedule beyond its validity"
    world.start()
    world.settle(DAY)
    assert world.listed() == {long, other}
    world.settle(DAY)
    assert world.listed() == {long, other}


def test_R45_another_can_be_asked_for(world: World) -> None:
    """R45: a request through the ledger makes one new CRL, and one only."""
    world.settle()
    world.writer.want_crl("ec-p256")
    world.settle(1)
    world.settle(1)
    assert world.number() == 2


def test_R45_each_ca_lists_its_own(folder: Path) -> None:
    """R45: two CAs of one instance have two CRLs, each signed by its own key over its own certificates."""
    world = World(folder, kinds=("ec-p384", "rsa-2048"))
    with closing(world.writer):
        one, other = world.issue(kind="ec-p384"), world.issue(kind="rsa-2048")
        world.revoke(one)
        world.revoke(other)
        world.settle()
        assert (world.listed("ec-p384"), world.listed("rsa-2048")) == ({one}, {other})
        assert world.slot.get(metrics.CRL_ENTRIES.at) == 2


def test_a_ca_without_a_crl_costs_nothing(folder: Path) -> None:
    """Where no CA keeps one, the keeper is false and nothing is asked."""
    world = World(folder, kinds=())
    with closing(world.writer):
        assert not world.keeper


def test_an_expired_ca_makes_no_crl(world: World) -> None:
    """After its CA's certificate has expired a CRL says nothing to anybody, and none is signed."""
    world.now = ca().certificate.not_valid_after_utc.timestamp() + 1
    world.settle()
    assert world.signed == 0


def test_a_fatal_token_is_not_hidden(world: World) -> None:
    """What the token cannot recover from is raised: the issuer is made anew."""
    world.trouble.append(TokenFatal("bad_signature", "the token lies"))
    with pytest.raises(TokenFatal):
        world.settle()
    assert not world.plan("ec-p256").file.exists()


def test_a_broken_ledger_is_not_hidden(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number without a record of it: nothing is signed."""

    def fail(_: object) -> None:
        raise LedgerBroken("disk full")

    monkeypatch.setattr(world.writer, "store_crl", fail)
    with pytest.raises(LedgerBroken):
        world.settle()
    assert world.signed == 0


def test_a_file_that_cannot_be_written_is_tried_again(world: World) -> None:
    """The CRL before stays in its place meanwhile, and the log says why."""
    world.settle()
    beside = world.plan("ec-p256").file.with_name("ec-p256.crl.new")
    beside.mkdir()
    world.settle(DAY)
    assert world.number() == 1
    assert "Is a directory" in world.told[-1]["why"]
    beside.rmdir()
    world.settle(11)
    assert world.number() == 3


def test_a_crl_is_replaced_where_it_was_put(world: World) -> None:
    """A file that the operator put elsewhere by a link, with rights of its own, stays there and keeps them."""
    world.settle()
    path, elsewhere = world.plan("ec-p256").file, world.folder / "www.crl"
    assert path.stat().st_mode & 0o777 == 0o644
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    elsewhere.chmod(0o640)
    world.settle(2 * DAY)
    assert path.is_symlink()
    assert (world.number(), elsewhere.stat().st_mode & 0o777) == (2, 0o640)


def test_a_step_is_small(world: World) -> None:
    """A long list is read and made in steps, so that an enrolment in between waits for one alone: never more than 200
    revocations in one, and signing apart from reading, recording and writing."""
    some = [world.issue() for _ in range(450)]
    for one in some:
        world.revoke(one)
    steps = 1
    while world.keeper.step():
        steps += 1
    assert steps == 3 + 5 + 1, "three slices, the five parts of making, and the look that finds nothing more"
    assert world.listed() == set(some)


def test_a_ledger_of_an_older_estd_is_brought_up_to_date(folder: Path) -> None:
    """Revocations from before there were CRLs are listed too; until then a reader says what to do."""
    path = folder / "old.sqlite3"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
        db.execute(ledger._INSERT, row(revoked_at=7, reason=4))
        db.execute(ledger._INSERT, row())
        db.commit()
    with Reader(path) as reader, pytest.raises(LedgerError, match="serve it once"):
        reader.crls.last("root")
    with Writer(path) as writer:
        (found,) = writer.crls.revocations(0, 0, 9)
        assert (found.revoked_at, found.reason) == (7, 4)


def test_a_revocation_is_written_down_once(world: World) -> None:
    """Revoking again changes nothing, and gives no second entry."""
    serial = world.issue()
    world.revoke(serial, 1)
    world.revoke(serial, 4)
    assert [one.reason for one in world.writer.crls.revocations(0, 0, 9)] == [1]
    assert world.writer.crls.revocations(1, 0, 9) == []


def test_asking_leaves_the_record_alone(world: World) -> None:
    """A record stored while another CRL was asked for does not take the question away."""
    world.writer.store_crl(CrlRecord("root", 5, 1, 2, 1, 0))
    world.writer.want_crl("root")
    world.writer.store_crl(CrlRecord("root", 5, 1, 2, 2, 0))
    assert world.writer.crls.last("root") == ledger_crls.CrlRecord("root", 5, 1, 2, 2, 0, wanted=5)


HOSTILE = {
    "nothing": lambda good: b"",
    "no DER": lambda good: b"-----BEGIN X509 CRL-----",
    "cut short": lambda good: good[:-1],
    "another CA's": lambda good: _other(),
    "a signature with one bit changed": lambda good: good[:-1] + bytes([good[-1] ^ 1]),
    "a signature algorithm but its own": lambda good: good.replace(b"\x04\x03\x02\x03", b"\x04\x03\x03\x03"),
    "a signature algorithm of another than it says": lambda good: b"\x04\x03\x03\x03".join(
        good.rsplit(b"\x04\x03\x02\x03", 1)
    ),
    "another number": lambda good: good.replace(b"\x04\x03\x02\x01\x01", b"\x04\x03\x02\x01\x02"),
    "of version 8": make.of_version_8,
    "an extension twice": lambda good: make.with_an_extension_twice(good, lambda tbs: sign("ec-p256", tbs)),
    "a tag changed": lambda good: good.replace(b"\x02\x01\x01\x30", b"\x02\x01\x01\x31"),
}


def _other() -> bytes:
    template = crl_list.ListTemplate(ca("ec-p384"))
    tbs = template.prepare(number=9, this_update=NOW, next_update=NOW + 1, entries=())
    return template.complete(tbs, sign("ec-p384", tbs))


@pytest.mark.parametrize("case", HOSTILE)
def test_R45_an_edge_believes_no_file_but_its_cas(world: World, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R45: what is not a CRL that the CA signed is not served: the one before is, or a 503 where there was none."""
    monkeypatch.setattr(crl_file, "_LOOK_AGAIN_SECONDS", 0.0)
    path = world.plan("ec-p256").file
    world.settle()
    good = path.read_bytes()
    seen = crl_file.CrlBody([path], [ca()])

    async def act() -> None:
        body = await seen.get()
        assert body == wire.crls([good])
        assert HOSTILE[case](good) != good
        crl_file.write(path, HOSTILE[case](good))
        assert await seen.get() == body
        fresh = crl_file.CrlBody([path], [ca()])
        with pytest.raises(Unavailable) as refused:
            await fresh.get()
        assert refused.value.retry_after is not None
        crl_file.write(path, good)
        assert await fresh.get() == body

    asyncio.run(act())


def test_R45_an_edge_that_starts_reads_what_is_there(world: World) -> None:
    """R45: the file of before a change of keys, which an edge of the generation before the change cannot read any more
    once it is asked: it has read it."""
    path = world.plan("ec-p256").file
    world.settle()
    old = path.read_bytes()
    body = crl_file.CrlBody([path], [ca()])
    crl_file.write(path, _other())
    assert asyncio.run(body.get()) == wire.crls([old])


def test_a_crl_that_could_not_be_read_is_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process had no descriptor left, say, the CRL before is served until the next look; another CA's is not
    held up by that."""
    monkeypatch.setattr(crl_file, "_LOOK_AGAIN_SECONDS", 0.0)
    path, second = world.plan("ec-p256").file, world.plan("ec-p384").file
    world.settle()
    old = path.read_bytes()
    body = crl_file.CrlBody([path, second], [ca(), ca("ec-p384")])
    world.settle(2 * DAY)
    crl_file.write(second, other := _other())
    read = Path.read_bytes

    def fail(one: Path) -> bytes:
        if one == path:
            raise OSError(errno.EMFILE, "Too many open files")
        return read(one)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fail)
        assert asyncio.run(body.get()) == wire.crls(sorted([old, other]))
    assert (new := path.read_bytes()) != old
    assert asyncio.run(body.get()) == wire.crls(sorted([new, other]))


def test_an_edge_reads_a_crl_beside_its_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a new CRL is read, the loop goes on: whoever asks gets the one before it, or waits where there was none; a
    client that leaves meanwhile takes nothing from the others."""
    monkeypatch.setattr(crl_file, "_LOOK_AGAIN_SECONDS", 0.0)
    path = world.plan("ec-p256").file
    body = crl_file.CrlBody([path], [ca()])
    world.settle()
    old = path.read_bytes()
    gate = threading.Event()
    read = crl_file.read
    monkeypatch.setattr(crl_file, "read", lambda path, ca: read(path, ca) if gate.wait(60) else None)

    async def act() -> None:
        first = [asyncio.create_task(body.get()) for _ in range(3)]
        await asyncio.sleep(0)  # each has begun, and this goes on
        first.pop().cancel()
        gate.set()
        assert await asyncio.gather(*first) == [wire.crls([old])] * 2
        gate.clear()
        world.settle(2 * DAY)
        monkeypatch.setattr(crl_file, "_LOOK_AGAIN_SECONDS", 3600.0)
        asking = asyncio.create_task(body.get())
        await asyncio.sleep(0)
        assert await body.get() == wire.crls([old])
        asking.cancel()
        gate.set()
        while await body.get() != wire.crls([path.read_bytes()]):  # noqa: ASYNC110 (a thread's turn)
            await asyncio.sleep(0)

    asyncio.run(act())


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("crl = 1", "ca.root.crl"),
        ('crl_validity = "7"', "ca.root.crl_validity"),
        ('crl_renew = "59s"', "ca.root.crl_renew"),
        ('crl_renew = "7d"', "ca.root.crl_renew"),
        ("crl_delay = 5", "ca.root.crl_delay"),
        ("crl_file = 5", "ca.root.crl_file"),
        ('crl_url = "https://crl.example.com/root.crl"', "ca.root.crl_url"),
        ('crl_url = "http:///root.crl"', "ca.root.crl_url"),
        ('crl_url = "http://crl.example.com/a b"', "ca.root.crl_url"),
        ('crl_url = "http://crl.example.com/root.crl"', "ca.root.crl_url"),  # without crl = true
    ],
)
def test_what_is_wrong_with_a_crls_keys_is_said(line: str, path: str) -> None:
    """Each key is of its kind and inside its bounds, or one problem names its path."""
    (told,) = problems(text("ca.root", line))
    assert told.startswith(f"{path}: ")


_RULE = """[[label.default.allow]]
who = "certificate"
anchors = "m.pem"
crls = ["m.crl"]
profile = "device"
"""
_OTHER = '[ca.{0}]\ncertificate = "other.pem"\nkey_id = "02"\ncrl = true\n'


@pytest.mark.parametrize(
    ("file", "more", "cas"),
    [
        ("crl/root.crl", "", []),
        ("ca.pem", "", ["root"]),
        ("crl/../ca.pem", "", ["root"]),
        ("pin", "", ["root"]),
        ("ledger.sqlite3", "", ["root"]),
        ("server.key", "", ["root"]),
        ("hsm.conf", '[token.environment]\nSOFTHSM2_CONF = "hsm.conf"', ["root"]),
        ("m.pem", _RULE, ["root"]),
        ("m.crl", _RULE, ["root"]),
        ("crl/b.crl", _OTHER.format("b"), ["root", "b"]),
        ("crl/b.crl", _OTHER.format("b").replace("true", "false"), []),
        ("crl/{key}.crl", _OTHER.format("01"), ["root", "01"]),
        ("crl/{key}.crl", _OTHER.format("02"), []),
        ("crl/b.crl", _OTHER.format("b-01"), ["root", "b-01"]),  # root's, once its key 01 has issued before
    ],
)  # fmt: skip
def test_a_crl_replaces_no_other_file(file: str, more: str, cas: Sequence[str]) -> None:
    """A crl_file, with the CKA_ID of a key that has issued before too, is no file that anything else names."""
    toml = f"{text('ca.root', 'crl = true', f'crl_file = {json.dumps(file)}')}{more}\n"
    told = [] if not cas else problems(toml)
    assert [one.partition(": ")[0] for one in told] == [f"ca.{name}.crl_file" for name in cas]
    if not cas:
        parse(toml, FOLDER)


def test_a_ca_that_may_not_sign_crls_is_refused() -> None:
    """A CA's certificate without cRLSign cannot keep a CRL, and the sentence says so; without keyUsage it can."""
    crl_plan.check_signs_crls(ca().certificate)  # has no keyUsage
    key = ca_key("ec-p256")
    name = ca().certificate.subject
    words = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    usage = x509.KeyUsage(**dict.fromkeys(words, False), key_cert_sign=True)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2020, 1, 1), datetime(2040, 1, 1))
    made = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    CaCertificate.of(made, [])
    with pytest.raises(ValueError, match="cRLSign"):
        crl_plan.check_signs_crls(made)


def test_the_bench_measures_what_it_says() -> None:
    """`python -m bench.crl` makes a CRL of that many revocations, in steps, and another after one more."""
    command = [sys.executable, "-m", "bench.crl", "--revocations", "450", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (told["revocations"], told["start"]["steps"]) == (450, 3 + 6)
    assert told["next"]["steps"] == 6
    assert told["crl_bytes"] > 450 * 45
