"""Who asks: a client certificate's path to a rule's trust anchors (RFC 5280 §6), with each refusal in its own sentence.

TLS proved that the client holds the key; here it is decided whether the certificate says anything to this label. The
anchors of a rule are its own: neither the system's store nor another rule's count (RFC 7030 §3.3.3, R11).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from estd import der, names
from estd.attributes import UNREADABLE
from estd.errors import EstError, Reason, Unauthenticated

_SHA256 = hashes.SHA256()
_KNOWN_MAX = 1024
_IN_VAIN_MAX = 256
_INTERMEDIATES_MAX = 4
"""Of a client's, anchors not counted: to seek a path in vain then takes some two dozen signature checks."""
_NO_PATH_SECONDS = 10.0
"""For so long the same certificates are not looked at again; one of them may become valid meanwhile."""
_ANY_USE = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """A certificate whose key the client holds, read once per connection."""

    der: bytes
    certificate: x509.Certificate
    names: names.Names
    spki_der: bytes
    serial: bytes
    not_before: int
    not_after: int
    shown: str
    """The subject as text, for logs and the ledger."""
    fault: Unauthenticated | None
    """Why no client may use it, whatever the time and the anchors: it is a CA, or for servers only."""

    @classmethod
    def parse(cls, certificate_der: bytes) -> ClientCertificate:
        """Raises a 401 where it cannot be read: OpenSSL takes more than RFC 5280 allows."""
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
            found = names.of_extensions(certificate.subject, certificate.extensions)
            spki_der = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            fault = _fault(certificate)
        except (*UNREADABLE, EstError):
            raise Unauthenticated(
                Reason.CERT_UNKNOWN, "The client certificate cannot be read: it is not as RFC 5280 has it."
            ) from None
        serial = certificate.serial_number
        return cls(
            der=certificate_der,
            certificate=certificate,
            names=found,
            spki_der=spki_der,
            serial=serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big") if serial >= 0 else b"",
            not_before=int(certificate.not_valid_before_utc.timestamp()),
            not_after=int(certificate.not_valid_after_utc.timestamp()),
            shown=names.shown(certificate.subject) or f"serial {serial:x}",
            fault=fault,
        )

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.der).digest()

    def check_time(self, now: float, *, expired_seconds: int = 0) -> None:
        """A 401 outside the validity, whose first and last second count; it ends `expired_seconds` later here."""
        if now < self.not_before:
            raise Unauthenticated(
                Reason.CERT_EXPIRED, f"The client certificate is not valid before {_shown_time(self.not_before)}."
            )
        if now >= self.not_after + 1 + expired_seconds:
            renewable = f" and renewed until {_shown_time(self.not_after + expired_seconds)}" if expired_seconds else ""
            raise Unauthenticated(
                Reason.CERT_EXPIRED, f"The client certificate expired at {_shown_time(self.not_after)}{renewable}."
            )


def _shown_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _fault(certificate: x509.Certificate) -> Unauthenticated | None:
    extensions = certificate.extensions
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            return _not_client("is a CA's, not a client's")
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            return _not_client("is not for digital signatures (keyUsage), which TLS client authentication needs")
        if isinstance(value, x509.ExtendedKeyUsage) and not any(use in value for use in _ANY_USE):
            return _not_client("is not for client authentication (extendedKeyUsage)")
    return None


def _not_client(what: str) -> Unauthenticated:
    return Unauthenticated(Reason.CERT_NOT_CLIENT, f"The client certificate {what}.")


