"""The metrics of all processes as Prometheus families: the slots of shared memory, and what the kernel and the
supervisor know of each process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from estd import __version__
from estd.generation import Child
from estd.metrics import FAMILIES, Banks, Family, Slot
from estd.supervisor import Supervisor

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class SlotsCollector(Collector):
    """All slots as Prometheus families, each series with the process that it belongs to."""

    def __init__(self, slots: Mapping[str, Slot | Banks]) -> None:
        self._slots = slots

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            labels = ["process", *family.labels]
            if family.kind == "histogram":
                yield self._histogram(family, labels)
                continue
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=labels)
            for process, slot in self._slots.items():
                for values in family.values:
                    metric.add_metric([process, *values], slot.get(family.series(*values)))
            yield metric

    def _histogram(self, family: Family, labels: list[str]) -> Metric:
        metric = HistogramMetricFamily(family.name, family.help, labels=labels)
        bounds = [*(str(bound) for bound in family.bounds), "+Inf"]
        for process, slot in self._slots.items():
            for values in family.values:
                at = family.series(*values)
                total = 0.0
                buckets: list[tuple[str, float]] = []
                for index, bound in enumerate(bounds):
                    total += slot.get(at + index)
                    buckets.append((bound, total))
                metric.add_metric([process, *values], buckets, slot.get(at + len(bounds)))
        return metric


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
        generation = GaugeMetricFamily("estd_generation", "How many configurations were served; each reload is one.")
        generation.add_metric([], self._supervisor.current.number)
        refused = CounterMetricFamily("estd_reloads_refused", "Reloads whose configuration was not taken.")
        refused.add_metric([], self._supervisor.reloads_refused)
        yield from (up, restarts, cpu, memory, build, ready, generation, refused)

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
