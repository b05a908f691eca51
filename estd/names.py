"""The names in a certificate: what a request asks for, what a rule grants, and whether two are the same.

A name comes from the identity or from the request, as the profile says, and only inside the profile's limits; nothing
is granted that RFC 5280 would not let a certificate say. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from estd.errors import BadRequest, Forbidden, Reason
from estd.labels import NameRule, Profile

SUBJECT_TYPES = {
    "CN": (NameOID.COMMON_NAME, 64),
    "serialNumber": (NameOID.SERIAL_NUMBER, 64),
    "C": (NameOID.COUNTRY_NAME, 2),
    "ST": (NameOID.STATE_OR_PROVINCE_NAME, 128),
    "L": (NameOID.LOCALITY_NAME, 128),
    "O": (NameOID.ORGANIZATION_NAME, 64),
    "OU": (NameOID.ORGANIZATIONAL_UNIT_NAME, 64),
    "UID": (NameOID.USER_ID, 256),
    "DC": (NameOID.DOMAIN_COMPONENT, 63),
}
"""Attribute types and the upper bounds of RFC 5280 appendix A, in characters."""

_WORDS = {"serialNumber": NameOID.SERIAL_NUMBER}
"""What RFC 4514 text may say beside the words of its §3: factories' identities have a serialNumber (IEEE 802.1AR)."""
_SHOWN = {oid: word for word, oid in _WORDS.items()}
_BY_OID = {oid: (word, bound) for word, (oid, bound) in SUBJECT_TYPES.items()}
_REPEATABLE = frozenset({NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.DOMAIN_COMPONENT})
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,./:=?-]+")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS = re.compile(rf"(?=.{{1,253}}$)(?!(?:.*\.)?[0-9]+$){_LABEL}(?:\.{_LABEL})*")
"""The preferred name syntax (RFC 1034 §3.5), whose last label is not a number (RFC 1123 §2.1): an address is none."""
_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_URI = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):"
    rf"(?://(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{{2}})*@)?"
    rf"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{{0,5}})?(?P<path>/(?:{_CHAR}|/)*)?|(?!//)(?:{_CHAR}|/)+)"
    rf"(?:\?(?:{_CHAR}|[/?])*)?(?:#(?:{_CHAR}|[/?])*)?"
)
"""An absolute URI (RFC 3986 appendix A) with a host, where it has an authority at all."""

_URI_PARTS = re.compile(r"([^:/?#]+):(?://(?:([^@/?#]*)@)?([^/?#]*))?(.*)", re.DOTALL)
"""Scheme, user, authority and the rest (RFC 3986 appendix B), of a URI or of a pattern for one."""

_ANY = NameRule(source="csr", patterns=())
San = x509.DNSName | x509.IPAddress | x509.UniformResourceIdentifier


def shown(subject: x509.Name) -> str:
    """A subject as RFC 4514 text."""
    return subject.rfc4514_string(_SHOWN)


def read(text: str) -> x509.Name:
    """The subject that RFC 4514 text says. Raises ValueError."""
    try:
        return x509.Name.from_rfc4514_string(text, _WORDS)
    except ValueError as error:  # of many mistakes it says nothing
        why = f": {error}" if str(error) else ""
        raise ValueError(f"the subject {text[:200]!r} is not as RFC 4514 has it{why}") from None


@dataclass(frozen=True, kw_only=True)
class Names:
    """A subject and the subjectAltNames beside it; encoded once, as a device's identity is used again and again."""

    subject: x509.Name
    san: tuple[x509.GeneralName, ...]

    @cached_property
    def subject_der(self) -> bytes:
        """The subject, a Name."""
        return self.subject.public_bytes()

    @cached_property
    def san_der(self) -> bytes:
        """The subjectAltName, GeneralNames; empty without any."""
        return x509.SubjectAlternativeName(self.san).public_bytes() if self.san else b""

    @cached_property
    def key(self) -> bytes:
        """Equal for equal subjects with the same subjectAltNames, in whatever order and letter case of a dNSName."""
        san = {x509.SubjectAlternativeName([_lowered(name)]).public_bytes() for name in self.san}
        return b"".join((self.subject_der, *sorted(san)))

    @cached_property
    def text(self) -> str:
        """The subject as RFC 4514 text."""
        return shown(self.subject)


def of_extensions(subject: x509.Name, extensions: x509.Extensions) -> Names:
    """The names in a request or a certificate. A 400 where the subjectAltName appears twice or cannot be read."""
    if not len(extensions):
        return Names(subject=subject, san=())
    try:
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return Names(subject=subject, san=())
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise BadRequest(Reason.BAD_CSR, f"The subjectAltName cannot be read: {error}.") from None
    return Names(subject=subject, san=tuple(found.value))


