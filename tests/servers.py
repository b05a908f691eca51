"""A real server for the tests: an instance with a SoftHSM2 token, its supervisor and children, on free ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from estd.client import Access, EstClient
from estd.ledger import Reader, Row
from tests.make import Identity

LABELS = Path(__file__).with_name("labels.toml")


_GIVEN: set[int] = set()


def free_port() -> int:
    """One that nobody has, and that was given to nobody before: who got it may bind it much later."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


def identity_of(certificate: Path, key: Path) -> Identity:
    loaded: Any = load_pem_private_key(key.read_bytes(), None)
    return Identity(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)


@dataclass
class Server:
    """A running instance."""

    folder: Path
    port: int
    admin_port: int
    process: subprocess.Popen[bytes] | None = None
    log_path: Path = field(default_factory=Path)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.folder / "estd.toml"

    @property
    def ca(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.folder / "ca.pem").read_bytes())

    @property
    def manufacturer(self) -> Identity:
        demo = self.folder / "demo"
        return identity_of(demo / "manufacturer.pem", demo / "manufacturer.key")

    @property
    def idevid_files(self) -> tuple[Path, Path]:
        return self.folder / "demo" / "idevid.pem", self.folder / "demo" / "idevid.key"

    @property
    def basic(self) -> tuple[str, str]:
        user, _, password = (self.folder / "demo" / "basic").read_text().strip().partition(":")
        return user, password

    def client(
        self, *, cert: tuple[Path, Path] | None = None, basic: bool = False, label: str | None = None,
        tls: int | None = None, user: str | None = None, password: str | None = None,
    ) -> EstClient:  # fmt: skip
        """A connected client of ours."""
        if basic:
            user, password = self.basic
        certificate, key = cert or (None, None)
        return EstClient(
            Access(
                url=self.url, label=label, anchors=[self.ca], certificate=certificate, key=key, user=user,
                password=password, tls=tls,
            )
        )  # fmt: skip

    def rows(self) -> list[Row]:
        reader = Reader(self.folder / "ledger.sqlite3")
        try:
            return list(reader.search())
        finally:
            reader.close()

    def admin(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the admin port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with that name and those labels."""
        total = 0.0
        for line in self.admin("/metrics")[1].splitlines():
            if line.split("{")[0].split(" ")[0] == name and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def pids(self) -> dict[str, int]:
        """Process names and pids of the children that live."""
        processes = json.loads(self.admin("/healthz")[1])["processes"]
        return {name: one["pid"] for name, one in processes.items() if one["alive"]}

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]

    def start(self, *, ready_seconds: float = 60.0) -> None:
        self.log_path = self.folder / "serve.log"
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "estd.cli", "serve", str(self.config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self.is_ready, ready_seconds, lambda: f"not ready:\n{self.log_path.read_text()[-4000:]}")

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"estd serve ended:\n{self.log_path.read_text()[-4000:]}")
        try:
            return self.admin("/readyz")[0] == 200
        except OSError:
            return False

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self.process = None
        return status


def wait_for(condition: Any, seconds: float, message: Any = lambda: "it did not come about") -> None:
    """Until `condition()` is true; fails with `message()` after that many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(message())
        time.sleep(0.02)


def init(folder: Path, *options: str) -> Server:
    """`estd init --demo` on free ports, with the tests' labels added."""
    server = Server(folder=folder, port=free_port(), admin_port=free_port())
    command = [
        sys.executable, "-m", "estd.cli", "init", str(folder), "--demo", "--listen", f"127.0.0.1:{server.port}",
        "--admin", f"127.0.0.1:{server.admin_port}", *options,
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "SOFTHSM2_CONF"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    settings = server.config.read_text()
    server.config.write_text(settings.replace("127.0.0.1:9444", f"127.0.0.1:{free_port()}"))
    return server


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server while it serves; afterwards it must end by itself with status 0."""
    try:
        server.start()
    except BaseException:
        if server.process is not None:
            server.process.terminate()  # nobody else will
        raise
    try:
        yield server
    finally:
        if server.process is not None:
            assert server.stop() == 0
