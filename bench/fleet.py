"""A fleet of devices that enrols against a running EST server, and what that cost: `python -m bench.fleet`.

The latency of an open loop (--rate) counts from the moment the request was meant to go out, so that a server that
stalls cannot hide the requests it kept from being sent.
"""

from __future__ import annotations

import math
import re
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import click

from bench import devices
from bench.figures import Goals, Report, as_json, as_table, make_report
from bench.generators import GeneratorError, Progress, run_generators
from bench.plan import Plan
from bench.preparation import TLS_VERSIONS, Options, Preparation, Target
from bench.procstat import Watch, read_machine
from bench.progress import ProgressLine

_DEFAULT_COUNT = 10_000
_DEFAULT_DEVICES = 2000
_GUESSED_RATE_PER_SECOND = 4000


def _quantity(text: str, units: dict[str, float], example: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(\D*)", text.strip())
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise click.BadParameter(f"{text!r} is not like {example}")
    return float(match[1]) * units[match[2]]


def rate(text: str) -> float:
    """Per second; a function as a click type, its name is what --help shows."""
    return _quantity(text, {"": 1.0, "/s": 1.0}, "3000/s")


def duration(text: str) -> float:
    """In microseconds."""
    return _quantity(text, {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}, "25ms")


def _find_target(url: str, label: str | None) -> Target:
    """Picks the first of the host's addresses that takes a connection, so that the generators need not look it up."""
    parts = urlsplit(url)
    try:
        port = parts.port or 443
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
        raise click.BadParameter(f"{url!r} is not like https://localhost:8443", param_hint="URL")
    prefix = f"{parts.path.rstrip('/')}/.well-known/est" + (f"/{label}" if label else "")
    reason: OSError | None = None
    try:
        for _, _, _, _, address in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM):
            try:
                socket.create_connection((str(address[0]), port), timeout=5).close()
            except OSError as error:
                reason = error
            else:
                return Target(address=str(address[0]), port=port, host=parts.hostname, prefix=prefix)
    except socket.gaierror as error:
        reason = error
    raise click.ClickException(f"{parts.hostname}:{port} takes no connection: {reason}")


def _run(options: Options, plans: list[Plan], watch: Watch, goals: Goals) -> Report:
    machine = []

    def begin() -> None:
        if not watch.begin():
            click.echo("no process of the server is found: give --pid to see what they use", err=True)
        machine.append(read_machine())

    def tell(progress: Progress) -> None:
        done = progress.good + progress.shed + progress.errors
        line.update(done, f"{progress.good} good, {progress.shed} shed, {progress.errors} errors")

    with ProgressLine("enrolling", options.count) as line:
        outcome = run_generators(plans, begin=begin, tell=tell, look=watch.look)
    machine.append(read_machine())
    mismatched = sum(not devices.is_answer_to(csr, answer) for csr, answer in outcome.tally.samples)
    return make_report(
        what=options.describe(),
        tally=outcome.tally,
        seconds=outcome.seconds,
        uses=watch.uses(),
        machine_before=machine[0],
        machine_after=machine[1],
        mismatched=mismatched,
        goals=goals,
    )


def _keep(path: Path, plans: list[Plan]) -> None:
    with path.open("wb") as kept:
        for plan in plans:
            if plan.keep is not None:
                with plan.keep.open("rb") as part:
                    shutil.copyfileobj(part, kept)


_FILE = click.Path(dir_okay=False, path_type=Path)
_POSITIVE = click.IntRange(min=1)


