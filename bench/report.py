"""A page of plots and tables from the JSON of bench.round and bench.fleet: `python -m bench.report`.

Several files are several measurements of the same: tables show their medians and what they differ by. With `--against`
they are compared with the files named there, figure by figure, each in the light of its own round's floor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bench import tables
from bench.compare import compare
from bench.page import page
from bench.reading import ResultError, read
from bench.runs import Round


class _Grouped(click.Command):
    """Lets `--against` be followed by several files, as a shell's pattern makes them, up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        against = False
        for arg, after in zip(args, [*args[1:], "-"], strict=True):
            if arg.startswith("-"):
                against = arg == "--against"
                if against and after.startswith("-"):
                    ctx.fail("--against is followed by the files to compare with")
                spread += [] if against else [arg]
            else:
                spread += ["--against", arg] if against else [arg]
        return super().parse_args(ctx, spread)


_FILE = click.Path(dir_okay=False, path_type=Path)


def load(paths: tuple[Path, ...]) -> list[Round]:
    """The rounds in these files, the latest last. Raises ResultError."""
    return sorted(map(read, paths), key=lambda at: at.began)


def markdown(rounds: list[Round], old: list[Round]) -> str:
    """The tables to paste."""
    parts = [tables.headline(rounds).markdown()]
    if old:
        parts.append(tables.comparison(compare(old, rounds)).markdown())
    return "\n\n".join(parts)


def write_page(path: Path, rounds: list[Round], old: list[Round]) -> None:
    """The page of `rounds`, compared with `old` where there is any."""
    path.write_text(page(rounds, old, compare(old, rounds), markdown(rounds, old)), encoding="utf-8")


def as_json(rounds: list[Round], old: list[Round]) -> dict[str, Any]:
    """The rows of the tables."""
    return {"runs": tables.headline(rounds).json(), "comparison": tables.comparison(compare(old, rounds)).json()}


@click.command(cls=_Grouped)
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--against", multiple=True, type=_FILE, help="Files to compare with; one or several follow.")
@click.option("--output", type=_FILE, help="Write the page here.")
@click.option("--json", "json_output", is_flag=True, help="Print the tables' rows as one JSON object.")
@click.option("--markdown", "markdown_output", is_flag=True, help="Print the tables in Markdown.")
def main(
    files: tuple[Path, ...], against: tuple[Path, ...], output: Path | None, json_output: bool, markdown_output: bool
) -> None:
    """Makes a page of FILES, the JSON of bench.round or bench.fleet --json: one, or several of the same kind."""
    if not (output or json_output or markdown_output):
        raise click.UsageError("say what to make: --output PAGE.html, --json or --markdown")
    try:
        rounds, old = load(files), load(against)
        if output is not None:
            write_page(output, rounds, old)
            click.echo(f"wrote {output}, {output.stat().st_size / 1e6:.1f} MB", err=True)
    except ResultError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"{output} cannot be written: {error.strerror}") from None
    if json_output:
        click.echo(json.dumps(as_json(rounds, old)))
    if markdown_output:
        click.echo(markdown(rounds, old))


if __name__ == "__main__":
    main()
