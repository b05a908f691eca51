"""Bodies: whatever comes in is a value or a 400 or 415; what goes out has the form that every client takes."""

from __future__ import annotations

import base64
from contextlib import nullcontext

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import example, given, settings
from hypothesis import strategies as st

from estd import der, wire
from estd.errors import BadRequest, EstError, Reason, UnsupportedMediaType
from tests import make

CSR = make.csr()
BODY = make.body(CSR)
WRAPPED = base64.encodebytes(CSR)
BEGIN, END = b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n"
CERTIFICATE = make.certificate().der

TAKEN = {
    "one line": (BODY, False, False),
    "one line without its newline": (BODY.rstrip(), False, False),
    "wrapped": (WRAPPED, False, True),
    "CRLF": (WRAPPED.replace(b"\n", b"\r\n"), False, True),
    "white space around": (b"\r\n\t " + BODY + b" \r\n\n", False, False),
    "white space inside": (BODY[:7] + b" \t" + BODY[7:], False, False),
    "PEM where allowed": (BEGIN + WRAPPED + END, True, True),
    "PEM with CRLF and blank lines": ((b"\n" + BEGIN + WRAPPED + END + b"\n").replace(b"\n", b"\r\n"), True, True),
    "NEW CERTIFICATE REQUEST": ((BEGIN + WRAPPED + END).replace(b" CERT", b" NEW CERT"), True, True),
    "bare base64 where PEM is allowed": (BODY, True, False),
}

REFUSED = {
    "empty": (b"", False, Reason.NOT_BASE64),
    "white space alone": (b" \r\n\t", False, Reason.NOT_BASE64),
    "bare DER": (CSR, False, Reason.NOT_BASE64),
    "bare DER where PEM is allowed": (CSR, True, Reason.NOT_BASE64),
    "PEM where not allowed": (BEGIN + WRAPPED + END, False, Reason.PEM),
    "two PEM requests": ((BEGIN + WRAPPED + END) * 2, True, Reason.NOT_BASE64),
    "PEM without its end": (BEGIN + WRAPPED, True, Reason.NOT_BASE64),
    "PEM of a certificate": (make.certificate().pem, True, Reason.NOT_BASE64),
    "PEM with headers": (BEGIN + b"Proc-Type: 4,ENCRYPTED\n\n" + WRAPPED + END, True, Reason.NOT_BASE64),
    "PEM without content": (BEGIN + END, True, Reason.NOT_BASE64),
    "a character outside": (BODY[:9] + b"!" + BODY[10:], False, Reason.NOT_BASE64),
    "base64url": (base64.urlsafe_b64encode(b"\xff\xef" * 9), False, Reason.NOT_BASE64),
    "NUL": (BODY[:9] + b"\0" + BODY[9:], False, Reason.NOT_BASE64),
    "not ASCII": (BODY[:9] + b"\xe9" + BODY[9:], False, Reason.NOT_BASE64),
    "padding missing": (b"MIIBA", False, Reason.NOT_BASE64),
    "one character": (b"M", False, Reason.NOT_BASE64),
    "padding alone": (b"====", False, Reason.NOT_BASE64),
    "padding in the middle": (b"MA==MA==", False, Reason.NOT_BASE64),
    "data after the padding": (b"MA==MA", False, Reason.NOT_BASE64),
    "too much padding": (b"MA====", False, Reason.NOT_BASE64),
    "vertical tab inside": (b"MI\x0bIB", False, Reason.NOT_BASE64),
}

MEDIA = {
    "R7 the RFC's": ("application/pkcs10", False, True),
    "any case, with a parameter": ("Application/PKCS10; charset=utf-8", False, True),
    "its older name": ("application/x-pkcs10", False, True),
    "none at all": ("", False, True),
    "PEM where allowed": ("application/x-pem-file", True, True),
    "PEM where not allowed": ("application/x-pem-file", False, False),
    "the answer's": ("application/pkcs7-mime", False, False),
    "JSON": ("application/json", True, False),
    "a form, curl's default": ("application/x-www-form-urlencoded", True, False),
    "nothing that is a type": ("\x00\xff" * 500, True, False),
    "the type in a parameter": ("text/plain; a=application/pkcs10", False, False),
}


