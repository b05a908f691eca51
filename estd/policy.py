"""Who asks, and may they? The one place where an enrolment is decided.

`identify` tries the label's rules on the evidence (the client's certificate or its credential's name) and makes a
`Client`; `authorise` holds the client against the request and makes an `Authorised`, the only value that issuance
takes. No rule, no certificate; the names come from the identity and the profile, never from the request alone. Pure:
what the ledger and the CRLs know is asked through arguments.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cryptography import x509

from estd import names, registry
from estd.crl import CrlFiles
from estd.csr import CertificationRequest
from estd.devices import DeviceKey, key_of_identity
from estd.errors import BadRequest, EstError, Forbidden, Reason, Unauthenticated
from estd.identify import Anchors, ClientCertificate
from estd.labels import Allow, Label, Profile


class Issued(NamedTuple):
    """What the ledger holds of a certificate that estd issued."""

    certificate_der: bytes
    label: str
    profile: str
    revoked: bool
    identity: str = ""


class Evidence(NamedTuple):
    """Who asks, as the edge saw it."""

    label: str
    renewal: bool
    """simplereenroll rather than simpleenroll."""
    certificate: ClientCertificate | None
    intermediates: tuple[x509.Certificate, ...]
    user: str | None
    """The name of the Basic credential whose password was right, None where none was given."""
    rule: int
    """Which of the label's rules that credential belongs to."""
    binding: bytes
    """The TLS channel's binding value (tls-unique or tls-exporter), empty where the edge saw no need for it."""
    told: registry.Told = registry.NOTHING
    """What the registry and the webhook know, where the label asks them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way into a label, with what its files hold."""

    allow: Allow
    anchors: Anchors | None
    crls: CrlFiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPolicy:
    """A label with its rules and the profiles that they lead to."""

    label: Label
    rules: tuple[Rule, ...]
    profiles: Mapping[str, Profile]


class Authorised(NamedTuple):
    """A request that may become a certificate, with the names it was granted. Only `authorise` makes one."""

    label: Label
    profile: Profile
    identity: str
    names: names.Names
    request: CertificationRequest
    renews: bytes | None
    """The serial of the certificate that this one renews."""
    repeat_key: bytes
    """Equal for requests that are the same request sent again."""
    secret: OneTimeSecret | None = None
    """To be marked as used with the certificate."""


class OneTimeSecret(NamedTuple):
    """What lets a device enrol once."""

    key: DeviceKey
    sha256: bytes
    spent: bool
    """Used within the repeat window: good for the same request again alone."""


class Client(NamedTuple):
    """One whom a rule lets in."""

    identity: str
    """For logs and the ledger: the way in, then who."""
    names: names.Names
    profile: str
    issued: bool
    secret: OneTimeSecret | None = None


