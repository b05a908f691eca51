"""What a registration authority renews: the certificate of a device, found by the names that the request repeats.

It has no other way to say which one: the TLS session is its own. The newest certificate with these names that the label
issued is the one, and it is judged as if the device itself had come. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from estd import names, registry
from estd.csr import CertificationRequest
from estd.devices import Device, DeviceKey, key_of_identity
from estd.errors import Forbidden, Reason
from estd.identify import ClientCertificate
from estd.policy import Evidence, Issued, LabelPolicy, Renewed
from estd.ras import is_registrar


def choose(
    policy: LabelPolicy,
    evidence: Evidence,
    request: CertificationRequest,
    held: Sequence[Issued],
    devices: Mapping[DeviceKey, Device],
    now: float,
) -> Renewed:
    """The certificate to renew, out of those that the label issued for the request's subject, newest first; `devices`
    are the registry's rows behind them. A 403 where there is none, or where it may not be renewed."""
    asked = names.of_extensions(request.subject, request.extensions)
    if not asked.subject.rdns:
        raise Forbidden(
            Reason.NOT_ISSUED,
            "A registration authority names the certificate that it renews by its subject, and this request has none.",
        )
    for one in held:
        found = ClientCertificate.parse(one.certificate_der)
        if not names.same(asked, found.names):
            continue
        if one.revoked:
            raise Forbidden(Reason.REVOKED, "The device's certificate is revoked.")
        key = key_of_identity(one.identity)
        if key is not None:
            registry.check_alive(key, devices)
        if now >= found.not_after + 1 + policy.label.expired_seconds:
            raise Forbidden(Reason.CERT_EXPIRED, "The device's certificate expired too long ago to be renewed.")
        if one.profile not in policy.profiles:
            raise Forbidden(Reason.NOT_GRANTED, f"The profile {one.profile!r} is not in the configuration any more.")
        own = evidence.certificate is not None and evidence.certificate.der == found.der
        if not own and is_registrar(found.certificate):
            raise Forbidden(Reason.NOT_GRANTED, "A registration authority does not renew for another one.")
        return Renewed(found, one.profile, key)
    raise Forbidden(
        Reason.NOT_ISSUED,
        f"None of the {len(held)} newest certificates that this label issued for the request's subject has its "
        "subjectAltName too, so there is none to renew."
        if held
        else "This label issued no certificate with the request's subject, so there is none to renew.",
    )
