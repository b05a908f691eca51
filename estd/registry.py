"""Who has a row in the registry, or an allowing word of a webhook: the decisions of `who = "registry"` and
`who = "webhook"`, on what was asked beforehand. No row, a disabled one or a wrong secret: nothing. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from cryptography import x509

from estd import given_names, names
from estd.device_rules import RegistryRule
from estd.devices import SECRET_BYTES, Claim, Device, DeviceKey, is_serial_number
from estd.errors import Forbidden, Reason, TooMany, Unauthenticated, Unavailable
from estd.labels import Allow
from estd.name_map import CERTIFICATE_FIELDS, REGISTRY_FIELDS, NameMap
from estd.verdicts import Verdict

_NO_SECRET = bytes(SECRET_BYTES)
_SUBJECT_FIELDS = {
    f"subject.{word}": names.SUBJECT_TYPES[word][0] for word in ("CN", "serialNumber", "O", "OU", "C", "UID")
}
_SAN_FIELDS = {"san.dns": x509.DNSName, "san.ip": x509.IPAddress, "san.uri": x509.UniformResourceIdentifier}
_SAMPLES = {"subject.C": "XX", "san.dns": "x1.example", "san.ip": "192.0.2.1", "san.uri": "urn:x:1"}


class Told(NamedTuple):
    """What is known of the device behind a request beside its certificate."""

    claim: Claim | None
    """By HTTP Basic."""
    otp_sha256: bytes
    """Of the request's otpChallenge; empty without one."""
    asked: names.Names | None
    """The names in the request, where an otpChallenge stands beside them."""
    devices: Mapping[DeviceKey, Device]
    """The rows there are under the keys that `keys` named."""
    verdict: Verdict | None
    throttled: Mapping[str, int]
    """Serial numbers whose secrets were wrong too often, each with the seconds for which none is looked at."""


NOTHING = Told(claim=None, otp_sha256=b"", asked=None, devices={}, verdict=None, throttled={})


class Found(NamedTuple):
    """What a row grants."""

    key: DeviceKey
    names: names.Names
    profile: str
    secret: bytes
    """The one-time secret's SHA-256 that is to be marked as used; empty where a certificate showed who it is."""
    spent: bool
    """It was used within the repeat window: the same request gets its certificate again, any other nothing."""


def fields(found: names.Names) -> dict[str, str]:
    """The closed set's fields that these names say exactly once."""
    values: dict[str, str] = {}
    for field, oid in _SUBJECT_FIELDS.items():
        parts = found.subject.get_attributes_for_oid(oid)
        if len(parts) == 1 and isinstance(parts[0].value, str):
            values[field] = parts[0].value
    for field, kind in _SAN_FIELDS.items():
        of_kind = [name for name in found.san if isinstance(name, kind)]
        if len(of_kind) == 1:
            values[field] = str(of_kind[0].value)
    return values


def serial_number(rule: RegistryRule, found: names.Names) -> str | None:
    """What stands in the field that the rule matches, without its prefix; None where no serial number does."""
    value = fields(found).get(rule.match, "")
    if not value.startswith(rule.match_prefix):
        return None
    value = value[len(rule.match_prefix) :]
    return value if is_serial_number(value) else None


def claim_by(rule: RegistryRule, told: Told) -> Claim | None:
    """The claim of a one-time secret that this rule hears; None without one."""
    if told.claim is not None:
        return told.claim if "basic" in rule.secrets else None
    if not told.otp_sha256 or "otpChallenge" not in rule.secrets or told.asked is None:
        return None
    number = serial_number(rule, told.asked)
    return None if number is None else Claim(number, told.otp_sha256, "otpChallenge")


def key_by(rule: RegistryRule, label: str, told: Told, certificate: names.Names | None) -> DeviceKey | None:
    """The row that a request is about, by this rule; None where it is about none."""
    if rule.secrets:
        claim = claim_by(rule, told)
        number = claim.serial_number if claim is not None else None
    else:
        number = serial_number(rule, certificate) if certificate is not None else None
    return None if number is None else DeviceKey(label, rule.manufacturer, number)


def check_alive(key: DeviceKey, devices: Mapping[DeviceKey, Device]) -> Device:
    """The row of the device. A 403 where it has none, or a disabled one."""
    device = devices.get(key)
    if device is None:
        raise Forbidden(
            Reason.DEVICE_UNKNOWN, f"The device {key.serial_number!r} is not in the registry for this label."
        )
    if not device.enabled:
        raise Forbidden(Reason.DEVICE_DISABLED, f"The device {key.serial_number!r} is disabled in the registry.")
    return device


