"""otpChallenge (RFC 7894 §3.1): a one-time password in the CSR, for clients that do no HTTP authentication."""

from __future__ import annotations

from cryptography import x509

from estd import der, names
from estd.csr import UNREADABLE
from estd.errors import BadRequest, Reason

OID = "1.2.840.113549.1.9.16.2.56"
_OID = x509.ObjectIdentifier(OID)
_OID_DER = der.oid(OID)
_MAX = 255
"""Characters: ub-aa-otpChallenge."""


def may_have(csr_der: bytes) -> bool:
    """Whether the bytes may hold one: cheap enough for the edge, which does not parse."""
    return _OID_DER in csr_der


def challenge(csr_der: bytes) -> bytes | None:
    """The otpChallenge of a request, a DirectoryString; None without. A 400 where there are several, or it is none."""
    if not may_have(csr_der):
        return None
    try:
        found = [one for one in x509.load_der_x509_csr(csr_der).attributes if one.oid == _OID]
    except UNREADABLE:
        raise BadRequest(Reason.BAD_CSR, "The request's attributes cannot be read.") from None
    if not found:
        return None
    if len(found) > 1:
        raise BadRequest(Reason.BAD_CSR, "The request has more than one otpChallenge.")
    value = bytes(found[0].value)
    if not 1 <= len(value) <= _MAX:
        raise BadRequest(Reason.BAD_CSR, f"The otpChallenge has not 1 to {_MAX} characters.")
    return value


def names_beside(csr_der: bytes) -> names.Names:
    """The names in the request, of which one says whose password it is. A 400 where they cannot be read."""
    try:
        request = x509.load_der_x509_csr(csr_der)
        return names.of_extensions(request.subject, request.extensions)
    except UNREADABLE as error:
        raise BadRequest(Reason.BAD_CSR, f"The request's subject or extensions cannot be read: {error}.") from None
