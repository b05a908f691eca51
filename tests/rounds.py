"""Rounds as bench.round writes them, made up with the shapes of real ones, for the tests of the report."""

from __future__ import annotations

import math
import random
from typing import Any

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from estd.metrics import SECONDS, SIZES

FLOOR = {
    "verify the CSR's signature": 57.91,
    "C_SignInit + C_Sign, raw": 44.6,
    "the same by python-pkcs11": 47.2,
    "verify the signature made": 45.8,
    "a row of the ledger, batch of 32": 10.2,
    "mutual TLS 1.3 handshake, server": 269.4,
    "request and answer through TLS, server": 6.1,
    "floor, kept connection": 148.31,
    "floor, fresh connection": 417.71,
}
CORE = {
    "edge: body to DER": 1.9,
    "edge: pack the request": 2.1,
    "issuer: unpack the request": 2.8,
    "issuer: read the client's certificate": 31.0,
    "issuer: identify, path known": 9.4,
    "issuer: parse the CSR, prove possession": 74.2,
    "issuer: authorise": 14.5,
    "issuer: TBSCertificate": 9.9,
    "token: r || s to DER": 1.2,
    "issuer: row of the ledger": 1.6,
    "edge: certs-only, base64": 3.4,
    "all: observe a metric": 0.5,
}
_GENERATOR_US = 30.0
_STEAL_PERCENT = 0.2
MACHINE: dict[str, Any] = {
    "cpu": "AMD EPYC 7B13", "cores": 2, "kernel": "6.1.0", "python": "3.11.2", "openssl": "OpenSSL 4.0.0",
    "softhsm": "2.6.1",
}  # fmt: skip


def _buckets(
    chance: random.Random, bounds: tuple[float, ...], centre: float, wide: float, total: int
) -> dict[str, Any]:
    counts, amount = [0] * (len(bounds) + 1), 0.0
    for _ in range(total):
        value = centre * math.exp(chance.gauss(0, wide))
        counts[next((index for index, bound in enumerate(bounds) if value <= bound), len(bounds))] += 1
        amount += value
    return {"le": list(bounds), "count": counts, "sum": amount}


def _metrics(chance: random.Random) -> dict[str, Any]:
    stages = {"identify": 4e-4, "parse": 2.4e-3, "authorise": 4e-4, "prepare": 5e-4, "sign": 3.1e-3, "commit": 1.1e-3}
    return {
        "estd_batch_size": {"": _buckets(chance, SIZES, 24, 0.4, 900)},
        "estd_sign_seconds": {"": _buckets(chance, SECONDS, 1e-4, 0.3, 900)},
        "estd_commit_seconds": {"": _buckets(chance, SECONDS, 1.1e-3, 0.4, 900)},
        "estd_batch_stage_seconds": {
            stage: _buckets(chance, SECONDS, centre, 0.3, 300) for stage, centre in stages.items()
        },
        "estd_request_seconds": {"simpleenroll": _buckets(chance, SECONDS, 0.012, 0.4, 900)},
    }