def by_secret(allow: Allow, label: str, told: Told, now: float, repeat_seconds: int) -> Found | None:
    """What a device gets for its one-time secret; None where it presents none that this rule hears. A 429 where its
    secrets were wrong too often."""
    assert allow.registry is not None
    claim = claim_by(allow.registry, told)
    if claim is None:
        return None
    if claim.serial_number in told.throttled:
        raise TooMany(
            Reason.THROTTLED,
            "There were too many wrong secrets for this serial number; come back later.",
            retry_after=told.throttled[claim.serial_number],
        )
    key = DeviceKey(label, allow.registry.manufacturer, claim.serial_number)
    device = told.devices.get(key)
    kept = (device.secret if device is not None else None) or _NO_SECRET
    if not hmac.compare_digest(kept, claim.secret) or kept is _NO_SECRET:
        raise Unauthenticated(
            Reason.WRONG_CREDENTIAL, "The serial number or the one-time secret is wrong for this label."
        )
    device = check_alive(key, told.devices)
    if device.secret_used_ms is not None:
        if int(now * 1000) - device.secret_used_ms > repeat_seconds * 1000:
            raise spent()
    elif device.secret_until is None or now >= device.secret_until:
        raise Unauthenticated(
            Reason.SECRET_SPENT, "The one-time secret is expired; ask the operator for another (estd device secret)."
        )
    return _found(allow, device, None, claim.secret, spent=device.secret_used_ms is not None)


def spent() -> Unauthenticated:
    return Unauthenticated(
        Reason.SECRET_SPENT, "The one-time secret is used; ask the operator for another (estd device secret)."
    )


def by_certificate(allow: Allow, label: str, told: Told, certificate: names.Names) -> Found:
    """What a device gets for a certificate whose path was found. A 403 where no row is there for it."""
    assert allow.registry is not None
    key = key_by(allow.registry, label, told, certificate)
    if key is None:
        raise Forbidden(
            Reason.DEVICE_UNKNOWN,
            f"The client certificate has no {allow.registry.match}, or more than one, that holds a serial number.",
        )
    return _found(allow, check_alive(key, told.devices), certificate, b"", spent=False)


def _found(allow: Allow, device: Device, certificate: names.Names | None, secret: bytes, *, spent: bool) -> Found:
    assert allow.profile is not None
    key = device.key
    try:
        given = given_names.unpack(device.names)
    except ValueError as error:
        raise Forbidden(Reason.NAME_REFUSED, f"The registry's names of this device cannot be had: {error}.") from None
    if given is None and allow.names is not None:
        known = {"serialNumber": key.serial_number, "manufacturer": key.manufacturer, "label": key.label}
        given = mapped(allow.names, {**known, **(fields(certificate) if certificate is not None else {})})
    if given is None:
        given = certificate or names.Names(subject=names.subject_of_user(key.serial_number), san=())
    return Found(key, given, device.profile or allow.profile, secret, spent)


def mapped(rule: NameMap, values: Mapping[str, str]) -> names.Names:
    """The names that a rule makes of these fields. A 403 where a field is absent, or makes what no certificate may
    say."""
    try:
        subject, dns, ip, uri = rule.fill(values)
        parts = [x509.NameAttribute(names.SUBJECT_TYPES[word][0], value) for word, value in subject]
    except ValueError as error:
        raise Forbidden(Reason.NAME_REFUSED, f"The label's rule makes no name for this device: {error}.") from None
    return names.of_texts(x509.Name(parts), dns, ip, uri)


def try_names(rule: NameMap) -> None:
    """Raises ValueError where a rule makes names that no certificate may say, whoever the device is."""
    # A part of an address is a number, which the last label of a dNSName must not be.
    for part, sample in ((replace(rule, ip=()), "x1"), (replace(rule, subject=(), dns=(), uri=()), "1")):
        try:
            mapped(part, {field: _SAMPLES.get(field, sample) for field in (*REGISTRY_FIELDS, *CERTIFICATE_FIELDS)})
        except Forbidden as refusal:
            raise ValueError(f"names: {refusal.sentence}") from None


def by_verdict(allow: Allow, verdict: Verdict | None, own: names.Names) -> tuple[names.Names, str]:
    """Names and profile that the webhook grants to one who is `own`. A 503 without its word, a 403 where it says no."""
    assert allow.hook is not None
    assert allow.profile is not None
    if verdict is None or verdict.say == "away":
        raise Unavailable(
            Reason.WEBHOOK_AWAY,
            "The service that knows who may have a certificate does not answer; come back later.",
            retry_after=verdict.retry_after if verdict is not None and verdict.retry_after else None,
        )
    if verdict.say != "allow":
        why = f": {verdict.why.rstrip('.')}" if verdict.why else ""
        raise Forbidden(Reason.NOT_GRANTED, f"The service that knows who may have a certificate says no{why}.")
    profile = verdict.profile or allow.profile
    if profile not in allow.hook.profiles:
        raise Forbidden(Reason.NOT_GRANTED, f"The webhook chose the profile {profile!r}, which its rule does not name.")
    try:
        return (given_names.made(**verdict.names) if verdict.names else own), profile
    except ValueError as error:
        raise Forbidden(Reason.NAME_REFUSED, f"The webhook's names cannot be had: {error}.") from None
