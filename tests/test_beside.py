"""bench.beside: two servers under the same load at the same time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.beside import Turn, summary
from tests import servers
from tests.clients import judge
from tests.servers import Server, free_port


def test_the_ratios_are_of_one_turn_each() -> None:
    """A machine that doubles all costs from one turn to the next changes no ratio."""
    found = summary([Turn(103, 100), Turn(412, 400), Turn(206, 200)])
    assert found == {
        "first_us": 206, "second_us": 200, "ratio": 1.03, "ratio_lower_quartile": 1.03, "ratio_upper_quartile": 1.03,
    }  # fmt: skip
    spread = summary([Turn(ratio, 1.0) for ratio in (1.0, 1.1, 1.2, 1.3, 1.4)])
    assert [spread[name] for name in ("ratio_lower_quartile", "ratio", "ratio_upper_quartile")] == [1.1, 1.2, 1.3]


def test_both_servers_have_each_load(server: Server, folder: Path) -> None:
    """Each load reaches its own server, and its figures are that server's; a load that fails ends it."""
    with servers.running(servers.init(folder / "other")) as other:
        sides = [server.folder, server.url, other.folder, other.url]
        command = [sys.executable, "-m", "bench.beside", "--json", "--turns", "2", *sides]
        before = [one.metric("estd_certificates_total") for one in (server, other)]
        made = json.loads(judge.run(*command, "--", "--count", "60", "--connections", "4").stdout)
        after = [one.metric("estd_certificates_total") for one in (server, other)]
        assert [now - then for now, then in zip(after, before, strict=True)] == [120, 120]
        assert len(made["turns"]) == 2
        assert made == {**summary([Turn(**turn) for turn in made["turns"]]), "turns": made["turns"]}
        assert all(turn["first"] > 0 and turn["second"] > 0 for turn in made["turns"])

        nowhere = f"https://127.0.0.1:{free_port()}"
        failed = judge.run(*command[:-1], nowhere, "--", "--count", "60", "--connections", "4")
        assert failed.returncode == 1
        assert f"the load on {nowhere} failed" in failed.stderr.decode()
