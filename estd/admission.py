"""Who asks? `identify` tries the label's rules on the evidence (the client's certificate, its credential's name, what
the registry or the webhook know) and makes a `Client`. No rule, no certificate. Pure: what the ledger, the CRLs and the
registry know is asked through arguments.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from cryptography import x509

from estd import names, registry
from estd.devices import key_of_identity
from estd.errors import EstError, Forbidden, Reason, Unauthenticated
from estd.identify import ClientCertificate
from estd.policy import Client, Evidence, Issued, LabelPolicy, OneTimeSecret, Rule


def identify(
    policy: LabelPolicy, evidence: Evidence, held: Issued | None, now: float, refusals: list[EstError]
) -> Client:
    """The client that the first fitting rule lets in; `held` is what the ledger has under the serial number of its
    certificate. The refusal that tells most where none does; each rule's goes into `refusals`, for who counts them."""
    told = evidence.told
    if evidence.certificate is None and evidence.user is None and told.claim is None and not told.otp_sha256:
        raise Unauthenticated(
            Reason.NO_CREDENTIAL, "Present a client certificate in TLS, or a credential by HTTP Basic authentication."
        )
    issued = _own(evidence.certificate, held) if evidence.certificate is not None else None
    for index, rule in enumerate(policy.rules):
        try:
            if rule.allow.who == "basic":
                client = _by_basic(rule, index, evidence)
            elif rule.anchors is None and rule.allow.registry is not None:
                client = _by_secret(rule, policy, evidence, now)
            elif rule.anchors is None and rule.allow.hook is not None:
                client = _by_claim(rule, evidence)
            elif evidence.certificate is None:
                continue
            elif issued is not None and (dead := _dead(issued, evidence)) is not None:
                raise dead
            elif rule.allow.who == "issued":
                client = _by_issued(rule, evidence, evidence.certificate, policy, issued, now)
            elif rule.allow.who == "ra":
                client = _by_ra(rule, evidence.certificate, issued, now)
            else:
                client = _by_anchors(rule, policy, evidence, evidence.certificate, now)
        except EstError as refusal:
            refusals.append(refusal)
        else:
            if client is not None:
                return client
    if not refusals:
        raise Unauthenticated(Reason.CERT_UNKNOWN, "This label has no rule that lets this client in.")
    # A certificate that one rule knows and refuses tells more than that another rule does not know it.
    raise max(refusals, key=lambda one: (one.reason is not Reason.CERT_UNKNOWN, one.status))


def _by_basic(rule: Rule, index: int, evidence: Evidence) -> Client | None:
    if evidence.user is None or evidence.rule != index or rule.allow.profile is None:
        return None
    if evidence.renewal and evidence.certificate is not None:
        return None  # a renewal goes by the certificate that it renews
    return Client(
        identity=f"basic:{evidence.user}",
        names=names.Names(subject=names.subject_of_user(evidence.user), san=()),
        profile=rule.allow.profile,
        issued=False,
    )


def _by_secret(rule: Rule, policy: LabelPolicy, evidence: Evidence, now: float) -> Client | None:
    if evidence.renewal and evidence.certificate is not None:
        return None  # a renewal goes by the certificate that it renews
    found = registry.by_secret(rule.allow, policy.label.name, evidence.told, now, policy.label.repeat_seconds)
    return None if found is None else _registered(policy, found)


def _registered(policy: LabelPolicy, found: registry.Found) -> Client:
    if found.profile not in policy.profiles:
        raise Forbidden(Reason.NOT_GRANTED, f"The registry's profile {found.profile!r} is not in the configuration.")
    return Client(
        identity=found.key.identity,
        names=found.names,
        profile=found.profile,
        issued=False,
        secret=OneTimeSecret(found.key, found.secret, found.spent) if found.secret else None,
    )


def _by_claim(rule: Rule, evidence: Evidence) -> Client | None:
    """A user and a secret that only the webhook can judge."""
    claim = evidence.told.claim
    if claim is None or (evidence.renewal and evidence.certificate is not None):
        return None
    own = names.Names(subject=names.subject_of_user(claim.serial_number), san=())
    granted, profile = registry.by_verdict(rule.allow, evidence.told.verdict, own)
    return Client(identity=f"webhook:{claim.serial_number}", names=granted, profile=profile, issued=False)


