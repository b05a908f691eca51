"""PKCS#10 requests of any shape, right and wrong, put together from their parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estd import der
from tests import make

SAN, KEY_USAGE = "2.5.29.17", "2.5.29.15"
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
MICROSOFT_EXTENSIONS = "1.3.6.1.4.1.311.2.1.14"
EC_PUBLIC_KEY, PRIME_256 = "1.2.840.10045.2.1", "1.2.840.10045.3.1.7"
RSA_ENCRYPTION, RSA_PSS = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10"
ECDSA_SHA256 = der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.4.3.2"))
RSA_SHA256 = der.tlv(der.SEQUENCE, der.oid("1.2.840.113549.1.1.11") + der.NULL)
ED25519 = der.tlv(der.SEQUENCE, der.oid("1.3.101.112"))
ML_DSA_OIDS = {44: "2.16.840.1.101.3.4.3.17", 65: "2.16.840.1.101.3.4.3.18", 87: "2.16.840.1.101.3.4.3.19"}
A_SAN = der.tlv(der.SEQUENCE, der.tlv(0x82, b"a.example"))
UTF8, PRINTABLE, BMP = 0x0C, 0x13, 0x1E
LONG_NAMES = pytest.mark.filterwarnings("ignore:Attribute's length")


@cache
def rsa_key(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(exponent, bits)  # type: ignore[arg-type]


@cache
def ml_dsa_key(number: int = 44) -> Any:
    kinds = {44: mldsa.MLDSA44PrivateKey, 65: mldsa.MLDSA65PrivateKey, 87: mldsa.MLDSA87PrivateKey}
    return kinds[number].generate()


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return make.key()


def spki(key: Any) -> bytes:
    public = key.public_key()
    return bytes(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def spki_of(algorithm: bytes, bits: bytes, unused: int = 0) -> bytes:
    return der.tlv(der.SEQUENCE, der.tlv(der.SEQUENCE, algorithm) + der.tlv(der.BIT_STRING, bytes([unused]) + bits))


def ml_dsa(number: int, parameters: bytes = b"") -> bytes:
    """The AlgorithmIdentifier of ML-DSA keys and signatures."""
    return der.tlv(der.SEQUENCE, der.oid(ML_DSA_OIDS[number]) + parameters)


def ml_dsa_spki(bits: bytes | None = None, *, number: int = 44, parameters: bytes = b"", unused: int = 0) -> bytes:
    """A SubjectPublicKeyInfo of ML-DSA, by default of the key that `request` then signs with."""
    bits = ml_dsa_key().public_key().public_bytes_raw() if bits is None else bits
    return spki_of(der.oid(ML_DSA_OIDS[number]) + parameters, bits, unused)


def ml_dsa_request(*, spki_der: bytes | None = None, **how: Any) -> bytes:
    return request(key=ml_dsa_key(), spki_der=spki_der, **how)


def point(key: Any = None, form: PublicFormat = PublicFormat.UncompressedPoint) -> bytes:
    return bytes((key or ec_key()).public_key().public_bytes(Encoding.X962, form))


def ec_spki(bits: bytes, parameters: bytes | None = None, unused: int = 0) -> bytes:
    """A SubjectPublicKeyInfo of id-ecPublicKey, by default on P-256."""
    return spki_of(der.oid(EC_PUBLIC_KEY) + (der.oid(PRIME_256) if parameters is None else parameters), bits, unused)


def hybrid() -> bytes:
    """The key's point in X9.62's hybrid form: as long as an uncompressed one, another first octet."""
    plain = point()
    return bytes([6 | plain[-1] & 1]) + plain[1:]


def even_key() -> ec.EllipticCurvePrivateKey:
    """A key whose point ends in a zero bit, which a BIT STRING with one unused bit can hold."""
    return next(key for key in iter(make.key, None) if not point(key)[-1] & 1)


def explicit_parameters() -> bytes:
    """P-256 spelled out (CVE-2022-0778's door)."""
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    n = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    generator = point(ec.derive_private_key(1, make.P256))
    field = der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.1.1") + der.uint(p))
    curve = der.tlv(
        der.SEQUENCE,
        der.tlv(der.OCTET_STRING, (p - 3).to_bytes(32, "big")) + der.tlv(der.OCTET_STRING, b.to_bytes(32, "big")),
    )
    parts = der.uint(1) + field + curve + der.tlv(der.OCTET_STRING, generator) + der.uint(n) + der.uint(1)
    return der.tlv(der.SEQUENCE, parts)


def extension(oid: str, value: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, der.oid(oid) + der.tlv(der.OCTET_STRING, value))


def attribute(oid: str, *values: bytes) -> bytes:
    return der.tlv(der.SEQUENCE, der.oid(oid) + der.tlv(der.SET, b"".join(sorted(values))))


def wants(*extensions: bytes) -> bytes:
    """An extensionRequest attribute."""
    return attribute(EXTENSION_REQUEST, der.tlv(der.SEQUENCE, b"".join(extensions)))


def password(tag: int, value: bytes) -> bytes:
    return attribute(CHALLENGE_PASSWORD, der.tlv(tag, value))


def request(
    *attributes: bytes,
    key: Any = None,
    spki_der: bytes | None = None,
    subject: bytes | None = None,
    version: int = 0,
    algorithm: bytes | None = None,
    sign: Callable[[bytes], bytes] | None = None,
    trailer: bytes = b"",
) -> bytes:
    """A CertificationRequest composed by hand and signed by its key: what no builder would make."""
    key = key or ec_key()
    subject = make.name().public_bytes() if subject is None else subject
    parts = (
        der.uint(version) + subject + (spki_der or spki(key)) + der.tlv(der.EXPLICIT_0, b"".join(sorted(attributes)))
    )
    tbs = der.tlv(der.SEQUENCE, parts + trailer)
    if sign is None and isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(tbs, padding.PKCS1v15(), hashes.SHA256())
        algorithm = algorithm or RSA_SHA256
    elif sign is None and isinstance(key, ed25519.Ed25519PrivateKey):
        signature = key.sign(tbs)
        algorithm = algorithm or ED25519
    elif sign is None and not isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(tbs)
        algorithm = algorithm or ml_dsa(44)
    else:
        signature = sign(tbs) if sign else key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    bits = der.tlv(der.BIT_STRING, b"\0" + signature)
    return der.tlv(der.SEQUENCE, tbs + (algorithm or ECDSA_SHA256) + bits)


def flipped(data: bytes, bit: int) -> bytes:
    at = bit // 8
    return data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :]


