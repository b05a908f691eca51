"""`estd serve`: the composition root of the supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import cache
from pathlib import Path

from aiohttp import web

from estd import admin, material, turnover
from estd.config import Config, parse
from estd.errors import ConfigError
from estd.logs import Log
from estd.reload_report import Outcome, publish
from estd.supervisor import Supervisor, claim


def serve(path: Path) -> None:
    """Serve the instance until SIGTERM or SIGINT. Raises ConfigError with everything that stands in the way."""
    began = time.monotonic()
    try:
        toml = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([str(error)]) from error
    config = parse(toml, path.resolve().parent)
    # The children read it again; what is wrong is said here, before anything is bound.
    cas = material.load(config).shown_cas()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])  # a reload may be asked for from `claim` on
    descriptor = claim(config)
    publish(config.run, Outcome(began=began, generation=1, problems=(), file=str(path.resolve()), cas=cas))
    log = Log("supervisor")
    try:
        asyncio.run(_serve(path.resolve(), config, toml, log))
    finally:
        log.close()
        os.close(descriptor)


def _page(supervisor: Supervisor, log: Log) -> web.RouteDef:
    """The page for those who decide on requests that wait: there while the configuration that serves says so, and
    nothing of it is loaded before one does."""

    @cache
    def router() -> web.UrlDispatcher:
        from estd.requests_desk import Desk

        made = web.UrlDispatcher()
        made.add_routes(Desk(lambda: supervisor.current.config, log).routes())
        return made

    async def serve(request: web.Request) -> web.StreamResponse:
        if supervisor.current.config.approvers is None:
            raise web.HTTPNotFound
        return await (await router().resolve(request)).handler(request)

    return web.route("*", "/requests{rest:(/.*)?}", serve)


async def _serve(path: Path, config: Config, toml: str, log: Log) -> None:
    supervisor = Supervisor(config, toml, log)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    wanted = asyncio.Event()
    at_terminal = os.isatty(0)

    def hang_up() -> None:
        # A terminal that goes away sends the same signal.
        (stop if at_terminal and not os.isatty(0) else wanted).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    try:
        runner = await admin.start(config.server.admin, supervisor, [_page(supervisor, log)])
    except OSError as error:
        raise ConfigError([f"server.admin: {config.server.admin} cannot be bound: {error.strerror}"]) from error
    log("serving", listen=str(config.server.listen), admin=str(config.server.admin), pid=os.getpid())
    running = asyncio.create_task(supervisor.run())
    reloading = asyncio.create_task(_reload(supervisor, path, wanted, log))
    await stop.wait()
    reloading.cancel()
    await asyncio.wait([reloading])
    await supervisor.drain()
    await running
    await runner.cleanup()
    log("stopped")


async def _reload(supervisor: Supervisor, path: Path, wanted: asyncio.Event, log: Log) -> None:
    """One reload after the other; signals that come during one are one more."""
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            await turnover.reload(supervisor, path, log)
        except Exception as error:  # what serves goes on serving
            log("reload_failed", error=repr(error)[:500])
