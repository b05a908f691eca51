"""A CertificationRequest (PKCS#10, RFC 2986), parsed and proved.

`parse` turns DER into a value that the rest may trust: one request without trailing bytes, a key of a kind that estd
knows, a signature by that key (proof of possession, RFC 7030 §4.2.1). What the request asks for is read here; whether
it may have it is policy's. Pure: no clock, no token.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from estd import der
from estd.errors import BadRequest, Reason

_CHALLENGE_PASSWORD_DER = der.oid("1.2.840.113549.1.9.7")
_CURVES = {"secp256r1": "ec-p256", "secp384r1": "ec-p384", "secp521r1": "ec-p521"}
_RSA_SIZES = (2048, 3072, 4096)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_ECDSA = frozenset(
    {SignatureAlgorithmOID.ECDSA_WITH_SHA256, SignatureAlgorithmOID.ECDSA_WITH_SHA384,
     SignatureAlgorithmOID.ECDSA_WITH_SHA512}
)  # fmt: skip
_SPKI_BYTES = {"ec-p256": 91, "ec-p384": 120, "ec-p521": 158}
"""SubjectPublicKeyInfo with a named curve and an uncompressed point; any other length is some other encoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificationRequest:
    """A request whose signature is good. Names are as asked for, not as granted."""

    csr_der: bytes
    spki_der: bytes
    key_kind: str
    """One of config.KEY_KINDS."""
    key_bits: bytes
    """The content of subjectPublicKey without its unused-bits octet, over which RFC 5280's key identifier runs."""
    subject: x509.Name
    extensions: x509.Extensions
    challenge_password: bytes | None

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.csr_der).digest()


def has_challenge_password(csr_der: bytes) -> bool:
    """Whether the bytes may hold a challengePassword: cheap enough for the edge, which does not parse."""
    return _CHALLENGE_PASSWORD_DER in csr_der


def _subject_public_key_info(tbs: bytes) -> bytes:
    """The SubjectPublicKeyInfo inside a CertificationRequestInfo, byte for byte as it came."""
    version = der.content_start(tbs, 0)
    subject = der.element_end(tbs, version)
    spki = der.element_end(tbs, subject)
    return tbs[spki : der.element_end(tbs, spki)]


def _key_bits(spki_der: bytes) -> bytes:
    algorithm = der.content_start(spki_der, 0)
    bits = der.element_end(spki_der, algorithm)
    return spki_der[der.content_start(spki_der, bits) + 1 :]


def key_kind(public_key: object) -> str:
    """The key's kind (config.KEY_KINDS). A 400 where estd certifies no such key."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        kind = _CURVES.get(public_key.curve.name)
        if kind is None:
            raise BadRequest(Reason.WEAK_KEY, f"The curve {public_key.curve.name} is not one of P-256, P-384, P-521.")
        return kind
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(public_key, rsa.RSAPublicKey):
        if public_key.key_size not in _RSA_SIZES:
            raise BadRequest(
                Reason.WEAK_KEY, f"An RSA key of {public_key.key_size} bits is not one of 2048, 3072, 4096."
            )
        exponent = public_key.public_numbers().e
        if exponent != 65537:
            raise BadRequest(Reason.WEAK_KEY, "The RSA key's public exponent is not 65537.")
        return f"rsa-{public_key.key_size}"
    raise BadRequest(Reason.BAD_KEY, "The request's key is none of EC P-256, P-384, P-521, Ed25519 and RSA.")


def parse(csr_der: bytes) -> CertificationRequest:
    """The request in `csr_der`. A 400 where it is not DER, its key is weak or unknown, or its signature is bad."""
    try:
        request = x509.load_der_x509_csr(csr_der)
    except ValueError:
        raise BadRequest(Reason.NOT_DER, "The body's base64 is not the DER of one PKCS#10 request.") from None
    spki_der = _subject_public_key_info(request.tbs_certrequest_bytes)
    try:
        public_key = request.public_key()
    except UnsupportedAlgorithm:
        raise BadRequest(Reason.BAD_KEY, "The request's key is of a kind or curve that estd does not know.") from None
    except ValueError:
        raise BadRequest(Reason.BAD_KEY, "The request's public key is malformed.") from None
    kind = key_kind(public_key)
    if _SPKI_BYTES.get(kind, len(spki_der)) != len(spki_der):
        raise BadRequest(Reason.BAD_KEY, "An EC key must name its curve and give its point uncompressed.")
    _prove_possession(request, public_key)
    try:
        subject = request.subject
        extensions = request.extensions
    except ValueError as error:
        raise BadRequest(Reason.BAD_CSR, f"The request's subject or extensions cannot be read: {error}.") from None
    return CertificationRequest(
        csr_der=csr_der,
        spki_der=spki_der,
        key_kind=kind,
        key_bits=_key_bits(spki_der),
        subject=subject,
        extensions=extensions,
        challenge_password=_challenge_password(request) if has_challenge_password(csr_der) else None,
    )


def _prove_possession(request: x509.CertificateSigningRequest, public_key: object) -> None:
    """A 400 unless the request is signed by its own key, with a hash that is not weak."""
    try:
        algorithm = None if isinstance(public_key, ed25519.Ed25519PublicKey) else request.signature_hash_algorithm
        if algorithm is not None and not isinstance(algorithm, _HASHES):
            raise BadRequest(Reason.BAD_SIGNATURE, "The request is not signed with SHA-256, SHA-384 or SHA-512.")
        if isinstance(public_key, ec.EllipticCurvePublicKey) and algorithm is not None:
            # What is_signature_valid does, without building the key a second time.
            if request.signature_algorithm_oid not in _ECDSA:
                raise InvalidSignature
            public_key.verify(request.signature, request.tbs_certrequest_bytes, ec.ECDSA(algorithm))
            return
        valid = request.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        valid = False
    if not valid:
        raise BadRequest(
            Reason.BAD_SIGNATURE, "The request's signature does not fit its key: possession of the key is not proved."
        )


def _challenge_password(request: x509.CertificateSigningRequest) -> bytes | None:
    """The challengePassword (RFC 2985 §5.4.1, a DirectoryString). A 400 where there are several or it is no string."""
    try:
        found = [one for one in request.attributes if one.oid == x509.oid.AttributeOID.CHALLENGE_PASSWORD]
    except ValueError:
        raise BadRequest(Reason.BAD_CSR, "The request's attributes cannot be read.") from None
    if not found:
        return None
    if len(found) > 1:
        raise BadRequest(Reason.BAD_CSR, "The request has more than one challengePassword.")
    return bytes(found[0].value)


def key_hash(csr_der: bytes) -> int:
    """A number that is equal for requests with the same key; 0 for what is no request. Nothing is verified."""
    try:
        return zlib.crc32(_subject_public_key_info(csr_der[der.content_start(csr_der, 0) :]))
    except IndexError:
        return 0
