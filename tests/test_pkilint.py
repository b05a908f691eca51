"""pkilint (DigiCert's linter for RFC 5280) on every certificate that the session's server issued, its own and its CA's.

The tests here run last (conftest sorts them so), when the ledger holds what all the others asked for.
"""

from __future__ import annotations

import ipaddress
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from pkilint import loader, validation
from pkilint.bin import lint_pkix_signer_signee_cert_chain as chain
from pkilint.pkix import certificate, extension, name
from pkilint.validation import ValidationFindingSeverity

from estd.client import Refused
from tests import make, servers
from tests.servers import Server

_ONE_LABEL = re.compile(r'Invalid domain name syntax: "(?!\d+")[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"')
"""pkilint calls a name without a dot, such as localhost, invalid. RFC 1034 §3.5, to which RFC 5280 §4.2.1.6 refers for
a dNSName's syntax, lets a domain be one label (not of digits alone: RFC 1123 §2.1); R15 wants localhost."""
_PCHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_NOT_WEB = re.compile(
    r'Invalid URI syntax: "(?!(?:ftps?|git|https?|rtsp|sftp|ssh|telnet):)[a-z][a-z0-9+.-]*:'
    r'(?://(?:[a-z0-9-]+\.)+[a-z][a-z0-9-]*(?::\d+)?(?=[/?#"])|(?!//|"))'
    rf'(?:{_PCHAR}|[/])*(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"',
    re.IGNORECASE,
)
"""pkilint judges every URI as one of the web and so calls urn:uuid:… and spiffe://… invalid. RFC 5280 §4.2.1.6 asks for
RFC 3986's syntax and, where there is an authority, a domain name in it."""
_NOT_FAULTS = {"pkix.invalid_domain_name_syntax": _ONE_LABEL, "pkix.invalid_uri_syntax": _NOT_WEB}


@cache
def _linter() -> validation.ValidatorContainer:
    """As pkilint's own lint_pkix_cert builds it."""
    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


@cache
def _pair_linters() -> tuple[validation.ValidatorContainer, ...]:
    """As pkilint's own lint_pkix_signer_signee_cert_chain builds them: decoder, issuer's, subject's."""
    return (
        chain.create_decoder_validation_container(),
        chain.create_issuer_validation_container(),
        chain.create_subject_validation_container(),
    )


def _wrong(results: list[validation.ValidationResult]) -> list[str]:
    """What is a warning or worse, with the place in the certificate."""
    return [
        f"{result.node.path}: {found.finding.severity} {found.finding.code}: {found.message}"
        for result in results
        for found in result.finding_descriptions
        if found.finding.severity <= ValidationFindingSeverity.WARNING
        and not ((excuse := _NOT_FAULTS.get(found.finding.code)) is not None and excuse.fullmatch(found.message or ""))
    ]


def _lint(certificate_der: bytes) -> list[str]:
    """What is wrong with the certificate by itself."""
    document = loader.RFC5280CertificateDocumentLoader().load_der_document(certificate_der)
    return _wrong(_linter().validate(document.root))


def _lint_pair(issuer_der: bytes, certificate_der: bytes) -> list[str]:
    """What is wrong between a certificate and its issuer's: names, key identifiers, signature."""
    documents: dict[str, Any] = {}
    load = loader.RFC5280CertificateDocumentLoader().load_der_document
    documents["issuer"] = load(issuer_der, "issuer", "issuer", documents)
    documents["subject"] = load(certificate_der, "subject", "subject", documents)
    decoder, issuer, subject = _pair_linters()
    return _wrong(
        decoder.validate(documents["issuer"].root)
        + decoder.validate(documents["subject"].root)
        + issuer.validate(documents["issuer"].root)
        + subject.validate(documents["subject"].root)
    )


