"""`estd crl`: the CRLs of an instance's CAs, shown and made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from estd import crl_file, material, owner
from estd.command import config_option, json_option, plainly, utc, writer
from estd.config import Config, load
from estd.crl_keeper import CrlKeeper
from estd.crl_signers import CrlSigner
from estd.errors import ConfigError
from estd.ledger import Writer
from estd.metrics import Block


@click.group("crl")
def crl_group() -> None:
    """The lists of revoked certificates (CRLs) of the CAs that keep one."""


def _crls(config: Config, ca: str | None) -> list[CrlSigner]:
    """In a rollover also that of the old key."""
    found = [one for one in material.load(config).crls if ca in (None, one.ca_name)]
    if not found:
        raise ConfigError([f"[ca.{ca or 'NAME'}] keeps no CRL: say crl = true there"])
    return found


@crl_group.command("show")
@config_option
@click.option("--ca", help="Of this CA only.")
@json_option
@plainly
def crl_show(file: Path, ca: str | None, as_json: bool) -> None:
    """Show each CA's CRL as it is published, once its signature is verified."""
    config = load(file)
    for one in _crls(config, ca):
        path = one.plan.file
        if not path.exists():
            raise ConfigError([f"ca.{one.ca_name}: there is no {path} yet; estd serve makes it, or estd crl renew"])
        crl = crl_file.read(path, one.ca)
        shown: dict[str, Any] = {
            "ca": one.ca_name,
            "key_id": one.key_id.hex(),
            "number": crl.number,
            "this_update": utc(crl.this_update.timestamp()),
            "next_update": utc(crl.next_update.timestamp()),
            "entries": crl.entries,
            "bytes": len(crl.der),
            "file": str(path),
        }
        if as_json:
            click.echo(json.dumps(shown))
        else:
            for key, value in shown.items():
                click.echo(f"{key:12} {value}")


@crl_group.command("renew")
@config_option
@click.option("--ca", help="Of this CA only.")
@json_option
@plainly
def crl_renew(file: Path, ca: str | None, as_json: bool) -> None:
    """Make each CA's CRL anew: by the server within seconds, or with none running, here and now."""
    config = load(file)
    crls = _crls(config, ca)
    made: set[str] = set()
    not_made = "asked the server for a new CRL"
    with writer(config) as ledger:
        if isinstance(ledger, Writer):
            made = _make_here(config, crls, ledger)
            not_made = "the token holds the key no more, so there is no new CRL"
        else:
            for one in crls:
                ledger.want_crl(one.name)
    for one in crls:
        is_made = one.name in made
        if as_json:
            shown = {"ca": one.ca_name, "key_id": one.key_id.hex(), "made": is_made, "file": str(one.plan.file)}
            click.echo(json.dumps(shown))
        else:
            click.echo(f"{'made a new CRL' if is_made else not_made} of {one.name}: {one.plan.file}")


def _make_here(config: Config, crls: list[CrlSigner], ledger: Writer) -> set[str]:
    """The names of those that were made: a former key may have been destroyed meanwhile."""
    from estd.issuer import crls_of, open_signer

    found = material.load(config)
    owner.run_folder(config)
    signer = open_signer(config, found)
    signed = [one for one in crls_of(found, signer) if one.name in {asked.name for asked in crls}]
    keeper = CrlKeeper(
        crls=signed,
        ledger=ledger,
        signer=signer,
        slot=Block.create(1).slot(0),
        report=lambda *_, **__: None,
    )
    keeper.make_all()
    return {one.name for one in signed}
