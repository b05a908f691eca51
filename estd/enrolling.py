"""What `estd enroll` does: make a key and a request, ask, write the files."""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from OpenSSL import SSL

from estd import asked, challenges, csr, device_keys, durable, names, revocation
from estd.client import Access, EstClient, pem_of
from estd.errors import ClientError, EstError, Refused

T = TypeVar("T")
_ASK_AGAIN_SECONDS = 60
_TLS = {None: None, "1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command's options, named as there."""

    url: str
    cacert: Path | None
    label: str | None
    cert: Path | None
    key: Path | None
    credential: Path | None
    subject: str
    dns: tuple[str, ...]
    ip: tuple[str, ...]
    uri: tuple[str, ...]
    key_type: str
    renew: bool
    same_key: bool
    link: bool
    tls: str | None
    wait: int
    """Seconds."""
    cacerts_only: bool
    serverkeygen: bool
    out: str
    revocation_challenge: Path | None = None


def make_csr(
    key: device_keys.Key,
    subject: x509.Name,
    san: x509.SubjectAlternativeName | None,
    challenge_password: bytes | None,
    more: Sequence[tuple[str, bytes]] = (),
    extensions: Sequence[asked.Extension] = (),
) -> bytes:
    """A PKCS#10 request, DER; `more` are OIDs of attributes with their strings, UTF-8, `extensions` what csrattrs asks
    for."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if san is not None:
        builder = builder.add_extension(san, critical=not subject.rdns)
    for one in extensions:
        oid = x509.ObjectIdentifier(one.oid)
        if oid != x509.SubjectAlternativeName.oid:  # whose names are for whoever asks to say
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, one.value), one.critical)
    if challenge_password is not None:
        builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, challenge_password)
    for attribute, value in more:
        builder = builder.add_attribute(x509.ObjectIdentifier(attribute), value)
    return builder.sign(key, device_keys.fitting_hash(key)).public_bytes(Encoding.DER)


def enroll(options: Options) -> dict[str, Any]:
    """Enroll as the options say; returns what was written and got. Raises ClientError, OSError or ValueError."""
    out, out_key, request_key = (Path(f"{options.out}.{end}") for end in ("pem", "key", "request.key"))
    _finish_writing(out_key, out)
    _forget(request_key, out_key)
    if options.serverkeygen and options.renew:
        raise ClientError("--serverkeygen asks for a new key and certificate; it renews nothing: leave --renew out")
    user, password = None, None
    if options.credential is not None:
        user, _, password = options.credential.read_text(encoding="utf-8").strip().partition(":")
    anchors = x509.load_pem_x509_certificates(options.cacert.read_bytes()) if options.cacert else []
    access = Access(
        url=options.url, label=options.label, anchors=anchors, certificate=options.cert, key=options.key, user=user,
        password=password, tls=_TLS[options.tls],
    )  # fmt: skip
    with EstClient(access) as client:
        ca = client.cacerts()
        durable.write(Path(f"{options.out}.ca.pem"), pem_of(ca), mode=0o644)
        subjects = [names.shown(one.subject) for one in ca]
        done: dict[str, Any] = {"ca": f"{options.out}.ca.pem", "ca_subjects": subjects}
        if options.cacerts_only:
            return done
        key, subject, san = _wanted(options, request_key)
        told = _told(client)
        done["linked"] = options.link or told.linked
        more = []
        if options.revocation_challenge is not None:
            challenge = revocation.in_file(options.revocation_challenge.read_bytes())
            more.append((challenges.REVOCATION.oid, challenge))

        def request(binding: bytes | None) -> bytes:
            if binding is not None and told.identity_linking:  # unambiguous, so a challengePassword is left out
                linking = (challenges.IDENTITY_LINKING.oid, binding)
                return make_csr(key, subject, san, None, [linking, *more], told.extensions)
            return make_csr(key, subject, san, binding, more, told.extensions)

        link: bool = done["linked"]
        same_key = options.renew and options.same_key

        def ask(client: EstClient) -> tuple[PrivateKeyTypes, x509.Certificate]:
            if options.serverkeygen:
                return client.serverkeygen(request, link=link)
            return key, client.enroll(request, renew=options.renew, link=link)

        if not same_key:  # the server knows a request by its key, which the next command has: also if we end here
            durable.write(request_key, _pem_of_key(key))
        try:
            certified, certificate = _ask(client, access, ask, options.wait)
        except Refused as refusal:
            if refusal.status != 202:
                raise
            raise ClientError(f"{refusal} Run the same command again for that, or with --wait 10m") from None
    files = [(out, pem_of([certificate]), 0o644)]
    if not same_key:
        files.insert(0, (out_key, _pem_of_key(certified), 0o600))
        done["key"] = str(out_key)
    durable.write_all(files)
    request_key.unlink(missing_ok=True)
    return {
        **done,
        "certificate": str(out),
        "serial": _hex(certificate.serial_number),
        "subject": names.shown(certificate.subject),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def _ask(client: EstClient, access: Access, ask: Callable[[EstClient], T], wait_seconds: int) -> T:
    """What `ask` gets, asked for so long where a person must approve it first: with the same key and names each time,
    on a connection and in a request of its own (RFC 7030 §4.2.3)."""
    until = time.monotonic() + wait_seconds
    try:
        return ask(client)
    except Refused as refusal:
        waits = refusal
    while True:
        told = waits.retry_after or ""
        pause = int(told) if told.isdecimal() else _ASK_AGAIN_SECONDS
        if waits.status != 202 or time.monotonic() + pause > until:
            raise waits
        print(f"estd: {waits.sentence} Asking again in {pause} s.", file=sys.stderr, flush=True)
        time.sleep(pause)
        try:
            with EstClient(access) as again:
                return ask(again)
        except Refused as refusal:
            waits = refusal


def _told(client: EstClient) -> asked.Asked:
    """What the server's csrattrs asks for. A server that does not tell may still refuse the request."""
    try:
        return client.csrattrs()
    except Refused:
        return asked.NOTHING


def _wanted(
    options: Options, request_key: Path
) -> tuple[device_keys.Key, x509.Name, x509.SubjectAlternativeName | None]:
    """Key and names to ask for; a renewal asks for those of its certificate again."""
    if not options.renew:
        wanted: list[x509.GeneralName] = [x509.DNSName(one) for one in options.dns]
        wanted += [x509.IPAddress(ipaddress.ip_address(one)) for one in options.ip]
        wanted += [x509.UniformResourceIdentifier(one) for one in options.uri]
        san = x509.SubjectAlternativeName(wanted) if wanted else None
        return _new_key(options.key_type, request_key), names.read(options.subject), san
    if options.cert is None:
        raise ClientError("--renew needs the certificate to renew: --cert")
    current = x509.load_pem_x509_certificate(options.cert.read_bytes())
    key: Any
    if options.same_key:
        key = load_pem_private_key((options.key or options.cert).read_bytes(), None)
    else:
        key = _new_key(options.key_type, request_key)
    try:
        san = current.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        san = None
    return key, current.subject, san


def _hex(serial: int) -> str:
    """In whole octets, as `estd cert list` shows it."""
    return serial.to_bytes((serial.bit_length() + 7) // 8, "big").hex()


def _new_key(kind: str, request_key: Path) -> Any:
    """A new key, or that of a request which has no certificate yet, where it is of this kind. Raises ClientError where
    that cannot be read or asked with: it is not ours to throw away."""
    try:
        kept = load_pem_private_key(request_key.read_bytes(), None)
        if csr.key_kind(kept.public_key()) == kind:
            return kept
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, UnsupportedAlgorithm, EstError) as error:
        raise ClientError(
            f"{request_key} holds no key that can be asked with ({error}); remove it, and a new one is made"
        ) from None
    return device_keys.generate(kind)


def _finish_writing(key: Path, certificate: Path) -> None:
    """The key is renamed before the certificate, which is whole beside it then. A crash between the two left the new
    key with the old certificate: by the next command the one that fits takes its place."""
    try:
        left = x509.load_pem_x509_certificate(durable.beside(certificate).read_bytes())
        fits = load_pem_private_key(key.read_bytes(), None).public_key() == left.public_key()
    except (OSError, ValueError):
        return  # none was left, or a crash before the first rename left a part of it
    if fits:
        durable.take_place(certificate)


def _forget(request_key: Path, key: Path) -> None:
    """A crash before the request's key was removed leaves one that is a device's by then: the next one is new."""
    with suppress(OSError):
        if request_key.read_bytes() == key.read_bytes():
            request_key.unlink()


def _pem_of_key(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
