"""What the supervisor starts: `python -m estd.child ROLE INDEX`, told the rest in one JSON object on standard input.

The configuration comes as text, so that every process of a generation has the same one; sockets and the metrics' memory
come as inherited descriptors.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from estd import metrics
from estd.config import parse
from estd.logs import Log
from estd.starting import Turn

_PR_SET_PDEATHSIG = 1


def main(role: str, index: int) -> int:
    """Runs the process; returns its exit status."""
    told = json.loads(sys.stdin.buffer.readline())
    _end_with_parent(told["parent"])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload is the supervisor's; a terminal's end reaches it too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the PIN
    config = parse(told["toml"], Path(told["folder"]))
    slot = metrics.Block(told["metrics"], told["slots"]).slot(told["slot"])
    listeners = {door: socket.socket(fileno=descriptor) for door, descriptor in told["listeners"].items()}
    log = Log(f"{role}-{index}", slot)
    turn = Turn(generation=told["generation"], writes=told["writes"], report=told["report"])
    # Each role loads what is its own: an edge never has the PKCS#11 binding in its memory, an issuer no HTTP.
    try:
        match role:
            case "edge":
                from estd import edge_process

                return edge_process.main(config, index, listeners["est"], slot, log, turn)
            case "issuer":
                from estd import issuer

                return issuer.main(config, index, listeners, slot, log, turn)
            case _:
                from estd import ledger_process

                return ledger_process.main(config, listeners["ledger"], slot, log)
    except Exception as error:
        turn.failed(str(error) or repr(error))
        raise
    finally:
        log.close()


def _end_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the supervisor is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
