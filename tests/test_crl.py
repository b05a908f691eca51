"""CRL files: who is on one is refused, and where the status cannot be known nobody gets in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estd import crl, der
from estd.crl import CrlFiles
from estd.errors import EstError, Forbidden, Reason, Unavailable
from tests import make
from tests.make import Identity

NOW = datetime.now(UTC).timestamp()
HOUR = timedelta(hours=1)
MAKER, OTHER = (make.certificate(ca=True, subject=make.name(word)) for word in ("maker", "other"))
TWIN = make.certificate(ca=True, subject=make.name("maker"))
"""Another CA of the same name."""
BETWEEN = make.certificate(MAKER, ca=True, subject=make.name("between"))
GOOD, BAD = make.certificate(MAKER), make.certificate(MAKER)
BELOW = make.certificate(BETWEEN)
STRANGE = make.certificate(OTHER)


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crl, "_LOOK_AGAIN_SECONDS", 0.0)


def der_crl() -> bytes:
    return x509.load_pem_x509_crl(make.crl(MAKER, [BAD])).public_bytes(Encoding.DER)


def without_next_update() -> bytes:
    """A CRL (RFC 5280 demands a nextUpdate) without its second time, signed by the manufacturer."""
    whole = der_crl()
    start = der.content_start(whole, 0)
    body = whole[start : der.element_end(whole, start)]
    at = der.content_start(body, 0)
    ends = [at]
    while ends[-1] < len(body):
        ends.append(der.element_end(body, ends[-1]))
    parts = [body[a:b] for a, b in pairwise(ends)]
    del parts[4]  # version, algorithm, issuer, thisUpdate, nextUpdate
    tbs = der.tlv(der.SEQUENCE, b"".join(parts))
    signature = MAKER.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    made = der.tlv(der.SEQUENCE, tbs + parts[1] + der.tlv(der.BIT_STRING, b"\0" + signature))
    found = x509.load_der_x509_crl(made)
    assert found.is_signature_valid(MAKER.key.public_key())
    assert found.next_update_utc is None
    return made


def write(folder: Path, *contents: bytes | None) -> list[Path]:
    """The files; None is one that is not there."""
    paths = [folder / f"{index}.crl" for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        if content is not None:
            path.write_bytes(content)
    return paths


def outcome(paths: Sequence[Path], path: Sequence[Identity], signers: Sequence[Identity] = (MAKER, BETWEEN)) -> (
    tuple[int, str]
):  # fmt: skip
    """Status and reason for a client's path; 200 where nothing speaks against it."""
    files = CrlFiles(paths, [one.certificate for one in signers])
    return asked(files, path)


def asked(files: CrlFiles, path: Sequence[Identity], now: float = NOW) -> tuple[int, str]:
    try:
        files.check([one.certificate for one in path], now)
    except EstError as refusal:
        return refusal.status, refusal.reason
    return 200, ""


FINE, REVOKED, STALE = (200, ""), (403, Reason.REVOKED), (503, Reason.CRL_STALE)

