"""What the key exchange's group costs the server in a handshake: `python -m bench.groups`.

Mutual TLS 1.3 with P-256 certificates on both sides, as bench.floor measures it, by a client that offers one group
alone; the edge's own OpenSSL configuration is in force. In this process there is nothing but OpenSSL.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import click
from cryptography.hazmat.primitives.asymmetric import ec

from bench.progress import ProgressLine

_CONFIGURATION = Path(__file__).resolve().parent.parent / "estd" / "templates" / "openssl-edge.cnf"
GROUPS = ("X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024", "X25519", "P-256", "P-384", "P-521", "X448")
_ROUNDS = 7


def _measure(folder: Path, loops: int) -> dict[str, float]:
    """µs of the server's CPU by the group that was agreed on."""
    from OpenSSL import SSL

    from bench.floor import _client_context, _Pair
    from estd import instance, tls

    instance.init(
        instance.Plan(
            folder=folder / "i", ca_key="ec-p256", ca_name="groups", hosts=(), listen="127.0.0.1:1",
            admin="127.0.0.1:2", demo=False, existing=None,
        )
    )  # fmt: skip
    server = tls.server_context(folder / "i" / "server.pem", folder / "i" / "server.key")
    found: dict[str, float] = {}
    library = cast(Any, SSL)._lib  # pyOpenSSL has no call for a context's groups
    with ProgressLine("groups", len(GROUPS)) as line:
        for number, group in enumerate(GROUPS, 1):
            client = _client_context(folder, ec.generate_private_key(ec.SECP256R1()))
            if library.SSL_CTX_set1_curves_list(client._context, group.encode()) != 1:
                raise click.ClickException(f"this OpenSSL has no {group}")
            rounds: list[float] = []
            for _ in range(_ROUNDS):
                total = 0.0
                for _ in range(loops):
                    pair = _Pair(server, client)
                    pair.handshake()
                    total += pair.server_seconds
                rounds.append(total / loops * 1e6)
            found[pair.server.get_group_name() or group] = round(statistics.median(rounds), 1)
            line.update(number, group)
    return found


@click.command(context_settings={"show_default": True})
@click.option("--loops", type=click.IntRange(1, 10_000), default=100, help="Handshakes in each of seven rounds.")
@click.option("--json", "json_output", is_flag=True, help="One JSON object instead of a table.")
def main(loops: int, json_output: bool) -> None:
    """Measures a mutual TLS 1.3 handshake for each group that an edge offers."""
    if os.environ.get("OPENSSL_CONF") != str(_CONFIGURATION):  # OpenSSL reads it once, as it is loaded
        arguments = [sys.executable, "-m", "bench.groups", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, "OPENSSL_CONF": str(_CONFIGURATION)})
    with tempfile.TemporaryDirectory(prefix="estd-groups-") as name:
        found = _measure(Path(name), loops)
    if json_output:
        click.echo(json.dumps(found))
        return
    for group, spent in found.items():
        click.echo(f"{group:20} {spent:8.1f} µs")


if __name__ == "__main__":
    main()
