"""Make docs/pictures/requests.png anew: `python -m tests.picture_requests`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from cryptography import x509

from estd.errors import Refused
from tests import make, servers
from tests.browser import browser
from tests.servers import Server

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "requests.png"


def _ask(server: Server, name: str) -> None:
    with server.client(basic=True, label="approval") as client:
        try:
            client.enroll(lambda _: make.csr(subject=make.name(name), san=[x509.DNSName(f"{name}.example.com")]))
        except Refused:
            return  # it waits


async def _picture(server: Server) -> bytes:
    async with browser() as window:
        user, _, password = (server.folder / "demo" / "approver").read_text().strip().partition(":")
        window.credentials = user, password
        await window.look(1100, 640)
        await window.goto(f"http://127.0.0.1:{server.admin_port}/requests/1")
        return await window.screenshot()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, servers.running(servers.init(Path(folder) / "instance")) as server:
        _ask(server, "gateway-1")
        PICTURE.write_bytes(asyncio.run(_picture(server)))


if __name__ == "__main__":
    main()
