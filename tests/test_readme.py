"""The commands of README.md as they stand: each part tried beside a demonstration, and an instance of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import docs, servers
from tests.clients import judge
from tests.conftest import program
from tests.docs import Newcomer
from tests.servers import Server, free_port

TRIED = docs.blocks("README.md", "sh", section="Try each part")
_END = "--- end of block\n"

SHOWN: tuple[tuple[str, ...], ...] = (
    (),
    ("CN=pump-1", "start", "DEMO-0001"),
    ("subject=CN = estd Root CA", ":commonName"),
    ("linked       True", "MII"),
    ("sensor.key", "CN=sensor-2"),
    ("CN=gateway-1",),
    ("pump-3", "is revoked since"),
    ("CN=pump-4",),
    ("CN=pump-5",),
    ("CN = pump-9",),
    ("CN=machine-1",),
    ("MII",),
    ("webhook:pump-4", "Serial Number: "),
    ("estd_certificates_total{",),
    ("CN=device DEMO-0001",),
)
"""What each block must have printed; the first one only says what `est` is."""

GOT = {
    "pump", "idevid", "linked", "sensor", "gateway", "registered", "known", "sleeper", "renamed", "ra",
    "machine",
}  # fmt: skip
"""The certificates that openssl verifies under the root; `pq` has a key that only a newer one knows."""


@pytest.fixture
def demonstration(folder: Path) -> Iterator[Server]:
    """As `make run` serves it, but for its ports."""
    with servers.running(servers.init(folder / "made")) as made:
        yield made


def test_each_part_can_be_tried(demonstration: Server, folder: Path) -> None:
    """Each command of the section succeeds in its order, prints what it is for, and leaves a certificate that holds."""
    for name in ("curl", "openssl"):
        program(name)
    root = folder / "root.pem"
    root.write_bytes((demonstration.folder / "ca.pem").read_bytes())
    script = "".join(f"{block}printf -- '{_END}'\n" for block in TRIED)
    *shown, rest = Newcomer(demonstration, folder).run(script).split(_END)
    assert rest == ""
    for block, printed, words in zip(TRIED, shown, SHOWN, strict=True):
        for word in words:
            assert word in printed, f"{block}\n{printed}"
    for stem in GOT:
        judge.openssl("verify", "-CAfile", root, "-no_check_time", folder / "try" / f"{stem}.pem")
    assert len(demonstration.rows()) == 18


def test_an_instance_of_ones_own(folder: Path) -> None:
    """The commands of "Your own instance" make one, and what they say is said while it serves."""
    server = Server(folder=folder / "own", port=free_port(), admin_port=free_port())
    (block,) = docs.blocks("README.md", "sh", section="Your own instance")
    ports = f"--listen 127.0.0.1:{server.port} --admin 127.0.0.1:{server.admin_port}"
    script = block.replace("--listen 0.0.0.0:8443", ports).replace("/srv/estd", str(server.folder))
    before, after = script.split(f"estd serve {server.config}\n")
    reader = Newcomer(server, folder)
    shown = reader.run(before, EDITOR="true")
    assert "factory:" in shown
    assert "nothing is wrong" in shown
    with servers.running(server):
        assert "Reloaded:" in reader.run(after)
