"""CSRs made before the run, each with a key of its own: a repeated request is answered from the ledger, unsigned.

They lie in a directory as batches, files of DER each behind two bytes of length. The private keys are thrown away:
a generator never needs them, and a renewal is authenticated with the key of the certificate that is renewed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BATCH_CSRS = 10_000
_CURVE = ec.SECP256R1()
_HASH = hashes.SHA256()


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewals:
    """Whose certificate each CSR asks to renew: CSR `i` is for `certificates[i % stride % len(certificates)]`."""

    certificates: tuple[bytes, ...]
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    path: Path
    first: int
    count: int
    renewals: Renewals | None


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key as every device of the fleet has it."""
    return ec.generate_private_key(_CURVE)


def random_name() -> x509.Name:
    """A name no other CSR of the fleet has."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"device-{secrets.token_hex(8)}")])


def sign_csr(key: ec.EllipticCurvePrivateKey, renewed: x509.Certificate | None = None) -> bytes:
    """The CSR in DER; one for a renewal repeats subject and SubjectAltName exactly (RFC 7030, section 4.2.2)."""
    builder = x509.CertificateSigningRequestBuilder(random_name() if renewed is None else renewed.subject)
    if renewed is not None:
        try:
            names = renewed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            pass
        else:
            builder = builder.add_extension(names.value, critical=names.critical)
    return builder.sign(key, _HASH).public_bytes(serialization.Encoding.DER)


def write_framed(path: Path, items: Iterator[bytes]) -> None:
    """The file appears whole or not at all: an interrupted run leaves no half batch in a cache."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as file:
        for item in items:
            file.write(len(item).to_bytes(2, "big") + item)
    unfinished.replace(path)


def read_framed(path: Path) -> Iterator[bytes]:
    """What `write_framed` wrote, in order."""
    data = path.read_bytes()
    position = 0
    while position < len(data):
        start = position + 2
        position = start + int.from_bytes(data[position:start], "big")
        yield data[start:position]


def _write_batch(batch: _Batch) -> int:
    if batch.renewals is None:
        write_framed(batch.path, (sign_csr(new_key()) for _ in range(batch.count)))
        return batch.count
    renewed = [x509.load_der_x509_certificate(der) for der in batch.renewals.certificates]
    stride = batch.renewals.stride
    indexes = range(batch.first, batch.first + batch.count)
    write_framed(batch.path, (sign_csr(new_key(), renewed[i % stride % len(renewed)]) for i in indexes))
    return batch.count


def _batch_path(directory: Path, number: int) -> Path:
    return directory / f"csrs-{number:05d}.der"


def write_csrs(directory: Path, csrs: Iterator[bytes]) -> None:
    """Makes a prepared directory of CSRs whose keys the caller keeps."""
    for number in itertools.count():
        batch = list(itertools.islice(csrs, BATCH_CSRS))
        if not batch:
            return
        write_framed(_batch_path(directory, number), iter(batch))


def prepare_csrs(
    directory: Path,
    *,
    count: int,
    whole_batches: bool,
    renewals: Renewals | None,
    progress: Callable[[int], None],
) -> None:
    """Makes those of the first `count` CSRs that the directory lacks, on all cores; `progress` is told how many new."""
    batches = [
        _Batch(
            path=_batch_path(directory, number),
            first=first,
            count=BATCH_CSRS if whole_batches else min(BATCH_CSRS, count - first),
            renewals=renewals,
        )
        for number, first in enumerate(range(0, count, BATCH_CSRS))
        if not _batch_path(directory, number).exists()
    ]
    done = 0
    workers = min(len(batches), len(os.sched_getaffinity(0)))
    if workers <= 1:  # starting a process costs more than it brings
        for batch in batches:
            done += _write_batch(batch)
            progress(done)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for made in pool.imap_unordered(_write_batch, batches):
            done += made
            progress(done)


def read_csrs(directory: Path, *, first: int, count: int) -> Iterator[bytes]:
    """CSRs number `first` to `first + count` of a prepared directory, in DER."""
    position = first - first % BATCH_CSRS
    end = first + count
    while position < end:
        for csr in read_framed(_batch_path(directory, position // BATCH_CSRS)):
            if first <= position < end:
                yield csr
            position += 1


def claim_csrs(cache: Path, *, instance: str, count: int, reuse: bool) -> int:
    """The number of the first CSR of the cache this run may send, so that no run repeats another at an instance.

    What was used is noted per instance before the run: a run that breaks off counts as having sent all.
    """
    note = cache / f"used-{instance}"
    first = int(note.read_text()) if note.exists() and not reuse else 0
    if not reuse:
        note.write_text(f"{first + count}\n")
    return first
