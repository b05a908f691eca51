"""Enrolment by our own client over real TLS."""

from __future__ import annotations

from tests import make
from tests.servers import Server


def test_R2_basic_enrolment_gives_the_names_asked_for(server: Server) -> None:
    """R2: a factory's credential enrols a device under the common name in its request."""
    with server.client(basic=True) as client:
        certificate = client.enroll(lambda _: make.csr(subject=make.name("device-7")))
    certificate.verify_directly_issued_by(server.ca)
    assert certificate.subject == make.name("device-7")
