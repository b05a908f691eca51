"""What a run needs before it can start: the devices' certificates, the CSRs, and a plan for each generator."""

from __future__ import annotations

import hashlib
import math
import ssl
from dataclasses import dataclass, replace
from pathlib import Path

import click

from bench import csrs, devices
from bench.generators import run_generators
from bench.plan import Plan
from bench.progress import ProgressLine

_PREPARING_CONNECTIONS = 16
# A connection whose CSRs are used up leaves the closed loop; the spare ones keep all of them in it to the end.
_SPARE_BOUND_CSRS = 1.5
TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server as the command line names it."""

    address: str
    port: int
    host: str
    prefix: str

    def head(self, operation: str, authorization: str | None) -> bytes:
        """A request up to the value of its Content-Length."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"POST {self.prefix}/{operation} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Content-Type: application/pkcs10",
            "Content-Transfer-Encoding: base64",
            "Accept: application/pkcs7-mime",
            *([f"Authorization: {authorization}"] if authorization else []),
            "Content-Length: ",
        ]
        return "\r\n".join(lines).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line, checked."""

    target: Target
    instance: Path
    count: int
    seconds: float | None
    connections: int
    rate_per_second: float | None
    fresh: bool
    authentication: str
    operation: str
    devices: int
    generators: int
    tls: str
    timeout_seconds: float
    retry: bool
    keep: bool
    cache: Path | None
    reuse: bool

    def renews(self) -> bool:
        """Whether each device needs a certificate of the server beforehand."""
        return self.operation == "simplereenroll"

    def describe(self) -> str:
        """The run in one line."""
        loop = f"open loop of {self.rate_per_second:g}/s" if self.rate_per_second else "closed loop"
        kept = "fresh connections" if self.fresh else "keep-alive"
        devices = f", {self.devices} devices" if self.renews() or self.authentication == "certificate" else ""
        return (
            f"{self.operation} at {self.target.host}:{self.target.port}{self.target.prefix}, {self.authentication},"
            f" TLS {self.tls}, {loop} over {self.connections} {kept}{devices}"
        )


class Preparation:
    """Makes what a run needs, in a private directory."""

    def __init__(self, options: Options, directory: Path) -> None:
        self._options = options
        self._directory = directory

    def plans(self) -> list[Plan]:
        """One for each generator."""
        options = self._options
        credentials, authorization = self._idevids()
        if not options.renews():
            return self._split(self._enrolling(credentials, authorization, options.count))
        credentials, certificates = self._enrol_first(credentials, authorization)
        return self._split(self._renewing(credentials, certificates))

    def _idevids(self) -> tuple[tuple[Path, ...], str | None]:
        """How the devices authenticate: their IDevIDs, or else an Authorization header for all."""
        demo = self._options.instance / "demo"
        try:
            if self._options.authentication == "basic":
                return (), devices.basic_authorization(demo)
            manufacturer = devices.load_manufacturer(demo)
        except (OSError, ValueError) as error:
            raise click.ClickException(f"the instance was not made with --demo: {error}") from None
        return devices.write_idevids(self._directory, manufacturer, self._options.devices), None

    def _plan(self, head: bytes, credentials: tuple[Path, ...], count: int) -> Plan:
        options = self._options
        return Plan(
            generator=0,
            generators=1,
            address=options.target.address,
            port=options.target.port,
            server_name=options.target.host,
            trust=options.instance / "ca.pem",
            tls=TLS_VERSIONS[options.tls],
            head=head,
            credentials=credentials,
            csr_directory=self._directory,
            first_csr=0,
            csrs=count,
            bound_csrs=False,
            count=count,
            seconds=options.seconds,
            rate_per_second=options.rate_per_second,
            connections=options.connections,
            fresh=options.fresh,
            retry=options.retry,
            timeout_seconds=options.timeout_seconds,
            keep=None,
        )

    def _enrolling(self, credentials: tuple[Path, ...], authorization: str | None, count: int) -> Plan:
        options = self._options
        plan = self._plan(options.target.head("simpleenroll", authorization), credentials, count)
        if options.cache is None:
            self._make_csrs(self._directory, count, None)
            return plan
        options.cache.mkdir(parents=True, exist_ok=True)
        instance = hashlib.sha256((options.instance / "ca.pem").read_bytes()).hexdigest()[:16]
        first = csrs.claim_csrs(options.cache, instance=instance, count=count, reuse=options.reuse)
        self._make_csrs(options.cache, first + count, None)
        return replace(plan, csr_directory=options.cache, first_csr=first)

    def _renewing(self, credentials: tuple[Path, ...], certificates: tuple[bytes, ...]) -> Plan:
        options = self._options
        plan = self._plan(options.target.head("simplereenroll", None), credentials, options.count)
        if options.fresh:
            renewals = csrs.Renewals(certificates=certificates, stride=len(certificates))
        else:
            per_connection = math.ceil(options.count / options.connections * _SPARE_BOUND_CSRS) + 1
            plan = replace(plan, csrs=per_connection * options.connections, bound_csrs=True)
            renewals = csrs.Renewals(certificates=certificates, stride=options.connections)
        self._make_csrs(self._directory, plan.csrs, renewals)
        return plan

    def _enrol_first(
        self, credentials: tuple[Path, ...], authorization: str | None
    ) -> tuple[tuple[Path, ...], tuple[bytes, ...]]:
        """Gets each device the certificate it is going to renew."""
        options = self._options
        keys = [csrs.new_key() for _ in range(options.devices)]
        directory = self._directory / "first"
        directory.mkdir()
        csrs.write_csrs(directory, (csrs.sign_csr(key) for key in keys))
        plan = self._plan(options.target.head("simpleenroll", authorization), credentials, len(keys))
        keep = directory / "answers"
        plan = replace(
            plan,
            csr_directory=directory,
            seconds=None,
            rate_per_second=None,
            connections=min(_PREPARING_CONNECTIONS, len(keys)),
            fresh=True,
            retry=True,
            keep=keep,
        )
        with ProgressLine("enrolling the devices", len(keys)) as line:
            tally = run_generators([plan], tell=lambda progress: line.update(progress.good)).tally
        if tally.good < len(keys):
            raise click.ClickException(
                f"only {tally.good} of {len(keys)} devices got a certificate to renew: {tally.examples}"
            )
        return devices.write_issued(self._directory, keys, keep.read_bytes().splitlines())

    def _make_csrs(self, directory: Path, count: int, renewals: csrs.Renewals | None) -> None:
        with ProgressLine("preparing CSRs", count) as line:
            csrs.prepare_csrs(
                directory,
                count=count,
                whole_batches=directory == self._options.cache,
                renewals=renewals,
                progress=line.update,
            )

    def _split(self, plan: Plan) -> list[Plan]:
        number = self._options.generators
        keep = self._options.keep
        return [
            replace(plan, generator=g, generators=number, keep=self._directory / f"kept-{g}" if keep else None)
            for g in range(number)
        ]