@click.command(context_settings={"show_default": True})
@click.argument("url")
@click.option(
    "--instance",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The server's instance, made by `estd init DIR --demo`: its root, manufacturer and password are used.",
)
@click.option("--pid", type=_POSITIVE, help="The server's supervisor; else INSTANCE/run/estd.pid tells it.")
@click.option("--label", help="The EST label in the path of the requests.")
@click.option("--count", type=_POSITIVE, help="Enrolments.  [default: 10000, or enough for --seconds]")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End after this time, or after --count.")
@click.option("--connections", type=_POSITIVE, default=64, help="Connections at a time.")
@click.option("--rate", "rate_per_second", type=rate, help="Open loop with so many requests per second.")
@click.option("--fresh", is_flag=True, help="A fresh TLS connection for each enrolment.")
@click.option("--auth", "authentication", type=click.Choice(["certificate", "basic"]), default="certificate")
@click.option("--operation", type=click.Choice(["simpleenroll", "simplereenroll"]), default="simpleenroll")
@click.option(
    "--devices",
    "device_count",
    type=_POSITIVE,
    help="Devices with a certificate each.  [default: one for each connection; with --fresh up to 2000]",
)
@click.option("--generators", type=click.IntRange(1, 64), default=1, help="Processes that share the load.")
@click.option("--tls", type=click.Choice(list(TLS_VERSIONS)), default="1.3")
@click.option("--timeout", "timeout_seconds", type=click.FloatRange(min=0.1), default=15.0, help="For each try.")
@click.option("--retry", is_flag=True, help="Repeat, up to 5 tries, what was shed, lost or not answered in time.")
@click.option("--keep", type=_FILE, help="Write the base64 body of each good answer here, one a line.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the CSRs here for later runs; none is sent to an instance twice.",
)
@click.option("--reuse", is_flag=True, help="With --cache: start again from its first CSR, whatever was sent before.")
@click.option("--json", "json_output", is_flag=True, help="One JSON object instead of the table.")
@click.option("--goal", "goal_per_second", type=rate, help="Exit with 1 when slower, like 3000/s.")
@click.option("--p99", "goal_p99_us", type=duration, help="Exit with 1 when p99 is above, like 25ms.")
def main(
    url: str,
    instance: Path,
    pid: int | None,
    label: str | None,
    count: int | None,
    seconds: float | None,
    connections: int,
    rate_per_second: float | None,
    fresh: bool,
    authentication: str,
    operation: str,
    device_count: int | None,
    generators: int,
    tls: str,
    timeout_seconds: float,
    retry: bool,
    keep: Path | None,
    cache: Path | None,
    reuse: bool,
    json_output: bool,
    goal_per_second: float | None,
    goal_p99_us: float | None,
) -> None:
    """Enrols a fleet of devices at the EST server URL and prints rate, latency, errors and the CPU it cost.

    Exits with 0 when all went well (what the server shed is no error), 1 after errors or a missed goal, 2 when the
    command line is wrong.
    """
    if generators > connections:
        raise click.UsageError("each of the --generators needs one of the --connections at least")
    if cache is not None and operation == "simplereenroll":
        raise click.UsageError("a renewal's CSR is for this run's devices: it cannot come from a --cache")
    if reuse and cache is None:
        raise click.UsageError("--reuse is about the CSRs of a --cache")
    if not (instance / "ca.pem").exists():
        raise click.BadParameter(f"{instance / 'ca.pem'} is missing", param_hint="--instance")
    if pid is not None and not Path(f"/proc/{pid}").exists():
        raise click.BadParameter(f"there is no process {pid}", param_hint="--pid")
    if count is None:
        count = math.ceil((rate_per_second or _GUESSED_RATE_PER_SECOND) * seconds) if seconds else _DEFAULT_COUNT
    options = Options(
        target=_find_target(url, label),
        instance=instance,
        count=count,
        seconds=seconds,
        connections=connections,
        rate_per_second=rate_per_second,
        fresh=fresh,
        authentication=authentication,
        operation=operation,
        devices=min(count if fresh else connections, device_count or _DEFAULT_DEVICES),
        generators=generators,
        tls=tls,
        timeout_seconds=timeout_seconds,
        retry=retry,
        keep=keep is not None,
        cache=cache,
        reuse=reuse,
    )
    watch = Watch(pid=pid, pid_file=instance / "run" / "estd.pid")
    with tempfile.TemporaryDirectory(prefix="estd-bench-") as directory:  # has private keys: it is ours alone
        try:
            plans = Preparation(options, Path(directory)).plans()
            report = _run(options, plans, watch, Goals(rate_per_second=goal_per_second, p99_us=goal_p99_us))
        except GeneratorError as error:
            raise click.ClickException(str(error)) from None
        if keep is not None:
            _keep(keep, plans)
    click.echo(as_json(report) if json_output else as_table(report))
    sys.exit(0 if report.passed() else 1)


if __name__ == "__main__":
    main()
