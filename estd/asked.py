"""What a server's csrattrs asks for, as a client reads it (RFC 7030 §4.5.2, RFC 8951 §3.5, RFC 9908).

Where there is a template it alone counts, and the rest of the list is for clients that do not know it (RFC 9908 §4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1

from estd import challenges, der

_TEMPLATE = "1.2.840.113549.1.9.16.2.61"
_CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"


@asn1.sequence
class _Attribute:
    type: x509.ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _CsrAttrs:
    """The list as the one field of a sequence: the decoder takes classes alone."""

    items: list[x509.ObjectIdentifier | _Attribute]


@asn1.sequence
class _Template:
    version: int
    subject: list[asn1.TLV] | None
    subject_public_key_info: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    attributes: Annotated[asn1.SetOf[_Attribute], asn1.Implicit(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request should have."""

    attributes: frozenset[str]
    """OIDs: of attributes, and in the old form of whatever else is named by its OID."""
    template: bool

    @property
    def linked(self) -> bool:
        """Whether the request must be linked to its TLS connection (RFC 7030 §3.5)."""
        return _CHALLENGE_PASSWORD in self.attributes or self.identity_linking

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
            if isinstance(item, _Attribute) and item.type.dotted_string == _TEMPLATE:
                (value,) = item.values.as_list()
                template = value.parse(_Template)
                if template.version != 0:
                    raise ValueError(f"a template of version {template.version}")
                return Asked(attributes=_types(template.attributes.as_list()), template=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"the answer is not CsrAttrs: {error}") from None
    return Asked(attributes=_types(items), template=False)


def _types(items: list[_Attribute] | list[x509.ObjectIdentifier | _Attribute]) -> frozenset[str]:
    return frozenset((one.type if isinstance(one, _Attribute) else one).dotted_string for one in items)
