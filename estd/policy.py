"""What may they have? An enrolment is decided in two steps: `admission.identify`, then `authorise`.

`authorise` holds a `Client` against its request and makes an `Authorised`, the only value that issuance takes. The
names come from the identity and the profile, never from the request alone. Pure: what the ledger and the CRLs know is
asked through arguments. The values of both steps live here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cryptography import x509

from estd import csrattrs, names, registry, renaming
from estd.crl import CrlFiles
from estd.csr import CertificationRequest
from estd.devices import DeviceKey
from estd.errors import BadRequest, Forbidden, NotFound, Reason
from estd.identify import Anchors, ClientCertificate
from estd.labels import Allow, Label, Profile
from estd.ras import RaFile

_LENGTHS = struct.Struct("<6I")


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
    keygen: bool = False
    """The edge makes the key (serverkeygen)."""
    key_to_come: bool = False
    """It has not made it yet: the request's key stands for it."""
    asked_key: bytes = b""
    """The SHA-256 of the key in the client's own serverkeygen, where the label holds requests."""
    told: registry.Told = registry.NOTHING
    """What the registry and the webhook know, where the label asks them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way into a label, with what its files hold."""

    allow: Allow
    anchors: Anchors | None
    crls: CrlFiles | None
    ras: RaFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPolicy:
    """A label with its rules and the profiles that they lead to."""

    label: Label
    rules: tuple[Rule, ...]
    profiles: Mapping[str, Profile]
    demands: csrattrs.Demands | None = None
    """What csrattrs asks for, where a request that is otherwise is refused."""


class Authorised(NamedTuple):
    """A request that may become a certificate, with the names it was granted. Only `authorise` makes one."""

    label: Label
    profile: Profile
    identity: str
    """Who asked, and for whom."""
    names: names.Names
    request: CertificationRequest
    renews: bytes | None
    """The serial of the certificate that this one renews."""
    repeat_key: bytes
    """Equal for requests that are the same request sent again."""
    pending: Pending | None
    """None where nobody has to approve it."""
    secret: OneTimeSecret | None
    """To be marked as used with the certificate."""


class Pending(NamedTuple):
    """What waits for a person."""

    key: bytes
    """Equal for requests that one decision is about."""
    asker: str
    """Who asked alone: the registration authority itself, where it asks for a device."""
    asked_key: bytes
    """As in the evidence."""


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
    ra: bool = False
    """A registration authority, which asks for others."""
    secret: OneTimeSecret | None = None


class Renewed(NamedTuple):
    """The device's certificate that a registration authority renews, and its profile."""

    certificate: ClientCertificate
    profile: str
    device: DeviceKey | None = None
    """Its row in the registry, where it has one."""


def authorise(
    policy: LabelPolicy,
    evidence: Evidence,
    client: Client,
    request: CertificationRequest,
    for_device: Renewed | None = None,
) -> Authorised:
    """What `client` gets for `request`. A 403 for names or a renewal that it may not have, a 400 for the wrong linking
    or a key that the profile does not take. `for_device` is what a registration authority renews."""
    if evidence.keygen and not policy.label.serverkeygen:
        raise NotFound(Reason.UNKNOWN_OPERATION, "The operation serverkeygen is not offered here.")
    if not client.ra:  # whose devices linked their requests to another TLS session, the one between them and it
        _check_linking(policy.label, evidence, request)
    if policy.demands is not None:
        csrattrs.check(policy.demands, request, key=not evidence.key_to_come)
    profile = policy.profiles[for_device.profile if for_device is not None else client.profile]
    asked = names.of_extensions(request.subject, request.extensions)
    renewed = evidence.certificate if client.issued else for_device.certificate if for_device is not None else None
    renames = False
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
        if evidence.renewal and renaming.asks(request):
            granted = _renamed(policy.label, request, granted, profile)
            renames = not names.same(granted, renewed.names)
    else:
        granted = names.grant(asked, client.names, profile)
    if request.key_kind not in profile.keys and not evidence.key_to_come:
        raise BadRequest(
            Reason.KEY_REFUSED,
            f"The profile takes keys of {', '.join(sorted(profile.keys))}; this one is {request.key_kind}.",
        )
    repeat_key = _request_key(evidence, client, profile, request.spki_der, granted)
    held, pending = policy.label.approval.held, None
    # A renewal under other names (ChangeSubjectName) is a first certificate.
    if held == "all" or (held == "first" and (renewed is None or renames)):
        pending = Pending(repeat_key, client.identity, evidence.asked_key)
        if evidence.asked_key:  # the key of each try is another
            pending = pending._replace(key=_request_key(evidence, client, profile, evidence.asked_key, granted))
        if evidence.key_to_come:
            repeat_key = pending.key
    return Authorised(
        label=policy.label,
        profile=profile,
        identity=_identity(client, for_device, granted),
        names=granted,
        request=request,
        renews=renewed.serial if renewed is not None else None,
        repeat_key=repeat_key,
        pending=pending,
        secret=client.secret,
    )


def _identity(client: Client, for_device: Renewed | None, granted: names.Names) -> str:
    """Who asked, and for whom."""
    if not client.ra:
        return client.identity
    if for_device is not None and for_device.device is not None:
        return for_device.device.renewed_by(client.identity)
    return f"{client.identity} for {granted.text or granted.san}"


def _renamed(label: Label, request: CertificationRequest, current: names.Names, profile: Profile) -> names.Names:
    """R23: the other names that a re-enrolment asks for, if the label lets it and its profile grants them all."""
    asked = renaming.read(request, current)
    if asked is None or names.same(asked, current):
        return current
    if not label.change_names:
        raise Forbidden(
            Reason.NAME_REFUSED,
            "This label renews certificates with the names that they have; leave ChangeSubjectName out of the request.",
        )
    return names.grant(asked, current, profile)


def _check_linking(label: Label, evidence: Evidence, request: CertificationRequest) -> None:
    """RFC 7030 §3.5 and RFC 9148 §3: a challengePassword carries the base64 of this TLS connection's binding value, or
    an estIdentityLinking does (RFC 7894 §3.3), beside which a challengePassword is not for linking.

    We read §3.5 as: whatever is in the attribute must be that value, where the label accepts linking at all; a value
    that is something else is as wrong as one of another connection.
    """
    if label.linking == "off":
        return
    given, carrier = request.identity_linking, "estIdentityLinking"
    if given is None:
        given, carrier = request.challenge_password, "challengePassword"
    if given is None:
        if label.linking == "demanded":
            raise BadRequest(
                Reason.LINKING,
                "This label demands linked proof of possession: put the base64 of tls-unique (TLS 1.2) or of the "
                "EXPORTER-Channel-Binding (TLS 1.3) into the request's challengePassword or estIdentityLinking.",
            )
        return
    expected = base64.b64encode(evidence.binding)
    if not evidence.binding or not hmac.compare_digest(expected, given):
        raise BadRequest(
            Reason.LINKING, f"The request's {carrier} is not the channel-binding value of this TLS connection."
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


def _request_key(evidence: Evidence, client: Client, profile: Profile, key: bytes, granted: names.Names) -> bytes:
    """A hash of (label, operation, credential, SubjectPublicKeyInfo or its hash, names, profile)."""
    operation = b"renew" if evidence.renewal else b"enroll"
    label, who, name = evidence.label.encode(), client.identity.encode(), profile.name.encode()
    lengths = _LENGTHS.pack(len(label), len(operation), len(who), len(key), len(granted.key), len(name))
    return hashlib.sha256(b"".join((lengths, label, operation, who, key, granted.key, name))).digest()
