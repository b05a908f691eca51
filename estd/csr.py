"""A CertificationRequest (PKCS#10, RFC 2986): proved in an edge, read in the issuer.

`check` lets through what is one request without trailing bytes, with a key of a kind that estd knows and a signature by
that key (proof of possession, RFC 7030 §4.2.1); `parse` turns the same octets into a value and does not verify again
(docs/decisions/0004-possession.md). What the request asks for is read here; whether it may have it is policy's. Pure:
no clock, no token.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from estd import attributes, challenges, der, name_bounds
from estd.errors import BadRequest, Reason

_PKCS_9 = challenges.PASSWORD.oid_der[2:-1]
"""What the OIDs of both attributes that may link a request begin with, and those of most others."""
_EXTENSION_REQUEST_DER = der.oid(attributes.EXTENSION_REQUEST)
_CURVES = {"secp256r1": "ec-p256", "secp384r1": "ec-p384", "secp521r1": "ec-p521"}
_RSA_SIZES = (2048, 3072, 4096)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_ECDSA = frozenset(
    {SignatureAlgorithmOID.ECDSA_WITH_SHA256, SignatureAlgorithmOID.ECDSA_WITH_SHA384,
     SignatureAlgorithmOID.ECDSA_WITH_SHA512}
)  # fmt: skip
_ALGORITHMS = {
    "ec-p256": der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.2.1") + der.oid("1.2.840.10045.3.1.7")),
    "ec-p384": der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.2.1") + der.oid("1.3.132.0.34")),
    "ec-p521": der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.2.1") + der.oid("1.3.132.0.35")),
    "ed25519": der.tlv(der.SEQUENCE, der.oid("1.3.101.112")),
    "rsa": der.tlv(der.SEQUENCE, der.oid("1.2.840.113549.1.1.1") + der.NULL),
    "ml-dsa-44": der.tlv(der.SEQUENCE, der.oid("2.16.840.1.101.3.4.3.17")),
    "ml-dsa-65": der.tlv(der.SEQUENCE, der.oid("2.16.840.1.101.3.4.3.18")),
    "ml-dsa-87": der.tlv(der.SEQUENCE, der.oid("2.16.840.1.101.3.4.3.19")),
}
"""The AlgorithmIdentifier that a key of each kind must have, for the certificate repeats it: named curves alone (RFC
5480), RSA with its NULL (RFC 3279), ML-DSA without parameters (RFC 9881)."""
_ML_DSA = {
    mldsa.MLDSA44PublicKey: "ml-dsa-44", mldsa.MLDSA65PublicKey: "ml-dsa-65", mldsa.MLDSA87PublicKey: "ml-dsa-87"
}  # fmt: skip
_UNHASHED = (ed25519.Ed25519PublicKey, *_ML_DSA)
"""These sign what is given, without a hash that could be weak."""
_BY_ALGORITHM = {_ALGORITHMS[kind]: kind for kind in (*_CURVES.values(), *_ML_DSA.values())}
"""The kinds that the algorithm alone tells."""
_UNCOMPRESSED = 0x04
_POINT_BYTES = {"ec-p256": 65, "ec-p384": 97, "ec-p521": 133}
_ED25519_PRIME = 2**255 - 19
_ED25519_SMALL_ORDER = frozenset(
    {0, 1, _ED25519_PRIME - 1, 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
     0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7}
)  # fmt: skip
"""The y of the points of order 1, 2, 4 and 8: a signature that fits such a key takes no private key."""
_ML_DSA_BYTES = {"ml-dsa-44": 1312, "ml-dsa-65": 1952, "ml-dsa-87": 2592}


class CertificationRequest(NamedTuple):
    """What a request says. Names are as asked for, not as granted."""

    csr_der: bytes
    spki_der: bytes
    key_kind: str
    """One of labels.KEY_KINDS."""
    key_bits: bytes
    """The content of subjectPublicKey without its unused-bits octet, over which RFC 5280's key identifier runs."""
    subject: x509.Name
    extensions: x509.Extensions
    challenge_password: bytes | None
    """Its characters in UTF-8, as those of the next."""
    identity_linking: bytes | None = None
    """The estIdentityLinking (RFC 7894 §3.3)."""

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.csr_der).digest()


def may_be_linked(csr_der: bytes) -> bool:
    """Whether the bytes may hold a challengePassword or an estIdentityLinking: cheap enough for the edge, which does
    not parse, and one search where there are no attributes."""
    return _PKCS_9 in csr_der and (
        challenges.PASSWORD.may_be_in(csr_der) or challenges.IDENTITY_LINKING.may_be_in(csr_der)
    )


def _subject_public_key_info(tbs: bytes) -> bytes:
    """The SubjectPublicKeyInfo inside a CertificationRequestInfo, byte for byte as it came."""
    version = der.content_start(tbs, 0)
    subject = der.element_end(tbs, version)
    spki = der.element_end(tbs, subject)
    return tbs[spki : der.element_end(tbs, spki)]


def with_key(csr_der: bytes, spki_der: bytes) -> bytes:
    """The CertificationRequestInfo of a request that was loaded, with another SubjectPublicKeyInfo."""
    start = der.content_start(csr_der, 0)
    version = der.content_start(csr_der, start)
    key = der.element_end(csr_der, der.element_end(csr_der, version))
    after = der.element_end(csr_der, key)
    return der.tlv(der.SEQUENCE, csr_der[version:key] + spki_der + csr_der[after : der.element_end(csr_der, start)])


