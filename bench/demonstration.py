"""A demonstration instance with its server on free ports of this machine, for as long as something measures it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_READY_SECONDS = 60.0
_END_SECONDS = 60.0
_LOG_TAIL = 2000


class ServerError(Exception):
    """There is no server to measure: what it said last."""


@dataclass(slots=True, kw_only=True)
class Demonstration:
    """A server that runs; `folder` is its instance."""

    folder: Path
    url: str
    ready_url: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_ready(self) -> bool:
        """Whether the server says so. Raises ServerError when it has ended."""
        if self.process.poll() is not None:
            raise ServerError(f"estd serve ended with {self.process.returncode}: {self.said()}")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # the server is here, no proxy leads to it
        try:
            with opener.open(self.ready_url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:].strip()

    def end(self) -> str:
        """Ends it, by force if it does not by itself; a sentence where that was not as it should be."""
        ended = self.process.poll() is not None
        if not ended:
            self.process.terminate()
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                return f"the server did not end {_END_SECONDS:g} s after SIGTERM and was killed"
        if self.process.returncode == 0 and not ended:
            return ""
        return f"the server ended with {self.process.returncode}: {self.said()}"


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _init(folder: Path, listen: str, admin: str) -> None:
    """In a process of its own: SoftHSM reads its configuration once in a process, and this one may make several."""
    options = [str(folder), "--demo", "--listen", listen, "--admin", admin]
    without = {name: value for name, value in os.environ.items() if name != "SOFTHSM2_CONF"}
    done = subprocess.run(
        [sys.executable, "-m", "estd.cli", "init", *options], check=False, capture_output=True, text=True, env=without
    )
    if done.returncode:
        raise ServerError(f"estd init failed: {done.stderr.strip()}")


@contextmanager
def serving(folder: Path) -> Iterator[Demonstration]:
    """The server of a new instance in that folder, once it is ready; it has ended afterwards. Raises ServerError."""
    port, admin_port = _free_ports(2)
    listen, admin = f"127.0.0.1:{port}", f"127.0.0.1:{admin_port}"
    _init(folder, listen, admin)
    log = folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "estd.cli", "serve", str(folder / "estd.toml")],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    server = Demonstration(
        folder=folder, url=f"https://{listen}", ready_url=f"http://{admin}/readyz", log=log, process=process
    )
    try:
        until = time.monotonic() + _READY_SECONDS
        while not server.is_ready():
            if time.monotonic() > until:
                raise ServerError(f"the server was not ready after {_READY_SECONDS:g} s: {server.said()}")
            time.sleep(0.05)
        yield server
    finally:
        server.end()
