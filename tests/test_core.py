"""The cost of the pure steps, by a count that no other load on the machine changes; and the floor.

Each runs in a process of its own: SoftHSM reads its configuration once in a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from bench import core, floor

BEFORE = {"3.11": 4917, "3.12": 4592, "3.13": 4547}
"""The sum of all steps in bench/core-opcodes.json as commit bcdcabd had it, before what came of EST after plain
enrolments. It stays as it is, whatever the baseline of each step becomes."""
WHOLE_MAX = 1.05


def _run(module: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", module, "--json", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def counted() -> dict[str, float]:
    """Each step's opcodes."""
    return _run("bench.core", "--opcodes")


def test_no_step_has_grown_by_a_fifth(counted: dict[str, float]) -> None:
    """Each step executes at most 1.2 times the bytecode instructions of its baseline, and the template's certificate
    is the CertificateBuilder's."""
    baseline = json.loads(core.BASELINE.read_text()).get(core.python_version())
    assert baseline, f"no baseline for Python {core.python_version()}: python -m bench.core --write-baseline"
    assert core.grown(counted, baseline) == []


def test_the_whole_has_not_grown_by_a_twentieth(counted: dict[str, float]) -> None:
    """A plain enrolment's steps execute together at most 1.05 times the instructions that they had before the rest of
    EST was there."""
    whole, before = sum(counted.values()), BEFORE[core.python_version()]
    assert whole <= before * WHOLE_MAX, f"{whole:.0f} opcodes, {whole / before:.3f} × the {before} before"


def test_growth_is_seen() -> None:
    """A step that costs a quarter more, that is new or that is gone is named."""
    assert core.grown({"a": 125.0, "b": 100.0, "new": 1.0}, {"a": 100.0, "b": 100.0, "gone": 1.0}) == [
        "new: no baseline",
        "a: 125 opcodes, 1.25 × the baseline's 100",
        "gone: in the baseline, but not measured any more",
    ]


def test_the_floor_is_the_sum_of_its_parts() -> None:
    """The floor is what its parts cost: verify, sign, verify; and with a handshake for a fresh connection."""
    figures = _run("bench.floor", "--loops", "8")
    assert min(figures.values()) > 0
    kept = sum(figures[part] for part in floor.KEPT)
    assert abs(figures["floor, kept connection"] - kept) < 0.1
    fresh = kept + figures["mutual TLS 1.3 handshake, server"]
    assert abs(figures["floor, fresh connection"] - fresh) < 0.1
