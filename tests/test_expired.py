"""Devices that slept: a certificate of ours that expired renews itself inside the label's window, and does nothing else
(interop complaint 9, R10, R50)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from estd import admission
from estd.client import Refused
from estd.errors import EstError, Reason
from estd.identify import ClientCertificate
from estd.ledger import Row
from estd.ledger_link import RemoteWriter
from tests import make
from tests.make import Identity
from tests.servers import Server
from tests.test_policy import (
    ISSUED,
    MAKER,
    OURS,
    Held,
    anchors_rule,
    basic_rule,
    evidence,
    issued_rule,
    label_policy,
    ledger,
)  # fmt: skip

DAY = 86400
WINDOW = 30 * DAY
END = ISSUED.certificate.not_valid_after_utc.timestamp()
START = ISSUED.certificate.not_valid_before_utc.timestamp()
FOREIGN = make.certificate(MAKER, subject=make.name("device-1"), ends=timedelta(days=29))  # before its maker does
FOREIGN_END = FOREIGN.certificate.not_valid_after_utc.timestamp()
FOR_SERVERS = make.certificate(OURS, extended=[make.SERVER_AUTH])
RULES = (issued_rule(), anchors_rule(MAKER), anchors_rule(OURS))


@dataclass(frozen=True)
class Case:
    at: float
    reason: Reason | None = None
    window: int = WINDOW
    identity: Identity = ISSUED
    renewal: bool = True
    held: Held = field(default_factory=lambda: ledger(ISSUED))
    words: str = ""


CASES: dict[str, Case] = {
    "valid": Case(END - DAY),
    "its last second": Case(END),
    "the last instant of it": Case(END + 0.999),
    "the first second after it": Case(END + 1),
    "deep inside the window": Case(END + 15 * DAY),
    "the window's last second": Case(END + WINDOW),
    "the last instant of that": Case(END + WINDOW + 0.999),
    "the first second after the window": Case(END + WINDOW + 1, Reason.CERT_EXPIRED, words="renewed until"),
    "long after the window": Case(END + 400 * DAY, Reason.CERT_EXPIRED),
    "no window: the last second": Case(END + 0.999, window=0),
    "no window: the second after": Case(END + 1, Reason.CERT_EXPIRED, window=0, words="expired at"),
    "a window of a second: its second": Case(END + 1.999, window=1),
    "a window of a second: the next": Case(END + 2, Reason.CERT_EXPIRED, window=1),
    "the window opens nothing before its first second": Case(START - 1, Reason.CERT_EXPIRED, words="not valid before"),
    "simpleenroll": Case(END + 1, Reason.CERT_EXPIRED, renewal=False),
    "simpleenroll, still valid": Case(END, renewal=False),
    "revoked": Case(END + 1, Reason.REVOKED, held=ledger(ISSUED, revoked=True)),
    "revoked and past the window": Case(END + WINDOW + 1, Reason.REVOKED, held=ledger(ISSUED, revoked=True)),
    "not in the ledger, though its CA is an anchor": Case(END + 1, Reason.CERT_EXPIRED, held=ledger()),
    "another under its serial": Case(
        END + 1, Reason.CERT_EXPIRED, held=lambda _: ledger(FOREIGN)(ClientCertificate.parse(FOREIGN.der)),
    ),
    "issued under another label": Case(END + 1, Reason.NOT_GRANTED, held=ledger(ISSUED, label="there")),
    "a manufacturer's": Case(FOREIGN_END + 1, Reason.CERT_EXPIRED, identity=FOREIGN),
    "one of ours for servers": Case(
        END + 1, Reason.CERT_NOT_CLIENT, identity=FOR_SERVERS, held=ledger(FOR_SERVERS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_window_to_the_second(case: str) -> None:
    """A certificate that the ledger holds renews itself until the window's last second has passed; a revoked one, a
    foreign one, and another operation than simplereenroll never gain by the window."""
    row = CASES[case]
    rules = label_policy(*RULES, expired_seconds=row.window)
    given = evidence(row.identity, renewal=row.renewal)
    if row.reason is None:
        found = admission.identify(rules, given, row.held(given.certificate), row.at, [])
        assert found.issued
        return
    with pytest.raises(EstError) as caught:
        admission.identify(rules, given, row.held(given.certificate), row.at, [])
    assert caught.value.reason is row.reason
    assert row.words in caught.value.sentence


def test_a_credential_beside_an_expired_certificate_renews_nothing_past_the_window() -> None:
    """A renewal goes by its certificate: a factory's credential beside it does not lengthen the window."""
    rules = label_policy(basic_rule(), issued_rule(), expired_seconds=WINDOW)
    with pytest.raises(EstError) as caught:
        admission.identify(
            rules, evidence(ISSUED, "factory", rule=0, renewal=True), ledger(ISSUED)(evidence(ISSUED).certificate),
            END + WINDOW + 1, [],
        )  # fmt: skip
    assert caught.value.reason is Reason.CERT_EXPIRED


