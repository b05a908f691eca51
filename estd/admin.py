"""The admin port: /metrics for Prometheus, /healthz (the supervisor lives), /readyz (it can issue); with [admin]
credentials also /requests, where a person decides (estd/requests_desk.py). Loopback unless the configuration says
otherwise; nothing else on it changes anything."""

from __future__ import annotations

import time
from collections.abc import Iterable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from estd import __version__
from estd.exposition import ProcessesCollector, SlotsCollector
from estd.supervisor import Supervisor
from estd.toml_table import Address


async def start(address: Address, supervisor: Supervisor, routes: Iterable[web.RouteDef] = ()) -> web.AppRunner:
    """Serve the admin port. Raises OSError where it cannot be bound."""
    registry = CollectorRegistry()
    registry.register(SlotsCollector(supervisor.slots))
    registry.register(ProcessesCollector(supervisor))
    started = time.time()

    async def serve_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def serve_health(_: web.Request) -> web.Response:
        processes = {
            child.name: {
                "pid": child.process.pid if child.process else None,
                "alive": child.alive,
                "restarts": child.restarts,
                "refused": child.refused,
            }
            for child in supervisor.children
        }
        return web.json_response(
            {
                "version": __version__,
                "up_seconds": round(time.time() - started),
                "generation": supervisor.current.number,
                "processes": processes,
            }
        )

    async def serve_ready(_: web.Request) -> web.Response:
        ready = supervisor.is_ready()
        text = "ready\n" if ready else "not ready: no issuer has signed and stored its probe in the last seconds\n"
        return web.Response(status=200 if ready else 503, text=text)

    app = web.Application()
    app.router.add_get("/metrics", serve_metrics)
    app.router.add_get("/healthz", serve_health)
    app.router.add_get("/readyz", serve_ready)
    app.router.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, address.host, address.port).start()
    return runner
