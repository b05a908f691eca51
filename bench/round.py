"""A whole round of measurements against a server of its own: `python -m bench.round`, or `make bench`.

It makes a demonstration instance in a temporary folder, serves it, measures the floor, each step alone and the fleet's
scenarios, and writes the figures and a page about them, compared with the round before.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bench import machine, report
from bench.demonstration import Demonstration, ServerError, serving
from bench.reading import ResultError, read
from bench.runs import OTHERS_MAX, Round

_ROOT = Path(__file__).resolve().parent.parent
_PART_SECONDS_MAX = 1800.0
_SHOWN = ("--instance", "demo", "https://127.0.0.1:8443")
"""Stands in the commands of a round for its instance, which is gone afterwards: what `make run` serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of bench.fleet: its name in the round and its options."""

    name: str
    options: tuple[str, ...]

    @classmethod
    def of(cls, name: str, options: str) -> Part:
        return cls(name=name, options=tuple(options.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a round measures. Rounds of one name can be compared."""

    name: str
    floor_loops: int
    parts: tuple[Part, ...]


SHORT = Plan(
    name="short",
    floor_loops=400,
    parts=(
        Part.of("kept connections", "--connections 64 --count 24000"),
        Part.of("fresh connections", "--fresh --count 5000"),
        Part.of("steady", "--scenario steady --seconds 6"),
        Part.of("ramp", "--scenario ramp --rate 1000/s --to 8000/s --seconds 2"),
        Part.of("herd", "--scenario herd --herd 400"),
        Part.of("renewals", "--scenario renewals --count 2000 --devices 200"),
        Part.of("mixed", "--scenario mixed --seconds 6"),
    ),
)
"""Together some two minutes on two cores."""
FULL = Plan(
    name="full",
    floor_loops=800,
    parts=(
        Part.of("kept connections", "--connections 64 --seconds 60"),
        Part.of("fresh connections", "--fresh --seconds 60"),
        Part.of("steady", "--scenario steady --seconds 60"),
        Part.of("ramp", "--scenario ramp"),
        Part.of("herd", "--scenario herd"),
        Part.of("renewals", "--scenario renewals --seconds 60 --count 90000"),
        Part.of("mixed", "--scenario mixed --seconds 60"),
    ),
)


def _run(module: str, *options: str) -> tuple[Any, str]:
    """The JSON that a module of the bench prints, and a sentence where it fails; its progress goes to stderr."""
    command = [sys.executable, "-m", module, *options, "--json"]
    try:
        done = subprocess.run(
            command, check=False, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            timeout=_PART_SECONDS_MAX,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"{module} was not done after {_PART_SECONDS_MAX:g} s and was ended"
    try:
        return json.loads(done.stdout), ""
    except ValueError:
        return None, f"{module} ended with {done.returncode} and without figures; what it said is above"


def measure(plan: Plan) -> dict[str, Any]:
    """The JSON of a round. A part that fails becomes a sentence in `failures`. Raises ServerError where there is no
    server to measure."""
    began = datetime.now(UTC)
    failures: list[str] = []
    steps = len(plan.parts) + 3

    def tell(step: int, what: str) -> None:
        click.echo(f"[{step}/{steps}] {what}", err=True)

    def alone(step: int, what: str, module: str, *options: str) -> dict[str, float]:
        tell(step, what)
        figures, problem = _run(module, *options)
        failures.extend(filter(None, [problem]))
        return figures or {}

    floor = alone(1, "the floor", "bench.floor", "--loops", str(plan.floor_loops))
    core = alone(2, "each step alone", "bench.core")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="estd-round-") as folder:
        tell(3, "a demonstration instance and its server")
        with serving(Path(folder) / "instance") as server:
            ran_on = machine.describe(server.pid)
            for step, part in enumerate(plan.parts, 4):
                tell(step, f"{part.name}: bench.fleet {shlex.join(part.options)}")
                run, problem = _fleet(server, part)
                runs.extend(filter(None, [run]))
                failures.extend(filter(None, [problem]))
            failures.extend(filter(None, [server.end()]))
    return {
        "began": began.isoformat(timespec="seconds"),
        "plan": plan.name,
        "commit": machine.commit(),
        "machine": ran_on,
        "floor": floor,
        "core": core,
        "runs": runs,
        "failures": failures,
    }


def _fleet(server: Demonstration, part: Part) -> tuple[dict[str, Any] | None, str]:
    run, problem = _run("bench.fleet", *part.options, "--instance", str(server.folder), server.url)
    if run is None:
        return None, f"{part.name}: {problem}"
    shown = shlex.join(["python", "-m", "bench.fleet", *part.options, *_SHOWN])
    return run | {"name": part.name, "command": shown}, ""


def previous(folder: Path, plan: str) -> list[Round]:
    """The latest round of that plan in the folder, if there is one; a file that is no round is told and passed over."""
    for path in sorted(folder.glob("round-*.json"), reverse=True):
        try:
            found = read(path)
        except ResultError as error:
            click.echo(f"passed over: {error}", err=True)
            continue
        if found.plan == plan:
            return [found]
    return []


def make(plan: Plan, out: Path) -> bool:
    """Measures a round and writes it and its page into the folder; whether all of it passed. Raises ServerError."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    before = previous(out, plan.name)
    made = measure(plan)
    path = out / f"round-{datetime.fromisoformat(made['began']):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(made) + "\n", encoding="utf-8")
    rounds, page = [read(path)], out / "page.html"
    report.write_page(page, rounds, before)
    click.echo(report.markdown(rounds, before))
    passed = not made["failures"] and all(run["passed"] for run in made["runs"])
    click.echo(f"\n{_outcome(rounds[0])}; {time.monotonic() - began:.0f} s\nfigures  {path}\npage     {page}")
    return passed


def _outcome(made: Round) -> str:
    disturbed = [run.name for run in made.runs if made.disturbed(run)]
    if disturbed:
        told = f"other programs took more than {100 * OTHERS_MAX:.0f} % of the machine during {', '.join(disturbed)}"
        click.echo(f"{told}: those figures are not the server's alone", err=True)
    reasons = [f"{run.name} failed: {run.why()}" for run in made.runs if not run.passed] + list(made.failures)
    return "\n".join(reasons) or f"all {len(made.runs)} runs passed"


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)  # so that the server is ended on the way out


@click.command()
@click.option("--full/--short", help="Runs of a minute, some ten minutes, or of seconds, some two.  [default: short]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-out"), show_default=True)
def main(full: bool, out: Path) -> None:
    """Measures a server of its own and writes a page about it; the exit status is 1 where a goal was missed."""
    signal.signal(signal.SIGTERM, _end)
    try:
        passed = make(FULL if full else SHORT, out)
    except (OSError, ResultError, ServerError) as error:
        raise click.ClickException(str(error)) from None
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
