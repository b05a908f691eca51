"""A fleet of devices that enrols against a running EST server, and what that cost: `python -m bench.fleet`.

The latency of an open loop (--rate, --share) counts from the moment the request was meant to go out, so that a server
that stalls cannot hide the requests it kept from being sent.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bench import machine, quantities, scenario_file
from bench.course import Course
from bench.figures import Origin, Report, as_json, make_report
from bench.generators import GeneratorError
from bench.kinds import Options
from bench.preparation import Preparation
from bench.printed import as_table
from bench.scenario import AUTHENTICATIONS, OPERATIONS, TLS_VERSIONS, Scenario, complete, override
from bench.target import Target, TargetError, find_target

_USUAL = Scenario()


class _Quantity(click.ParamType[float]):
    """A number with its unit, as `read` takes it."""

    def __init__(self, name: str, read: Callable[[object], float]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_RATE = _Quantity("rate", quantities.rate)
_DURATION = _Quantity("duration", quantities.microseconds)
_FILE = click.Path(dir_okay=False, path_type=Path)
_POSITIVE = click.IntRange(min=1)


def _describe(scenario: Scenario, target: Target) -> str:
    """The run in one line."""
    if scenario.ramp is not None:
        loop = f"open loop that rises from {scenario.rate_per_second:g}/s"
    elif scenario.share is not None:
        loop = f"open loop at {scenario.share:.0%} of the capacity"
    else:
        loop = f"open loop of {scenario.rate_per_second:g}/s" if scenario.rate_per_second else "closed loop"
    kept = "fresh connections" if scenario.fresh else "keep-alive"
    has_devices = scenario.renews() or scenario.authentication == "certificate"
    devices = f", {scenario.device_count()} devices" if has_devices else ""
    operation = "a mix of requests" if scenario.mix else scenario.operation
    return (
        f"{operation} at {target.host}:{target.port}{target.prefix}, {scenario.authentication},"
        f" TLS {scenario.tls}, {loop} over {scenario.connections} {kept}{devices}"
    )


def _scenario(name: str | None, given: dict[str, Any]) -> Scenario:
    """The file's, changed by the command line."""
    goals = {"rate_per_second": given.pop("goal_per_second"), "p99_us": given.pop("goal_p99_us")}
    to_per_second = given.pop("to_per_second")
    try:
        scenario = override(scenario_file.read(name) if name is not None else _USUAL, given)
        scenario = replace(
            scenario,
            goals=replace(scenario.goals, **{key: value for key, value in goals.items() if value is not None}),
        )
        if to_per_second is not None:
            if scenario.ramp is None:
                raise click.UsageError("--to is about the last rate of a ramp: name a scenario that has one")
            scenario = replace(scenario, ramp=replace(scenario.ramp, to_per_second=to_per_second))
        return complete(scenario)
    except (scenario_file.ScenarioError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def _target(url: str, label: str | None) -> Target:
    try:
        return find_target(url, label)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    except TargetError as error:
        raise click.ClickException(str(error)) from None


def _run(options: Options, directory: Path, pid: int | None, keep: Path | None) -> Report:
    preparation = Preparation(options, directory)
    course = Course(options, preparation, pid)
    origin = Origin(
        what=_describe(options.scenario, options.target),
        command=shlex.join(["python", "-m", "bench.fleet", *sys.argv[1:]]),
        commit=machine.commit(),
        machine=machine.describe(course.watch().supervisor()),
    )
    try:
        result = course.run()
    except GeneratorError as error:
        raise click.ClickException(str(error)) from None
    if keep is not None:
        with keep.open("wb") as kept:
            for path in preparation.kept:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, kept)
    return make_report(result, options.scenario, origin)