def _signs_certificates(
    _policy: verification.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a CA's keyUsage is without keyCertSign")


def _vouches_for_clients(
    _policy: verification.Policy, _certificate: x509.Certificate, uses: x509.ExtendedKeyUsage | None
) -> None:
    if uses is not None and not any(use in uses for use in _ANY_USE):
        raise ValueError("a CA's extendedKeyUsage is without clientAuth")


# The verifier's own policy is the Web's, which refuses what plain `openssl req -x509` makes. RFC 5280 §6.1.4 (k) to (n)
# wants basicConstraints, critical or not, with cA and its pathLenConstraint, which the verifier judges by itself, as it
# does name constraints; and keyCertSign where there is a keyUsage. It wants no key identifiers. That the
# extendedKeyUsage of a CA must name clients is OpenSSL's rule.
_EITHER, _NEVER = verification.Criticality.AGNOSTIC, verification.Criticality.NON_CRITICAL
_CA_POLICY = (
    verification.ExtensionPolicy.webpki_defaults_ca()
    .require_present(x509.BasicConstraints, _EITHER, None)
    .may_be_present(x509.KeyUsage, _EITHER, _signs_certificates)
    .may_be_present(x509.ExtendedKeyUsage, _EITHER, _vouches_for_clients)
    .may_be_present(x509.SubjectKeyIdentifier, _NEVER, None)
    .may_be_present(x509.AuthorityKeyIdentifier, _NEVER, None)
)
_WRONG_SIGNATURE = "signature does not match"


def _why(error: verification.VerificationError) -> str:
    """What the verifier found last, in a line for the log."""
    return " ".join(str(error).rpartition("candidates exhausted: ")[2].split())[:200]


class _Path(NamedTuple):
    path: tuple[x509.Certificate, ...]
    since: float
    until: float
    """The seconds between which every certificate on the path, the anchor too, is valid."""


class _NoPath(NamedTuple):
    why: str
    until: float


def _unknown(why: str) -> Unauthenticated:
    return Unauthenticated(
        Reason.CERT_UNKNOWN, "The client certificate has no path to a trust anchor of this label.", why=why
    )


def _signer(certificate: x509.Certificate) -> tuple[bytes, bytes] | None:
    """Subject and key; None where the key is none that could have signed."""
    try:
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return certificate.subject.public_bytes(), key
    except UNREADABLE:
        return None


@lru_cache(maxsize=1024)
def client_chain(chain: bytes) -> tuple[ClientCertificate, tuple[x509.Certificate, ...]]:
    """The client's certificate and its intermediates, out of DER after DER; kept, as devices keep connections."""
    ends = [0]
    while ends[-1] < len(chain):
        ends.append(der.element_end(chain, ends[-1]))
    parts = [chain[start:end] for start, end in pairwise(ends)]
    intermediates: list[x509.Certificate] = []
    for part in parts[1:]:
        try:
            intermediates.append(x509.load_der_x509_certificate(part))
        except UNREADABLE:
            continue  # an intermediate that cannot be read can be on no path
    return ClientCertificate.parse(parts[0]), tuple(intermediates)


class Anchors:
    """The trust anchors of one rule."""

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        self.certificates = tuple(certificates)
        self._ders = {certificate.public_bytes(Encoding.DER) for certificate in certificates}
        # A factory's identity often has no subjectAltName, which the default policy demands: so everything is permitted
        # in the end entity, and what a client must be (not a CA, for clients) is checked by `_fault`.
        self._builder = (
            verification.PolicyBuilder()
            .store(verification.Store(list(certificates)))
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=verification.ExtensionPolicy.permit_all())
        )
        self._known: OrderedDict[tuple[bytes, tuple[bytes, ...]], _Path] = OrderedDict()
        self._in_vain: OrderedDict[tuple[bytes, tuple[bytes, ...]], _NoPath] = OrderedDict()
        """Apart, so that no stranger pushes a device's path out."""

    def path(
        self, client: ClientCertificate, intermediates: Sequence[x509.Certificate], now: float
    ) -> tuple[x509.Certificate, ...]:
        """The path from the client's certificate up to below the anchor. Raises a 401 where there is none.

        An expired certificate is judged at its last second, so that it is called expired, not unknown, by whoever
        checks the time after this. A path found is remembered for as long as all its certificates are valid: devices
        keep their connections and come back.

        A stranger's certificates may sign each other in any way. So that no search for their path grows beyond a few
        steps, it takes few of them, and is no longer than there are subjects with keys of their own among these.
        """
        if client.der in self._ders:
            raise Unauthenticated(Reason.CERT_UNKNOWN, "The client certificate is itself a trust anchor.")
        when = min(max(now, client.not_before), client.not_after)
        key = (client.der, tuple(one.fingerprint(_SHA256) for one in intermediates))
        known = self._known.get(key)
        if known is not None and known.since <= when <= known.until:
            return known.path
        in_vain = self._in_vain.get(key)
        if in_vain is not None and now < in_vain.until:
            raise _unknown(in_vain.why)
        try:
            found = self._known[key] = self._search(client, intermediates, when)
        except verification.VerificationError as error:
            self._in_vain[key] = _NoPath(_why(error), now + _NO_PATH_SECONDS)
            if len(self._in_vain) > _IN_VAIN_MAX:
                self._in_vain.popitem(last=False)
            raise _unknown(_why(error)) from None
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
        return found.path

    def _search(self, client: ClientCertificate, intermediates: Sequence[x509.Certificate], when: float) -> _Path:
        taken: dict[x509.Certificate, tuple[bytes, bytes]] = {}
        for one in intermediates:
            if (
                len(taken) < _INTERMEDIATES_MAX
                and one not in self.certificates
                and (signer := _signer(one)) is not None
            ):
                taken[one] = signer
        depth = len(set(taken.values()))
        builder = self._builder.time(datetime.fromtimestamp(when, UTC)).max_chain_depth(depth)
        chain = builder.build_client_verifier().verify(client.certificate, list(taken)).chain
        return _Path(
            path=tuple(chain[:-1]),
            since=max(one.not_valid_before_utc for one in chain).timestamp(),
            until=min(one.not_valid_after_utc for one in chain).timestamp(),
        )


def anchor_fault(anchor: x509.Certificate, now: float) -> str:
    """Why no certificate can have a path to this anchor; empty where one can. The verifier is asked about a certificate
    in the anchor's name that the anchor did not sign: that must be all it finds."""
    key, moment = ec.generate_private_key(ec.SECP256R1()), datetime.fromtimestamp(now, UTC)
    forged = x509.CertificateBuilder(
        anchor.subject, anchor.subject, key.public_key(), x509.random_serial_number(), moment, moment
    ).sign(key, _SHA256)
    try:
        Anchors([anchor]).path(ClientCertificate.parse(forged.public_bytes(Encoding.DER)), [], now)
    except Unauthenticated as refusal:
        return "" if refusal.why == _WRONG_SIGNATURE else refusal.why
    return ""
