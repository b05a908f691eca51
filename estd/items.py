"""A request on its way down the line: what it has become so far, and the row and the answer that it makes."""

from __future__ import annotations

from dataclasses import dataclass

from estd import csr, holding, policy, registry
from estd.devices import DeviceKey, Use
from estd.errors import REASONS, EstError
from estd.frames import ASKS, WHY, Answer, Request
from estd.issuance import CertificateDer, Issuer, Prepared
from estd.ledger import Row
from estd.policy import Authorised, Client, Evidence, Issued

_REASON_NUMBER = {reason: index for index, reason in enumerate(REASONS)}


@dataclass(slots=True)
class Item:
    """One request. Each step of the line fills in a field, until there is an answer."""

    request: Request
    policy: policy.LabelPolicy
    evidence: Evidence | None = None
    client: Client | None = None
    csr: csr.CertificationRequest | None = None
    authorised: Authorised | None = None
    prepared: Prepared | None = None
    issuer: Issuer | None = None
    certificate_der: CertificateDer | None = None
    twin: Item | None = None
    """The same request earlier in this batch: both get one certificate."""
    verdict: holding.Verdict | None = None
    """What became of it where its label holds requests for a person."""
    answer: Answer | None = None

    @property
    def identity(self) -> str:
        """Who asks, as far as it is known."""
        if self.authorised is not None:
            return self.authorised.identity
        return self.client.identity if self.client else ""

    @property
    def answered(self) -> Answer:
        """The answer, once the line has come to its end."""
        assert self.answer is not None
        return self.answer

    def refuse(self, error: EstError) -> None:
        self.answer = refusal(self.request.id, error, self.identity)

    def issued(self, serial: bytes, certificate_der: bytes) -> None:
        self.answer = Answer(self.request.id, 200, 0, 0, self.identity, serial, certificate_der)

    def may(self) -> None:
        """The client may have such a certificate: with a key of which kinds."""
        assert self.authorised is not None
        self.issued(b"", ",".join(sorted(self.authorised.profile.keys)).encode())

    def use(self, row: Row) -> Use | None:
        """The one-time secret that this certificate uses up; None without one."""
        assert self.authorised is not None
        secret = self.authorised.secret
        return None if secret is None else Use(row.serial, secret.key, secret.sha256, row.issued_at_ms)

    def row(self, issued_at_ms: int) -> Row:
        authorised, prepared = self.authorised, self.prepared
        assert authorised is not None
        assert prepared is not None
        assert self.certificate_der is not None
        return Row(
            serial=prepared.serial,
            certificate_der=self.certificate_der,
            csr_sha256=authorised.request.sha256,
            repeat_key=authorised.repeat_key,
            identity=authorised.identity,
            subject=authorised.names.text,
            label=authorised.label.name,
            profile=authorised.profile.name,
            not_before=prepared.not_before,
            not_after=prepared.not_after,
            issued_at_ms=issued_at_ms,
            renews=authorised.renews,
        )


def issued_before(row: Row | None) -> Issued | None:
    """What the ledger knows of a client's certificate, as the policy takes it."""
    if row is None:
        return None
    return Issued(
        certificate_der=row.certificate_der,
        label=row.label,
        profile=row.profile,
        revoked=row.revoked_at is not None,
        identity=row.identity,
    )


def without_twins(items: list[Item]) -> list[Item]:
    """The items less those that repeat an earlier one, which are told their twin."""
    first: dict[tuple[bytes, bool], Item] = {}
    for item in items:
        assert item.authorised is not None
        asks = item.request.kind in ASKS  # a question is no twin of what follows it
        found = first.setdefault((item.authorised.repeat_key, asks), item)
        item.twin = found if found is not item else None
    return list(first.values())


def one_per_secret(items: list[Item]) -> list[Item]:
    """The items less those whose one-time secret an earlier one uses, which are refused."""
    first: dict[DeviceKey, Item] = {}
    going: list[Item] = []
    for item in items:
        assert item.authorised is not None
        secret = item.authorised.secret
        if secret is not None and first.setdefault(secret.key, item) is not item:
            item.refuse(registry.spent())
        else:
            going.append(item)
    return going


def refusal(number: int, error: EstError, identity: str = "") -> Answer:
    """The frame that carries a refusal back to the edge."""
    return Answer(
        number, error.status, _REASON_NUMBER[error.reason], error.retry_after or 0, identity, b"",
        error.sentence.encode() + (WHY + error.why.encode() if error.why else b""),
    )  # fmt: skip
