"""A generation: the processes of one configuration, which never changes for them.

A reload makes the next generation beside the one that serves. The two have the edges' listening sockets in common, and
nothing else: each has issuers of its own on sockets of its own, and its own half of the metrics' memory, since one slot
has one writer. What is read of a process is the sum over both halves, so counters never fall.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from estd import metrics
from estd.config import Config
from estd.starting import GO, issuer_socket, refused_pin

BANKS = 2
"""Generations that may live at once: one that serves and one that comes or retires."""


@dataclass(slots=True)
class Child:
    """One slot and whoever is in it."""

    role: str
    index: int
    listeners: dict[str, socket.socket]
    slot: metrics.Slot
    slot_number: int
    generation: Generation | None = None
    """None for the ledger's process, which outlives generations."""
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    refused: bool = False
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """Whoever ends now is not replaced."""

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def go(self) -> None:
        """Give the word to one that waits for it (see `starting`)."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(GO)
        self.process.stdin.close()


@dataclass(slots=True, eq=False)
class Generation:
    number: int
    config: Config
    toml: str
    children: list[Child]
    retired: bool = False
    """Another one serves; this one answers what it accepted."""

    def of(self, role: str) -> list[Child]:
        return [child for child in self.children if child.role == role]

    def close(self) -> None:
        """Take its sockets away and clear its gauges, once its processes are gone."""
        refused_pin(self.config.run, self.number).unlink(missing_ok=True)
        for child in self.of("issuer"):
            child.listeners["requests"].close()
            with contextlib.suppress(FileNotFoundError):
                issuer_socket(self.config.run, child.index, self.number).unlink()
        for child in self.children:
            for series in metrics.GAUGES:
                child.slot.set(series, 0.0)


def make(
    *, number: int, config: Config, toml: str, block: metrics.Block, first_slot: int, slots: int,
    doors: Sequence[socket.socket], ledger: socket.socket,
) -> Generation:  # fmt: skip
    """The generation, with nobody started: issuers then edges, in the slots from `first_slot` of its bank of `slots`.
    `doors` are the edges' listening sockets, `ledger` the one on which the ledger's writer is asked."""
    made = Generation(number=number, config=config, toml=toml, children=[])
    refused_pin(config.run, number).unlink(missing_ok=True)  # of a supervisor that is gone
    at = (number - 1) % BANKS * slots + first_slot
    for role, count in (("issuer", config.server.issuers), ("edge", config.server.edges)):
        for index in range(count):
            if role == "edge":
                listeners = {"est": doors[index]}
            else:
                listeners = {"requests": listen_unix(issuer_socket(config.run, index, number))}
                if count == 1:
                    listeners["ledger"] = ledger
            child = Child(
                role=role, index=index, listeners=listeners, slot=block.slot(at), slot_number=at, generation=made
            )
            made.children.append(child)
            at += 1
    return made


def listen_unix(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    listener.listen(256)
    listener.setblocking(False)
    return listener
