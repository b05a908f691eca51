"""What a label asks of a request: csrattrs (RFC 7030 §4.5, RFC 9908), and whether a request is so.

It follows from the label and the profiles that its rules lead to; nothing is configured twice. A client is not known
when it asks, so what is said is what all those profiles want alike, or what the one named `csrattrs_profile` wants.
csrattrs cannot say "may": what a request may leave out is not said, but for a common name, which the names of a
subjectAltName can stand for, the usages, which a certificate has in any case, and RFC 7894's attributes, whose OIDs
say that they are heard (§4 there). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography import x509

from estd import challenges, der
from estd.csr import CertificationRequest
from estd.errors import BadRequest, Reason
from estd.issuance import key_usage
from estd.labels import Label, Profile, profiles_of

CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
TEMPLATE = "1.2.840.113549.1.9.16.2.61"
EXTENSION_REQUEST_TEMPLATE = "1.2.840.113549.1.9.16.2.62"
_COMMON_NAME = "2.5.4.3"
_SUBJECT_ALT_NAME = "2.5.29.17"
_EC = "1.2.840.10045.2.1"
_RSA = "1.2.840.113549.1.1.1"
_CURVES = {"ec-p256": "1.2.840.10045.3.1.7", "ec-p384": "1.3.132.0.34", "ec-p521": "1.3.132.0.35"}
_SOLE = {
    "ed25519": "1.3.101.112",
    "ml-dsa-44": "2.16.840.1.101.3.4.3.17",
    "ml-dsa-65": "2.16.840.1.101.3.4.3.18",
    "ml-dsa-87": "2.16.840.1.101.3.4.3.19",
}
"""Kinds whose algorithm says it all; they sign by the same identifier."""
_SIGNATURES = {
    "ec-p256": "1.2.840.10045.4.3.2", "ec-p384": "1.2.840.10045.4.3.3", "ec-p521": "1.2.840.10045.4.3.4",
    **dict.fromkeys(("rsa-2048", "rsa-3072", "rsa-4096"), "1.2.840.113549.1.1.11"), **_SOLE,
}  # fmt: skip
"""The signature that fits a key of each kind: ECDSA with the hash of the curve's size, RSA with SHA-256."""
_IMPLICIT_0 = 0xA0
_IMPLICIT_1 = 0xA1


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """An extension that a request must have, with this value."""

    oid: str
    critical: bool
    value: bytes
    """DER."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a request must have."""

    keys: frozenset[str]
    """Kinds of key, one of them; any kind where it is empty."""
    common_name: bool
    san: bool
    extensions: tuple[Extension, ...]
    attributes: tuple[str, ...]
    """Attributes of the request (OIDs) whose value the client knows; they are not held to `check`, but evaluated."""
    signature_told: bool
    """Every client can see which signature fits: the template has no place for it (RFC 9908 §3.4)."""
    san_told: bool
    """Every client can see that there must be a subjectAltName: the list has no place for it."""

    @property
    def algorithm(self) -> str | None:
        """The OID of the one public-key algorithm, None where there is a choice."""
        found = {_EC if kind in _CURVES else _SOLE.get(kind, _RSA) for kind in self.keys}
        return found.pop() if len(found) == 1 else None

    @property
    def kind(self) -> str | None:
        """The one kind of key, None where there is a choice."""
        return next(iter(self.keys)) if len(self.keys) == 1 else None

    @property
    def signature(self) -> str | None:
        """The OID of the signature that fits the one kind of key."""
        return None if self.kind is None else _SIGNATURES[self.kind]


def demands(label: Label, profiles: Mapping[str, Profile]) -> Demands:
    """What the label asks of a request."""
    names = profiles_of(label) if label.csrattrs_profile is None else {label.csrattrs_profile}
    wanted = [profiles[name] for name in sorted(names)]
    extensions = [_extensions(profile) for profile in wanted]
    return Demands(
        keys=frozenset().union(*(profile.keys for profile in wanted)),
        common_name=bool(wanted) and all(_takes_common_name(profile) for profile in wanted),
        san=bool(wanted) and all(_named_by_san(profile) for profile in wanted),
        extensions=tuple(one for one in extensions[0] if all(one in other for other in extensions)) if wanted else (),
        attributes=_attributes(label),
        signature_told=label.csrattrs == "legacy",
        san_told=label.csrattrs == "template",
    )


def _attributes(label: Label) -> tuple[str, ...]:
    """The attributes that the label demands, and those of RFC 7894 that it evaluates."""
    found = [CHALLENGE_PASSWORD, challenges.IDENTITY_LINKING.oid] if label.linking == "demanded" else []
    if any(rule.registry is not None and "otpChallenge" in rule.registry.secrets for rule in label.allow):
        found.append(challenges.OTP.oid)
    if label.revocation_challenge:
        found.append(challenges.REVOCATION.oid)
    return tuple(found)


def _takes_common_name(profile: Profile) -> bool:
    return profile.subject == "csr" and "CN" in profile.subject_attributes


def _named_by_san(profile: Profile) -> bool:
    """Whether a request of this profile has no name but in its subjectAltName."""
    sources = (profile.dns.source, profile.ip.source, profile.uri.source)
    return profile.subject == "csr" and not profile.subject_attributes and "csr" in sources


def _extensions(profile: Profile) -> list[Extension]:
    """What the profile's certificates say of their use, whatever the request says."""
    usage = key_usage(profile.key_usage)
    found = [Extension(oid=usage.oid.dotted_string, critical=True, value=usage.public_bytes())]
    if profile.extended_key_usage:
        extended = x509.ExtendedKeyUsage([x509.ObjectIdentifier(one) for one in profile.extended_key_usage])
        found.append(Extension(oid=extended.oid.dotted_string, critical=False, value=extended.public_bytes()))
    return found


