"""Whose instance it is. What a command writes as somebody else, root above all, the server could not use afterwards:
its locks, the token's files, the ledger's, the CRLs."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from estd.config import Config
from estd.errors import ConfigError


def check(config: Config) -> None:
    """Before anything is written for the server. Raises ConfigError unless this is the server's user, whose the ledger
    is; where it is lost, the server's own folder, and before there was a server, the configuration's."""
    uid = next(one for one in (config.ledger, config.run, config.folder) if one.exists()).stat().st_uid
    if uid == os.geteuid():
        return
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"#{uid}"
    raise ConfigError(
        [
            f"the instance in {config.folder} is another user's (uid {uid}), whose server could not use what is "
            f"written here; run this as that user: sudo -u '{name}' estd ..."
        ]
    )


def run_folder(config: Config) -> Path:
    """The server's folder of locks and sockets, made where it is not there. Raises ConfigError as `check` does."""
    check(config)
    config.run.mkdir(mode=0o700, exist_ok=True)
    return config.run
