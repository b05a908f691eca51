"""A scenario: how a load looks and what it has to reach. A file changes some defaults, the command line others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.plan import Step
from bench.ramp import Ramp

OPERATIONS = ("simpleenroll", "simplereenroll")
AUTHENTICATIONS = ("certificate", "basic")
TLS_VERSIONS = ("1.2", "1.3")

_DEFAULT_COUNT = 10_000
_DEFAULT_DEVICES = 2000
_GUESSED_RATE_PER_SECOND = 4000
_GUESSED_FRESH_RATE_PER_SECOND = 1500
_CAPACITY_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What the run has to reach; None where nothing is asked. `errors` is the part of the requests that may fail: of a
    ramp's step what is shed counts too."""

    rate_per_second: float | None = None
    p99_us: float | None = None
    errors: float = 0.0

    def hold(self, *, p99_us: float | None, failed: int, requests: int) -> bool:
        """Whether a ramp's step reached what every step has to; without an enrolment there is no p99."""
        in_time = p99_us is not None and (self.p99_us is None or p99_us <= self.p99_us)
        return in_time and failed <= self.errors * requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Every value of a load.

    `share` is the open loop's rate as a part of what the server does in a closed loop, measured first. `herd` devices
    switch on at once, each with a connection of its own. A ramp's `rate_per_second` and `seconds` are those of its
    first step. `mix` has the weights of the kinds of requests, by name.
    """

    name: str = ""
    about: str = ""
    operation: str = "simpleenroll"
    authentication: str = "certificate"
    label: str | None = None
    count: int | None = None
    seconds: float | None = None
    rate_per_second: float | None = None
    share: float | None = None
    connections: int = 64
    fresh: bool = False
    devices: int | None = None
    generators: int = 1
    tls: str = "1.3"
    timeout_seconds: float = 15.0
    retry: bool = False
    tries: int = 5
    herd: int | None = None
    ramp: Ramp | None = None
    mix: Mapping[str, int] = field(default_factory=dict)
    goals: Goals = field(default_factory=Goals)

    def renews(self) -> bool:
        """Whether devices need a certificate of the server beforehand."""
        return self.operation == "simplereenroll" or bool(self.mix.get("renew"))

    def device_count(self) -> int:
        """How many devices there are: one for each kept connection, else up to so many."""
        most = self.devices or _DEFAULT_DEVICES
        return min(most, self.step().count if self.fresh else self.connections)

    def step(self) -> Step:
        """The first stretch of load: all of it, but for a ramp."""
        guessed = _GUESSED_FRESH_RATE_PER_SECOND if self.fresh else _GUESSED_RATE_PER_SECOND
        return self.at_rate(self.rate_per_second) if self.rate_per_second else self._step(None, guessed)

    def at_rate(self, rate_per_second: float) -> Step:
        """An open loop of that rate, as long as the scenario says."""
        return self._step(rate_per_second, rate_per_second)

    def _step(self, rate_per_second: float | None, expected_per_second: float) -> Step:
        count = self.count
        if count is None:
            count = math.ceil(expected_per_second * self.seconds) if self.seconds else _DEFAULT_COUNT
        return Step(count=count, seconds=self.seconds, rate_per_second=rate_per_second)

    def capacity_step(self) -> Step:
        """The closed loop that tells what `share` is a part of."""
        seconds = min(_CAPACITY_SECONDS, self.seconds or _CAPACITY_SECONDS)
        return replace(self, seconds=seconds, rate_per_second=None).step()


def override(scenario: Scenario, given: Mapping[str, Any]) -> Scenario:
    """The scenario with those values of the command line that are not None; a rate replaces a share, and back."""
    changes = {key: value for key, value in given.items() if value is not None}
    if "rate_per_second" in changes:
        changes.setdefault("share", None)
    elif "share" in changes:
        changes["rate_per_second"] = None
    return replace(scenario, **changes)


def complete(scenario: Scenario) -> Scenario:
    """The scenario with what follows from its values. Raises ValueError, with a sentence for each, where some of them
    contradict each other."""
    problems = [sentence for wrong, sentence in _contradictions(scenario) if wrong]
    if problems:
        raise ValueError("; ".join(problems))
    if scenario.herd is None:
        return scenario
    herd = scenario.herd
    return replace(scenario, count=herd, connections=herd, devices=herd, fresh=True)


def _contradictions(scenario: Scenario) -> list[tuple[bool, str]]:
    herd, ramp, mix = scenario.herd is not None, scenario.ramp, scenario.mix
    paced = scenario.rate_per_second is not None or scenario.share is not None
    connections = scenario.herd or scenario.connections
    return [
        (
            scenario.generators > connections,
            "each of the generators needs one of the connections at least",
        ),
        (
            scenario.rate_per_second is not None and scenario.share is not None,
            "rate and share: the load has one rate",
        ),
        (
            herd and (paced or ramp is not None or bool(mix) or scenario.count is not None),
            "herd: all devices come at once and once, so there is no rate, share, count, ramp or mix",
        ),
        (
            ramp is not None and (scenario.rate_per_second is None or scenario.seconds is None),
            "ramp: needs the rate and the seconds of its first step",
        ),
        (
            ramp is not None and scenario.count is not None,
            "ramp: the count of each step follows from its rate and seconds",
        ),
        (
            ramp is not None and ramp.to_per_second < (scenario.rate_per_second or 0),
            "ramp: its last rate is below its first",
        ),
        (
            bool(mix) and not scenario.fresh,
            "mix: needs fresh connections, since each request is another device's",
        ),
        (
            bool(mix) and scenario.operation != "simpleenroll",
            "mix: its weights say how much of it renews, so there is no operation",
        ),
        (
            bool(mix) and not any(mix.values()),
            "mix: all weights are 0",
        ),
    ]
