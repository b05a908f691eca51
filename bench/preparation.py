"""What a run needs before it can start: the devices' certificates, the CSRs, and a plan for each generator."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import click

from bench import csrs, devices
from bench.generators import run_generators
from bench.kinds import Fleet, Kinds, Options
from bench.plan import Kind, Plan, Pool, Step
from bench.progress import ProgressLine

_PREPARING_CONNECTIONS = 16
_PREPARING_TRIES = 5
_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Preparation:
    """Makes what the steps of a run need, in a private directory; the devices are the same in all steps."""

    def __init__(self, options: Options, directory: Path) -> None:
        self._options = options
        self._scenario = options.scenario
        self._directory = directory
        self._fleet: Fleet | None = None
        self._steps = 0
        self.kept: list[Path] = []
        """Files with the answers of the steps, where they are kept."""

    def plans(self, step: Step) -> list[Plan]:
        """One for each generator, with CSRs that no other step has."""
        if self._fleet is None:
            self._fleet = self._make_fleet()
        self._steps += 1
        directory = self._directory / f"step-{self._steps}"
        directory.mkdir()
        kinds = Kinds(self._options, self._fleet, directory).of(step)
        return self._split(self._plan(self._fleet.credentials, kinds, step), directory)

    def _plan(self, credentials: tuple[Path | None, ...], kinds: tuple[Kind, ...], step: Step) -> Plan:
        scenario, target = self._scenario, self._options.target
        return Plan(
            generator=0,
            generators=1,
            address=target.address,
            port=target.port,
            server_name=target.host,
            trust=self._options.instance / "ca.pem",
            tls=_TLS_VERSIONS[scenario.tls],
            credentials=credentials,
            kinds=kinds,
            step=step,
            connections=scenario.connections,
            fresh=scenario.fresh,
            tries=scenario.tries if scenario.retry else 1,
            timeout_seconds=scenario.timeout_seconds,
            keep=None,
        )

    def _split(self, plan: Plan, directory: Path) -> list[Plan]:
        numbers = range(self._scenario.generators)
        keep = [directory / f"kept-{number}" for number in numbers] if self._options.keep else []
        self.kept += keep
        return [
            replace(plan, generator=number, generators=len(numbers), keep=keep[number] if keep else None)
            for number in numbers
        ]

    def _make_fleet(self) -> Fleet:
        idevids, authorization = self._idevids()
        if not self._scenario.renews():
            return Fleet(
                credentials=idevids,
                authorization=authorization,
                enrolling=range(len(idevids)),
                renewing=range(0),
                certificates=(),
            )
        issued, certificates = self._enrol_first(idevids, authorization)
        return Fleet(
            credentials=(*idevids, *issued),
            authorization=authorization,
            enrolling=range(len(idevids)),
            renewing=range(len(idevids), len(idevids) + len(issued)),
            certificates=certificates,
        )

    def _idevids(self) -> tuple[tuple[Path | None, ...], str | None]:
        """How the devices authenticate: their IDevIDs, or else an Authorization header for all."""
        demo = self._options.instance / "demo"
        try:
            if self._scenario.authentication == "basic":
                return (None,), devices.basic_authorization(demo)
            manufacturer = devices.load_manufacturer(demo)
        except (OSError, ValueError) as error:
            raise click.ClickException(f"the instance was not made with --demo: {error}") from None
        return devices.write_idevids(self._directory, manufacturer, self._scenario.device_count()), None

    def _enrol_first(
        self, idevids: tuple[Path | None, ...], authorization: str | None
    ) -> tuple[tuple[Path, ...], tuple[bytes, ...]]:
        """Gets each device the certificate it is going to renew."""
        keys = [csrs.new_key() for _ in range(self._scenario.device_count())]
        directory = self._directory / "first"
        directory.mkdir()
        csrs.write_csrs(directory, (csrs.sign_csr(key) for key in keys))
        kind = Kind(
            name="simpleenroll",
            head=self._options.target.head("simpleenroll", authorization),
            status=200,
            devices=range(len(idevids)),
            pool=Pool(directory=directory, first=0, count=len(keys)),
        )
        keep = directory / "answers"
        plan = replace(
            self._plan(idevids, (kind,), Step(count=len(keys))),
            connections=min(_PREPARING_CONNECTIONS, len(keys)),
            fresh=True,
            tries=_PREPARING_TRIES,
            keep=keep,
        )
        with ProgressLine("enrolling the devices", len(keys)) as line:
            tally = run_generators([plan], tell=lambda progress: line.update(progress.good)).tally
        if tally.good < len(keys):
            raise click.ClickException(
                f"only {tally.good} of {len(keys)} devices got a certificate to renew: {tally.examples}"
            )
        return devices.write_issued(self._directory, keys, keep.read_bytes().splitlines())
