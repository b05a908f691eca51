"""A reload: the configuration and its files read anew, and a new generation of processes where nothing is wrong.

Whatever is wrong leaves everything as it was: what the files say is told before a process is started, what only the
processes can know (a token that refuses the PIN, a TLS key of another certificate) before one of them serves.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from estd import credential_files, material
from estd.config import Config, parse
from estd.errors import ConfigError
from estd.logs import Log
from estd.reload_report import Outcome, publish
from estd.supervisor import Supervisor


async def reload(supervisor: Supervisor, path: Path, log: Log) -> None:
    """Reload once, and publish how it went."""
    began = time.monotonic()
    run = supervisor.current.config.run
    log("reloading", file=str(path))
    problems = await _attempt(supervisor, path)
    number = supervisor.current.number
    if problems:
        supervisor.reloads_refused += 1
        log("reload_refused", problems=problems, generation=number)
    else:
        log("reloaded", generation=number)
    publish(run, Outcome(began=began, generation=number, problems=tuple(problems)))


async def _attempt(supervisor: Supervisor, path: Path) -> list[str]:
    """Commit the next generation; or say what stands in the way."""
    try:
        toml, config = await asyncio.to_thread(_read, path)
        if wrong := [*_fixed(supervisor.current.config, config), *credential_files.problems(config)]:
            return wrong
        made, problems = await supervisor.prepare(config, toml)
    except ConfigError as error:
        return error.problems
    except (OSError, UnicodeDecodeError) as error:
        return [str(error)]
    if problems:
        await supervisor.discard(made)
        return problems
    supervisor.commit(made)
    return []


def _read(path: Path) -> tuple[str, Config]:
    """The text and the configuration in it, whose files are well too. Raises ConfigError, OSError."""
    toml = path.read_text(encoding="utf-8")
    config = parse(toml, path.resolve().parent)
    material.load(config)
    return toml, config


def _fixed(now: Config, new: Config) -> list[str]:
    """What a running supervisor cannot change: the sockets it has bound, and what the processes have in common."""
    return [
        f"{name}: {wanted} needs a restart; this server runs with {has}"
        for name, has, wanted in (
            ("server.listen", now.server.listen, new.server.listen),
            ("server.admin", now.server.admin, new.server.admin),
            ("server.edges", now.server.edges, new.server.edges),
            ("server.issuers", now.server.issuers, new.server.issuers),
            ("ledger.path", now.ledger, new.ledger),
        )
        if has != wanted
    ]
