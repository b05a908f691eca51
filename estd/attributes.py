"""The attributes of a PKCS#10 request, read strictly (RFC 2986 §4): for those whose values `cryptography` does not give
with their tags. Pure."""

from __future__ import annotations

from typing import Annotated

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1


@asn1.sequence
class Attribute:
    """A type and the set of its values."""

    type: x509.ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _Info:
    version: int
    subject: asn1.TLV
    key: asn1.TLV
    attributes: Annotated[asn1.SetOf[Attribute], asn1.Implicit(0)]


@asn1.sequence
class _Request:
    info: _Info
    algorithm: asn1.TLV
    signature: asn1.BitString


EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
UNREADABLE = (
    ValueError, TypeError, OverflowError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip
"""What `cryptography` raises for DER that it does not take, at loading or when a part is read."""


def values_of(csr_der: bytes, oid: str) -> list[list[asn1.TLV]]:
    """For each attribute of that type its values. Raises UNREADABLE where the octets are no request."""
    found = asn1.decode_der(_Request, csr_der).info.attributes.as_list()
    return [one.values.as_list() for one in found if one.type.dotted_string == oid]
