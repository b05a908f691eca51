"""`estd reload`: the running server takes the configuration and its files anew, without a stop."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from estd import reload_report
from estd.errors import ConfigError

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)


@click.command("reload")
@click.argument("file", type=_FILE, metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print data, not words.")
def reload_command(file: Path, as_json: bool) -> None:
    """Have the server of the configuration FILE read it and its files anew, as SIGHUP does.

    New processes serve with what they read and the old ones answer what they accepted. Where anything is wrong the
    server goes on as it was, the problems are said, and the exit status is 1.
    """
    try:
        reload_report.check_served(file)
        outcome = reload_report.ask(file.parent / "run")
    except (ConfigError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps({"ok": not outcome.problems, **asdict(outcome)}))
    elif not outcome.problems:
        click.echo(f"Reloaded: generation {outcome.generation} serves.")
    else:
        for problem in outcome.problems:
            click.echo(problem, err=True)
        click.echo(f"Not reloaded: generation {outcome.generation} goes on with what it had.", err=True)
    sys.exit(1 if outcome.problems else 0)
