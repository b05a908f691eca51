"""What the server's processes cost, as the kernel counts it in /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

_PROC = Path("/proc")
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One process at one moment. `started_ticks` tells a process from a later one with the same pid.

    One that has `ended`, and that nobody has waited for yet, still has its CPU time but no memory and no label.
    """

    pid: int
    started_ticks: int
    ended: bool
    label: str | None
    cpu_ns: int
    rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """One process over the run. `state` is empty, or tells that it began ("new") or ended ("gone") within it."""

    pid: int
    label: str
    state: str
    cpu_ns: int
    rss_bytes: int
    peak_rss_bytes: int


def _label(command_line: bytes) -> str | None:
    """The words behind `estd.child`, such as "edge 0", as far as they are words and no options or paths."""
    words = command_line.replace(b"\0", b" ").decode(errors="replace").split()
    if "estd.child" not in words:
        return None
    named: list[str] = []
    for word in words[words.index("estd.child") + 1 :]:
        if word.startswith("-") or "/" in word:
            break
        named.append(word)
    return " ".join(named) or None


def _stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on: the name before them may itself hold spaces and brackets."""
    return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()


def _schedstat_ns(pid: int) -> int:
    total = 0
    for task in (_PROC / str(pid) / "task").iterdir():
        try:
            total += int((task / "schedstat").read_bytes().split()[0])
        except (OSError, IndexError):  # the thread has ended, or the kernel has no schedstat
            continue
    return total


def read_process(pid: int) -> Reading | None:
    """None when there is no such process (any more)."""
    directory = _PROC / str(pid)
    try:
        fields = _stat_fields(pid)
        memory = {"VmRSS": 0, "VmHWM": 0}
        for line in (directory / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in memory:
                memory[name] = int(value.split()[0]) * 1024
        # Both count too little and never too much: ticks are cut off, schedstat forgets the threads that have ended.
        cpu_ns = max(_schedstat_ns(pid), (int(fields[11]) + int(fields[12])) * _NS_PER_TICK)
        label = _label((directory / "cmdline").read_bytes())
    except OSError:
        return None
    return Reading(
        pid=pid,
        started_ticks=int(fields[19]),
        ended=fields[0] in (b"Z", b"X"),
        label=label,
        cpu_ns=cpu_ns,
        rss_bytes=memory["VmRSS"],
        peak_rss_bytes=memory["VmHWM"],
    )


def _family(roots: set[int]) -> set[int]:
    """The roots and all that descend from them."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir(_PROC):
        if entry.isdigit():
            try:
                children.setdefault(int(_stat_fields(int(entry))[1]), []).append(int(entry))
            except OSError:
                continue
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children.get(pid, ()))
    return found


class Watch:
    """Follows a server through a run in which its processes, the supervisor too, may be killed and replaced.

    What a killed process used after the last look at it is lost.
    """

    def __init__(self, *, pid: int | None, pid_file: Path) -> None:
        self._pid = pid
        self._pid_file = pid_file
        self._supervisors: set[int] = set()
        self._before: dict[tuple[int, int], Reading] = {}
        self._latest: dict[tuple[int, int], Reading] = {}
        self._alive: set[tuple[int, int]] = set()

    def supervisor(self) -> int | None:
        """The supervisor's pid; None where nobody tells it."""
        if self._pid is not None:
            return self._pid
        try:
            return int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None

    def begin(self) -> bool:
        """Takes the state before the run; False when there is no server process to be seen."""
        self.look()
        self._before = dict(self._latest)
        return bool(self._before)

    def look(self) -> None:
        """Takes the present state."""
        supervisor = self.supervisor()
        roots = {pid for pid, _ in self._alive}  # orphans stay in sight when the supervisor is gone
        if supervisor is not None:
            self._supervisors.add(supervisor)
            roots.add(supervisor)
        self._alive = set()
        for pid in _family(roots) if roots else ():
            reading = read_process(pid)
            if reading is not None:
                identity = (pid, reading.started_ticks)
                if not reading.ended:
                    self._alive.add(identity)
                elif identity in self._latest:
                    reading = replace(self._latest[identity], cpu_ns=reading.cpu_ns)
                self._latest[identity] = reading

    def cpu_ns(self) -> dict[str, int]:
        """What was used up to the last `look`, by the label that a process shares with those that replace it."""
        used: dict[str, int] = {}
        for reading in self._latest.values():
            name = self._name(reading)
            used[name] = used.get(name, 0) + reading.cpu_ns
        return used

    def _name(self, reading: Reading) -> str:
        return reading.label or ("supervisor" if reading.pid in self._supervisors else f"pid {reading.pid}")

    def uses(self) -> list[ProcessUse]:
        """What each process used between `begin` and the last `look`."""
        uses = []
        for identity, reading in self._latest.items():
            before = self._before.get(identity)
            state = "gone" if identity not in self._alive else "new" if before is None else ""
            uses.append(
                ProcessUse(
                    pid=reading.pid,
                    label=self._name(reading),
                    state=state,
                    cpu_ns=reading.cpu_ns - (before.cpu_ns if before else 0),
                    rss_bytes=reading.rss_bytes,
                    peak_rss_bytes=reading.peak_rss_bytes,
                )
            )
        return sorted(uses, key=lambda use: (use.label != "supervisor", use.label, use.pid))


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTime:
    """The CPU time of the whole machine since it started, in ticks."""

    idle_ticks: int
    steal_ticks: int
    total_ticks: int


def read_machine() -> MachineTime:
    """Tells, as a difference, whether the machine was busy or its CPU was given to other guests."""
    with (_PROC / "stat").open("rb") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return MachineTime(idle_ticks=ticks[3] + ticks[4], steal_ticks=ticks[7], total_ticks=sum(ticks))
