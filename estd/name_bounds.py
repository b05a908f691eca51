"""How much of names a request may ask for: what bounds the work of reading, comparing and granting them. Pure."""

from __future__ import annotations

from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1

from estd import attributes, der
from estd.errors import BadRequest, Reason

SUBJECT_MAX_BYTES = 4096
"""The attributes that estd knows have at most 833 octets together (RFC 5280, appendix A), but for repeated OUs, DCs."""
SAN_MAX = 256
"""Alternative names; no profile grants more. Let's Encrypt certifies 100."""
SAN_MAX_BYTES = 32768
"""Room for 256 names of 120 octets, or for 16 URIs, as many as a profile grants by default, of 2,000."""
SMALL_BYTES = 2 * SAN_MAX
"""No request that is smaller has too many names: each takes a tag and a length."""

_SUBJECT_ALT_NAME = "2.5.29.17"
_EXTENSION_REQUESTS = (attributes.EXTENSION_REQUEST, "1.3.6.1.4.1.311.2.1.14")
"""PKCS#9's and Microsoft's, which `cryptography` reads alike."""


@asn1.sequence
class _Extension:
    oid: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class _Extensions:
    """The list as the one field of a sequence: the decoder takes classes alone."""

    items: list[_Extension]


@asn1.sequence
class _GeneralNames:
    items: list[asn1.TLV]


def check(csr_der: bytes) -> None:
    """A 400 for a request, one that was loaded, with more names than this."""
    version = der.content_start(csr_der, der.content_start(csr_der, 0))
    subject = der.element_end(csr_der, version)
    key = der.element_end(csr_der, subject)
    if key - subject > SUBJECT_MAX_BYTES:
        raise BadRequest(
            Reason.BAD_CSR, f"The request asks for a subject of over {SUBJECT_MAX_BYTES} octets; shorten it."
        )
    given = der.element_end(csr_der, key)
    if der.element_end(csr_der, given) - given <= SMALL_BYTES:
        return
    try:
        for san_der in _alternative_names(csr_der):
            too_long = len(san_der) > SAN_MAX_BYTES
            if too_long or len(asn1.decode_der(_GeneralNames, der.tlv(der.SEQUENCE, san_der)).items) > SAN_MAX:
                raise BadRequest(
                    Reason.BAD_CSR,
                    f"The request asks for over {SAN_MAX} alternative names, or {SAN_MAX_BYTES} octets of them; "
                    "ask for fewer.",
                )
    except attributes.UNREADABLE:
        raise BadRequest(Reason.BAD_CSR, "The request's extensions cannot be read.") from None


def _alternative_names(csr_der: bytes) -> list[bytes]:
    """The values of its subjectAltName; what is there twice is refused later."""
    if der.oid(_SUBJECT_ALT_NAME) not in csr_der:
        return []
    asked = [values for oid in _EXTENSION_REQUESTS for values in attributes.values_of(csr_der, oid)]
    lists = [der.tlv(value.tag_bytes[0], bytes(value.data)) for values in asked for value in values]
    found = [one for content in lists for one in asn1.decode_der(_Extensions, der.tlv(der.SEQUENCE, content)).items]
    return [one.value for one in found if one.oid.dotted_string == _SUBJECT_ALT_NAME]
