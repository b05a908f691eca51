"""What an instance's token holds, looked at and spoiled from a process of its own: SoftHSM reads its configuration once
in each.

As a program: FOLDER, or FOLDER KIND CKA_ID to destroy an object. It prints the CKA_IDs of each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from pkcs11 import Attribute, ObjectClass

from estd import instance
from hsm.token import Token
from tests.servers import Server

Kind = Literal["PRIVATE_KEY", "PUBLIC_KEY"]
KINDS: tuple[Kind, ...] = ("PRIVATE_KEY", "PUBLIC_KEY")


def held(server: Server, *destroyed: str) -> dict[Kind, list[str]]:
    """The CKA_IDs of the private and of the public keys, in hexadecimal."""
    command = [sys.executable, "-m", "tests.tokens", str(server.folder), *destroyed]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    found: dict[Kind, list[str]] = json.loads(done.stdout)
    return found


def destroy(server: Server, key_id: str, *kinds: Kind) -> None:
    """What the HSM's officer, or an interruption, leaves out."""
    for kind in kinds or KINDS:
        held(server, kind, key_id)


def main(folder: Path, *destroyed: str) -> None:
    os.environ["SOFTHSM2_CONF"] = str(folder.resolve() / "token" / "softhsm2.conf")
    token = Token.open(
        module=instance.softhsm_module(), label="estd", rw=True, pin=(folder / "token" / "pin").read_text().strip()
    )
    session = token.session(rw=True)
    if destroyed:
        kind, key_id = destroyed
        for one in list(session.get_objects({Attribute.CLASS: ObjectClass[kind], Attribute.ID: bytes.fromhex(key_id)})):
            one.destroy()
    found = {
        kind: sorted(
            bytes(one[Attribute.ID]).hex() for one in session.get_objects({Attribute.CLASS: ObjectClass[kind]})
        )
        for kind in KINDS
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