def identify(policy: LabelPolicy, evidence: Evidence, held: Issued | None, now: float) -> Client:
    """The client that the first fitting rule lets in; `held` is what the ledger has under the serial number of its
    certificate. A 401 or 403 that tells most where none does."""
    told = evidence.told
    if evidence.certificate is None and evidence.user is None and told.claim is None and not told.otp_sha256:
        raise Unauthenticated(
            Reason.NO_CREDENTIAL, "Present a client certificate in TLS, or a credential by HTTP Basic authentication."
        )
    refusals: list[EstError] = []
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
                client = _by_issued(rule, evidence.certificate, policy, issued, now)
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
    rule: Rule, certificate: ClientCertificate, policy: LabelPolicy, issued: Issued | None, now: float
) -> Client | None:
    if issued is None:
        return None
    if certificate.fault is not None:
        raise certificate.fault
    certificate.check_time(now)
    if issued.label != policy.label.name and issued.label not in rule.allow.labels:
        raise Forbidden(Reason.NOT_GRANTED, f"The client certificate was issued under the label {issued.label!r}.")
    profile = rule.allow.profile or issued.profile
    if profile not in policy.profiles:
        raise Forbidden(
            Reason.NOT_GRANTED, f"The client certificate's profile {profile!r} is not in the configuration any more."
        )
    return Client(
        # A device of the registry stays one: its certificates die with its row.
        identity=issued.identity
        if key_of_identity(issued.identity)
        else f"cert:{certificate.serial.hex()} {certificate.shown}",
        names=certificate.names,
        profile=profile,
        issued=True,
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


def authorise(policy: LabelPolicy, evidence: Evidence, client: Client, request: CertificationRequest) -> Authorised:
    """What `client` gets for `request`. A 403 for names or a renewal that it may not have, a 400 for the wrong linking
    or a key that the profile does not take."""
    _check_linking(policy.label, evidence, request)
    profile = policy.profiles[client.profile]
    certificate = evidence.certificate
    asked = names.of_extensions(request.subject, request.extensions)
    renewed = certificate if client.issued else None
    if evidence.renewal and renewed is None:
        raise Forbidden(
            Reason.NOT_ISSUED,
            "simplereenroll renews a certificate of this CA that the client presents in TLS; "
            "a first certificate is asked for at simpleenroll.",
        )
    if renewed is not None:
        # At simpleenroll too: whoever comes with a certificate of ours is that device, and keeps its names whatever
        # names the profile lets a stranger ask for.
        _check_renewal(
            policy.label, renewed, request, asked, strict=evidence.renewal or profile.other_names == "refuse"
        )
        granted = renewed.names
    else:
        granted = names.grant(asked, client.names, profile)
    if request.key_kind not in profile.keys:
        raise BadRequest(
            Reason.KEY_REFUSED,
            f"The profile takes keys of {', '.join(sorted(profile.keys))}; this one is {request.key_kind}.",
        )
    return Authorised(
        label=policy.label,
        profile=profile,
        identity=client.identity,
        names=granted,
        request=request,
        renews=renewed.serial if renewed is not None else None,
        repeat_key=_repeat_key(evidence, client, granted, profile, request),
        secret=client.secret,
    )


def _check_linking(label: Label, evidence: Evidence, request: CertificationRequest) -> None:
    """RFC 7030 §3.5 and RFC 9148 §3: a challengePassword carries the base64 of this TLS connection's binding value.

    We read §3.5 as: whatever is in the attribute must be that value, where the label accepts linking at all; a value
    that is something else is as wrong as one of another connection.
    """
    given = request.challenge_password
    if label.linking == "off":
        return
    if given is None:
        if label.linking == "demanded":
            raise BadRequest(
                Reason.LINKING,
                "This label demands linked proof of possession: put the base64 of tls-unique (TLS 1.2) or of the "
                "EXPORTER-Channel-Binding (TLS 1.3) into the request's challengePassword.",
            )
        return
    expected = base64.b64encode(evidence.binding)
    if not evidence.binding or not hmac.compare_digest(expected, given):
        raise BadRequest(
            Reason.LINKING, "The request's challengePassword is not the channel-binding value of this TLS connection."
        )


def _check_renewal(
    label: Label, current: ClientCertificate, request: CertificationRequest, asked: names.Names, *, strict: bool
) -> None:
    """A renewal keeps its names, which a strict one must repeat (RFC 7030 §4.2.2), and its key as the label says."""
    if strict and not names.same(asked, current.names):
        raise Forbidden(
            Reason.NAME_REFUSED,
            "A re-enrolment keeps its names: the request's subject and subjectAltName must equal the certificate's, "
            f"whose subject is {current.shown[:200]!r}.",
        )
    same_key = current.spki_der == request.spki_der
    if label.renew == "same-key" and not same_key:
        raise Forbidden(Reason.REKEY_REFUSED, "This label renews certificates with the key that they have.")
    if label.renew == "new-key" and same_key:
        raise Forbidden(Reason.REKEY_REFUSED, "This label renews certificates with a new key only.")


def _repeat_key(
    evidence: Evidence, client: Client, granted: names.Names, profile: Profile, request: CertificationRequest
) -> bytes:
    """A hash of (label, operation, credential, SubjectPublicKeyInfo, names, profile)."""
    parts: list[Any] = [
        evidence.label.encode(),
        b"renew" if evidence.renewal else b"enroll",
        client.identity.encode(),
        request.spki_der,
        granted.subject_der,
        granted.san_der,
        profile.name.encode(),
    ]
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
