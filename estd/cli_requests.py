"""`estd requests`: the requests that wait for a person, and the person's decision (docs/approval.md)."""

from __future__ import annotations

import json
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from estd.command import NUMBER, config_option, json_option, limit_option, plainly, utc, writer
from estd.config import Config, load
from estd.ledger import LedgerError, Reader
from estd.ledger_requests import DECISIONS, REASON_MAX, STATES, Decision, HeldRequest, plain_text

_numbers = click.argument("numbers", type=NUMBER, nargs=-1, required=True, metavar="NUMBER...")
_by = click.option("--by", help="Who decided; without, the user who runs the command.")
_overturn = click.option("--overturn", is_flag=True, help="Decide otherwise than somebody did before.")


@click.group("requests")
def requests_group() -> None:
    """Requests that wait for a person's approval: see them, decide on them."""


def _now_ms() -> int:
    return int(time.time() * 1000)


def shown(one: HeldRequest) -> dict[str, Any]:
    """A request as data."""

    def when(milliseconds: int | None) -> str | None:
        return None if milliseconds is None else utc(milliseconds // 1000)

    return {
        "number": one.id,
        "state": one.state,
        "subject": one.subject,
        "names": list(one.names),
        "key": one.key_kind,
        "key_sha256": one.spki_sha256.hex(),
        "identity": one.identity,
        "peer": one.peer,
        "label": one.label,
        "profile": one.profile,
        "renews": one.renews.hex() if one.renews else None,
        "asked": when(one.asked_at),
        "expires": when(one.expires_at),
        "decided": when(one.decided_at),
        "decided_by": one.decided_by,
        "reason": one.reason,
        "serial": one.serial.hex() if one.serial else None,
    }


def _find(config: Config, number: int) -> HeldRequest:
    with Reader(config.ledger) as reader:
        one = reader.requests.find(number, _now_ms())
    if one is None:
        raise LedgerError(f"there is no request {number}; estd requests list shows those there are")
    return one


@requests_group.command("list")
@config_option
@click.option("--state", type=click.Choice([*STATES, "all"]), default="pending", show_default=True)
@click.option("--search", "text", default="", help="Part of subject, name, client, peer, label or key fingerprint.")
@limit_option
@json_option
@plainly
def requests_list(file: Path, state: str, text: str, limit: int, as_json: bool) -> None:
    """List requests, newest first; those that wait unless --state says otherwise."""
    found = 0
    for one in _search(load(file), None if state == "all" else state, text, limit):
        found += 1
        if as_json:
            click.echo(json.dumps(shown(one)))
        else:
            names = plain_text(", ".join((one.subject, *one.names)))
            client = plain_text(one.identity)
            click.echo(f"{one.id:6}  {utc(one.asked_at // 1000)}  {one.state:8}  {one.label:12} {client:28} {names}")
    if not found and not as_json:
        click.echo("no request waits" if state == "pending" and not text else "no such request", err=True)


def _search(config: Config, state: str | None, text: str, limit: int) -> Iterator[HeldRequest]:
    with Reader(config.ledger) as reader:
        yield from reader.requests.search(_now_ms(), state=state, text=text, limit=limit)


@requests_group.command("show")
@config_option
@click.argument("number", type=NUMBER)
@json_option
@plainly
def requests_show(file: Path, number: int, as_json: bool) -> None:
    """Show one request: who asks for what, with which key, and what was decided."""
    config = load(file)
    data = shown(_find(config, number))
    with Reader(config.ledger) as reader:
        decisions = [{**one._asdict(), "at": utc(one.at // 1000)} for one in reader.requests.decisions(number)]
    if as_json:
        click.echo(json.dumps({**data, "decisions": decisions}))
        return
    for name, value in data.items():
        if value not in (None, []):
            click.echo(f"{name:12} {plain_text(', '.join(value) if isinstance(value, list) else str(value))}")
    for one in decisions:
        click.echo(
            f"{'decision':12} {one['at']} {one['state']} by {plain_text(one['by'])}: {plain_text(one['reason'])}"
        )


@requests_group.command("approve")
@config_option
@_numbers
@click.option("--reason", default="", help="Why, for the record.")
@_by
@_overturn
@json_option
@plainly
def requests_approve(
    file: Path, numbers: tuple[int, ...], reason: str, by: str | None, overturn: bool, as_json: bool
) -> None:
    """Approve requests: each device gets its certificate when it asks again."""
    _decide(load(file), numbers, "approved", reason, by, overturn, as_json)


@requests_group.command("deny")
@config_option
@_numbers
@click.option("--reason", required=True, help="Why; the device is told so.")
@_by
@_overturn
@json_option
@plainly
def requests_deny(
    file: Path, numbers: tuple[int, ...], reason: str, by: str | None, overturn: bool, as_json: bool
) -> None:
    """Deny requests: each device is told 403 with the reason when it asks again."""
    if not reason.strip():
        raise click.BadParameter("a denial needs a reason, which the device is told", param_hint="--reason")
    _decide(load(file), numbers, "denied", reason, by, overturn, as_json)


def _decide(
    config: Config, numbers: tuple[int, ...], state: str, reason: str, by: str | None, overturn: bool, as_json: bool
) -> None:
    reason = " ".join(reason.split())
    if len(reason) > REASON_MAX:
        raise click.BadParameter(f"at most {REASON_MAX} characters", param_hint="--reason")
    who = f"cli:{by or pwd.getpwuid(os.getuid()).pw_name}"
    for number in dict.fromkeys(numbers):
        seen = _find(config, number).state if overturn else "pending"
        with writer(config) as ledger:
            done = ledger.decide(number, seen, Decision(state, _now_ms(), who, reason))
        one = _find(config, number)
        if not done:
            raise LedgerError(_undecided(one, state))
        click.echo(json.dumps(shown(one)) if as_json else f"request {number} is {state}: {plain_text(one.subject)}")


def _undecided(one: HeldRequest, state: str) -> str:
    """Why a request did not become `state`."""
    if one.state not in DECISIONS:
        return f"request {one.id} is {one.state}; it cannot be {state}"
    why = f": {plain_text(one.reason)}" if one.reason else ""
    said = f"request {one.id} was {one.state} by {plain_text(one.decided_by or '')}{why}"
    return said if one.state == state else f"{said}; with --overturn it becomes {state}"
