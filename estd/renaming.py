"""ChangeSubjectName (RFC 6402 §2.8): a re-enrolment that repeats its certificate's names and asks for others.

    ChangeSubjectName ::= SEQUENCE { subject Name OPTIONAL, subjectAlt GeneralNames OPTIONAL }  -- one of them at least

Neither part has a tag of its own: a Name begins with a SET, GeneralNames with a context tag. Both are read by putting
them where a request has them and reading that, so that they mean here what they mean there. Pure.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat import asn1

from estd import attributes, der, name_bounds, names
from estd.csr import CertificationRequest
from estd.errors import BadRequest, Reason
from estd.names import Names

CHANGE_SUBJECT_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.7.36")
_CHANGE_SUBJECT_NAME_DER = der.oid(CHANGE_SUBJECT_NAME.dotted_string)
_EXTENSION_REQUEST_DER = der.oid(attributes.EXTENSION_REQUEST)
_SUBJECT_ALT_NAME_DER = der.oid("2.5.29.17")
_NO_SIGNATURE = der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.4.3.2")) + der.tlv(der.BIT_STRING, b"\0")
_SEQUENCE, _SET = b"\x30", b"\x31"


@asn1.sequence
class _Parts:
    parts: list[asn1.TLV]


def asks(request: CertificationRequest) -> bool:
    """Whether the request may have the attribute: cheap enough for every renewal."""
    return _CHANGE_SUBJECT_NAME_DER in request.csr_der


def read(request: CertificationRequest, current: Names) -> Names | None:
    """The names asked for instead of `current`, a part that is not named as it is there; None without the attribute. A
    400 where it is malformed or there are several."""
    try:
        values = attributes.values_of(request.csr_der, CHANGE_SUBJECT_NAME.dotted_string)
        if not values:
            return None
        if len(values) != 1 or len(values[0]) != 1 or bytes(values[0][0].tag_bytes) != _SEQUENCE:
            raise _malformed("is there more than once, or is no SEQUENCE")
        subject_der, san_der = _parts(bytes(values[0][0].data))
        shell_der = _shell(request, subject_der, san_der)
        shell = x509.load_der_x509_csr(shell_der)
        name_bounds.check(shell_der)
        asked = names.of_extensions(shell.subject, shell.extensions)
    except attributes.UNREADABLE:
        raise _malformed("cannot be read") from None
    return Names(
        subject=asked.subject if subject_der else current.subject,
        san=asked.san if san_der else current.san,
    )


def _malformed(how: str) -> BadRequest:
    return BadRequest(Reason.BAD_CSR, f"The request's ChangeSubjectName {how} (RFC 6402 §2.8).")


def _parts(content: bytes) -> tuple[bytes, bytes]:
    """Name and GeneralNames (DER) of a ChangeSubjectName's content; either may be empty, not both."""
    found = asn1.decode_der(_Parts, der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, content))).parts
    parts = [bytes(one.data) for one in found if bytes(one.tag_bytes) == _SEQUENCE]
    if len(parts) != len(found) or not 1 <= len(parts) <= 2:
        raise _malformed("has neither one nor two parts")
    is_name = [not part or part[:1] == _SET for part in parts]
    if is_name not in ([True], [False], [True, False]):
        raise _malformed("has parts that are not a subject, then alternative names")
    encoded = [der.tlv(der.SEQUENCE, part) for part in parts]
    return encoded[0] if is_name[0] else b"", encoded[-1] if not is_name[-1] else b""


def _shell(request: CertificationRequest, subject_der: bytes, san_der: bytes) -> bytes:
    """A request with these names, to be read and for nothing else: nobody signed it."""
    attributes = b""
    if san_der:
        extension = der.tlv(der.SEQUENCE, _SUBJECT_ALT_NAME_DER + der.tlv(der.OCTET_STRING, san_der))
        values = der.tlv(der.SET, der.tlv(der.SEQUENCE, extension))
        attributes = der.tlv(der.SEQUENCE, _EXTENSION_REQUEST_DER + values)
    subject = subject_der or der.tlv(der.SEQUENCE, b"")
    info = der.uint(0) + subject + request.spki_der + der.tlv(der.EXPLICIT_0, attributes)
    return der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, info) + _NO_SIGNATURE)
