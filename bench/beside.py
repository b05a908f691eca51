"""What one server costs beside another: `python -m bench.beside INSTANCE URL INSTANCE URL -- --count 6000`.

Both are under the same load at the same time, so whatever else the machine does meets both alike: on a noisy one this
tells apart what two runs after each other do not. The first is set against the second, such as a new version against
the one before. What stands after `--` goes to `python -m bench.fleet`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click

from bench.progress import ProgressLine


class Turn(NamedTuple):
    """µs of CPU of all server processes for each request."""

    first: float
    second: float

    @property
    def ratio(self) -> float:
        return self.first / self.second


def _cost_us(instance: Path, url: str, options: Sequence[str]) -> float:
    command = [sys.executable, "-m", "bench.fleet", "--instance", str(instance), "--json", *options, url]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"the load on {url} failed:\n{done.stderr or done.stdout}")
    return float(json.loads(done.stdout)["server_cpu_us_per_enrolment"])


def measure(sides: Sequence[tuple[Path, str]], options: Sequence[str], count: int) -> list[Turn]:
    """So many turns of both loads at once. Raises ClickException where a load fails."""
    turns: list[Turn] = []
    with ProgressLine("turns", count) as line, ThreadPoolExecutor(len(sides)) as pool:
        for number in range(1, count + 1):
            first, second = pool.map(lambda side: _cost_us(side[0], side[1], options), sides)
            turns.append(Turn(first, second))
            line.update(number, f"{turns[-1].ratio:.3f}")
    return turns


def summary(turns: Sequence[Turn]) -> dict[str, float]:
    """The medians of both, and the median and the quartiles of the ratios of two turns or more."""
    lower, middle, upper = statistics.quantiles((turn.ratio for turn in turns), n=4, method="inclusive")
    return {
        "first_us": round(statistics.median(turn.first for turn in turns), 1),
        "second_us": round(statistics.median(turn.second for turn in turns), 1),
        "ratio": round(middle, 3),
        "ratio_lower_quartile": round(lower, 3),
        "ratio_upper_quartile": round(upper, 3),
    }


_INSTANCE = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(context_settings={"show_default": True})
@click.argument("instance", type=_INSTANCE)
@click.argument("url")
@click.argument("other_instance", type=_INSTANCE)
@click.argument("other_url")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--turns", "count", type=click.IntRange(2, 1000), default=12, help="Loads of each server.")
@click.option("--json", "json_output", is_flag=True, help="One JSON object, with each turn, instead of a table.")
def main(
    instance: Path, url: str, other_instance: Path, other_url: str, options: tuple[str, ...], count: int,
    json_output: bool,
) -> None:  # fmt: skip
    """Sets the CPU that a request costs one server against what it costs another, under one load each."""
    turns = measure([(instance, url), (other_instance, other_url)], options, count)
    found = summary(turns)
    if json_output:
        click.echo(json.dumps({**found, "turns": [turn._asdict() for turn in turns]}))
        return
    for turn in turns:
        click.echo(f"{turn.first:8.1f} µs {turn.second:8.1f} µs {turn.ratio:7.3f}")
    click.echo(
        f"{found['first_us']:8.1f} µs {found['second_us']:8.1f} µs {found['ratio']:7.3f}"
        f"  medians; half of the ratios lie from {found['ratio_lower_quartile']} to {found['ratio_upper_quartile']}"
    )


if __name__ == "__main__":
    main()
