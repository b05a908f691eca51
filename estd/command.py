"""What the commands of estd share: problems as sentences, --json and --config, and the way to the ledger's writer."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from estd import owner
from estd.config import Config
from estd.errors import ClientError, ConfigError
from estd.ledger import LedgerError, LedgerTaken, Writer
from estd.ledger_link import RemoteWriter
from estd.toml_table import hexadecimal
from hsm.errors import TokenError

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])
READABLE = click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)
NUMBER = click.IntRange(1, 2**63 - 1)
"""A row's number, as the ledger counts."""
limit_option = click.option("--limit", type=click.IntRange(-1, 2**63 - 1), default=-1, help="At most so many.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print data, not words.")


def _key_id(_context: click.Context, _parameter: click.Parameter, value: str | None) -> bytes | None:
    try:
        return value if value is None else hexadecimal(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a CKA_ID in hexadecimal, such as 01") from None


def key_id_option(text: str) -> Callable[[F], F]:
    return click.option("--key-id", callback=_key_id, help=text)


config_option = click.option(
    "--config", "file", type=READABLE, default=Path("estd.toml"), show_default=True, help="The configuration."
)


def plainly(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what can go wrong into a sentence and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            for name, value in kwargs.items():
                _check_text(name, value)
            command(*args, **kwargs)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(problem, err=True)
            sys.exit(1)
        except BrokenPipeError:
            raise  # whoever read our words has had enough; click ends in silence
        except (LedgerError, TokenError, ClientError, OSError, ValueError) as error:
            click.echo(f"estd: {error}", err=True)
            sys.exit(1)

    return run


def _check_text(name: str, value: object) -> None:
    """The shell hands on any bytes; what is not UTF-8 comes as half surrogate pairs, which nothing can store."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, str) and not one.isascii():
            try:
                one.encode()
            except UnicodeEncodeError:
                raise ValueError(f"what was given for {name.replace('_', ' ')} is not UTF-8") from None


def utc(seconds: float) -> str:
    """A time since 1970 as the commands show it, such as 2026-11-22T08:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def writer(config: Config) -> Writer | RemoteWriter:
    """The ledger's writer: the one that runs, or with none, this process. Raises ConfigError where this is not the
    server's user."""
    owner.check(config)
    try:
        return Writer(config.ledger)
    except LedgerTaken:
        return RemoteWriter(config.ledger, config.run / "ledger.sock")