def encode(label: Label, profiles: Mapping[str, Profile]) -> bytes | None:
    """CsrAttrs (RFC 8951 §3.5), DER, in the forms that the label offers; None where there is nothing to say."""
    asked = demands(label, profiles)
    parts = _legacy(asked) if label.csrattrs in ("legacy", "both") else []
    if label.csrattrs in ("template", "both") and (template := _template(asked)):
        parts.append(template)
    return der.tlv(der.SEQUENCE, b"".join(parts)) if parts else None


def _attribute(oid: str, *values: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, der.oid(oid) + der.tlv(der.SET, b"".join(sorted(values))))


def _legacy(asked: Demands) -> list[bytes]:
    """RFC 7030's list as RFC 9908 §3.2 reads it: OIDs of what has no value here, attributes of what has one."""
    parts = [der.oid(one) for one in asked.attributes]
    if asked.algorithm is not None:
        parts.append(_attribute(asked.algorithm, *_key_value(asked.kind)))
    if asked.common_name:
        parts.append(der.oid(_COMMON_NAME))
    if asked.extensions:
        parts.append(_attribute(EXTENSION_REQUEST, _extension_list(asked.extensions)))
    if asked.signature is not None:
        parts.append(der.oid(asked.signature))
    return parts


def _key_value(kind: str | None) -> list[bytes]:
    """A curve's OID, an RSA key's size in bits; nothing where any of that algorithm will do or there is but one."""
    if kind in _CURVES:
        return [der.oid(_CURVES[kind])]
    return [der.uint(int(kind[4:]))] if kind is not None and kind.startswith("rsa-") else []


def _template(asked: Demands) -> bytes:
    """The attribute with a CertificationRequestInfoTemplate (RFC 9908 §3.4); empty where it would say nothing."""
    attributes = [_attribute(one) for one in asked.attributes]
    if asked.san:
        without_value = der.tlv(der.SEQUENCE, der.oid(_SUBJECT_ALT_NAME))
        attributes.append(_attribute(EXTENSION_REQUEST_TEMPLATE, _extension_list(asked.extensions, without_value)))
    elif asked.extensions:
        attributes.append(_attribute(EXTENSION_REQUEST, _extension_list(asked.extensions)))
    subject = b""
    if asked.common_name:
        subject = der.tlv(der.SEQUENCE, der.tlv(der.SET, der.tlv(der.SEQUENCE, der.oid(_COMMON_NAME))))
    key = _key_template(asked)
    if not (subject or key or attributes):
        return b""
    template = der.uint(0) + subject + key + der.tlv(_IMPLICIT_1, b"".join(sorted(attributes)))
    return _attribute(TEMPLATE, der.tlv(der.SEQUENCE, template))


def _key_template(asked: Demands) -> bytes:
    """SubjectPublicKeyInfoTemplate: an RSA key's size is told by a modulus that stands for one of that size."""
    if asked.algorithm is None:
        return b""
    parameters = der.NULL if asked.algorithm == _RSA else b"".join(_key_value(asked.kind))
    key = b""
    if asked.kind is not None and asked.algorithm == _RSA:
        numbers = der.uint(1 << (int(asked.kind[4:]) - 1) | 1) + der.uint(65537)
        key = der.tlv(der.BIT_STRING, b"\0" + der.tlv(der.SEQUENCE, numbers))
    return der.tlv(_IMPLICIT_0, der.tlv(der.SEQUENCE, der.oid(asked.algorithm) + parameters) + key)


def _extension_list(extensions: Iterable[Extension], *more: bytes) -> bytes:
    """Extensions (RFC 5280 §4.1), each once (R42)."""
    flag = b"\x01\x01\xff"
    parts = [
        der.tlv(der.SEQUENCE, der.oid(one.oid) + flag * one.critical + der.tlv(der.OCTET_STRING, one.value))
        for one in extensions
    ]
    return der.tlv(der.SEQUENCE, b"".join((*parts, *more)))


def check(asked: Demands, request: CertificationRequest, *, key: bool = True) -> None:
    """A 400 that says what is missing, unless the request is as csrattrs asks (RFC 8995 §5.9). `key` False: the key
    and its signature are not the ones to be certified."""
    if key and asked.keys and request.key_kind not in asked.keys:
        raise _unfit(f"a key of the kind {' or '.join(sorted(asked.keys))}, and this one is {request.key_kind}")
    if key and asked.signature_told and asked.signature is not None:
        given = x509.load_der_x509_csr(request.csr_der).signature_algorithm_oid.dotted_string
        if given != asked.signature:
            raise _unfit(f"a signature by {asked.signature}, and this one is by {given}")
    if asked.common_name and not request.subject.get_attributes_for_oid(x509.ObjectIdentifier(_COMMON_NAME)):
        raise _unfit("a common name in the subject")
    found = {one.oid.dotted_string: one for one in request.extensions}
    if asked.san and asked.san_told and _SUBJECT_ALT_NAME not in found:
        raise _unfit("a subjectAltName")
    for one in asked.extensions:
        given_extension = found.get(one.oid)
        if given_extension is None:
            raise _unfit(f"the extension {one.oid}")
        if given_extension.value.public_bytes() != one.value or given_extension.critical != one.critical:
            raise _unfit(f"the extension {one.oid} with another value or another critical flag")


def _unfit(what: str) -> BadRequest:
    return BadRequest(Reason.CSRATTRS, f"The request does not match this label's csrattrs, which ask for {what}.")
