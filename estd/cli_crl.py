"""`estd crl`: the CRLs of an instance's CAs, shown and made anew."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from estd import crl_file, material
from estd.command import config_option, json_option, plainly, writer
from estd.config import Config, load
from estd.crl_keeper import CrlKeeper
from estd.errors import ConfigError
from estd.ledger import Writer
from estd.metrics import Block


@click.group("crl")
def crl_group() -> None:
    """The lists of revoked certificates (CRLs) of the CAs that keep one."""


def _names(config: Config, ca: str | None) -> list[str]:
    names = [name for name, one in config.cas.items() if one.crl.on and ca in (None, name)]
    if not names:
        raise ConfigError([f"[ca.{ca or 'NAME'}] keeps no CRL: say crl = true there"])
    return names


def _utc(when: datetime) -> str:
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")


@crl_group.command("show")
@config_option
@click.option("--ca", help="Of this CA only.")
@json_option
@plainly
def crl_show(file: Path, ca: str | None, as_json: bool) -> None:
    """Show each CA's CRL as it is published, once its signature is verified."""
    config = load(file)
    found = material.load(config)
    for name in _names(config, ca):
        path = config.cas[name].crl.file
        if not path.exists():
            raise ConfigError([f"ca.{name}: there is no {path} yet; estd serve makes it, or estd crl renew"])
        crl = crl_file.read(path, found.cas[name])
        shown: dict[str, Any] = {
            "ca": name,
            "number": crl.number,
            "this_update": _utc(crl.this_update),
            "next_update": _utc(crl.next_update),
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
@plainly
def crl_renew(file: Path, ca: str | None) -> None:
    """Make each CA's CRL anew: by the server within seconds, or with none running, here and now."""
    config = load(file)
    names = _names(config, ca)
    with writer(config) as ledger:
        if isinstance(ledger, Writer):
            _make_here(config, names, ledger)
            return
        for name in names:
            ledger.want_crl(name)
            click.echo(f"asked the server for a new CRL of {name}: {config.cas[name].crl.file}")


def _make_here(config: Config, names: list[str], ledger: Writer) -> None:
    from estd.issuer import open_signer

    found = material.load(config)
    config.run.mkdir(mode=0o700, exist_ok=True)
    keeper = CrlKeeper(
        plans={name: config.cas[name].crl for name in names},
        cas=found.cas,
        ledger=ledger,
        signer=open_signer(config, found),
        slot=Block.create(1).slot(0),
        report=lambda *_, **__: None,
    )
    keeper.make_all()
    for name in names:
        click.echo(f"made a new CRL of {name}: {config.cas[name].crl.file}")
