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
from estd.reload_report import Outcome, last, publish
from estd.supervisor import Supervisor


async def reload(supervisor: Supervisor, path: Path, log: Log) -> None:
    """Reload once, and publish how it went."""
    began = time.monotonic()
    run = supervisor.current.config.run
    log("reloading", file=str(path))
    before = last(run)
    cas = {} if before is None else before.cas
    try:
        cas = await _attempt(supervisor, path)
        problems = []
    except ConfigError as error:
        problems = error.problems
    except (OSError, UnicodeDecodeError) as error:
        problems = [str(error)]
    except Exception as error:  # whoever waits for the outcome is told, whatever it was
        problems = [f"the server could not work on it: {error!r}"]
    number = supervisor.current.number
    if problems:
        supervisor.reloads_refused += 1
        log("reload_refused", problems=problems, generation=number)
    else:
        log("reloaded", generation=number)
    publish(run, Outcome(began=began, generation=number, problems=tuple(problems), file=str(path), cas=cas))


async def _attempt(supervisor: Supervisor, path: Path) -> dict[str, list[str]]:
    """Commit the next generation, and say what it serves. Raises ConfigError, OSError, with what stands in the way."""
    toml, config, cas = await asyncio.to_thread(_read, path)
    files = [*material.tls_problems(config), *credential_files.problems(config)]
    if wrong := [*_fixed(supervisor.current.config, config), *files]:
        raise ConfigError(wrong)
    made, problems = await supervisor.prepare(config, toml)
    if problems:
        await supervisor.discard(made)
        raise ConfigError(problems)
    supervisor.commit(made)
    return cas


def _read(path: Path) -> tuple[str, Config, dict[str, list[str]]]:
    """The text and the configuration in it, whose files are well too, and what is served by it. Raises ConfigError,
    OSError."""
    toml = path.read_text(encoding="utf-8")
    config = parse(toml, path.resolve().parent)
    return toml, config, material.load(config).shown_cas()


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
