"""The few DER encodings that estd writes itself (X.690): a tag, a length, the content.

Only for what estd composes from parts it has checked. What comes from outside is parsed by `cryptography`.
"""

from __future__ import annotations

SEQUENCE = 0x30
SET = 0x31
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL = b"\x05\x00"
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
EXPLICIT_0 = 0xA0
EXPLICIT_3 = 0xA3


def tlv(tag: int, content: bytes) -> bytes:
    """Tag, definite length in its shortest form, content."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    if length < 0x100:
        return bytes((tag, 0x81, length)) + content
    if length < 0x10000:
        return bytes((tag, 0x82, length >> 8, length & 0xFF)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def uint(value: int) -> bytes:
    """A non-negative INTEGER: a zero octet in front where the top bit would read as a sign."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    out = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | (arc & 0x7F))
        out += bytes(reversed(groups))
    return tlv(0x06, bytes(out))


def element_end(data: bytes, start: int) -> int:
    """Where the element that begins at `start` ends, in DER that `cryptography` has already parsed."""
    length = data[start + 1]
    if length < 0x80:
        return start + 2 + length
    octets = length & 0x7F
    return start + 2 + octets + int.from_bytes(data[start + 2 : start + 2 + octets], "big")


def content_start(data: bytes, start: int) -> int:
    """Where the content of the element that begins at `start` begins."""
    length = data[start + 1]
    return start + 2 if length < 0x80 else start + 2 + (length & 0x7F)
