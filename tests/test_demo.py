"""What `make run` prints is ready to paste: the tests paste it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.command import estd
from tests.conftest import program
from tests.servers import Server, wait_for
from tests.test_requests_desk import newest

ROOT = Path(__file__).resolve().parent.parent


def _commands(text: str) -> list[str]:
    """The shell commands in the printed text: what is indented by four, with its continuations."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if re.match(r"    \S", line)]


def _with_approval(server: Server, command: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a command that waits until a person approves, and be that person."""
    waiting = subprocess.Popen(["sh", "-c", command], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: newest(server) is not None, 30)
        one = newest(server)
        assert one is not None
        estd("requests", "approve", str(one.id), "--config", server.config)
        _, said = waiting.communicate(timeout=60)
    finally:
        waiting.kill()
        waiting.wait()
    assert waiting.returncode == 0, said


def test_each_printed_command_enrolls(server: Server, folder: Path) -> None:
    """curl with openssl, strongSwan and estd's own client each get a certificate by the printed commands alone."""
    for name in ("curl", "openssl", "pki"):
        program(name)
    binaries = folder / "bin"
    binaries.mkdir()
    estd = binaries / "estd"
    # The script ends by serving; here the server runs already, so its last word is a stand-in.
    estd.write_text(f'#!/bin/sh\n[ "$1" = serve ] && exit 0\nexec {sys.executable} -m estd.cli "$@"\n')
    estd.chmod(0o755)
    script = ROOT / "tools" / "run-demo.sh"
    shown = subprocess.run(
        ["sh", str(script), str(binaries), str(server.folder)], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert server.url in shown
    commands = _commands(shown)
    assert len(commands) >= 8
    before = len(server.rows())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in commands:
        if "--label approval" in command:
            _with_approval(server, command, folder, environment)
            continue
        done = subprocess.run(
            ["sh", "-c", command], check=False, cwd=folder, capture_output=True, text=True, timeout=60, env=environment
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert len(server.rows()) - before == 5
    for name in ("vpn.pem", "device.pem", "renewed.pem", "gateway.pem"):
        verified = subprocess.run(
            ["openssl", "verify", "-CAfile", str(server.folder / "ca.pem"), name],
            check=False,
            cwd=folder,
            capture_output=True,
        )
        assert verified.returncode == 0, verified.stderr
