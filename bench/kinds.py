"""The kinds of requests of a step, with the CSRs that they send."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import click

from bench import csrs, mix
from bench.aborts import ABORTS
from bench.plan import Kind, Pool, Step, often
from bench.progress import ProgressLine
from bench.scenario import Scenario
from bench.target import Target
from estd.config import load
from estd.errors import ConfigError

# A connection whose CSRs are used up leaves the closed loop; the spare ones keep all of them in it to the end.
_SPARE_BOUND_CSRS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line, checked: the load, and where it goes. With `reuse` a cache is sent from its first CSR again."""

    scenario: Scenario
    target: Target
    instance: Path
    keep: bool
    cache: Path | None
    reuse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The devices: first come those that enrol, as their factory made them, then those that renew what they got."""

    credentials: tuple[Path | None, ...]
    authorization: str | None
    enrolling: range
    renewing: range
    certificates: tuple[bytes, ...]
    """What the renewing ones renew, DER."""


class Kinds:
    """Makes the kinds of one step, and their CSRs in a directory of the step's own or in the cache."""

    def __init__(self, options: Options, fleet: Fleet, directory: Path) -> None:
        self._options = options
        self._scenario = options.scenario
        self._fleet = fleet
        self._directory = directory

    def of(self, step: Step) -> tuple[Kind, ...]:
        """One kind, or those of the scenario's mix."""
        if self._scenario.mix:
            return self._mixed(step)
        if self._scenario.operation == "simpleenroll":
            return (self._enrolling("simpleenroll", step.count, self._directory),)
        return (self._renewing("simplereenroll", step.count, self._directory),)

    def _enrolling(self, name: str, count: int, directory: Path) -> Kind:
        return Kind(
            name=name,
            head=self._options.target.head("simpleenroll", self._fleet.authorization),
            status=200,
            devices=self._fleet.enrolling,
            pool=self._new_csrs(count, directory),
        )

    def _new_csrs(self, count: int, directory: Path) -> Pool:
        cache = self._options.cache
        if cache is None:
            self._make_csrs(directory, count, None)
            return Pool(directory=directory, first=0, count=count)
        cache.mkdir(parents=True, exist_ok=True)
        instance = hashlib.sha256((self._options.instance / "ca.pem").read_bytes()).hexdigest()[:16]
        first = csrs.claim_csrs(cache, instance=instance, count=count, reuse=self._options.reuse)
        self._make_csrs(cache, first + count, None)
        return Pool(directory=cache, first=first, count=count)

    def _renewing(self, name: str, count: int, directory: Path) -> Kind:
        """On kept connections each CSR is bound to the one that authenticates with the certificate it renews."""
        bound, stride = not self._scenario.fresh, len(self._fleet.certificates)
        if bound:
            stride = self._scenario.connections
            count = (math.ceil(count / stride * _SPARE_BOUND_CSRS) + 1) * stride
        self._make_csrs(directory, count, csrs.Renewals(certificates=self._fleet.certificates, stride=stride))
        return Kind(
            name=name,
            head=self._options.target.head("simplereenroll", None),
            status=200,
            devices=self._fleet.renewing,
            pool=Pool(directory=directory, first=0, count=count, bound=bound),
        )

    def _mixed(self, step: Step) -> tuple[Kind, ...]:
        """The kinds of the scenario's mix. Each generator goes through the weights by itself."""
        weights = self._scenario.mix
        generators = self._scenario.generators
        each = often(list(weights.values()), math.ceil(step.count / generators))
        counts = {name: most * generators for name, most in zip(weights, each, strict=True)}
        plain = mix.plain_requests(
            self._options.target, self._fleet.authorization, csrs.sign_csr(csrs.new_key()), self._body_limit_bytes()
        )
        kinds = []
        for name, weight in weights.items():
            own = self._directory / name
            own.mkdir()
            if name == mix.ENROLL:
                kind = self._enrolling(name, counts[name], own)
            elif name == mix.RENEW:
                kind = self._renewing(name, counts[name], own)
            elif name in ABORTS:
                kind = Kind(name=name, head=b"", status=0, devices=self._fleet.enrolling, abort=name)
            else:
                status, request = plain[name]
                kind = Kind(name=name, head=request, status=status, devices=self._fleet.enrolling)
            kinds.append(replace(kind, weight=weight))
        return tuple(kinds)

    def _body_limit_bytes(self) -> int:
        try:
            config = load(self._options.instance / "estd.toml")
        except ConfigError as error:
            raise click.ClickException(f"how long a body may be cannot be read: {error}") from None
        label = config.labels.get(self._scenario.label or config.server.default_label)
        if label is None:
            raise click.ClickException(f"the instance has no label {self._scenario.label!r}; name one with --label")
        return label.body_bytes

    def _make_csrs(self, directory: Path, count: int, renewals: csrs.Renewals | None) -> None:
        with ProgressLine("preparing CSRs", count) as line:
            csrs.prepare_csrs(
                directory,
                count=count,
                whole_batches=directory == self._options.cache,
                renewals=renewals,
                progress=line.update,
            )
