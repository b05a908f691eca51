"""What a server's csrattrs asks for, as a client reads it (RFC 7030 §4.5.2, RFC 8951 §3.5, RFC 9908).

Where there is a template it alone counts, and the rest of the list is for clients that do not know it (RFC 9908 §4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from cryptography import x509
from cryptography.hazmat import asn1

from estd import challenges, der
from estd.attributes import EXTENSION_REQUEST, UNREADABLE, Attribute

_TEMPLATE = "1.2.840.113549.1.9.16.2.61"
_EXTENSION_LISTS = (EXTENSION_REQUEST, "1.2.840.113549.1.9.16.2.62")
"""extensionRequest, and a template's own, whose extensions may be without a value (RFC 9908 §3.4)."""


@asn1.sequence
class _CsrAttrs:
    """The list as the one field of a sequence: the decoder takes classes alone."""

    items: list[x509.ObjectIdentifier | Attribute]


@asn1.sequence
class _Extension:
    oid: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes | None


@asn1.sequence
class _Extensions:
    items: list[_Extension]


@asn1.sequence
class _Template:
    version: int
    subject: list[asn1.TLV] | None
    subject_public_key_info: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    attributes: Annotated[asn1.SetOf[Attribute], asn1.Implicit(1)]


class Extension(NamedTuple):
    """An extension that a request should have as it is here."""

    oid: str
    critical: bool
    value: bytes
    """DER."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request should have."""

    attributes: frozenset[str]
    """OIDs: of attributes, and in the old form of whatever else is named by its OID."""
    template: bool
    extensions: tuple[Extension, ...] = ()
    """Those with a value; one without, such as a subjectAltName, is the client's to fill in."""

    @property
    def linked(self) -> bool:
        """Whether the request must be linked to its TLS connection (RFC 7030 §3.5)."""
        return challenges.PASSWORD.oid in self.attributes or self.identity_linking

    @property
    def identity_linking(self) -> bool:
        """Whether an estIdentityLinking is heard, which then links alone (RFC 7894 §4)."""
        return challenges.IDENTITY_LINKING.oid in self.attributes


NOTHING = Asked(attributes=frozenset(), template=False)


def read(csr_attrs: bytes) -> Asked:
    """What a CsrAttrs, DER, asks for. Raises ValueError where it is none."""
    try:
        items = asn1.decode_der(_CsrAttrs, der.tlv(der.SEQUENCE, csr_attrs)).items
        for item in items:
            if isinstance(item, Attribute) and item.type.dotted_string == _TEMPLATE:
                (value,) = item.values.as_list()
                template = value.parse(_Template)
                if template.version != 0:
                    raise ValueError(f"a template of version {template.version}")
                return _asked(template.attributes.as_list(), template=True)
        return _asked(items, template=False)
    except UNREADABLE as error:
        raise ValueError(f"the answer is not CsrAttrs: {error}") from None


def _asked(items: Sequence[x509.ObjectIdentifier | Attribute], *, template: bool) -> Asked:
    types = frozenset((one.type if isinstance(one, Attribute) else one).dotted_string for one in items)
    lists = [one for one in items if isinstance(one, Attribute) and one.type.dotted_string in _EXTENSION_LISTS]
    found = [extension for one in lists for value in one.values.as_list() for extension in _extensions(value)]
    if len({one.oid for one in found}) < len(found):
        raise ValueError("an extension is in it twice")
    return Asked(attributes=types, template=template, extensions=tuple(found))


def _extensions(value: asn1.TLV) -> Iterator[Extension]:
    whole = der.tlv(value.tag_bytes[0], bytes(value.data))
    try:
        items = asn1.decode_der(_Extensions, der.tlv(der.SEQUENCE, whole)).items
    except UNREADABLE:
        return  # no list of extensions, as the bare OID in RFC 7030's own example: nothing that a request could have
    for one in items:
        if one.value is not None:
            yield Extension(one.oid.dotted_string, one.critical, one.value)
