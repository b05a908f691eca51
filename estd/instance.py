"""`estd init`: a new instance in a folder. Token, CA, TLS certificate, ledger, configuration; for a demonstration also
a manufacturer with one device. Nothing that exists is overwritten."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from string import Template

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from estd import credentials, demo_devices, demo_renewal, demo_ways, ledger
from estd.errors import ConfigError
from hsm import keys
from hsm.token import Token

_CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
_ROOT_YEARS = 20
_SERVER_DAYS = 825
_TOKEN_LABEL = "estd"
_KEY_ID = b"\x01"
_SOFTHSM_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)

_SOFTHSM_ENVIRONMENT = """
[token.environment]                 # variables that the module reads; values are paths
SOFTHSM2_CONF = "token/softhsm2.conf"
"""
_DEMO_PROFILES = """
# What the demonstration's factory may ask for: any name of these kinds.
[profile.factory]
subject = "csr"
subject_attributes = ["CN", "serialNumber", "O", "OU", "C"]
dns = "csr"
ip = "csr"
uri = "csr"
keys = [
  "ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096", "ml-dsa-44", "ml-dsa-65", "ml-dsa-87",
]
extended_key_usage = ["clientAuth", "serverAuth"]

# What a device with the manufacturer's identity gets: its own subject, whatever the request says.
[profile.idevid]
other_names = "replace"
keys = [
  "ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096", "ml-dsa-44", "ml-dsa-65", "ml-dsa-87",
]
"""
_DEMO_SWITCHES = """csrattrs = "both"                   # what the factory's profile wants, in either form
csrattrs_profile = "factory"
serverkeygen = true
change_names = true                 # inside the profile: the factory's devices may, the manufacturer's may not
expired_window = "30d"
"""
_DEMO_RULES = """
[[label.default.allow]]
who = "certificate"
anchors = "demo/manufacturer.pem"
crls = ["demo/manufacturer.crl"]
profile = "idevid"

[[label.default.allow]]
who = "basic"
credentials = "credentials"
profile = "factory"

# Here a person approves each first certificate, at http://$admin/requests or by `estd requests`.
[label.approval]
ca = "root"
approval = "first"
approval_retry = "2s"
serverkeygen = true

[[label.approval.allow]]
who = "issued"

[[label.approval.allow]]
who = "basic"
credentials = "credentials"
profile = "factory"

[admin]
credentials = "approvers"           # who may decide there; demo/approver has a password
"""
_BARE_RULES = """
# [[label.default.allow]]
# who = "certificate"
# anchors = "manufacturer.pem"
# crls = ["manufacturer.crl"]
# profile = "device"

# [[label.default.allow]]
# who = "basic"
# credentials = "credentials"       # made by: estd credential add credentials NAME
# profile = "factory"

