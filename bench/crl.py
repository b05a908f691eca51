"""What a CRL costs the issuer that makes it between its batches: `python -m bench.crl --revocations 100000`.

An instance of its own is made, filled and revoked; then the steps are run as an issuer runs them, and each is timed:
an enrolment that arrives waits for one step at most. So is the reading of the file, by an issuer that starts and by an
edge.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench.fill import fill
from estd import crl_file, instance, material, wire
from estd.config import Config, load
from estd.crl_keeper import CrlKeeper
from estd.issuer import open_signer
from estd.ledger import Writer
from estd.metrics import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a row of steps, in milliseconds."""

    steps: int
    longest_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    revocations: int
    start: Cost
    """From a start with an empty memory to the first CRL."""
    next: Cost
    """From one more revocation to the CRL that lists it."""
    read_ms: float
    """CPU, once at an issuer's start: the file read and its signature verified."""
    wrap_ms: float
    """CPU, in an edge's thread once for each new CRL after it has read it: the answer of /crls."""
    crl_bytes: int


def _steps(keeper: CrlKeeper) -> Cost:
    keeper.look_at = 0.0
    times: list[float] = []
    more = True
    while more:
        began = time.perf_counter()
        more = keeper.step()
        times.append((time.perf_counter() - began) * 1000)
    return Cost(steps=len(times), longest_ms=round(max(times), 2), total_ms=round(sum(times), 1))


def _measure(config: Config, revocations: int) -> Report:
    fill(config, Writer(config.ledger), revocations + 1, 86400)
    plan = config.cas["root"].crl
    with Writer(config.ledger) as writer:
        serials = [one.serial for one in writer.search()]
        now = int(time.time())
        writer._write(
            "UPDATE certificate SET revoked_at = ?, reason = 4 WHERE serial = ?", ((now, one) for one in serials[1:])
        )
        found = material.load(config)
        keeper = CrlKeeper(
            crls=found.crls, ledger=writer, signer=open_signer(config, found),
            slot=Block.create(1).slot(0), report=lambda *_, **__: None,
        )  # fmt: skip
        start = _steps(keeper)
        writer.revoke(serials[0], now, 1)
        keeper.look_at = 0.0
        keeper.step()  # sees it
        for one in keeper._made:
            one.pending_since -= plan.delay_seconds  # as if it had waited
        after = _steps(keeper)
    began = time.process_time()
    published = crl_file.read(plan.file, found.crls[0].ca)
    read = time.process_time()
    wire.crls([published.der])
    return Report(
        revocations=revocations, start=start, next=after, read_ms=round((read - began) * 1000, 1),
        wrap_ms=round((time.process_time() - read) * 1000, 1), crl_bytes=len(published.der),
    )  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--revocations", type=click.IntRange(1, 10_000_000), default=100_000)
@click.option("--json", "json_output", is_flag=True, help="One JSON object instead of words.")
def main(revocations: int, json_output: bool) -> None:
    """Measures the making of a CRL of so many revocations."""
    with tempfile.TemporaryDirectory(prefix="estd-crl-") as name:
        folder = Path(name) / "instance"
        instance.init(
            instance.Plan(
                folder=folder, ca_key="ec-p256", ca_name="crl", hosts=(), listen="127.0.0.1:1", admin="127.0.0.1:2",
                demo=True, existing=None,
            )
        )  # fmt: skip
        report = _measure(load(folder / "estd.toml"), revocations)
    if json_output:
        click.echo(json.dumps(asdict(report)))
        return
    for name, cost in (("from a start", report.start), ("after one more revocation", report.next)):
        click.echo(f"{name}: {cost.steps:,} steps, the longest {cost.longest_ms} ms, {cost.total_ms} ms in all")
    click.echo(f"the file: read in {report.read_ms} ms of CPU, wrapped for /crls in {report.wrap_ms}")
    click.echo(f"{report.revocations:,} revocations, {report.crl_bytes:,} bytes")


if __name__ == "__main__":
    main()