class Slept:
    """Devices whose certificates expired, put into a running server's ledger as its own writer would have."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder

    def device(self, ended: timedelta, *, label: str = "renewal", recorded: bool = True) -> Identity:
        identity = make.certificate(
            subject=make.name("pump-7"), extended=[make.CLIENT_AUTH], starts=timedelta(days=-90), ends=-ended
        )
        found = ClientCertificate.parse(identity.der)
        row = Row(
            serial=found.serial, certificate_der=identity.der, csr_sha256=bytes(32), repeat_key=identity.der[-32:],
            identity="basic:factory", subject=found.shown, label=label, profile="renewable",
            not_before=found.not_before, not_after=found.not_after, issued_at_ms=0, renews=None,
        )  # fmt: skip
        if recorded:
            writer = RemoteWriter(self.server.folder / "ledger.sqlite3", self.server.folder / "run" / "ledger.sock")
            writer.record([row])
            writer.close()
        return identity

    def ask(self, identity: Identity, *, renew: bool = True, **asked: Any) -> x509.Certificate:
        files = identity.write(self.folder, f"{identity.certificate.serial_number:x}")
        with self.server.client(cert=files, label="renewal") as client:
            made = make.csr(**{"subject": identity.certificate.subject, **asked})
            return client.enroll(lambda _: made, renew=renew)

    def refusal(self, identity: Identity, **asked: Any) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            self.ask(identity, **asked)
        return caught.value.status, caught.value.sentence


@pytest.fixture
def slept(renewal_server: Server, folder: Path) -> Slept:
    return Slept(renewal_server, folder)


def test_a_device_that_slept_renews_itself(slept: Slept) -> None:
    """Over TLS: a device that slept for a week renews at the demonstration's label and has a valid certificate again;
    at simpleenroll it gets nothing, nor with other names."""
    identity = slept.device(timedelta(days=7))
    assert slept.refusal(identity, renew=False)[0] == 401
    assert slept.refusal(identity, subject=make.name("boss"))[0] == 403
    signed = slept.server.metric("estd_certificates_total")
    renewed = slept.ask(identity)
    assert renewed.subject == identity.certificate.subject
    assert renewed.not_valid_after_utc.timestamp() > time.time()
    renewed.verify_directly_issued_by(slept.server.ca)
    assert slept.server.metric("estd_certificates_total") == signed + 1


def test_who_slept_too_long_or_is_unknown_stays_out(slept: Slept) -> None:
    """Over TLS: past the window, unknown to the ledger, or of another label: refused without a signature, and told."""
    signed = slept.server.metric("estd_certificates_total")
    status, sentence = slept.refusal(slept.device(timedelta(days=31)))
    assert (status, "renewed until" in sentence) == (401, True)
    assert slept.refusal(slept.device(timedelta(days=1), recorded=False))[0] == 401
    assert slept.refusal(slept.device(timedelta(days=1), label="default"))[0] == 403
    assert slept.server.metric("estd_certificates_total") == signed