@click.command(context_settings={"show_default": True})
@click.argument("url")
@click.option(
    "--instance",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The server's instance, made by `estd init DIR --demo`: its root, manufacturer and password are used.",
)
@click.option(
    "--scenario",
    metavar="NAME",
    help=f"One of {', '.join(scenario_file.names())}, or a TOML file; the other options override what it says.",
)
@click.option("--pid", type=_POSITIVE, help="The server's supervisor; else INSTANCE/run/estd.pid tells it.")
@click.option("--label", help="The EST label in the path of the requests.")
@click.option("--count", type=_POSITIVE, help="Requests.  [default: 10000, or enough for --seconds]")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End after this time, or after --count.")
@click.option("--connections", type=_POSITIVE, help="Connections at a time.", show_default=str(_USUAL.connections))
@click.option("--rate", "rate_per_second", type=_RATE, help="Open loop with so many requests per second.")
@click.option(
    "--share",
    type=click.FloatRange(min=0, min_open=True, max=10),
    help="Open loop at this part of what a closed loop does, which is measured first.",
)
@click.option(
    "--to", "to_per_second", type=_RATE, help="A ramp's last rate; --rate and --seconds are its first step's."
)
@click.option("--herd", type=_POSITIVE, help="So many devices, all at once, each on a connection of its own.")
@click.option("--fresh/--kept", default=None, help="A fresh TLS connection for each request.", show_default="kept")
@click.option("--auth", "authentication", type=click.Choice(AUTHENTICATIONS), show_default=_USUAL.authentication)
@click.option("--operation", type=click.Choice(OPERATIONS), show_default=_USUAL.operation)
@click.option(
    "--devices",
    type=_POSITIVE,
    help="Devices with a certificate each.  [default: one for each connection; with --fresh up to 2000]",
)
@click.option("--generators", type=click.IntRange(1, 64), help="Processes that share the load.", show_default="1")
@click.option("--tls", type=click.Choice(TLS_VERSIONS), show_default=_USUAL.tls)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0.1),
    help="For each try.",
    show_default=str(_USUAL.timeout_seconds),
)
@click.option("--retry", is_flag=True, default=None, help="Repeat what was shed, lost or not answered in time.")
@click.option("--tries", type=_POSITIVE, help="At most so many, with --retry.", show_default=str(_USUAL.tries))
@click.option("--keep", type=_FILE, help="Write the base64 body of each good answer here, one a line.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the CSRs here for later runs; none is sent to an instance twice.",
)
@click.option("--reuse", is_flag=True, help="With --cache: start again from its first CSR, whatever was sent before.")
@click.option("--json", "json_output", is_flag=True, help="One JSON object instead of the table.")
@click.option("--goal", "goal_per_second", type=_RATE, help="Exit with 1 when slower, like 3000/s.")
@click.option("--p99", "goal_p99_us", type=_DURATION, help="Exit with 1 when p99 is above, like 25ms.")
def main(
    url: str,
    instance: Path,
    scenario: str | None,
    pid: int | None,
    keep: Path | None,
    cache: Path | None,
    reuse: bool,
    json_output: bool,
    **given: Any,
) -> None:
    """Enrols a fleet of devices at the EST server URL and prints rate, latency, errors and the CPU it cost.

    Exits with 0 when all went well (what the server shed is no error), 1 after errors or a missed goal, 2 when the
    command line or the scenario is wrong. SIGTERM ends the load early, though not a ramp's, and the figures are of what
    was done until then.
    """
    load = _scenario(scenario, given)
    if cache is not None and load.renews():
        raise click.UsageError("a renewal's CSR is for this run's devices: it cannot come from a --cache")
    if reuse and cache is None:
        raise click.UsageError("--reuse is about the CSRs of a --cache")
    if not (instance / "ca.pem").exists():
        raise click.BadParameter(f"{instance / 'ca.pem'} is missing", param_hint="--instance")
    if pid is not None and not Path(f"/proc/{pid}").exists():
        raise click.BadParameter(f"there is no process {pid}", param_hint="--pid")
    options = Options(
        scenario=load,
        target=_target(url, load.label),
        instance=instance,
        keep=keep is not None,
        cache=cache,
        reuse=reuse,
    )
    with tempfile.TemporaryDirectory(prefix="estd-bench-") as directory:  # has private keys: it is ours alone
        report = _run(options, Path(directory), pid, keep)
    click.echo(as_json(report) if json_output else as_table(report))
    sys.exit(0 if report.passed() else 1)


if __name__ == "__main__":
    main()