def rsa_pkcs1() -> bytes:
    return bytes(rsa_key().public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1))


def deep(levels: int) -> bytes:
    value = b""
    for _ in range(levels):
        value = der.tlv(der.SEQUENCE, value)
    return value


def long_oid(octets: int) -> bytes:
    """An OBJECT IDENTIFIER of so many arcs."""
    return der.tlv(0x06, b"\x2a" + b"\x01" * octets)


def subject_of(oid_der: bytes, value: bytes = der.tlv(UTF8, b"x")) -> bytes:
    return der.tlv(der.SEQUENCE, der.tlv(der.SET, der.tlv(der.SEQUENCE, oid_der + value)))


def common_names(octets: int) -> bytes:
    """A subject whose content has so many octets."""
    one = subject_of(der.oid("2.5.4.3"))[2:]
    count, left = divmod(octets, len(one))
    return der.tlv(
        der.SEQUENCE, one * (count - 1) + subject_of(der.oid("2.5.4.3"), der.tlv(UTF8, b"x" * (left + 1)))[2:]
    )


def alternative_names(count: int, octets: int = 1) -> bytes:
    """A subjectAltName with so many names of so many octets."""
    return extension(SAN, der.tlv(der.SEQUENCE, der.tlv(0x86, b"a" * octets) * count))


def general_name(tag: int, value: bytes) -> bytes:
    return wants(extension(SAN, der.tlv(der.SEQUENCE, der.tlv(tag, value))))


KINDS: dict[str, Callable[[], Any]] = {
    "ec-p256": ec_key,
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec-p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa-2048": rsa_key,
    "rsa-3072": lambda: rsa_key(3072),
    "rsa-4096": lambda: rsa_key(4096),
    "ml-dsa-44": lambda: ml_dsa_key(44),
    "ml-dsa-65": lambda: ml_dsa_key(65),
    "ml-dsa-87": lambda: ml_dsa_key(87),
}

_ED25519_PRIME = 2**255 - 19
SMALL_ORDER = {
    "the neutral point": 1,
    "order 2": _ED25519_PRIME - 1,
    "order 4": 0,
    "order 8": 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    "order 8, the other": _ED25519_PRIME - 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    "0 as the prime": _ED25519_PRIME,
    "1 beyond the prime": _ED25519_PRIME + 1,
}
"""The y of Ed25519 points that need no private key (libsodium's list), whatever the sign of x."""


def forged(y: int, sign: int) -> bytes:
    """A request for a key that nobody has: the signature (the neutral point, 0) fits a key of small order whenever the
    hash is a multiple of the order, so attributes are tried until it does."""
    spki_der = spki_of(der.oid("1.3.101.112"), (y | sign << 255).to_bytes(32, "little"))
    for number in range(200):
        made = request(
            attribute("1.2.3.4", der.uint(number)), spki_der=spki_der, algorithm=ED25519,
            sign=lambda _: b"\x01" + bytes(63),
        )  # fmt: skip
        if x509.load_der_x509_csr(made).is_signature_valid:
            break
    return made
