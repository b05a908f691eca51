"""`estd device`: the registry of devices. Changes go to the ledger's one writer, whether the server runs or not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from estd import importing
from estd.command import READABLE, config_option, json_option, limit_option, plainly, utc, writer
from estd.config import Config, load
from estd.device_file import COLUMNS, DeviceFile
from estd.devices import Device, DeviceKey
from estd.ledger import LedgerError, Reader
from estd.toml_table import duration

_PROBLEMS_SHOWN = 100
_FAR_SECONDS = duration("2y")


def _valid_for(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    try:
        seconds = duration(value)
    except ValueError:
        seconds = 0
    if not 60 <= seconds <= _FAR_SECONDS:
        raise click.BadParameter('a duration from "1m" to "2y", such as "7d"')
    return seconds


_label = click.option("--label", default="", help="The label that the device may use; the default label without.")
_manufacturer = click.option("--manufacturer", default="", help="Whose serial number it is.")
_expires = click.option(
    "--valid-for", callback=_valid_for, default="7d", show_default=True, help="How long a secret may wait for its use."
)


@click.group("device")
def device_group() -> None:
    """The registry: which device may have what (docs/devices.md)."""


@contextmanager
def _bar(what: str, total: int | None, *, quiet: bool) -> Iterator[Any]:
    """A progress bar on standard error."""
    with click.progressbar(
        length=total or 0, label=what, file=sys.stderr, hidden=quiet or not sys.stderr.isatty(), update_min_steps=1000
    ) as bar:
        yield bar


def _file(config: Config, path: Path, label: str) -> DeviceFile:
    return DeviceFile(
        path, label=label or config.server.default_label, labels=config.labels, profiles=config.profiles,
        added_at=int(time.time()),
    )  # fmt: skip


def _devices(path: Path) -> int:
    """Lines after the first."""
    with path.open("rb") as file:
        return max(0, sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b"")) - 1)


@device_group.command("import")
@config_option
@click.argument("csv_file", type=READABLE, metavar="FILE.csv")
@click.option("--label", default="", help="The label of lines that name none; the default label without.")
@click.option("--skip-bad", is_flag=True, help="Import the good lines, though others are bad.")
@click.option(
    "--secrets-out", type=click.Path(path_type=Path, dir_okay=False),
    help="Make a one-time secret for each device, shown in this new file alone (mode 0600).",
)  # fmt: skip
@_expires
@json_option
@plainly
def device_import(
    file: Path, csv_file: Path, label: str, skip_bad: bool, secrets_out: Path | None, valid_for: int, as_json: bool
) -> None:
    """Add the devices of a CSV: all of them, or none where a line is bad.

    The first line names the columns: serial_number, and any of manufacturer, label, profile, subject, dns, ip, uri,
    state. Names of one kind stand apart by spaces; the state is enabled or disabled.
    """
    config = load(file)
    lines = _file(config, csv_file, label)
    with writer(config) as registry, importing.one_at_a_time(config.ledger):
        with _bar("reading", _devices(csv_file), quiet=as_json) as bar:
            found = importing.read(lines, registry, problems_max=_PROBLEMS_SHOWN, step=bar.update)
        for problem in found.problems:
            click.echo(f"{csv_file}: {problem}", err=True)
        if found.bad > len(found.problems):
            click.echo(f"{csv_file}: and {found.bad - len(found.problems)} lines more", err=True)
        refused = found.bad > 0 and not skip_bad
        added = 0
        if not refused:
            with _bar("writing", len(found.good), quiet=as_json) as bar:
                added = importing.write(
                    lines.at(found.good), registry, at=int(time.time()), secrets_out=secrets_out,
                    secret_until=int(time.time()) + valid_for, step=bar.update,
                )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"added": added, "bad": found.bad, "problems": found.problems}))
    elif refused:
        click.echo(f"{found.bad} lines are bad, so nothing was imported (--skip-bad imports the rest)", err=True)
    else:
        click.echo(
            f"{added} devices are in the registry" + (f"; their secrets in {secrets_out}" if secrets_out else "")
        )
    sys.exit(1 if refused else 0)


@device_group.command("add")
@config_option
@click.argument("serial_number")
@_label
@_manufacturer
@click.option("--profile", default="", help="Its profile; the rule's without.")
@click.option("--subject", default="", help="A common name, or a subject such as CN=device-1,O=Acme.")
@click.option("--dns", multiple=True, help="A dNSName for it; may be repeated.")
@click.option("--ip", multiple=True, help="An iPAddress for it.")
@click.option("--uri", multiple=True, help="A URI for it.")
@click.option("--disabled", is_flag=True, help="Not to be let in yet.")
@json_option
@plainly
def device_add(
    file: Path, serial_number: str, label: str, manufacturer: str, profile: str, subject: str, dns: tuple[str, ...],
    ip: tuple[str, ...], uri: tuple[str, ...], disabled: bool, as_json: bool,
) -> None:  # fmt: skip
    """Add one device."""
    config = load(file)
    values = (
        serial_number, manufacturer, label, profile, subject, " ".join(dns), " ".join(ip), " ".join(uri),
        "disabled" if disabled else "enabled",
    )  # fmt: skip
    device = _file(config, file, label).device(dict(zip(COLUMNS, values, strict=True)))
    with writer(config) as registry, importing.one_at_a_time(config.ledger):
        if registry.find_devices([device.key]):
            raise LedgerError(f"the device {serial_number!r} is in the registry already; estd device show shows it")
        importing.write(
            [device], registry, at=int(time.time()), secrets_out=None, secret_until=0, step=lambda _: None
        )  # fmt: skip
    _tell(_found(config, device.key), as_json)


@device_group.command("secret")
@config_option
@click.argument("serial_number")
@_label
@_manufacturer
@_expires
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="A new file for it, mode 0600.")
@json_option
@plainly
def device_secret(
    file: Path, serial_number: str, label: str, manufacturer: str, valid_for: int, out: Path | None, as_json: bool
) -> None:
    """Make a one-time secret for a device, and show it this once; an older one of it counts no more."""
    config = load(file)
    key = _key(config, serial_number, label, manufacturer)
    secret, sha256 = importing.new_secret()
    until = int(time.time()) + valid_for
    _found(config, key)  # or there is no file
    with importing.new_file(out) as written, writer(config) as registry:
        if written is not None:
            written.write(secret + "\n")
        _change(registry, key, {"change": "secret", "secret": sha256.hex(), "until": until})
    if out is not None:
        click.echo(
            json.dumps({**_shown(_found(config, key)), "file": str(out)}) if as_json else f"the secret is in {out}"
        )
    else:
        click.echo(json.dumps({**_shown(_found(config, key)), "one_time_secret": secret}) if as_json else secret)


@device_group.command("disable")
@config_option
@click.argument("serial_number")
@_label
@_manufacturer
@json_option
@plainly
def device_disable(file: Path, serial_number: str, label: str, manufacturer: str, as_json: bool) -> None:
    """Let a device in no more, from its next request on: neither it nor the certificates that it was given."""
    _state(file, serial_number, label, manufacturer, False, as_json)


@device_group.command("enable")
@config_option
@click.argument("serial_number")
@_label
@_manufacturer
@json_option
@plainly
def device_enable(file: Path, serial_number: str, label: str, manufacturer: str, as_json: bool) -> None:
    """Let a device in again."""
    _state(file, serial_number, label, manufacturer, True, as_json)


@device_group.command("list")
@config_option
@click.option("--label", help="Those of this label.")
@click.option("--manufacturer", help="Those of this manufacturer.")
@click.option("--serial-number", "part", help="Part of the serial number.")
@click.option("--enabled/--disabled", default=None, help="Only those that are.")
@limit_option
@json_option
@plainly
def device_list(file: Path, as_json: bool, **query: Any) -> None:
    """List devices, by label, manufacturer and serial number."""
    with Reader(load(file).ledger) as reader:
        for device in reader.search_devices(**query):
            shown = _shown(device)
            if as_json:
                click.echo(json.dumps(shown))
            else:
                click.echo(
                    f"{device.label:12} {device.manufacturer or '-':16} {device.serial_number:24} {shown['state']:9} "
                    f"secret {shown['secret']}"
                )


@device_group.command("show")
@config_option
@click.argument("serial_number")
@_label
@_manufacturer
@json_option
@plainly
def device_show(file: Path, serial_number: str, label: str, manufacturer: str, as_json: bool) -> None:
    """Show one device, and the certificates that it was given."""
    config = load(file)
    device = _found(config, _key(config, serial_number, label, manufacturer))
    with Reader(config.ledger) as reader:
        given = [row.serial.hex() for row in reader.search(identity=device.key.identity)
                 if row.identity == device.key.identity]  # fmt: skip
    _tell(device, as_json, certificates=given)


def _key(config: Config, serial_number: str, label: str, manufacturer: str) -> DeviceKey:
    return DeviceKey(label or config.server.default_label, manufacturer, serial_number)


def _found(config: Config, key: DeviceKey) -> Device:
    with Reader(config.ledger) as reader:
        found = reader.find_devices([key]).get(key)
    if found is None:
        raise _absent(key)
    return found


def _absent(key: DeviceKey) -> LedgerError:
    whose = f" of {key.manufacturer!r}" if key.manufacturer else " without a manufacturer"
    return LedgerError(
        f"the registry has no device {key.serial_number!r}{whose} in the label {key.label!r}; estd device list shows "
        "those there are"
    )


def _change(registry: importing.Registry, key: DeviceKey, change: dict[str, Any]) -> None:
    if not registry.change_devices({**change, "key": list(key)})["found"]:
        raise _absent(key)


def _state(file: Path, serial_number: str, label: str, manufacturer: str, enabled: bool, as_json: bool) -> None:
    config = load(file)
    key = _key(config, serial_number, label, manufacturer)
    with writer(config) as registry:
        _change(registry, key, {"change": "state", "enabled": int(enabled)})
    _tell(_found(config, key), as_json)


def _secret_state(device: Device) -> str:
    if device.secret is None or device.secret_until is None:
        return "none"
    if device.secret_used_ms is not None:
        return f"used {utc(device.secret_used_ms / 1000)}"
    expired = device.secret_until <= time.time()
    return f"{'expired' if expired else 'until'} {utc(device.secret_until)}"


def _shown(device: Device) -> dict[str, Any]:
    """A device in words; a secret's hash is nobody's business."""
    return {
        "serial_number": device.serial_number,
        "manufacturer": device.manufacturer,
        "label": device.label,
        "profile": device.profile,
        "names": json.loads(device.names) if device.names else {},
        "state": "enabled" if device.enabled else "disabled",
        "secret": _secret_state(device),
        "added": utc(device.added_at),
    }


def _tell(device: Device, as_json: bool, **more: Any) -> None:
    shown = {**_shown(device), **more}
    if as_json:
        click.echo(json.dumps(shown))
        return
    for name, value in shown.items():
        if value:
            click.echo(f"{name:14} {json.dumps(value) if isinstance(value, dict | list) else value}")
