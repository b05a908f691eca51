"""The command `estd`. Every subcommand says what it did in words, or with --json in data; problems go to standard
error with what to do next, and the exit status is 1."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estd import __version__, cli_device, cli_requests, cli_size, credentials, durable, ledger, owner, revocation
from estd.cli_crl import crl_group
from estd.cli_reload import reload_command
from estd.cli_renewal import renewal_info_command
from estd.cli_rollover import ca_group
from estd.command import READABLE, config_option, json_option, key_id_option, limit_option, plainly, utc, writer
from estd.config import Config, load
from estd.issuance import SERIAL_BYTES
from estd.labels import KEY_KINDS
from estd.ledger import REVOCATION_REASONS, LedgerError, Reader, Row
from estd.ledger_requests import plain_text
from estd.names import is_dns
from estd.toml_table import address, duration

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="estd")
def main() -> None:
    """An EST server (RFC 7030) for large fleets of devices, signing on an HSM over PKCS#11."""


main.add_command(cli_size.size_command)


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        address(value)
    except ValueError:
        raise click.BadParameter("an address such as 127.0.0.1:8443 or [::1]:8443") from None
    return value


def _hosts(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for host in value:
        try:
            ip_address(host)
        except ValueError:
            if not is_dns(host):
                raise click.BadParameter(f"{host!r} is neither a DNS name nor an address") from None
    return value


def _duration(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    try:
        return duration(value)
    except ValueError:
        raise click.BadParameter("a duration such as 30s, 10m or 12h") from None


@main.command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option("--ca-key", type=click.Choice(["ec-p256", "ec-p384", "rsa-3072"]), default="ec-p256", show_default=True)
@click.option("--ca-name", default="estd Root CA", show_default=True, help="Common name of the new root.")
@click.option(
    "--host", "hosts", multiple=True, callback=_hosts, help="A name or address of this server, for its TLS certificate."
)
@click.option("--listen", default="127.0.0.1:8443", show_default=True, callback=_address)
@click.option("--admin", default="127.0.0.1:9443", show_default=True, callback=_address)
@click.option("--demo", is_flag=True, help="Also a manufacturer with a device, and a Basic credential, in DIR/demo.")
@click.option("--module", type=READABLE, help="PKCS#11 module of a token that already holds the CA's key.")
@click.option("--token-label", help="Label of that token.")
@click.option("--pin-file", type=READABLE, help="File with that token's PIN.")
@key_id_option("CKA_ID of the CA's key, in hexadecimal.")
@click.option("--ca-cert", type=READABLE, help="The CA's certificate, which may be under somebody else's root.")
@click.option("--ca-chain", type=READABLE, help="The certificates above it, up to the root.")
@plainly
def init_command(
    folder: Path, ca_key: Any, ca_name: str, hosts: tuple[str, ...], listen: str, admin: str, demo: bool,
    module: Path | None, token_label: str | None, pin_file: Path | None, key_id: bytes | None, ca_cert: Path | None,
    ca_chain: Path | None,
) -> None:  # fmt: skip
    """Make an instance in DIR: configuration, token with the CA's key, root, TLS certificate, ledger.

    An existing instance is never overwritten. With --module, --token-label, --pin-file, --key-id and --ca-cert a key
    that is already in a token is used instead of a new one.
    """
    from estd import instance

    existing = None
    if module or token_label or pin_file or key_id or ca_cert or ca_chain:
        if not (module and token_label and pin_file and key_id and ca_cert):
            raise click.UsageError("an existing CA needs --module, --token-label, --pin-file, --key-id and --ca-cert")
        existing = instance.ExistingCa(
            module=module, token_label=token_label, pin_file=pin_file, key_id=key_id,
            certificate=ca_cert, chain=ca_chain,
        )  # fmt: skip
    instance.init(
        instance.Plan(
            folder=folder, ca_key=ca_key, ca_name=ca_name, hosts=hosts, listen=listen, admin=admin, demo=demo,
            existing=existing,
        )
    )  # fmt: skip
    click.echo(f"Made {folder}/estd.toml. Next: estd check {folder}/estd.toml, estd serve {folder}/estd.toml")


@main.command("check")
@click.argument("file", type=_FILE, metavar="FILE")
@json_option
@plainly
def check_command(file: Path, as_json: bool) -> None:
    """Say everything that is wrong with the configuration FILE, the files it names and its token."""
    from estd import checks

    problems = checks.check(file)
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": problems}))
    else:
        for problem in problems:
            click.echo(problem, err=True)
        if not problems:
            click.echo(f"{file}: nothing is wrong")
    sys.exit(1 if problems else 0)


@main.command("serve")
@click.argument("file", type=_FILE, metavar="FILE")
@plainly
def serve_command(file: Path) -> None:
    """Serve the instance of the configuration FILE until SIGTERM or Ctrl-C."""
    from estd import serve

    serve.serve(file)


@main.command("enroll")
@click.argument("url")
@click.option("--cacert", type=READABLE, help="Trust anchors for the server; without, the system's.")
@click.option("--label", help="The EST label.")
@click.option("--cert", type=READABLE, help="Client certificate (PEM); with --renew, the one to renew.")
@click.option("--key", type=READABLE, help="Its key; without, in the file of --cert.")
@click.option("--credential", type=READABLE, help="File with one line user:password for HTTP Basic.")
@click.option("--subject", default="", help="What to ask for, such as CN=device-1,O=Acme.")
@click.option("--dns", multiple=True, help="A dNSName to ask for; may be repeated.")
@click.option("--ip", multiple=True, help="An iPAddress to ask for.")
@click.option("--uri", multiple=True, help="A URI to ask for.")
@click.option("--key-type", type=click.Choice(KEY_KINDS), default="ec-p256", show_default=True)
@click.option("--renew", is_flag=True, help="simplereenroll: renew --cert, whose names are asked for again.")
@click.option("--same-key", is_flag=True, help="With --renew: keep the key.")
@click.option("--link", is_flag=True, help="Link proof of possession to TLS even where csrattrs does not ask for it.")
@click.option("--tls", type=click.Choice(["1.2", "1.3"]), help="Speak this TLS version only.")
@click.option(
    "--wait", callback=_duration, default="0s", help="Where a request waits for a person: ask so long, such as 10m."
)
@click.option("--serverkeygen", is_flag=True, help="Have the server make the key, of the kind --key-type.")
@click.option("--cacerts-only", is_flag=True, help="Fetch the CA's certificates and stop.")
@click.option("--revocation-challenge", type=READABLE, help="File with a secret: who knows it may have it revoked.")
@click.option("--out", default="device", show_default=True, help="Writes OUT.key, OUT.pem and OUT.ca.pem.")
@json_option
@plainly
def enroll_command(as_json: bool, **options: Any) -> None:
    """Ask the EST server at URL for a certificate."""
    from estd import enrolling

    done = enrolling.enroll(enrolling.Options(**options))
    if as_json:
        click.echo(json.dumps(done))
    else:
        for name, value in done.items():
            click.echo(f"{name:12} {value}")


@main.group("credential")
def credential_group() -> None:
    """Basic credentials: what lets a factory or an operator enroll."""


@credential_group.command("add")
@click.argument("file", type=_FILE)
@click.argument("user")
@click.option("--password-file", type=READABLE, help="A password of your own; without, one is generated and shown.")
@plainly
def credential_add(file: Path, user: str, password_file: Path | None) -> None:
    """Add USER to the credentials FILE, or give it another password. A running server sees it within a second."""
    secret = password_file.read_text(encoding="utf-8").strip() if password_file else credentials.generate()
    made = credentials.line(user, secret, generated=password_file is None)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    kept = [one for one in lines if one.startswith("#") or one.partition(":")[0] != user]
    durable.write(file, "".join(f"{one}\n" for one in [*kept, made]).encode())
    click.echo(f"{user}:{secret}" if password_file is None else f"{user} is in {file}")


@main.group("cert")
def cert_group() -> None:
    """The certificates that were issued: what the ledger knows of them."""


def _when(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter("a time such as 2026-11-22 or 2026-11-22T08:00") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def _serial_number(_context: click.Context, _parameter: click.Parameter, value: str | None) -> bytes | None:
    """A serial number in any notation: with colons, with or without leading zeros."""
    if value is None:
        return None
    try:
        number = int(value.replace(":", ""), 16)
        return number.to_bytes(max(SERIAL_BYTES, (number.bit_length() + 7) // 8), "big")
    except (ValueError, OverflowError):
        raise click.BadParameter("a serial number in hexadecimal") from None


_serial = click.option("--serial", callback=_serial_number, help="The one with this serial number.")
_subject = click.option("--subject", help="Part of the subject.")
_identity = click.option("--identity", help="Part of who asked, such as basic:factory or cert:.")
_since = click.option("--since", callback=_when, help="Issued at or after this time (UTC).")
_until = click.option("--until", callback=_when, help="Issued before this time (UTC).")
_revoked = click.option("--revoked/--not-revoked", default=None, help="Only those that are, or are not, revoked.")


def _shown(row: Row) -> dict[str, Any]:
    return {
        "serial": row.serial.hex(),
        "subject": row.subject,
        "identity": row.identity,
        "label": row.label,
        "profile": row.profile,
        "issued": utc(row.issued_at_ms / 1000),
        "not_before": utc(row.not_before),
        "not_after": utc(row.not_after),
        "renews": row.renews.hex() if row.renews else None,
        "revoked": utc(row.revoked_at) if row.revoked_at is not None else None,
        "reason": next((k for k, v in REVOCATION_REASONS.items() if v == row.reason), None),
    }


def _plain(text: str) -> str:
    """For a terminal. The tab is estd's own: it stands between a device and who asked for it."""
    return plain_text(text.replace("\t", " "))


def _search(config: Config, **query: Any) -> Iterator[Row]:
    with Reader(config.ledger) as reader:
        yield from reader.search(**query)


def _row(config: Config, serial: bytes) -> Row:
    with Reader(config.ledger) as reader:
        row = reader.find(serial)
    if row is None:
        raise LedgerError(f"no certificate has the serial number {serial.hex()}; estd cert list shows those there are")
    return row


@cert_group.command("list")
@config_option
@_serial
@_subject
@_identity
@_since
@_until
@_revoked
@limit_option
@json_option
@plainly
def cert_list(file: Path, as_json: bool, since: int | None, until: int | None, **query: Any) -> None:
    """List certificates, oldest first."""
    for row in _search(load(file), since_ms=since, until_ms=until, **query):
        shown = _shown(row)
        if as_json:
            click.echo(json.dumps(shown))
        else:
            state = "revoked" if shown["revoked"] else "expired" if row.not_after < time.time() else "valid"
            identity, subject = _plain(shown["identity"]), _plain(shown["subject"])
            click.echo(f"{shown['serial']}  {shown['issued']}  {state:8} {identity:32} {subject}")


@cert_group.command("show")
@config_option
@click.argument("serial", callback=_serial_number)
@json_option
@plainly
def cert_show(file: Path, serial: bytes, as_json: bool) -> None:
    """Show one certificate: what the ledger knows, and the certificate."""
    row = _row(load(file), serial)
    pem = x509.load_der_x509_certificate(row.certificate_der).public_bytes(Encoding.PEM).decode()
    if as_json:
        click.echo(json.dumps({**_shown(row), "certificate": pem}))
        return
    for name, value in _shown(row).items():
        if value is not None:
            click.echo(f"{name:12} {_plain(str(value))}")
    click.echo(pem, nl=False)


@cert_group.command("export")
@config_option
@_serial
@_subject
@_identity
@_since
@_until
@_revoked
@click.option("--out", type=click.File("wb"), default="-", help="File for the PEM; standard output without.")
@plainly
def cert_export(file: Path, since: int | None, until: int | None, out: Any, **query: Any) -> None:
    """Write certificates as PEM."""
    for row in _search(load(file), since_ms=since, until_ms=until, **query):
        out.write(x509.load_der_x509_certificate(row.certificate_der).public_bytes(Encoding.PEM))


@cert_group.command("revoke")
@config_option
@click.argument("serial", callback=_serial_number)
@click.option("--reason", type=click.Choice(list(REVOCATION_REASONS)), default="unspecified", show_default=True)
@click.option(
    "--challenge-file", type=READABLE, help="Revoke only if the secret in this file is its revocationChallenge."
)
@json_option
@plainly
def cert_revoke(file: Path, serial: bytes, reason: str, challenge_file: Path | None, as_json: bool) -> None:
    """Revoke a certificate: dead at its next request, on connections that are open too."""
    config = load(file)
    row = _row(config, serial)
    if challenge_file is not None:
        with Reader(config.ledger) as reader:
            revocation.prove(reader.revocation_challenge(row.serial), challenge_file.read_bytes())
    with writer(config) as writing:
        writing.revoke(row.serial, int(time.time()), REVOCATION_REASONS[reason])
    row = _row(config, serial)
    shown = _shown(row)
    click.echo(json.dumps(shown) if as_json else f"{shown['serial']} is revoked since {shown['revoked']}")


@main.group("ledger")
def ledger_group() -> None:
    """The ledger itself: what was issued and revoked."""


@ledger_group.command("create")
@config_option
@plainly
def ledger_create(file: Path) -> None:
    """Make an empty ledger where the instance's is lost and no copy is left."""
    config = load(file)
    owner.check(config)
    ledger.create(config.ledger)
    click.echo(f"Made {config.ledger}, an empty ledger: it knows nothing of what was issued or revoked before.")


main.add_command(crl_group)
main.add_command(cli_requests.requests_group)
main.add_command(renewal_info_command)
main.add_command(reload_command)
main.add_command(ca_group)
main.add_command(cli_device.device_group)


if __name__ == "__main__":
    main()
