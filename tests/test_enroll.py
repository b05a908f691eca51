"""Enrolment by our own client over real TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from estd import device_keys, enrolling
from tests import make
from tests.servers import Server


def test_R2_basic_enrolment_gives_the_names_asked_for(server: Server) -> None:
    """R2: a factory's credential enrols a device under the common name in its request."""
    with server.client(basic=True) as client:
        certificate = client.enroll(lambda _: make.csr(subject=make.name("device-7")))
    certificate.verify_directly_issued_by(server.ca)
    assert certificate.subject == make.name("device-7")


@pytest.mark.parametrize("mode", [None, 0o644, 0o666])
def test_a_key_is_its_owners_alone(folder: Path, mode: int | None) -> None:
    """`estd enroll` leaves a private key to its owner, whatever the mode of the file that it writes over."""
    path = folder / "device.key"
    if mode is not None:
        path.write_bytes(b"something longer than what follows" * 100)
        path.chmod(mode)
    enrolling._write_key(path, device_keys.generate("ec-p256"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().endswith(b"-----END PRIVATE KEY-----\n")