# The page at /requests of the admin port, where a person decides on requests that wait; without this, there is none.
# [admin]
# credentials = "approvers"         # made by: estd credential add approvers NAME
"""
_BARE_PROFILES = """
# For a factory's credential, which enrolls many devices: the name is the request's.
[profile.factory]
subject = "csr"
common_name = ["*"]                 # better: what your devices are called, such as ["device-*"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingCa:
    """A CA whose key is already in a token, and whose certificate somebody else may have signed."""

    module: Path
    token_label: str
    pin_file: Path
    key_id: bytes
    certificate: Path
    chain: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `estd init` was asked for."""

    folder: Path
    ca_key: keys.KeyKind
    ca_name: str
    hosts: Sequence[str]
    listen: str
    admin: str
    demo: bool
    existing: ExistingCa | None


def init(plan: Plan) -> None:
    """Make the instance. Raises ConfigError where the folder holds one already, TokenError where the token fails."""
    folder = plan.folder
    if (folder / "estd.toml").exists():
        raise ConfigError([f"{folder} already holds an instance; nothing was changed. Serve it or name another"])
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError([f"{folder} is not empty; name a new folder"])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    old_umask = os.umask(0o077)
    try:
        settings = _existing_ca(plan, plan.existing) if plan.existing else _new_ca(plan)
        ledger.create(folder / "ledger.sqlite3")
        if plan.demo:
            _demonstration(folder)
            settings["chain"] += "crl = true\n"
            _write(folder / "ras.pem", b"", public=True)
        template = Template(resources.files("estd").joinpath("templates/estd.toml").read_text(encoding="utf-8"))
        text = template.substitute(
            listen=plan.listen,
            admin=plan.admin,
            profiles=_DEMO_PROFILES if plan.demo else _BARE_PROFILES,
            switches=_DEMO_SWITCHES if plan.demo else "",
            rules=_demo_labels(plan.admin) if plan.demo else _BARE_RULES,
            **settings,
        )
        # Last, so that an instance that was interrupted on its way is not taken for one.
        (folder / "estd.toml").write_text(text, encoding="utf-8")
    finally:
        os.umask(old_umask)


def softhsm_module() -> Path:
    """Where SoftHSM2 is installed. Raises ConfigError with how to install it."""
    found = next((Path(one) for one in _SOFTHSM_MODULES if Path(one).exists()), None)
    if found is None:
        raise ConfigError(["SoftHSM2 is not installed: apt-get install softhsm2 (or name a token with --module)"])
    return found


def _new_token(folder: Path) -> Path:
    """A private SoftHSM2 token in the folder, made through PKCS#11 so that no PIN stands in an argument."""
    module = softhsm_module()
    token = folder / "token"
    (token / "tokens").mkdir(parents=True)
    (token / "softhsm2.conf").write_text(
        f"directories.tokendir = {(token / 'tokens').resolve()}\n"
        "objectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
    )
    pin, so_pin = credentials.generate(), credentials.generate()
    (token / "pin").write_text(pin + "\n")
    (token / "so-pin").write_text(so_pin + "\n")
    os.environ["SOFTHSM2_CONF"] = str((token / "softhsm2.conf").resolve())
    Token.initialise(module=module, label=_TOKEN_LABEL, pin=pin, so_pin=so_pin)
    return module


def _new_ca(plan: Plan) -> dict[str, str]:
    folder = plan.folder
    module = _new_token(folder)
    pin = (folder / "token" / "pin").read_text().strip()
    token = Token.open(module=module, label=_TOKEN_LABEL, pin=pin, rw=True)
    keys.generate(token, kind=plan.ca_key, key_id=_KEY_ID, label=plan.ca_name)
    key = keys.signer(token, _KEY_ID)
    root = _root(plan.ca_name, key)
    _write(folder / "ca.pem", root.public_bytes(Encoding.PEM), public=True)
    _server_certificate(plan, root, key, [])
    return {
        "module": str(module), "token_label": _TOKEN_LABEL, "pin_file": "token/pin", "key_id": _KEY_ID.hex(),
        "token_environment": _SOFTHSM_ENVIRONMENT, "chain": "",
    }  # fmt: skip


def _existing_ca(plan: Plan, existing: ExistingCa) -> dict[str, str]:
    folder = plan.folder
    certificate = x509.load_pem_x509_certificate(existing.certificate.read_bytes())
    above = x509.load_pem_x509_certificates(existing.chain.read_bytes()) if existing.chain else []
    token = Token.open(
        module=existing.module, label=existing.token_label, pin=existing.pin_file.read_text(encoding="utf-8").strip()
    )
    key = keys.signer(token, existing.key_id)
    if key.public_key() != certificate.public_key():
        raise ConfigError([f"the key {existing.key_id.hex()} in the token is not the key of {existing.certificate}"])
    _write(folder / "ca.pem", certificate.public_bytes(Encoding.PEM), public=True)
    if above:
        _write(folder / "chain.pem", b"".join(one.public_bytes(Encoding.PEM) for one in above), public=True)
    _server_certificate(plan, certificate, key, above)
    environment = ""
    if conf := os.environ.get("SOFTHSM2_CONF"):
        environment = f'\n[token.environment]\nSOFTHSM2_CONF = "{Path(conf).resolve()}"\n'
    return {
        "module": str(existing.module.resolve()), "token_label": existing.token_label,
        "pin_file": str(existing.pin_file.resolve()), "key_id": existing.key_id.hex(),
        "token_environment": environment, "chain": 'chain = "chain.pem"\n' if above else "",
    }  # fmt: skip


