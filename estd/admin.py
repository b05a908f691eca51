"""The admin port: /metrics for Prometheus, /healthz (the supervisor lives), /readyz (it can issue). Loopback unless
the configuration says otherwise; nothing on it changes anything."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from estd import __version__
from estd.config import Address
from estd.metrics import SlotsCollector
from estd.supervisor import Child, Supervisor

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessesCollector(Collector):
    """What the kernel and the supervisor know of each process."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._ended_cpu: dict[str, float] = {}
        self._last: dict[str, tuple[int, float]] = {}

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("estd_process_up", "1 while the process runs.", labels=["process"])
        restarts = CounterMetricFamily("estd_process_restarts", "Times it was replaced.", labels=["process"])
        cpu = CounterMetricFamily("estd_process_cpu_seconds", "CPU time used in this slot.", labels=["process"])
        memory = GaugeMetricFamily("estd_process_resident_bytes", "Resident memory.", labels=["process"])
        for child in self._supervisor.children:
            up.add_metric([child.name], float(child.alive))
            restarts.add_metric([child.name], child.restarts)
            seconds, resident = self._usage(child)
            cpu.add_metric([child.name], seconds)
            memory.add_metric([child.name], resident)
        own_seconds, own_resident = _proc(os.getpid())
        cpu.add_metric(["supervisor"], own_seconds)
        memory.add_metric(["supervisor"], own_resident)
        build = GaugeMetricFamily("estd_build_info", "The version that runs.", labels=["version"])
        build.add_metric([__version__], 1.0)
        ready = GaugeMetricFamily("estd_ready", "1 while the service can issue.")
        ready.add_metric([], float(self._supervisor.is_ready()))
        yield from (up, restarts, cpu, memory, build, ready)

    def _usage(self, child: Child) -> tuple[float, int]:
        """CPU seconds of all who were in the slot, so that the counter never falls, and resident bytes now."""
        name = child.name
        pid = child.process.pid if child.process is not None and child.alive else 0
        seconds, resident = _proc(pid) if pid else (0.0, 0)
        last_pid, last_seconds = self._last.get(name, (pid, 0.0))
        if last_pid != pid:
            self._ended_cpu[name] = self._ended_cpu.get(name, 0.0) + last_seconds
        self._last[name] = (pid, seconds)
        return self._ended_cpu.get(name, 0.0) + seconds, resident


def _proc(pid: int) -> tuple[float, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE_BYTES


async def start(address: Address, supervisor: Supervisor) -> web.AppRunner:
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
            {"version": __version__, "up_seconds": round(time.time() - started), "processes": processes}
        )

    async def serve_ready(_: web.Request) -> web.Response:
        ready = supervisor.is_ready()
        text = "ready\n" if ready else "not ready: no issuer has signed and stored its probe in the last seconds\n"
        return web.Response(status=200 if ready else 503, text=text)

    app = web.Application()
    app.router.add_get("/metrics", serve_metrics)
    app.router.add_get("/healthz", serve_health)
    app.router.add_get("/readyz", serve_ready)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, address.host, address.port).start()
    return runner