def _dead(issued: Issued, evidence: Evidence) -> EstError | None:
    """Why a certificate that we issued lets nobody in any more: it is revoked, or its device's row is gone or
    disabled."""
    if issued.revoked:
        return Forbidden(Reason.REVOKED, "The client certificate is revoked.")
    key = key_of_identity(issued.identity)
    if key is not None:
        try:
            registry.check_alive(key, evidence.told.devices)
        except EstError as refusal:
            return refusal
    return None


def _own(certificate: ClientCertificate, held: Issued | None) -> Issued | None:
    """What the ledger knows, where it holds this very certificate. That is more than a path, and costs no
    verification: each signature in the ledger was verified before it was recorded."""
    if held is None or not hmac.compare_digest(held.certificate_der, certificate.der):
        return None
    return held


def _by_issued(
    rule: Rule,
    evidence: Evidence,
    certificate: ClientCertificate,
    policy: LabelPolicy,
    issued: Issued | None,
    now: float,
) -> Client | None:
    if issued is None:
        return None
    if certificate.fault is not None:
        raise certificate.fault
    # A device that slept past its expiry renews, and does nothing else; the ledger says that it is not revoked.
    certificate.check_time(now, expired_seconds=policy.label.expired_seconds if evidence.renewal else 0)
    if issued.label != policy.label.name and issued.label not in rule.allow.labels:
        raise Forbidden(Reason.NOT_GRANTED, f"The client certificate was issued under the label {issued.label!r}.")
    profile = rule.allow.profile or issued.profile
    if profile not in policy.profiles:
        raise Forbidden(
            Reason.NOT_GRANTED, f"The client certificate's profile {profile!r} is not in the configuration any more."
        )
    device = key_of_identity(issued.identity)
    return Client(
        # A device of the registry stays one: its certificates die with its row.
        identity=device.identity if device is not None else f"cert:{certificate.serial.hex()} {certificate.shown}",
        names=certificate.names,
        profile=profile,
        issued=True,
    )


def _by_ra(rule: Rule, certificate: ClientCertificate, issued: Issued | None, now: float) -> Client | None:
    """R16: listed, and issued by this CA, which alone knows whether it is revoked; the names are its requests'."""
    assert rule.ras is not None
    assert rule.allow.profile is not None
    if not rule.ras.lists(certificate.der):
        return None
    if issued is None:
        raise Unauthenticated(
            Reason.CERT_UNKNOWN, "The registration authority's certificate is listed, but this CA did not issue it."
        )
    if certificate.fault is not None:
        raise certificate.fault
    certificate.check_time(now)
    return Client(
        identity=f"ra:{certificate.serial.hex()} {certificate.shown}",
        names=names.Names(subject=x509.Name([]), san=()),
        profile=rule.allow.profile,
        issued=False,
        ra=True,
    )


def _by_anchors(
    rule: Rule, policy: LabelPolicy, evidence: Evidence, certificate: ClientCertificate, now: float
) -> Client:
    check_path(rule, certificate, evidence.intermediates, now)
    allow, own = rule.allow, certificate.names
    assert allow.profile is not None
    if allow.registry is not None:
        return _registered(policy, registry.by_certificate(allow, policy.label.name, evidence.told, own))
    if allow.hook is not None:
        granted, profile = registry.by_verdict(allow, evidence.told.verdict, own)
        return Client(identity=f"webhook:{certificate.shown}", names=granted, profile=profile, issued=False)
    if allow.names is not None:
        own = registry.mapped(allow.names, registry.fields(own))
    return Client(identity=f"idevid:{certificate.shown}", names=own, profile=allow.profile, issued=False)


def check_path(
    rule: Rule, certificate: ClientCertificate, intermediates: Sequence[x509.Certificate], now: float
) -> None:
    """A 401 or 403 unless the certificate has a path to the rule's anchors, in time and not revoked."""
    assert rule.anchors is not None
    assert rule.crls is not None
    if certificate.fault is not None:
        raise certificate.fault
    path = rule.anchors.path(certificate, intermediates, now)
    certificate.check_time(now)
    rule.crls.check(path, now)
