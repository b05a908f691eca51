"""The kinds of requests that a mixed load is made of: good ones, bad ones whose refusal is known, and clients that
leave before they have asked."""

from __future__ import annotations

import base64
import binascii

from bench.aborts import ABORTS
from bench.target import Target

ENROLL = "enroll"
RENEW = "renew"
CACERTS = "cacerts"
BAD = {
    "bad_base64": 400,
    "bad_signature": 400,
    "bad_http": 400,
    "wrong_password": 401,
    "unknown_label": 404,
    "oversize": 413,
}
"""The status that each has to be refused with."""
NAMES = (ENROLL, RENEW, CACERTS, *BAD, *ABORTS)

_UNKNOWN_LABEL = "no-such-label-here"


def plain_requests(
    target: Target, authorization: str | None, csr_der: bytes, body_limit_bytes: int
) -> dict[str, tuple[int, bytes]]:
    """The status and the whole request of each kind that always sends the same.

    `csr_der` is good by itself: each bad request is wrong in one thing only. `body_limit_bytes` is the label's.
    """
    good = binascii.b2a_base64(csr_der, newline=False)
    middle = len(good) // 2
    wrong_password = "Basic " + base64.b64encode(b"factory:not-the-password").decode()
    wrong_signature = csr_der[:-1] + bytes([csr_der[-1] ^ 1])
    requests = {
        "bad_base64": target.enrolment(good[:middle] + b"*" + good[middle + 1 :], authorization),
        "bad_signature": target.enrolment(binascii.b2a_base64(wrong_signature, newline=False), authorization),
        "bad_http": b"POST " + target.prefix.encode() + b"/simpleenroll HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        "wrong_password": target.enrolment(good, wrong_password),
        "unknown_label": target.at_label(_UNKNOWN_LABEL).enrolment(good, authorization),
        "oversize": target.enrolment(good.ljust(body_limit_bytes + 1, b"\n"), authorization),
    }
    return {CACERTS: (200, target.cacerts())} | {name: (BAD[name], request) for name, request in requests.items()}