def _checked_key_bits(spki_der: bytes, kind: str) -> bytes:
    """The content of subjectPublicKey. A 400 where the key is encoded otherwise than its certificate may say it."""
    algorithm = der.content_start(spki_der, 0)
    bits = der.element_end(spki_der, algorithm)
    key_bits = spki_der[der.content_start(spki_der, bits) + 1 :]
    if spki_der[algorithm:bits] != _ALGORITHMS["rsa" if kind.startswith("rsa") else kind]:
        raise BadRequest(
            Reason.BAD_KEY,
            "The key's algorithm must name its curve, be rsaEncryption with NULL, or be ML-DSA without parameters.",
        )
    if kind in _POINT_BYTES and (len(key_bits) != _POINT_BYTES[kind] or key_bits[0] != _UNCOMPRESSED):
        raise BadRequest(Reason.BAD_KEY, "An EC key must give its point uncompressed.")
    if kind in _ML_DSA_BYTES and len(key_bits) != _ML_DSA_BYTES[kind]:
        raise BadRequest(Reason.BAD_KEY, f"A key of {kind} must have {_ML_DSA_BYTES[kind]} octets.")
    return key_bits


def key_kind(public_key: object) -> str:
    """The key's kind (labels.KEY_KINDS). A 400 where estd certifies no such key."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        kind = _CURVES.get(public_key.curve.name)
        if kind is None:
            raise BadRequest(Reason.WEAK_KEY, f"The curve {public_key.curve.name} is not one of P-256, P-384, P-521.")
        return kind
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        y = int.from_bytes(public_key.public_bytes_raw(), "little") & (1 << 255) - 1  # above it stands the sign of x
        if y >= _ED25519_PRIME or y in _ED25519_SMALL_ORDER:
            raise BadRequest(
                Reason.WEAK_KEY, "The Ed25519 key is a point of small order, or its y is not below 2^255 - 19."
            )
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
    for one, kind in _ML_DSA.items():
        if isinstance(public_key, one):
            return kind
    raise BadRequest(Reason.BAD_KEY, "The request's key is none of EC P-256, P-384, P-521, Ed25519, RSA and ML-DSA.")


def load(csr_der: bytes) -> x509.CertificateSigningRequest:
    """The request, nothing of it verified. A 400 where the octets are not the DER of one."""
    try:
        return x509.load_der_x509_csr(csr_der)
    except attributes.UNREADABLE:
        raise BadRequest(Reason.NOT_DER, "The body's base64 is not the DER of one PKCS#10 request.") from None


def _public_key(request: x509.CertificateSigningRequest) -> object:
    try:
        return request.public_key()
    except UnsupportedAlgorithm:
        raise BadRequest(Reason.BAD_KEY, "The request's key is of a kind or curve that estd does not know.") from None
    except ValueError:
        raise BadRequest(Reason.BAD_KEY, "The request's public key is malformed.") from None


def check(csr_der: bytes) -> None:
    """A 400 where the octets are not the DER of one request, its key is weak, unknown or no point of its curve, its
    signature is not by that key, or it has too many names."""
    request = load(csr_der)
    if len(csr_der) > name_bounds.SMALL_BYTES:
        name_bounds.check(csr_der)
    public_key = _public_key(request)
    _checked_key_bits(_subject_public_key_info(request.tbs_certrequest_bytes), key_kind(public_key))
    _prove_possession(request, public_key)


def parse(csr_der: bytes) -> CertificationRequest:
    """What a request says whose possession of the key `check` has proved. A 400 where its names cannot be read."""
    request = load(csr_der)
    spki_der = _subject_public_key_info(request.tbs_certrequest_bytes)
    algorithm = der.content_start(spki_der, 0)
    told = _BY_ALGORITHM.get(spki_der[algorithm : der.element_end(spki_der, algorithm)])
    kind = told or key_kind(_public_key(request))
    key_bits = _checked_key_bits(spki_der, kind)
    try:
        subject = request.subject
        extensions = request.extensions
        twice = csr_der.count(_EXTENSION_REQUEST_DER) > 1
        if twice and len(attributes.values_of(csr_der, attributes.EXTENSION_REQUEST)) > 1:
            raise BadRequest(Reason.BAD_CSR, "The request has more than one extensionRequest.")
    except attributes.UNREADABLE as error:
        raise BadRequest(Reason.BAD_CSR, f"The request's subject or extensions cannot be read: {error}.") from None
    linked = may_be_linked(csr_der)
    return CertificationRequest(
        csr_der=csr_der,
        spki_der=spki_der,
        key_kind=kind,
        key_bits=key_bits,
        subject=subject,
        extensions=extensions,
        challenge_password=challenges.PASSWORD.read(csr_der) if linked else None,
        identity_linking=challenges.IDENTITY_LINKING.read(csr_der) if linked else None,
    )


def _prove_possession(request: x509.CertificateSigningRequest, public_key: object) -> None:
    """A 400 unless the request is signed by its own key, with a hash that is not weak."""
    try:
        algorithm = None if isinstance(public_key, _UNHASHED) else request.signature_hash_algorithm
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


def key_sha256(csr_der: bytes) -> bytes:
    """The SHA-256 of the request's SubjectPublicKeyInfo, nothing of it verified. A 400 where the octets are no
    request."""
    return hashlib.sha256(_subject_public_key_info(load(csr_der).tbs_certrequest_bytes)).digest()


def key_hash(csr_der: bytes) -> int:
    """A number that is equal for requests with the same key; 0 for what is no request. Nothing is verified."""
    try:
        return zlib.crc32(_subject_public_key_info(csr_der[der.content_start(csr_der, 0) :]))
    except IndexError:
        return 0