@pytest.mark.parametrize("case", TAKEN)
def test_R40_takes(case: str) -> None:
    """R40: a request's base64 may be wrapped and padded with white space in any way, armoured where that is allowed."""
    body, pem, wrapped = TAKEN[case]
    assert wire.read_pkcs10(body, pem=pem) == wire.Pkcs10(csr_der=CSR, wrapped=wrapped)


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    """What is not base64 of DER, or is PEM where the label does not allow it, is a 400 with a sentence."""
    body, pem, reason = REFUSED[case]
    with pytest.raises(BadRequest) as caught:
        wire.read_pkcs10(body, pem=pem)
    assert (caught.value.status, caught.value.reason) == (400, reason)
    assert caught.value.sentence.endswith(".")


@pytest.mark.parametrize("case", MEDIA)
def test_R7_media_type(case: str) -> None:
    """R7: a body that calls itself anything but PKCS#10 is a 415 that names what it was called."""
    content_type, pem, taken = MEDIA[case]
    if taken:
        wire.check_media_type(content_type, pem=pem)
        return
    with pytest.raises(UnsupportedMediaType) as caught:
        wire.check_media_type(content_type, pem=pem)
    assert (caught.value.status, caught.value.reason) == (415, Reason.MEDIA_TYPE)
    assert len(caught.value.sentence) < 500


@given(body=st.binary(max_size=400), pem=st.booleans(), armour=st.booleans())
@example(body=b"", pem=True, armour=True)
@settings(deadline=None, derandomize=True, max_examples=500)
def test_whatever_comes_in_is_a_value_or_a_400(body: bytes, pem: bool, armour: bool) -> None:
    """Any bytes at all are a request's DER or a 400, never another exception."""
    try:
        found: wire.Pkcs10 | EstError = wire.read_pkcs10(BEGIN + body + b"\n" + END if armour else body, pem=pem)
    except EstError as refusal:
        found = refusal
    if isinstance(found, EstError):
        assert (found.status, found.reason) in ((400, Reason.NOT_BASE64), (400, Reason.PEM))
    else:
        assert len(found.csr_der) * 4 // 3 <= len(body)


@given(
    csr_der=st.binary(min_size=1, max_size=300),
    gaps=st.lists(st.tuples(st.integers(0, 400), st.sampled_from([b"\n", b"\r\n", b" ", b"\t", b"\n\n"])), max_size=8),
)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_R40_white_space_anywhere(csr_der: bytes, gaps: list[tuple[int, bytes]]) -> None:
    """R40: white space anywhere changes nothing but whether the answer may be wrapped."""
    body = base64.b64encode(csr_der)
    for at, gap in gaps:
        body = body[:at] + gap + body[at:]
    found = wire.read_pkcs10(body, pem=False)
    assert found.csr_der == csr_der
    assert found.wrapped == (b"\n" in body.strip())


@given(text=st.text(max_size=200), pem=st.booleans())
@settings(deadline=None, derandomize=True, max_examples=300)
def test_any_media_type_is_taken_or_a_415(text: str, pem: bool) -> None:
    """Any Content-Type is PKCS#10 or a 415, never another exception."""
    kind = text.partition(";")[0].strip().lower()
    allowed = wire.PKCS10_TYPES | {""} | (wire.PEM_TYPES if pem else frozenset())
    expected = nullcontext() if kind in allowed else pytest.raises(UnsupportedMediaType)
    with expected:
        wire.check_media_type(text, pem=pem)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_R18_certs_only_is_DER_with_all_certificates(count: int) -> None:
    """R18: certs-only holds what it was given, complete, in DER: X.690 §11.6 orders the certificates, a SET OF, by
    their octets, and cryptography warns of any other order."""
    made = [make.certificate(subject=make.name(f"c-{index}")).der for index in range(count)]
    found = pkcs7.load_der_pkcs7_certificates(wire.certs_only(sorted(made, reverse=True)))
    assert [one.public_bytes(Encoding.DER) for one in found] == sorted(made)