def _of_file(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


_HOSTS = [x509.DNSName("device-1.devices.example.com"), x509.DNSName("xn--bcher-kva.example")]
_ADDRESSES = [x509.IPAddress(ipaddress.ip_address(one)) for one in ("10.1.2.3", "2001:db8::1")]
_URIS = [
    x509.UniformResourceIdentifier(one)
    for one in (
        "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "https://device-1.example.com:8443/path?a=b#c",
        "spiffe://example.org/ns/device",
    )
]  # fmt: skip

_UNUSUAL: dict[str, Any] = {
    "RSA-2048": lambda: make.csr(rsa.generate_private_key(65537, 2048)),
    "RSA-4096": lambda: make.csr(rsa.generate_private_key(65537, 4096)),
    "P-384": lambda: make.csr(ec.generate_private_key(ec.SECP384R1())),
    "P-521": lambda: make.csr(ec.generate_private_key(ec.SECP521R1())),
    "Ed25519": lambda: make.csr(ed25519.Ed25519PrivateKey.generate()),
    "DNS names": lambda: make.csr(san=_HOSTS),
    "addresses": lambda: make.csr(san=_ADDRESSES),
    "URIs": lambda: make.csr(san=_URIS),
    "all of them": lambda: make.csr(san=[*_URIS, *_ADDRESSES, *_HOSTS]),
    "no subject": lambda: make.csr(subject=x509.Name([]), san=_HOSTS),
    "a subject of many parts": lambda: make.csr(
        subject=make.name(
            "Gerät 1",
            COUNTRY_NAME="DE",
            ORGANIZATION_NAME="Łódź & Söhne",
            ORGANIZATIONAL_UNIT_NAME="β",
            SERIAL_NUMBER="A-1",
        )
    ),
    "the longest common name": lambda: make.csr(subject=make.name("x" * 64)),
}


@pytest.mark.parametrize("made", _UNUSUAL.values(), ids=_UNUSUAL)
def test_R50_an_unusual_certificate_is_without_fault(server: Server, made: Any) -> None:
    """R50: whatever key and names the factory may ask for, the certificate is as RFC 5280 has it."""
    with server.client(basic=True) as client:
        issued = client.enroll(lambda _: made()).public_bytes(Encoding.DER)
    assert _lint(issued) == []


def test_R50_certificates_of_other_profiles_are_without_fault(server: Server) -> None:
    """R50: so are those of a device's identity, of a TLS server, of a site, and one that was renewed."""
    host = [x509.DNSName("gate.devices.example.com")]
    with server.client(cert=server.idevid_files) as client:
        issued = [client.enroll(lambda _: make.csr())]
    for label in ("server", "sites"):
        with server.client(basic=True, label=label) as client:
            issued.append(client.enroll(lambda _: make.csr(subject=make.name("device-2"), san=host)))
    assert [fault for one in issued for fault in _lint(one.public_bytes(Encoding.DER))] == []


def test_R50_a_renewed_certificate_is_without_fault(server: Server, folder: Path) -> None:
    """R50: so is one that takes its names over from the certificate that it renews."""
    key = make.key()
    san = [*_HOSTS, *_ADDRESSES, *_URIS]
    with server.client(basic=True) as client:
        first = make.Identity(client.enroll(lambda _: make.csr(key, san=san)), key)
    with server.client(cert=first.write(folder, "first")) as client:
        second = client.enroll(lambda _: make.csr(san=san), renew=True)
    assert _lint(second.public_bytes(Encoding.DER)) == []


@pytest.mark.parametrize("file", ["ca.pem", "server.pem", "demo/manufacturer.pem", "demo/idevid.pem"])
def test_R15_R50_the_certificates_of_an_instance_are_without_fault(server: Server, file: str) -> None:
    """R15, R50: the root, the server's certificate and the demonstration's are as RFC 5280 has it."""
    assert _lint(_of_file(server.folder / file)) == []


@pytest.mark.parametrize("kind", ["ec-p384", "rsa-3072"])
def test_R15_R50_an_instance_on_another_key_is_without_fault(folder: Path, kind: str) -> None:
    """R15, R50: a root on another kind of key, and what it signs, are as RFC 5280 has it."""
    made = servers.init(folder / "instance", "--ca-key", kind, "--host", "est.example.com", "--host", "192.0.2.1")
    root, edge = _of_file(made.folder / "ca.pem"), _of_file(made.folder / "server.pem")
    assert _lint(root) + _lint(edge) + _lint_pair(root, edge) == []


def test_R50_every_certificate_of_the_session_is_without_fault(server: Server) -> None:
    """R50: nothing that the server issued to any test is anything but a certificate as RFC 5280 has it."""
    faults = {row.serial.hex(): (row.subject, found) for row in server.rows() if (found := _lint(row.certificate_der))}
    assert faults == {}


def test_R50_every_certificate_of_the_session_fits_its_issuer(server: Server) -> None:
    """R50: issuer, AuthorityKeyIdentifier and signature are the CA's."""
    ca = server.ca.public_bytes(Encoding.DER)
    faults = {row.serial.hex(): found for row in server.rows() if (found := _lint_pair(ca, row.certificate_der))}
    assert faults == {}


def test_the_linter_sees_faults() -> None:
    """Bad names, and an issuer that is another, are found out: the judge is awake, and what it is excused is narrow."""
    for bad in (
        x509.DNSName("no_such..name"),
        x509.DNSName("123"),
        x509.UniformResourceIdentifier("urn:example:a%zz"),
        x509.UniformResourceIdentifier("spiffe:///device"),
        x509.UniformResourceIdentifier("https://device-1.example.com:abc/"),
    ):
        assert any("invalid" in found for found in _lint(make.certificate(san=[bad]).der)), bad
    assert _lint_pair(make.certificate(ca=True).der, make.certificate().der) != []


_FORBIDDEN: dict[str, x509.GeneralName] = {
    "a broken percent-encoding": x509.UniformResourceIdentifier("urn:example:a%zz"),
    "brackets in a path": x509.UniformResourceIdentifier("https://device-1.example.com/[x]"),
    "two fragments": x509.UniformResourceIdentifier("https://device-1.example.com/#a#b"),
    "a port of letters": x509.UniformResourceIdentifier("https://device-1.example.com:abc/"),
    "two users": x509.UniformResourceIdentifier("https://a@b@device-1.example.com/"),
    "an address as a DNS name": x509.DNSName("192.0.2.1"),
    "a DNS name that ends in digits": x509.DNSName("device.1"),
}


@pytest.mark.parametrize("forbidden", _FORBIDDEN.values(), ids=_FORBIDDEN)
def test_R50_a_name_that_RFC_5280_forbids_is_not_granted(server: Server, forbidden: x509.GeneralName) -> None:
    """R50: a URI outside RFC 3986 §3 and a dNSName whose last label is a number (RFC 1123 §2.1) are refused, even where
    the profile lets the request choose its names."""
    with server.client(basic=True) as client, pytest.raises(Refused) as refused:
        client.enroll(lambda _: make.csr(san=[forbidden]))
    assert refused.value.status == 403