def same(one: Names, other: Names) -> bool:
    """Whether two sets of names are equal as RFC 5280 §7.1 compares: case and spacing do not matter."""
    return _folded_subject(one.subject) == _folded_subject(other.subject) and {
        _folded_san(name) for name in one.san
    } == {_folded_san(name) for name in other.san}


def _folded_subject(subject: x509.Name) -> list[frozenset[tuple[str, str]]]:
    return [
        frozenset((part.oid.dotted_string, " ".join(str(part.value).split()).casefold()) for part in rdn)
        for rdn in subject.rdns
    ]


def _folded_san(name: x509.GeneralName) -> object:
    return ("dns", name.value.lower()) if isinstance(name, x509.DNSName) else name


def _lowered(name: x509.GeneralName) -> x509.GeneralName:
    return x509.DNSName(name.value.lower()) if isinstance(name, x509.DNSName) else name


@lru_cache(maxsize=1024)
def _pattern(pattern: str) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(char) or re.escape(char) for char in pattern), re.DOTALL)


def _fits(value: str, pattern: str) -> bool:
    """Whether the value is what the pattern says: * stands for any text, ? for any character, all else for itself."""
    return _pattern(pattern).fullmatch(value) is not None


def subject_of_user(user: str) -> x509.Name:
    """The subject of an identity that is a credential's name; an empty one where the name fits no common name."""
    if not user or len(user.encode()) > SUBJECT_TYPES["CN"][1]:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user)])


def grant(asked: Names, identity: Names, profile: Profile) -> Names:
    """What `profile` gives to one who is `identity` and asks for `asked`.

    Raises a 403 with the name that may not be had, unless the profile replaces such names.
    """
    refuse = profile.other_names == "refuse"
    if profile.subject == "identity":
        if refuse and asked.subject.rdns and _folded_subject(asked.subject) != _folded_subject(identity.subject):
            raise _refused(f"the subject {_shown(asked.subject)}: this identity gets {_shown(identity.subject)}")
        subject = identity.subject
    else:
        subject = _subject_asked_for(asked.subject, profile, refuse)
    san: list[x509.GeneralName] = []
    if asked.san or identity.san:
        if refuse:
            _check_number(len(asked.san), profile)  # before each is looked at, and whether it is there twice
        for kind, rule, allowed in (
            (x509.DNSName, profile.dns, _dns_allowed),
            (x509.IPAddress, profile.ip, _ip_allowed),
            (x509.UniformResourceIdentifier, profile.uri, _uri_allowed),
        ):
            san += _of_kind(kind, rule, allowed, asked.san, identity.san, refuse)
    odd = [name for name in asked.san if not isinstance(name, San)]
    if odd and refuse:
        raise _refused(f"a subjectAltName of the kind {type(odd[0]).__name__}")
    _check_number(len(san), profile)
    if not subject.rdns and not san:
        raise Forbidden(Reason.NAME_REFUSED, "The request leaves the certificate without any name.")
    if subject is identity.subject and tuple(san) == identity.san:
        return identity
    return Names(subject=subject, san=tuple(san))


def _check_number(san: int, profile: Profile) -> None:
    if san > profile.max_names:
        raise _refused(f"{san} subjectAltNames where {profile.max_names} are the most")


def of_texts(subject: x509.Name, dns: Iterable[str], ip: Iterable[str], uri: Iterable[str]) -> Names:
    """The names that a rule or the registry gives, held to what a request's are held to. A 403 for what no certificate
    may say."""
    given: list[x509.RelativeDistinguishedName] = []
    for part in subject:
        word, bound = _BY_OID.get(part.oid, (part.oid.dotted_string, 0))
        given.append(x509.RelativeDistinguishedName([_checked_attribute(part, word, bound, ("*",))]))
        if part.oid not in _REPEATABLE and len(subject.get_attributes_for_oid(part.oid)) > 1:
            raise _refused(f"more than one {word}")
    san: list[x509.GeneralName] = []
    for what, make, allowed, texts in (
        ("DNSName", x509.DNSName, _dns_allowed, dns),
        ("IPAddress", lambda text: x509.IPAddress(ipaddress.ip_address(text)), _ip_allowed, ip),
        ("URI", x509.UniformResourceIdentifier, _uri_allowed, uri),
    ):
        for text in texts:
            try:
                name: x509.GeneralName = make(text)
            except ValueError:
                raise _refused(f"the {what} {text[:200]!r}") from None
            if not allowed(name, _ANY):
                raise _refused(f"the {what} {text[:200]!r}")
            san.append(name)
    return Names(subject=x509.Name(given), san=tuple(dict.fromkeys(san)))


def _refused(what: str) -> Forbidden:
    return Forbidden(Reason.NAME_REFUSED, f"The label's profile does not grant {what}.")


