"""`estd ca rollover`: prepare, activate, finish, and status, which says where it stands and what to do next."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from estd import reload_report, transition
from estd.command import config_option, json_option, key_id_option, plainly, utc
from estd.config import Ca, Config, load
from estd.errors import ConfigError
from estd.labels import KEY_KINDS
from estd.material import certificates, load_ca, read_changes
from estd.transition import Transition

P = ParamSpec("P")
_CA_KINDS = [kind for kind in KEY_KINDS if kind in ("ec-p256", "ec-p384", "rsa-3072")]

_NEXT = {
    "none": "To begin: estd ca rollover prepare.",
    "preparing": "It was interrupted: repeat estd ca rollover prepare.",
    "prepared": "cacerts has both roots. Once the devices have fetched it (each does when it renews): "
    "estd ca rollover activate.",
    "active": "The new key issues. Once nothing hangs on the old root any more: estd ca rollover finish.",
    "finished": "It was interrupted, or its last line is yours to write: repeat estd ca rollover finish.",
}


_NOT_SERVED = {
    "none": "The server serves what the CA's files were before: estd reload.",
    "preparing": _NEXT["preparing"],
    "prepared": "The server's cacerts has the old root alone yet: repeat estd ca rollover prepare.",
    "active": "The server issues with the old key yet: repeat estd ca rollover activate.",
    "finished": _NEXT["finished"],
}
"""Where a command was interrupted before the server took what it had made."""


def _command(name: str) -> Callable[[Callable[P, None]], click.Command]:
    """A subcommand with the options that all have; what goes wrong becomes a sentence and an exit status."""

    def made(function: Callable[P, None]) -> click.Command:
        command = json_option(plainly(function))
        command = click.option("--ca", "name", help="Which [ca.NAME], where there are several.")(command)
        return rollover_group.command(name)(config_option(command))

    return made


@click.group("ca")
def ca_group() -> None:
    """The CAs that issue."""


@ca_group.group("rollover")
def rollover_group() -> None:
    """Change a root's key while it serves (RFC 4210 §4.4). Each command may be repeated."""


@_command("prepare")
@click.option("--key", "kind", type=click.Choice(_CA_KINDS), help="The new key's kind; without, the old one's.")
@key_id_option("CKA_ID (hexadecimal) of a key that is in the token already; without, one is made.")
@click.option("--years", type=click.IntRange(1, 100), help="The new root's life; without, as long as the old one's.")
def prepare_command(file: Path, name: str | None, as_json: bool, kind: Any, key_id: bytes | None, years: int) -> None:
    """Make the new key and root; cacerts then has both, and the certificates that join them. The old key issues."""
    from estd import rollover

    plan = rollover.Plan(kind=kind, key_id=key_id, years=years)
    with rollover.alone(file) as config:
        ca = rollover.choose(config, name)
        rollover.prepare(config, ca, plan)
        _tell(config, ca, as_json, _reloaded(config))


@_command("activate")
def activate_command(file: Path, name: str | None, as_json: bool) -> None:
    """Issue with the new key. The server's own TLS certificate, where the old key signed it, is signed anew."""
    from estd import rollover

    with rollover.alone(file) as config:
        ca = rollover.choose(config, name)
        rollover.activate(config, ca)
        _tell(config, ca, as_json, _reloaded(config))


@_command("finish")
@click.option("--force", is_flag=True, help="Although certificates under the old root have not expired.")
def finish_command(file: Path, name: str | None, as_json: bool, force: bool) -> None:
    """Take the old root out of cacerts: the CA's file and key_id are the new ones then."""
    from estd import rollover

    with rollover.alone(file) as config:
        ca = rollover.choose(config, name)
        if rollover.is_finished(ca):
            _tell(config, ca, as_json, _reloaded(config))
            return
        change = rollover.under_way(ca)

        def count() -> int:
            reload_report.settle(config.run)  # until then the old key may issue on connections from before activate
            return rollover.hanging(config, change, _progress)

        unsaid = rollover.finish(config, ca, file, count, force=force)
        done = _reloaded(config)
        if not unsaid:
            rollover.archive(ca)
        for one in unsaid:
            line = f'key_id = "{change.state.new_key_id}"'
            click.echo(f"Now write {line} into [ca.{one}] of {file}, and repeat this command.", err=True)
        now = load(file)
        _tell(now, now.cas[ca.name], as_json, done)


@_command("status")
def status_command(file: Path, name: str | None, as_json: bool) -> None:
    """Say where a rollover stands, what hangs on the old root, and what to do next."""
    from estd import rollover

    config = load(file)
    _tell(config, rollover.choose(config, name), as_json, None)


def _progress(number: int) -> None:
    click.echo(f"looked at {number:,} certificates", err=True)


def _reloaded(config: Config) -> int | None:
    """The generation that serves what was changed; None where nobody serves. Raises ConfigError where the server did
    not take it: what was done stays done, and the command may be repeated."""
    if reload_report.serving(config.run) is None:
        return None
    outcome = reload_report.ask(config.run)
    if outcome.problems:
        told = "the server goes on as before; when this is well, repeat the command"
        raise ConfigError([*outcome.problems, told])
    return outcome.generation


def _shown(certificate: x509.Certificate, key_id: str) -> dict[str, str]:
    return {
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "not_before": utc(certificate.not_valid_before_utc.timestamp()),
        "not_after": utc(certificate.not_valid_after_utc.timestamp()),
        "key_id": key_id,
    }


def _state(config: Config, ca: Ca) -> dict[str, Any]:
    from estd import rollover

    state = transition.read_state(transition.folder_of(ca.certificate))
    change: Transition | None = transition.read(ca.certificate)
    stage = "none" if state is None else state.stage
    told: dict[str, Any] = {"ca": ca.name, "stage": stage}
    if change is None:
        told["root"] = _shown(certificates(ca.certificate)[0], ca.key_id.hex())
    else:
        told["old"] = _shown(change.old, change.state.old_key_id)
        told["new"] = _shown(change.new, change.state.new_key_id)
        told["unexpired_under_old"] = rollover.hanging(config, change, _progress)
        told["cas_under_old"] = rollover.below(config, ca, change)
        activated = change.state.activated
        told["activated"] = None if activated is None else datetime.fromtimestamp(activated, UTC).isoformat()
    told["served"] = _is_served(config, ca)
    told["next"] = _NEXT[stage] if told["served"] is not False else _NOT_SERVED[stage]
    return told


def _is_served(config: Config, ca: Ca) -> bool | None:
    """Whether the running server has what the files say; None where nobody serves."""
    if reload_report.serving(config.run) is None:
        return None
    outcome = reload_report.last(config.run)
    return outcome is not None and outcome.cas.get(ca.name) == load_ca(ca, read_changes(config)).fingerprints()


def _tell(config: Config, ca: Ca, as_json: bool, generation: int | None) -> None:
    told = _state(config, ca)
    if generation is not None:
        told["generation"] = generation
    if as_json:
        click.echo(json.dumps(told))
        return
    for name, value in told.items():
        if isinstance(value, dict):
            for part, text in value.items():
                click.echo(f"{name + ' ' + part:20} {text}")
        elif name == "served" and value is not None:
            click.echo(f"{'served':20} {'yes' if value else 'no'}")
        elif isinstance(value, list):
            click.echo(f"{name.replace('_', ' '):20} {', '.join(value) or 'none'}")
        elif value is not None and name != "next":
            click.echo(f"{name.replace('_', ' '):20} {value}")
    click.echo(told["next"])
