"""`estd check`: everything that is wrong with a configuration, its files and its token, in one go."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from OpenSSL import SSL

from estd import credential_files, material, owner, tls
from estd.config import Config, parse
from estd.errors import ConfigError, EstError
from estd.identify import anchor_fault
from estd.issuer import open_signer
from estd.ledger import LedgerError, Reader
from hsm.errors import TokenError
from hsm.session import Job


def check(path: Path) -> list[str]:
    """One sentence for each problem; nothing is changed (the run folder is made, for the token's lock, unless this is
    not the server's user)."""
    try:
        config = parse(path.read_text(encoding="utf-8"), path.resolve().parent)
    except ConfigError as error:
        return error.problems
    except (OSError, UnicodeDecodeError) as error:
        return [str(error)]
    found, problems = material.read(config)
    problems += _tls(config)
    problems += credential_files.problems(config)
    problems += _anchors(found)
    problems += _secret_files(config)
    try:
        Reader(config.ledger).close()
    except LedgerError as error:
        problems.append(f"ledger.path: {error}")
    if len(found.cas) == len(config.cas):
        problems += _token(config, found)
    return problems


def _tls(config: Config) -> list[str]:
    server = config.server
    try:
        tls.server_context(server.tls_certificate, server.tls_key)
    except (SSL.Error, OSError) as error:
        return [f"server.tls_certificate, server.tls_key: {error}"]
    return material.tls_problems(config)


def _anchors(found: material.Material) -> list[str]:
    """Anchors that let nobody in, by themselves or for want of a CRL."""
    problems: list[str] = []
    now = datetime.now(UTC).timestamp()
    for policy in found.policies:
        for index, rule in enumerate(policy.rules):
            if rule.crls is None or rule.anchors is None:
                continue
            for anchor in rule.anchors.certificates:
                try:
                    # An anchor's own name stands for what it issues: is there a current CRL of it?
                    rule.crls.check_issuer(anchor.subject, now)
                except EstError as error:
                    problems.append(f"label.{policy.label.name}.allow[{index}].crls: {error.sentence}")
                if why := anchor_fault(anchor, now):
                    problems.append(
                        f"label.{policy.label.name}.allow[{index}].anchors: "
                        f"{anchor.subject.rfc4514_string()!r} can let nobody in: {why}"
                    )
    return problems


def _secret_files(config: Config) -> list[str]:
    """Secrets that others than their owner may read."""
    problems: list[str] = []
    hooks = [
        (f"label.{label.name}.allow[{index}].secret_file", allow.hook.secret_file)
        for label in config.labels.values()
        for index, allow in enumerate(label.allow)
        if allow.hook is not None
    ]
    for name, path in (
        ("token.pin_file", config.token.pin_file), ("server.tls_key", config.server.tls_key), *hooks,
    ):  # fmt: skip
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # said where the file is read
        if mode & 0o077:
            problems.append(f"{name}: {path} can be read by others: chmod 600 {path}")
    return problems


def _token(config: Config, found: material.Material) -> list[str]:
    kept = dict(os.environ)
    problems: list[str] = []
    try:
        owner.run_folder(config)
        pool = open_signer(config, found)
        for name in config.cas:
            (result,) = pool.sign_many([Job(name, b"estd check: not a certificate")])
            if isinstance(result, TokenError):
                problems.append(f"ca.{name}: {result}")
    except ConfigError as error:
        problems += error.problems
    except TokenError as error:
        problems.append(f"token: {error}")
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return problems
