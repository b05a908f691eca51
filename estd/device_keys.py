"""Device keys in software: made here by a client for itself, and by an edge for whoever asks for serverkeygen."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa

MlDsaKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | MlDsaKey

GENERATED_KINDS = ("ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096")
"""The kinds of key that serverkeygen makes: ML-DSA's are for clients that make their own."""
_CURVES = {"ec-p256": ec.SECP256R1(), "ec-p384": ec.SECP384R1(), "ec-p521": ec.SECP521R1()}
_HASHES: dict[int, Hash] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
_ML_DSA: dict[str, type[MlDsaKey]] = {
    "ml-dsa-44": mldsa.MLDSA44PrivateKey, "ml-dsa-65": mldsa.MLDSA65PrivateKey, "ml-dsa-87": mldsa.MLDSA87PrivateKey
}  # fmt: skip


def generate(kind: str) -> Key:
    """A new key of one of labels.KEY_KINDS; RSA takes from 50 ms to seconds of a core."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind in _ML_DSA:
        return _ML_DSA[kind].generate()
    if kind.startswith("rsa-"):
        return rsa.generate_private_key(65537, int(kind[4:]))
    return ec.generate_private_key(_CURVES[kind])


def fitting_hash(key: Key) -> Hash | None:
    """The hash of the signature that fits the key: ECDSA's of the curve's size, SHA-256 with RSA (csrattrs); None where
    the algorithm has its own."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _HASHES[key.key_size]
    return hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None


def sign(key: Key, data: bytes) -> bytes:
    """The signature that fits the key."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(_HASHES[key.key_size]))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(data)


def signature_algorithm(key: Key) -> str:
    """The OID of the signature that `sign` makes."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {256: "1.2.840.10045.4.3.2", 384: "1.2.840.10045.4.3.3", 521: "1.2.840.10045.4.3.4"}[key.key_size]
    if isinstance(key, rsa.RSAPrivateKey):
        return "1.2.840.113549.1.1.11"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "1.3.101.112"
    numbers = {mldsa.MLDSA44PrivateKey: 17, mldsa.MLDSA65PrivateKey: 18, mldsa.MLDSA87PrivateKey: 19}
    return f"2.16.840.1.101.3.4.3.{next(number for kind, number in numbers.items() if isinstance(key, kind))}"