def _name(common_name: str, **more: str) -> x509.Name:
    oids = {"serial_number": NameOID.SERIAL_NUMBER, "organization": NameOID.ORGANIZATION_NAME}
    extra = [x509.NameAttribute(oids[key], value) for key, value in more.items()]
    return x509.Name([*extra, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, days: int) -> (
    x509.CertificateBuilder
):  # fmt: skip
    now = datetime.now(UTC).replace(microsecond=0)
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(hours=1),
        not_valid_after=now + timedelta(days=days, seconds=-1),
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _hash(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA384() if key.key_size == 384 else hashes.SHA256()


def _root(name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> x509.Certificate:
    subject = _name(name)
    return (
        _builder(subject, subject, key.public_key(), _ROOT_YEARS * 365)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(key, _hash(key))
    )


def _authority(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _server_certificate(
    plan: Plan,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    above: Sequence[x509.Certificate],
) -> None:
    """The edge's TLS certificate (R15): its names and loopback's, id-kp-cmcRA beside serverAuth, never clientAuth."""
    key = ec.generate_private_key(ec.SECP256R1())
    san: list[x509.GeneralName] = []
    for host in dict.fromkeys([*plan.hosts, "localhost", "127.0.0.1", "::1"]):
        try:
            san.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            san.append(x509.DNSName(host))
    days = min(_SERVER_DAYS, (ca.not_valid_after_utc - datetime.now(UTC)).days)
    certificate = (
        _builder(_name(plan.hosts[0] if plan.hosts else "localhost"), ca.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, _CMC_RA]), critical=False)
        .add_extension(_authority(ca), critical=False)
        .add_extension(x509.SubjectAlternativeName(san), critical=False)
        .sign(ca_key, _hash(ca_key))
    )
    # The root is the client's own business (RFC 8446 §4.4.2); what stands between is sent.
    between = [one for one in ([] if ca.subject == ca.issuer else [ca, *above]) if one.subject != one.issuer]
    chain = b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, *between))
    _write(plan.folder / "server.pem", chain, public=True)
    _write_key(plan.folder / "server.key", key)


def _demo_labels(admin: str) -> str:
    return _DEMO_RULES.replace("$admin", admin) + demo_renewal.LABELS + demo_devices.LABEL + demo_ways.LABELS


def _demonstration(folder: Path) -> None:
    """Under demo/: a manufacturer's CA with its CRL and one device of it, a proxy's certificate, and the secrets of a
    factory, of an approver and of a service."""
    demo = folder / "demo"
    demo.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    maker = _root("Demo Manufacturer CA", key)
    _write(demo / "manufacturer.pem", maker.public_bytes(Encoding.PEM), public=True)
    _write_key(demo / "manufacturer.key", key)
    now = datetime.now(UTC).replace(microsecond=0)
    crl = (
        x509.CertificateRevocationListBuilder(maker.subject, now - timedelta(hours=1), now + timedelta(days=3650))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(_authority(maker), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(demo / "manufacturer.crl", crl.public_bytes(Encoding.PEM), public=True)
    device_key = ec.generate_private_key(ec.SECP256R1())
    device = idevid(maker, key, device_key.public_key(), serial_number="DEMO-0001")
    _write(demo / "idevid.pem", device.public_bytes(Encoding.PEM), public=True)
    _write_key(demo / "idevid.key", device_key)
    password = credentials.generate()
    _write(demo / "basic", f"factory:{password}\n".encode())
    _write(folder / "credentials", (credentials.line("factory", password, generated=True) + "\n").encode())
    front = ec.generate_private_key(ec.SECP256R1())
    shown = _name("Demo load balancer")
    balancer = _builder(shown, shown, front.public_key(), _SERVER_DAYS).sign(front, hashes.SHA256())
    _write(demo / "balancer.pem", balancer.public_bytes(Encoding.PEM), public=True)
    _write_key(demo / "balancer.key", front)
    _write(demo / "inventory.secret", f"{credentials.generate()}\n".encode())
    password = credentials.generate()
    _write(demo / "approver", f"approver:{password}\n".encode())
    _write(folder / "approvers", (credentials.line("approver", password, generated=True) + "\n").encode())


def idevid(
    maker: x509.Certificate,
    maker_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    *,
    serial_number: str,
) -> x509.Certificate:
    """A device's identity as its factory gives it (IEEE 802.1AR): the serial number in the subject, no names."""
    subject = _name(f"device {serial_number}", organization="Demo Manufacturer", serial_number=serial_number)
    return (
        _builder(subject, maker.subject, public_key, 7000)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(_authority(maker), critical=False)
        .sign(maker_key, hashes.SHA256())
    )


def _write(path: Path, data: bytes, *, public: bool = False) -> None:
    path.write_bytes(data)
    path.chmod(0o644 if public else 0o600)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
