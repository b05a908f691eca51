"""otpChallenge (RFC 7894 §3.1): a one-time password in the CSR, for clients that do no HTTP authentication."""

from __future__ import annotations

from cryptography import x509

from estd import challenges, names
from estd.csr import UNREADABLE
from estd.errors import BadRequest, Reason


def may_have(csr_der: bytes) -> bool:
    """Whether the bytes may hold one: cheap enough for the edge, which does not parse."""
    return challenges.OTP.may_be_in(csr_der)


def challenge(csr_der: bytes) -> bytes | None:
    """The otpChallenge of a request, in UTF-8; None without. A 400 where there are several, or it is no string."""
    return challenges.OTP.read(csr_der)


def names_beside(csr_der: bytes) -> names.Names:
    """The names in the request, of which one says whose password it is. A 400 where they cannot be read."""
    try:
        request = x509.load_der_x509_csr(csr_der)
        return names.of_extensions(request.subject, request.extensions)
    except UNREADABLE as error:
        raise BadRequest(Reason.BAD_CSR, f"The request's subject or extensions cannot be read: {error}.") from None