def run(
    name: str, *, seed: int = 1, rate: float = 4000.0, seconds: int = 12, p50_us: float = 14e3, cost_us: float = 292.0,
    fresh: bool = False, open_loop: bool = False, shed: int = 0, errors: dict[str, int] | None = None,
    missed: tuple[str, ...] = (), others: float = 0.03,
) -> dict[str, Any]:  # fmt: skip
    """One run's JSON; its totals, series, histogram and processes agree with one another. `others` is the part of the
    machine that other programs take."""
    chance = random.Random(seed)
    good = [max(0, round(rate * chance.uniform(0.93, 1.05))) for _ in range(seconds)]
    enrolments, errors = sum(good), errors or {}
    hdr = HdrHistogram(1, 120_000_000, 3)
    for _ in range(4000):
        slow = 4.0 if chance.random() < 0.01 else 1.0
        hdr.record_value(min(10**8, int(p50_us * slow * math.exp(chance.gauss(0, 0.25)))))
    latency = {f"p{p:g}": float(hdr.get_value_at_percentile(p)) for p in (50, 90, 99, 99.9)}
    costs = {"supervisor": 0.001, "edge 0": 0.25 if not fresh else 0.54, "issuer 0": 0.64 if not fresh else 0.4,
             "ledger": 0.109 if not fresh else 0.059}  # fmt: skip
    cpu_seconds = enrolments * cost_us / 1e6
    busy = others + (cpu_seconds + enrolments * _GENERATOR_US / 1e6) / (MACHINE["cores"] * seconds)
    return {
        "scenario": name,
        "name": name,
        "what": f"simpleenroll at 127.0.0.1:8443, {name}",
        "command": f"python -m bench.fleet --instance demo --scenario {name} https://127.0.0.1:8443",
        "began": "2026-11-22T18:00:00Z",
        "commit": "0d72b2e",
        "machine": MACHINE,
        "enrolments": enrolments,
        "seconds": float(seconds),
        "rate_per_second": enrolments / seconds,
        "latency_us": latency | {"max": float(hdr.get_max_value())},
        "late_us": {"p50": 110.0, "p99": 900.0} if open_loop else {},
        "errors": errors,
        "examples": {},
        "shed": shed,
        "events": {"connections opened": enrolments if fresh else 64},
        "verified": 1000,
        "generator_cpu_us_per_enrolment": _GENERATOR_US,
        "server_cpu_us_per_enrolment": cost_us,
        "processes": [
            {
                "label": label, "pid": 100 + index, "state": "", "cpu_us_per_enrolment": cost_us * part,
                "cpu_seconds": cpu_seconds * part, "rss_bytes": 50 << 20, "peak_rss_bytes": (50 + index) << 20,
            }
            for index, (label, part) in enumerate(costs.items())
        ],
        "machine_idle_percent": 100 * (1 - busy) - _STEAL_PERCENT,
        "machine_steal_percent": _STEAL_PERCENT,
        "missed": list(missed),
        "passed": not errors and not missed,
        "hdr": hdr.encode().decode(),
        "series": {
            "seconds": list(range(1, seconds + 1)),
            "good": good,
            "shed": [shed // seconds] * seconds,
            "errors": [sum(errors.values()) // seconds] * seconds,
            "p50_us": [p50_us * chance.uniform(0.9, 1.1) for _ in range(seconds)],
            "p99_us": [p50_us * chance.uniform(1.6, 2.6) for _ in range(seconds)],
        },
        "cpu_series": {
            "seconds": list(range(1, seconds + 1)),
            "processes": {
                label: [min(1.0, rate * cost_us * part / 1e6 * chance.uniform(0.9, 1.05)) for _ in range(seconds)]
                for label, part in {**costs, "generators": 0.1}.items()
            },
        },
        "metrics": _metrics(chance),
        "steps": [],
        "mix": {},
    }  # fmt: skip


def ramp(*, seed: int = 5, roof: float = 3600.0) -> dict[str, Any]:
    """A run whose offered rate rises until the server sheds."""
    steps = []
    for offered in (500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 4500):
        reached = min(offered, roof)
        load = offered / roof
        steps.append(
            {
                "rate_per_second": offered, "good_per_second": reached * 0.998, "p50_us": 2500 / max(0.08, 1.05 - load),
                "p99_us": 6000 / max(0.05, 1.04 - load), "shed": max(0, round((offered - roof) * 5)), "errors": 0,
                "server_cpu_us_per_enrolment": 520 - 200 * min(1.0, load), "held": offered < roof,
            }
        )  # fmt: skip
    return run("ramp", seed=seed, rate=2400, seconds=45, open_loop=True, shed=6500) | {"steps": steps}


def mixed(*, seed: int = 7) -> dict[str, Any]:
    """A run of several kinds of request, one of them not answered as it should be."""
    mix = {
        "enroll": {"sent": 9000, "expected": 9000, "unexpected": 0, "p99_us": 14_000.0},
        "renew": {"sent": 2000, "expected": 2000, "unexpected": 0, "p99_us": 16_500.0},
        "cacerts": {"sent": 1000, "expected": 1000, "unexpected": 0, "p99_us": 4200.0},
        "refused": {"sent": 300, "expected": 298, "unexpected": 2, "p99_us": 6000.0},
    }
    return run("mixed", seed=seed, rate=1500, open_loop=True, errors={"status 500": 2}) | {"mix": mix}


def round_of(runs: list[dict[str, Any]] | None = None, *, seed: int = 0, slower: float = 1.0) -> dict[str, Any]:
    """A round; `slower` stretches what the runs and the steps cost, and leaves the floor as it is."""
    chance = random.Random(seed)
    drift = chance.uniform(0.95, 1.05)
    made = runs or [
        run("kept", seed=seed + 1, rate=4400 / slower / drift, cost_us=292 * slower * drift),
        run("fresh", seed=seed + 2, rate=1050 / slower / drift, cost_us=942 * slower * drift, p50_us=6e4, fresh=True),
        run("steady", seed=seed + 3, rate=1000, cost_us=420 * slower * drift, p50_us=3_000 * slower, open_loop=True),
        ramp(seed=seed + 4),
        run("herd", seed=seed + 5, rate=900, cost_us=1010 * drift, p50_us=800_000, fresh=True, shed=2400,
            missed=("p99 1500.00 ms is above the goal of 1000 ms",)),
        mixed(seed=seed + 6),
    ]  # fmt: skip
    return {
        "began": f"2026-11-22T18:0{seed % 10}:00Z",
        "commit": "0d72b2e",
        "plan": "short",
        "machine": MACHINE,
        "floor": {name: value * drift for name, value in FLOOR.items()},
        "core": {name: value * drift * slower * chance.uniform(0.98, 1.02) for name, value in CORE.items()},
        "runs": made,
        "failures": [],
    }