def test_R25_the_answer_holds_one_certificate() -> None:
    """R25: an enrolment's answer is the issued certificate alone."""
    body = wire.enrolled(CERTIFICATE, wrapped=False)
    found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
    assert found == [x509.load_der_x509_certificate(CERTIFICATE)]


@given(size=st.one_of(st.integers(1, 1200), st.integers(690, 780)), wrapped=st.booleans())
@settings(deadline=None, derandomize=True, max_examples=300)
def test_answer_lines(size: int, wrapped: bool) -> None:
    """An answer is one line and a newline while that line has at most 1022 characters; a longer one is wrapped at 64
    exactly where its request was."""
    body = wire.enrolled(der.tlv(der.SEQUENCE, bytes(size)), wrapped=wrapped)
    lines = body.split(b"\n")
    assert lines.pop() == b""
    line = b"".join(lines)
    assert base64.b64decode(line, validate=True) == wire.certs_only([der.tlv(der.SEQUENCE, bytes(size))])
    if len(line) <= 1022 or not wrapped:
        assert lines == [line]
    else:
        assert {len(one) for one in lines[:-1]} == {64}
        assert 0 < len(lines[-1]) <= 64


@pytest.mark.parametrize(("size", "one_line", "lines"), [(200, False, 1), (200, True, 1), (900, True, 1)])
def test_cacerts_on_one_line(size: int, one_line: bool, lines: int) -> None:
    """cacerts is one line where it is short or its label says so."""
    assert wire.cacerts([der.tlv(der.SEQUENCE, bytes(size))], one_line=one_line).count(b"\n") == lines


def test_long_cacerts_is_wrapped() -> None:
    """A long cacerts is wrapped at 64 unless its label says otherwise."""
    body = wire.cacerts([der.tlv(der.SEQUENCE, bytes(900))], one_line=False)
    assert max(map(len, body.split(b"\n"))) == 64


@given(content=st.integers(0, 70_000).map(bytes))
@example(content=bytes(127))
@example(content=bytes(128))
@example(content=bytes(255))
@example(content=bytes(256))
@example(content=bytes(65_535))
@example(content=bytes(65_536))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_DER_lengths_are_the_shortest(content: bytes) -> None:
    """A length estd writes is X.690's shortest form, and its readers find the same content again."""
    made = der.tlv(der.OCTET_STRING, content)
    assert der.element_end(made, 0) == len(made)
    assert made[der.content_start(made, 0) :] == content
    size = len(content)
    head = 2 if size < 128 else 2 + (size.bit_length() + 7) // 8
    assert len(made) == head + size


@given(value=st.integers(0, 2**170))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_DER_integers_are_positive_and_minimal(value: int) -> None:
    """A number estd writes reads as itself, without a sign and without a needless octet."""
    content = der.uint(value)[2:]
    assert int.from_bytes(content, "big", signed=True) == value
    assert len(content) == 1 or content[0] or content[1] & 0x80


@pytest.mark.parametrize("dotted", ["2.5.29.17", "1.2.840.113549.1.9.7", "1.3.6.1.4.1.311.20.2.2", "2.999.4294967295"])
def test_DER_object_identifiers(dotted: str) -> None:
    """An OBJECT IDENTIFIER that estd writes is the one that cryptography writes."""
    name = x509.ExtendedKeyUsage([x509.ObjectIdentifier(dotted)]).public_bytes()
    assert der.oid(dotted) == name[2:]
