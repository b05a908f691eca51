"""What it costs to remember repeated requests: an index in the ledger against the table in memory.

Both record the same rows, in batches of 32 with synchronous=FULL; CPU time and the 99th percentile of a batch are
printed for each further part of the rows. `python -m bench.repeats --rows 1000000 --folder /var/tmp`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from estd.issuance import serials
from estd.ledger import Row, Writer, create
from estd.repeats import Repeats

_BATCH = 32
_CERTIFICATE = os.urandom(480)


def _rows(now_ms: int) -> list[Row]:
    return [
        Row(
            serial=serial, certificate_der=_CERTIFICATE, csr_sha256=os.urandom(32), repeat_key=os.urandom(32),
            identity="idevid:CN=device-123456", subject="CN=device-123456", label="default", profile="device",
            not_before=0, not_after=0, issued_at_ms=now_ms, renews=None,
        )
        for serial in serials(_BATCH, now_ms)
    ]  # fmt: skip


def _measure(name: str, total: int, record: Callable[[Sequence[Row]], object]) -> None:
    """Record `total` rows and print what each fifth of them cost."""
    part = max(1, total // 5 // _BATCH)
    start_ms = int(time.time() * 1000)
    for fifth in range(5):
        batches = [_rows(start_ms + (fifth * part + number) * 10) for number in range(part)]
        walls: list[float] = []
        cpu = time.process_time()
        for rows in batches:
            began = time.perf_counter()
            record(rows)
            walls.append(time.perf_counter() - began)
        spent = (time.process_time() - cpu) / (part * _BATCH) * 1e6
        p99 = sorted(walls)[int(len(walls) * 0.99)] * 1e3
        click.echo(f"| {name} | {(fifth + 1) * part * _BATCH:>9,} | {spent:6.1f} | {p99:6.1f} |")


@click.command()
@click.option("--rows", default=200_000, show_default=True, help="Rows for each of the two ways.")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), default=Path(tempfile.gettempdir()))
def main(rows: int, folder: Path) -> None:
    """Compare the two ways of remembering repeated requests."""
    click.echo("| way | rows | µs of CPU a row | p99 of a batch, ms |\n|---|---|---|---|")
    for name in ("index in the ledger", "table in memory"):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = Path(place) / "ledger.sqlite3"
            create(path)
            writer = Writer(path)
            if name.startswith("index"):
                writer._db.execute("CREATE UNIQUE INDEX repeats ON certificate (repeat_key)")
                _measure(name, rows, writer.record)
            else:
                repeats = Repeats(10**7, int(time.time() * 1000))

                def both(batch: Sequence[Row], writer: Writer = writer, repeats: Repeats = repeats) -> None:
                    writer.record(batch)
                    for row in batch:
                        repeats.add(row.repeat_key, row.issued_at_ms)

                _measure(name, rows, both)
            writer.close()


if __name__ == "__main__":
    main()