def _shown(subject: x509.Name) -> str:
    return repr(shown(subject)[:200])


def _subject_asked_for(asked: x509.Name, profile: Profile, refuse: bool) -> x509.Name:
    kept: list[x509.RelativeDistinguishedName] = []
    seen: set[x509.ObjectIdentifier] = set()
    for rdn in asked.rdns:
        parts: list[x509.NameAttribute[str]] = []
        for part in rdn:
            word, bound = _BY_OID.get(part.oid, (part.oid.dotted_string, 0))
            try:
                if word not in profile.subject_attributes:
                    raise _refused(f"the subject attribute {word}")
                if part.oid in seen and part.oid not in _REPEATABLE:
                    raise _refused(f"more than one {word}")
                parts.append(_checked_attribute(part, word, bound, profile.common_name))
                seen.add(part.oid)
            except Forbidden:
                if refuse:
                    raise
        if parts:
            kept.append(x509.RelativeDistinguishedName(parts))
    return x509.Name(kept)


def _checked_attribute(
    part: x509.NameAttribute[str | bytes], word: str, bound: int, common_name: Sequence[str]
) -> x509.NameAttribute[str]:
    """The attribute, in the string type that RFC 5280 wants for it. A 403 where its value cannot be had."""
    value = part.value
    if not isinstance(value, str) or not value.strip() or len(value.encode()) > bound or not value.isprintable():
        raise _refused(f"a {word} that is empty, over {bound} octets or not printable")
    if word in ("C", "serialNumber"):
        if not _PRINTABLE.fullmatch(value) or (word == "C" and not re.fullmatch("[A-Z]{2}", value)):
            raise _refused(f"a {word} outside PrintableString")
    elif word == "DC":
        if not _DNS.fullmatch(value) or "." in value:
            raise _refused("a DC that is not one label of a domain name")
    elif word == "CN" and not any(_fits(value.casefold(), one.casefold()) for one in common_name):
        raise _refused(f"the common name {value!r}")
    return x509.NameAttribute(part.oid, value)  # picks the string type by the attribute


def _of_kind(
    kind: type[San],
    rule: NameRule,
    allowed: Callable[[x509.GeneralName, NameRule], bool],
    asked: Iterable[x509.GeneralName],
    identity: Iterable[x509.GeneralName],
    refuse: bool,
) -> list[x509.GeneralName]:
    """The names of one kind that are granted, each once."""
    wanted = [name for name in asked if isinstance(name, kind)]
    if rule.source == "csr":
        granted = [name for name in wanted if allowed(name, rule)]
    else:
        granted = [name for name in identity if isinstance(name, kind)] if rule.source == "identity" else []
    if refuse:
        have = {_folded_san(name) for name in granted}
        for name in wanted:
            if _folded_san(name) not in have:
                raise _refused(f"the {kind.__name__} {str(name.value)[:200]!r}")
    return list({_folded_san(name): name for name in granted}.values())


def is_dns(text: str) -> bool:
    """Whether it can be a dNSName."""
    return bool(_DNS.fullmatch(text))


def _dns_allowed(name: x509.GeneralName, rule: NameRule) -> bool:
    value = str(name.value)
    return is_dns(value) and (not rule.patterns or any(_fits(value.lower(), one.lower()) for one in rule.patterns))


def _ip_allowed(name: x509.GeneralName, rule: NameRule) -> bool:
    value = name.value
    if not isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address):
        return False  # a network, as only nameConstraints may have
    if isinstance(value, ipaddress.IPv6Address) and value.scope_id is not None:
        return False  # a zone, which no certificate can say
    return not rule.patterns or any(value in ipaddress.ip_network(one) for one in rule.patterns)


def _uri_allowed(name: x509.GeneralName, rule: NameRule) -> bool:
    """An absolute URI whose host, if it has one, is a full domain name or an address (RFC 5280 §4.2.1.6)."""
    value = str(name.value)
    found = _URI.fullmatch(value) if len(value) <= 2048 else None
    if found is None:
        return False
    host = found["host"]
    if host is not None and not (_is_ip(host.strip("[]")) or ("." in host and _DNS.fullmatch(host))):
        return False
    return not rule.patterns or any(_uri_matches(value, one) for one in rule.patterns)


def _uri_matches(value: str, pattern: str) -> bool:
    """Whether a URI fits a pattern part by part: the stars of a host end where the host ends."""
    parts, wanted = _URI_PARTS.fullmatch(value), _URI_PARTS.fullmatch(pattern)
    if parts is None or wanted is None:
        return False
    return all(
        (given is None) == (allowed is None) and _fits(given or "", allowed or "")
        for given, allowed in zip(parts.groups(), wanted.groups(), strict=True)
    )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
