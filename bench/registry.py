"""What the registry costs an enrolment: the issuer's line with a software key and a real ledger, in batches of 32.

By a Basic credential in a label that does not use the registry, and by a one-time secret in one that does, with few
rows in the registry and with many. `python -m bench.registry --rows 1000000 --folder /var/tmp` (about a minute).
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bench.progress import ProgressLine
from estd import config, frames, importing, material, metrics
from estd.batch import BatchLine
from estd.devices import Claim, Device, pack_claim
from estd.frames import Request
from estd.ledger import Writer, create
from estd.repeats import Repeats
from hsm.errors import TokenError
from hsm.session import Job

_BATCH = 32
_SETTINGS = """
[token]
module = "m.so"
label = "estd"
pin_file = "pin"
[ca.root]
certificate = "ca.pem"
key_id = "01"
[profile.device]
dns = "identity"
other_names = "replace"
[label.default]
ca = "root"
[[label.default.allow]]
who = "basic"
credentials = "credentials"
profile = "device"
[label.registry]
ca = "root"
[[label.registry.allow]]
who = "registry"
secrets = ["basic"]
profile = "device"
"""
_SECRET = bytes(range(32))


class _SoftToken:
    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def sign_many(self, jobs: Sequence[Job]) -> list[bytes | TokenError]:
        return [self._key.sign(job.data, ec.ECDSA(hashes.SHA256())) for job in jobs]


def _root(folder: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=3650))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return key


def _devices(numbers: Iterator[str], *, secret: bytes | None) -> Iterator[Device]:
    until = int(time.time()) + 86400
    for number in numbers:
        yield Device("registry", "", number, None, "", True, secret, until, None, 0)


def _serial_numbers(count: int, seed: int) -> list[str]:
    made = random.Random(seed)
    return sorted(f"{made.getrandbits(64):016X}" for _ in range(count))


def _fill(writer: Writer, numbers: list[str], secret: bytes | None) -> None:
    with ProgressLine("filling", len(numbers)) as progress:
        done = itertools.count(importing.PART, importing.PART)
        importing.write(
            _devices(iter(numbers), secret=secret), writer, at=0, secrets_out=None, secret_until=0,
            step=lambda _: progress.update(next(done)),
        )  # fmt: skip


def _measure(line: BatchLine, requests: list[Request], what: str, rows: int) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, len(requests), _BATCH):
        answers = line.run(requests[start : start + _BATCH])
        if any(answer.status != 200 for answer in answers):
            raise click.ClickException(answers[0].payload.decode())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    each = 1e6 / len(requests)
    click.echo(f"| {what} | {rows:>9,} | {cpu * each:6.1f} | {wall * each:6.1f} |")


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="Devices in the registry.")
@click.option("--count", default=8192, show_default=True, help="Enrolments that are measured for each line.")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), default=Path(tempfile.gettempdir()))
def main(rows: int, count: int, folder: Path) -> None:
    """Print what an enrolment costs the issuer without and with the registry."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place)
        key = _root(path)
        create(path / "ledger.sqlite3")
        writer = Writer(path / "ledger.sqlite3")
        line = BatchLine(
            material=material.load(config.parse(_SETTINGS, path)), signer=_SoftToken(key), ledger=writer,
            repeats=Repeats(600_000, int(time.time() * 1000) - 600_000),
            slot=metrics.Slot(memoryview(array("d", bytes(8 * metrics.SLOT_DOUBLES)))), report=lambda *_, **__: None,
        )  # fmt: skip
        csr_key = ec.generate_private_key(ec.SECP256R1())
        csr_der = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(csr_key, hashes.SHA256()).public_bytes(
            Encoding.DER
        )  # fmt: skip

        def asks(number: int, claim: bytes) -> Request:
            basic = not claim
            return Request(
                id=number, kind=frames.ENROLL, label=0 if basic else 1, deadline=float("inf"),
                user=os.urandom(8).hex() if basic else None, rule=0, binding=b"", chain=b"", csr_der=csr_der,
                claim=claim,
            )  # fmt: skip

        click.echo("| way | devices | µs of CPU | µs |\n|---|---|---|---|")
        for wanted, seed in ((0, 1), (rows, 2)):
            if wanted:
                _fill(writer, _serial_numbers(wanted, 0), None)
            own = _serial_numbers(2 * count, seed)
            _fill(writer, own, _SECRET)
            random.Random(seed).shuffle(own)
            for turn in range(2):
                mine = own[turn * count : (turn + 1) * count]
                _measure(line, [asks(number, b"") for number in range(count)], "Basic credential", wanted)
                claims = (pack_claim(Claim(number, _SECRET, "basic")) for number in mine)
                _measure(line, [asks(number, claim) for number, claim in enumerate(claims)], "one-time secret", wanted)
        writer.close()


if __name__ == "__main__":
    main()
