"""Fills a stopped instance's ledger, to see whether a cost grows with it: `python -m bench.fill DIR --rows 10000000`.

One certificate is issued by the instance's own token, as its issuer would; each row holds that one with another serial
number and device in it. So the rows have their real size and no two are alike, but the key, the validity and the
signature in every certificate are the first one's: nobody can authenticate with it.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from bench.csrs import new_key
from bench.progress import ProgressLine
from estd import material, names, owner
from estd.batch import BATCH_MAX
from estd.config import Config, load
from estd.errors import ConfigError
from estd.issuance import serials
from estd.issuer import open_signer
from estd.ledger import LedgerError, Row, Writer
from estd.toml_table import duration
from hsm.errors import TokenError
from hsm.session import Job

_TRANSACTION_ROWS = 10_000
"""From 2,000 on more gain nothing; from 50,000 on the log that each leaves behind begins to cost."""
_DEVICE_BYTES = 8
_SHA256_BYTES = 32
_SERIAL_TIME_BYTES = 6
_SINCE_MAX = "10y"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mould:
    """One issued certificate in the pieces around its serial number and its device, which the subject has twice; and
    what its row says besides."""

    pieces_der: tuple[bytes, bytes, bytes, bytes]
    subject: str
    device: str
    label: str
    profile: str
    backdate_seconds: int
    validity_seconds: int

    def batch(self, at_ms: int) -> Iterator[Row]:
        """A full batch of the issuer in that millisecond, in the order of the serials."""
        head, middle, between, tail = self.pieces_der
        not_before = at_ms // 1000 - self.backdate_seconds
        not_after = at_ms // 1000 + self.validity_seconds - 1
        for serial in sorted(serials(BATCH_MAX, at_ms)):
            device = serial[-_DEVICE_BYTES:].hex()
            subject = self.subject.replace(self.device, device)
            octets = device.encode()
            sha256s = os.urandom(2 * _SHA256_BYTES)
            yield Row(
                serial, b"".join((head, serial, middle, octets, between, octets, tail)), sha256s[:_SHA256_BYTES],
                sha256s[_SHA256_BYTES:], f"idevid:{subject}", subject, self.label, self.profile, not_before, not_after,
                at_ms, None,
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was filled in."""

    rows: int
    seconds: float
    rows_per_second: float
    first_issued: str
    last_issued: str
    certificate_bytes: int
    ledger_bytes: int
    """Of the file, with what it held before."""


def _issue(config: Config) -> Mould:
    """The certificate that all rows come from, under the default label and the first profile that its rules name.
    Raises ConfigError or TokenError."""
    found = material.load(config)
    label = config.labels[config.server.default_label]
    name = next((allow.profile for allow in label.allow if allow.profile is not None), None)
    if name is None:
        raise ConfigError([f"label.{label.name}: no rule names a profile; make the instance with estd init --demo"])
    profile, issuer = config.profiles[name], found.issuers[label.ca, name]
    now = time.time()
    (serial,) = serials(1, int(now * 1000))
    device = secrets.token_hex(_DEVICE_BYTES)
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"idevid-{device}"), x509.NameAttribute(NameOID.SERIAL_NUMBER, device)]
    )
    key = new_key().public_key()
    prepared = issuer.prepare(
        serial=serial,
        now=int(now),
        subject_der=subject.public_bytes(),
        san_der=b"",
        spki_der=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        key_bits=key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
    )
    owner.run_folder(config)  # for the token's lock
    (signature,) = open_signer(config, found).sign_many([Job(label.ca, prepared.tbs)])
    if isinstance(signature, TokenError):
        raise signature
    head, rest = issuer.complete(prepared, signature).split(serial)
    middle, between, tail = rest.split(device.encode())
    return Mould(
        pieces_der=(head, middle, between, tail),
        subject=names.shown(subject),
        device=device,
        label=label.name,
        profile=name,
        backdate_seconds=profile.backdate_seconds,
        validity_seconds=profile.validity_seconds,
    )


def _begin_ms(writer: Writer, earliest_ms: int) -> int:
    """When the first row is issued: then, or after the ledger's last one, so that a fill goes on where one ended."""
    (last,) = writer._db.execute("SELECT max(serial) FROM certificate").fetchone()
    return earliest_ms if last is None else max(earliest_ms, int.from_bytes(last[:_SERIAL_TIME_BYTES], "big") + 1)


def fill(config: Config, writer: Writer, rows: int, since_seconds: int) -> Report:
    """Record so many rows, evenly from `since_seconds` ago or from the ledger's last one until now, and close the
    writer, which brings them from the write-ahead log into the ledger's file. Raises ConfigError, TokenError or
    LedgerError."""
    began = time.monotonic()
    with writer, ProgressLine("filling", rows) as line:
        mould = _issue(config)
        now_ms = int(time.time() * 1000)
        begin_ms = _begin_ms(writer, now_ms - since_seconds * 1000)
        span_ms = max(0, now_ms - begin_ms)
        batches = -(-rows // BATCH_MAX)
        times_ms = (begin_ms + span_ms * number // batches for number in range(batches))
        made = islice(chain.from_iterable(map(mould.batch, times_ms)), rows)
        done = 0
        while part := list(islice(made, _TRANSACTION_ROWS)):
            writer.record(part)
            done += len(part)
            last = part[-1]
            line.update(done, f"{done / (time.monotonic() - began):,.0f} rows/s")
    seconds = time.monotonic() - began
    return Report(
        rows=done,
        seconds=seconds,
        rows_per_second=done / seconds,
        first_issued=_utc(begin_ms),
        last_issued=_utc(last.issued_at_ms),
        certificate_bytes=len(last.certificate_der),
        ledger_bytes=config.ledger.stat().st_size,
    )


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_words(report: Report) -> str:
    return (
        f"{report.rows:,} certificates of {report.certificate_bytes} bytes, issued from {report.first_issued} to"
        f" {report.last_issued}, in {report.seconds:.1f} s = {report.rows_per_second:,.0f}/s;"
        f" the ledger has {report.ledger_bytes / 1e6:,.1f} MB"
    )


def since(text: str) -> int:
    """Seconds; a function as a click type, its name is what --help shows."""
    try:
        seconds = duration(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not like 90d, 12h or 10m") from None
    if seconds > duration(_SINCE_MAX):
        raise click.BadParameter(f"{text!r} is longer than {_SINCE_MAX}")
    return seconds


@click.command(context_settings={"show_default": True})
@click.argument("instance", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rows", type=click.IntRange(1, 100_000_000), default=10_000_000, help="Certificates, about 1 KB each.")
@click.option("--since", "since_seconds", type=since, default="90d", help="How long ago the first was issued.")
@click.option("--json", "json_output", is_flag=True, help="One JSON object instead of the sentence.")
def main(instance: Path, rows: int, since_seconds: int, json_output: bool) -> None:
    """Fills the ledger of the stopped INSTANCE, made by `estd init --demo`, with certificates that nobody holds.

    They are issued evenly until now; where the ledger holds some already, from its last one on.
    """
    try:
        config = load(instance / "estd.toml")
        try:
            writer = Writer(config.ledger)
        except LedgerError as error:
            raise click.ClickException(f"{error}. Where the instance is served, stop it first") from None
        report = fill(config, writer, rows, since_seconds)
    except ConfigError as error:
        raise click.ClickException("\n".join(error.problems)) from None
    except (LedgerError, TokenError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(asdict(report)) if json_output else _as_words(report))


if __name__ == "__main__":
    main()
