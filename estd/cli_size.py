"""The command `estd size`: the model of estd.sizing with the costs of costs.toml, or of a round of one's own."""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from estd import costs, sizing
from estd.toml_table import duration

_COSTS = Path(__file__).with_name("templates") / "costs.toml"
IDLE_SECONDS = 75
"""The default of `idle`."""
_UNITS_US = {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}


class _Number(click.FloatRange):
    """FloatRange takes nan for a number within its range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if math.isnan(number := super().convert(value, param, ctx)):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        seconds = duration(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a duration such as 90d, 12h or 10m") from None
    if not seconds:
        raise click.BadParameter("must be longer than nothing")
    return seconds


def _microseconds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(us|µs|ms|s)", value)
    if not found or not float(found[1]):
        raise click.BadParameter(f"{value!r} is not a time such as 1ms, 0.5ms or 800us")
    return float(found[1]) * _UNITS_US[found[2]]


def reference() -> costs.Costs:
    """The costs that come with estd."""
    return costs.read(tomllib.loads(_COSTS.read_text(encoding="utf-8")))


def _costs(measured: Path | None) -> costs.Costs:
    if measured is None:
        return reference()
    try:
        return costs.calibrated(reference(), json.loads(measured.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = "it is not JSON" if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) else error
        raise click.ClickException(f"{measured}: {reason}") from None


@click.command("size", context_settings={"show_default": True})
@click.option("--devices", type=click.IntRange(1, 10**12), required=True, help="How many there are.")
@click.option("--validity", callback=_seconds, default="90d", help="Of a certificate.")
@click.option("--renew-at", type=_Number(0.01, 1), default=0.67, help="The share of it after which a device renews.")
@click.option("--peak", type=_Number(1, 10_000), default=3.0, help="Renewals in the busiest hour over the average.")
@click.option("--kept", type=_Number(0, 1), default=0.0, help="The share that comes on connections open already.")
@click.option("--first-enrolments-within", callback=_seconds, help="Time in which all have to be let in, such as 1d.")
@click.option("--utilisation", type=_Number(0.01, 0.95), default=0.7, help="Of the full speed, at the peak.")
@click.option(
    "--signature", callback=_microseconds, help="By a token on the network, such as 1ms.",
    show_default="SoftHSM2's, in the issuer",
)  # fmt: skip
@click.option("--signatures-per-second", type=_Number(1, 10**9), help="That one token makes.")
@click.option("--cores-per-host", type=click.IntRange(1, 1024), default=8)
@click.option(
    "--measured", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="ROUND.json",
    help="Reckon with your machine's costs, by python -m bench.round.", show_default="estd's reference machine",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print data, not words.")
def size_command(
    devices: int, validity: float, renew_at: float, peak: float, kept: float, first_enrolments_within: float | None,
    utilisation: float, signature: float | None, signatures_per_second: float | None, cores_per_host: int,
    measured: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Say which deployment carries a fleet, and how long it takes to let all of it in."""
    fleet = sizing.Fleet(
        devices=devices, validity_seconds=validity, renew_at=renew_at, peak=peak, kept=kept, utilisation=utilisation,
        cores_per_host=cores_per_host, within_seconds=first_enrolments_within, signature_us=signature,
        signatures_per_second=signatures_per_second,
    )  # fmt: skip
    found = _costs(measured)
    try:
        sized = sizing.size(found, fleet)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(_data(fleet, found, sized)))
        return
    for name, value in _rows(fleet, found, sized):
        click.echo(f"{name:16} {value}")
    click.echo(f"\nFor estd.toml{' of each' if sized.hosts > 1 else ''}:\n\n{sized.host.toml()}")
    for remark in _remarks(fleet, sized):
        click.echo(f"- {remark}")


def _data(fleet: sizing.Fleet, found: costs.Costs, sized: sizing.Sizing) -> dict[str, Any]:
    speeds = {
        name: {"per_second": speed.per_second, "saturates_first": speed.first, "limits": speed.limits}
        for name, speed in (("renewals", sized.renewals), ("herd", sized.herd))
    }
    return {
        "fleet": asdict(fleet),
        "costs": asdict(found),
        **asdict(sized),
        **speeds,
        "toml": sized.host.toml(),
        "remarks": _remarks(fleet, sized),
    }


def _rows(fleet: sizing.Fleet, found: costs.Costs, sized: sizing.Sizing) -> list[tuple[str, str]]:
    host = sized.host
    each = "each with " if sized.hosts > 1 else ""
    processes = [
        _number(host.edges, "edge"),
        _number(host.issuers, "issuer"),
        *(["the ledger's writer"] if host.issuers > 1 else []),
    ]
    tokens = "" if sized.tokens is None else f"{sized.tokens:,} with "
    return [
        ("renewals", f"{sized.average_per_second:,.1f}/s on average, {sized.peak_per_second:,.1f}/s at the peak"),
        ("sized for", f"{sized.sized_per_second:,.1f}/s"),
        ("hosts", f"{sized.hosts:,}, {each}{_number(host.cores, 'core')}, of which this takes {sized.cores:,.2f}"),
        ("processes", f"{each}{', '.join(processes)}"),
        ("token", f"{tokens}{_number(sized.hosts * host.issuers * host.sessions, 'session')}"),
        ("full speed", f"{sized.renewals.per_second:,.0f}/s; saturates first: {sized.renewals.first}"),
        (
            "everybody",
            f"let in within {_time(sized.herd_seconds)}, {sized.herd.per_second:,.0f}/s on fresh connections",
        ),
        (
            "p99",
            f"{sized.p99_ms:,.0f} ms in the server, at {fleet.utilisation:.0%} of that; shared cores add",
        ),
        ("slack", f"{_time(sized.slack_seconds)} from a renewal to the certificate's end"),
        (
            "ledger",
            f"{sized.rows_per_year:,.0f} rows, {sized.ledger_bytes_per_year / 1e9:,.1f} GB a year;"
            f" {sized.ledger_bytes_first / 1e9:,.1f} GB for the first certificates",
        ),
        (
            "memory",
            f"{sized.memory_mib:,.0f} MiB a host, {sized.memory_full_mib:,.0f} at full speed with all connections open",
        ),
        ("costs", found.measured),
    ]


def _remarks(fleet: sizing.Fleet, sized: sizing.Sizing) -> list[str]:
    said = []
    if fleet.within_seconds is None:
        said.append("Nothing was said of the day when all come at once: --first-enrolments-within sizes for it.")
    elif sized.idle_seconds < IDLE_SECONDS:
        said.append(
            "Where devices leave their connection open after the answer, they hold their edge's places until `idle` has"
            f' passed: idle = "{max(1, int(sized.idle_seconds))}s" in [server] lets the others in.'
        )
    if sized.hosts > 1:
        said.append(
            "Each host is an instance with a ledger of its own, and renews only what that ledger holds: give each its"
            " part of the fleet by a name of its own, and no balancer between."
        )
    if fleet.signature_us is not None and sized.tokens is None:
        said.append(
            f"The token has to make {sized.sized_per_second:,.0f} signatures a second: --signatures-per-second says how"
            " many tokens that takes."
        )
    if sized.tokens is not None and sized.tokens > sized.hosts:
        said.append("An instance knows one token: several have to appear as one, as a group of your HSM's own.")
    return said


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number > 1 else ''}"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