CASES: dict[str, tuple[list[Callable[[], bytes | None]], Sequence[Identity], tuple[int, str]]] = {
    # The files, the client's path, the outcome.
    "no CRLs named": ([], [BAD], FINE),
    "not on the CRL": ([lambda: make.crl(MAKER, [BAD])], [GOOD], FINE),
    "R10 on the CRL": ([lambda: make.crl(MAKER, [BAD])], [BAD], REVOKED),
    "R10 on the CRL, DER": ([der_crl], [BAD], REVOKED),
    "not on the CRL, DER": ([der_crl], [GOOD], FINE),
    "an empty CRL": ([lambda: make.crl(MAKER)], [GOOD], FINE),
    "on the second of two": ([lambda: make.crl(MAKER), lambda: make.crl(MAKER, [BAD])], [BAD], REVOKED),
    "on an expired one beside a current one": (
        [lambda: make.crl(MAKER, [BAD], ends=-HOUR), lambda: make.crl(MAKER)], [BAD], REVOKED,
    ),
    "not on an expired one beside a current one": (
        [lambda: make.crl(MAKER, ends=-HOUR), lambda: make.crl(MAKER, [BAD])], [GOOD], FINE,
    ),
    "below an intermediate, both covered": (
        [lambda: make.crl(MAKER), lambda: make.crl(BETWEEN)], [BELOW, BETWEEN], FINE,
    ),
    "the intermediate is revoked": (
        [lambda: make.crl(MAKER, [BETWEEN]), lambda: make.crl(BETWEEN)], [BELOW, BETWEEN], REVOKED,
    ),
    "revoked by the intermediate": (
        [lambda: make.crl(MAKER), lambda: make.crl(BETWEEN, [BELOW])], [BELOW, BETWEEN], REVOKED,
    ),
    "the serial on another issuer's CRL": (
        [lambda: make.crl(MAKER), lambda: make.crl(BETWEEN, [GOOD])], [GOOD], FINE,
    ),
    "below an intermediate that is not covered": ([lambda: make.crl(MAKER)], [BELOW, BETWEEN], STALE),
    "an issuer that is not covered": ([lambda: make.crl(MAKER)], [STRANGE], STALE),
    "expired": ([lambda: make.crl(MAKER, ends=-HOUR)], [GOOD], STALE),
    "expired, and on it": ([lambda: make.crl(MAKER, [BAD], ends=-HOUR)], [BAD], STALE),
    "missing": ([lambda: None], [GOOD], STALE),
    "one of two missing": ([lambda: make.crl(MAKER), lambda: None], [GOOD], STALE),
    "empty": ([lambda: b""], [GOOD], STALE),
    "no CRL": ([lambda: b"\x30\x03abc"], [GOOD], STALE),
    "PEM of something else": ([lambda: MAKER.pem], [GOOD], STALE),
    "cut": ([lambda: make.crl(MAKER)[:-60]], [GOOD], STALE),
    "of version 8": ([lambda: make.of_version_8(der_crl())], [GOOD], STALE),
    "signed by another": ([lambda: make.crl(OTHER)], [GOOD], STALE),
    "signed by another of the same name": ([lambda: make.crl(TWIN)], [GOOD], STALE),
    "signed by a client": ([lambda: make.crl(GOOD)], [GOOD], STALE),
    "without nextUpdate": ([without_next_update], [GOOD], STALE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_R10_checks(case: str, folder: Path) -> None:
    """R10: who is on a current CRL is refused with 403; where no current CRL says anything, everybody is with 503."""
    contents, path, expected = CASES[case]
    assert outcome(write(folder, *(one() for one in contents)), path) == expected


def test_a_refusal_says_why(folder: Path) -> None:
    """A revoked client is told so; a 503 for want of a CRL comes with a Retry-After."""
    paths = write(folder, make.crl(MAKER, [BAD]))
    files = CrlFiles(paths, [MAKER.certificate])
    with pytest.raises(Forbidden, match="revoked by its issuer's CRL"):
        files.check([BAD.certificate], NOW)
    paths[0].unlink()
    with pytest.raises(Unavailable, match="revocation is not known") as caught:
        files.check([GOOD.certificate], NOW)
    assert caught.value.retry_after is not None


def test_nextUpdate_counts_to_its_last_second(folder: Path) -> None:
    """A CRL is current up to its nextUpdate and not after."""
    files = CrlFiles(write(folder, make.crl(MAKER, ends=HOUR)), [MAKER.certificate])
    until = x509.load_pem_x509_crl((folder / "0.crl").read_bytes()).next_update_utc
    assert until is not None
    assert asked(files, [GOOD], until.timestamp()) == FINE
    assert asked(files, [GOOD], until.timestamp() + 1) == STALE


def test_a_replaced_file_is_seen(folder: Path) -> None:
    """Revocation comes and goes with the file, and so does everybody's access with a bad one, without a restart."""
    (path,) = paths = write(folder, make.crl(MAKER))
    files = CrlFiles(paths, [MAKER.certificate])
    assert asked(files, [BAD]) == FINE

    def replace(content: bytes) -> None:
        new = folder / "new"
        new.write_bytes(content)
        os.replace(new, path)

    good = path.read_bytes()
    for content, expected in (
        (make.crl(MAKER, [BAD]), REVOKED), (make.crl(OTHER), STALE), (good, FINE), (b"", STALE),
        (make.crl(MAKER, [BAD]), REVOKED), (make.crl(MAKER, ends=-HOUR), STALE), (good, FINE),
    ):  # fmt: skip
        replace(content)
        assert asked(files, [BAD]) == expected
    path.unlink()
    assert asked(files, [BAD]) == STALE
    replace(good)
    assert asked(files, [BAD]) == FINE


def test_a_file_that_did_not_change_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRL is parsed when its file changes, not for each request."""
    files = CrlFiles(write(folder, make.crl(MAKER)), [MAKER.certificate])
    reads: list[Path] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), read(path))[1])
    for _ in range(5):
        assert asked(files, [GOOD]) == FINE
    assert len(reads) == 1


def test_files_are_looked_at_once_a_second_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at the files no request touches the disk."""
    monkeypatch.setattr(crl, "_LOOK_AGAIN_SECONDS", 3600.0)
    (path,) = paths = write(folder, make.crl(MAKER))
    files = CrlFiles(paths, [MAKER.certificate])
    assert asked(files, [BAD]) == FINE
    path.unlink()
    assert asked(files, [BAD]) == FINE
