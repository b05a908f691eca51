"""What the commands of estd share: problems as sentences, --json and --config, and the way to the ledger's writer."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import click

from estd.config import Config
from estd.errors import ClientError, ConfigError
from estd.ledger import LedgerError, Writer
from estd.ledger_link import RemoteWriter
from hsm.errors import TokenError

P = ParamSpec("P")
READABLE = click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print data, not words.")
config_option = click.option(
    "--config", "file", type=READABLE, default=Path("estd.toml"), show_default=True, help="The configuration."
)


def plainly(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what can go wrong into a sentence and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(problem, err=True)
            sys.exit(1)
        except (LedgerError, TokenError, ClientError, OSError, ValueError) as error:
            click.echo(f"estd: {error}", err=True)
            sys.exit(1)

    return run


def writer(config: Config) -> Writer | RemoteWriter:
    """The ledger's writer: the one that runs, or with none, this process."""
    try:
        return Writer(config.ledger)
    except LedgerError:
        return RemoteWriter(config.ledger, config.run / "ledger.sock")
