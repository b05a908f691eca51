"""`estd renewal-info`: when a certificate had best be renewed, as the server sees it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509

from estd import renewal_info
from estd.command import READABLE, json_option, plainly


@click.command("renewal-info")
@click.argument("url")
@click.option("--cert", type=READABLE, required=True, help="The certificate (PEM) to ask about; no key is needed.")
@click.option("--cacert", type=READABLE, help="Trust anchors for the server; without, the system's.")
@click.option("--label", help="The EST label.")
@json_option
@plainly
def renewal_info_command(url: str, cert: Path, cacert: Path | None, label: str | None, as_json: bool) -> None:
    """Ask the EST server at URL when a certificate had best be renewed: at a random time between start and end, at once
    where the end is past."""
    from estd.client import Access, EstClient

    anchors = x509.load_pem_x509_certificates(cacert.read_bytes()) if cacert is not None else []
    certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    with EstClient(Access(url=url, label=label, anchors=anchors)) as client:
        window, again = client.renewal_info(certificate)
    start, end = (datetime.fromtimestamp(one, UTC) for one in window)
    begun = time.time() >= window.start
    shown = {
        "id": str(renewal_info.cert_id(certificate)),
        "start": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "end": f"{end:%Y-%m-%dT%H:%M:%SZ}",
        "ask_again_seconds": again,
        "begun": begun,
    }
    if as_json:
        click.echo(json.dumps(shown))
        return
    click.echo(f"start        {shown['start']}")
    click.echo(f"end          {shown['end']}")
    click.echo(f"ask again    in {again} s")
    click.echo("renew        " + ("now" if begun else "then"))
