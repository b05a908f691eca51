"""What each step between the socket and the token costs: `python -m bench.core`.

Every step is run alone, warm, on one P-256 request of a device with its manufacturer's identity, in the order of the
path. `--opcodes` counts the bytecode instructions of Python that each step executes instead: a figure that no other
load on the machine changes, and which CI holds against bench/core-opcodes.json. The certificate that the template
makes is compared byte for byte with the one that cryptography's CertificateBuilder makes.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estd import admission, csr, frames, instance, items, material, metrics, policy, wire
from estd.config import Config, load
from estd.enrolling import make_csr
from estd.identify import ClientCertificate
from estd.issuance import key_identifier, serials
from estd.repeats import Repeats
from hsm.session import ecdsa_der

BASELINE = Path(__file__).with_name("core-opcodes.json")
GROWTH_MAX = 1.2
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
_ROUNDS = 7

Step = Callable[[], object]


def _demonstration(folder: Path) -> Config:
    instance.init(
        instance.Plan(
            folder=folder, ca_key="ec-p256", ca_name="core", hosts=(), listen="127.0.0.1:1", admin="127.0.0.1:2",
            demo=True, existing=None,
        )
    )  # fmt: skip
    return load(folder / "estd.toml")


class Walk:
    """One request, taken down the path; `steps` are what it went through, each to be run again."""

    def __init__(self, config: Config) -> None:
        demo = config.folder / "demo"
        loaded = material.load(config)
        label = loaded.policies[0]
        now = time.time()
        now_ms = int(now * 1000)
        device = x509.load_pem_x509_certificate((demo / "idevid.pem").read_bytes())
        chain = device.public_bytes(Encoding.DER)
        key = ec.generate_private_key(ec.SECP256R1())
        csr_der = make_csr(key, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device-1")]), None, None)
        body = base64.b64encode(csr_der) + b"\n"
        request = frames.Request(frames.ENROLL, 0, now + 1e9, None, -1, b"", chain, csr_der)
        packed = frames.pack_request(request, 1)
        client = ClientCertificate.parse(chain)
        evidence = policy.Evidence(
            label="default", renewal=False, certificate=client, intermediates=(), user=None, rule=-1, binding=b""
        )
        who = admission.identify(label, evidence, None, now, [])
        parsed = csr.parse(csr_der)
        authorised = policy.authorise(label, evidence, who, parsed)
        self.issuer = loaded.issuers["root", authorised.profile.name]
        serial = serials(1, now_ms)[0]

        def prepare() -> Any:
            return self.issuer.prepare(
                serial=serial,
                now=int(now),
                subject_der=authorised.names.subject_der,
                san_der=authorised.names.san_der,
                spki_der=parsed.spki_der,
                key_bits=parsed.key_bits,
            )

        prepared = prepare()
        raw = os.urandom(64)
        certificate = self.issuer.complete(prepared, ecdsa_der(raw, 32))
        item = items.Item(request, label)
        item.client, item.authorised, item.prepared, item.certificate_der = who, authorised, prepared, certificate
        repeats = Repeats(600_000, now_ms)
        answer = frames.Answer(1, 200, 0, 0, who.identity, serial, certificate)
        packed_answer = frames.pack_answer(answer)
        slot = metrics.Block.create(1).slot(0)
        self.authorised, self.parsed, self.prepared, self.serial, self.now = authorised, parsed, prepared, serial, now
        self.ca = loaded.cas["root"].certificate
        self.steps: dict[str, Step] = {
            "edge: body to DER": lambda: wire.read_pkcs10(body, pem=False),
            "edge: validate the CSR": lambda: csr.check(csr_der),
            "edge: pack the request": lambda: frames.pack_request(request, 1),
            "issuer: unpack the request": lambda: frames.unpack_request(packed, 0, len(packed)),
            "issuer: read the client's certificate": lambda: ClientCertificate.parse(chain),
            "issuer: identify, path known": lambda: admission.identify(label, evidence, None, now, []),
            "issuer: parse the CSR": lambda: csr.parse(csr_der),
            "issuer: authorise": lambda: policy.authorise(label, evidence, who, parsed),
            "issuer: asked before?": lambda: repeats.find(authorised.repeat_key, now_ms),
            "issuer: TBSCertificate": prepare,
            "token: r || s to DER": lambda: ecdsa_der(raw, 32),
            "issuer: certificate": lambda: self.issuer.complete(prepared, raw),
            "issuer: row of the ledger": lambda: item.row(now_ms),
            "issuer: remember": lambda: repeats.add(os.urandom(32), now_ms),
            "issuer: pack the answer": lambda: frames.pack_answer(answer),
            "edge: unpack the answer": lambda: frames.unpack_answer(packed_answer, 0, len(packed_answer)),
            "edge: certs-only, base64": lambda: wire.enrolled(certificate, wrapped=False),
            "all: observe a metric": lambda: slot.observe(metrics.SIGN_SECONDS, metrics.SIGN_SECONDS.at, 0.001),
        }


def same_as_builder(walk: Walk) -> bool:
    """Whether the template's TBSCertificate is the CertificateBuilder's, byte for byte."""
    prepared, names = walk.prepared, walk.authorised.names
    profile = walk.authorised.profile
    authority = walk.ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    usage = {word: word in profile.key_usage for word in _USAGES}
    builder = (
        x509.CertificateBuilder()
        .issuer_name(walk.ca.subject)
        .subject_name(names.subject)
        .public_key(x509.load_der_x509_csr(walk.parsed.csr_der).public_key())
        .serial_number(int.from_bytes(walk.serial, "big"))
        .not_valid_before(datetime.fromtimestamp(prepared.not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(prepared.not_after, UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([x509.ObjectIdentifier(one) for one in profile.extended_key_usage]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier(authority.digest, None, None), critical=False)
        .add_extension(x509.SubjectKeyIdentifier(key_identifier(walk.parsed.key_bits)), critical=False)
    )
    built = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return built.tbs_certificate_bytes == bytes(prepared.tbs)


def cost_us(step: Step, loops: int) -> float:
    """µs of CPU of one step: the median of several rounds."""
    step()
    rounds = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        for _ in range(loops):
            step()
        rounds.append((time.process_time() - began) / loops * 1e6)
    return statistics.median(rounds)


def opcodes(step: Step) -> int:
    """How many bytecode instructions of Python a step executes, calls included; C code counts as its call."""
    step()
    return _monitored(step) if sys.version_info >= (3, 12) else _traced(step)


def _monitored(step: Step) -> int:
    count = 0

    def on_instruction(*_: object) -> None:
        nonlocal count
        count += 1

    monitoring: Any = getattr(sys, "monitoring")  # noqa: B009  (absent before Python 3.12)
    tool = monitoring.PROFILER_ID
    monitoring.use_tool_id(tool, "bench.core")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, on_instruction)
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)
    try:
        step()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count


def _traced(step: Step) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        step()
    finally:
        sys.settrace(before)
    return count


def measure(*, count_opcodes: bool, loops: int = 500) -> dict[str, float]:
    """Every step's cost, in µs or in opcodes. Raises ClickException where the template strays from the builder."""
    with tempfile.TemporaryDirectory(prefix="estd-core-") as folder:
        walk = Walk(_demonstration(Path(folder) / "instance"))
        if not same_as_builder(walk):
            raise click.ClickException("the template's certificate is not the CertificateBuilder's")
        return {
            name: float(opcodes(step)) if count_opcodes else cost_us(step, loops) for name, step in walk.steps.items()
        }


def python_version() -> str:
    """The key of a baseline: opcodes differ from one minor version of Python to the next."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def grown(counted: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """One sentence for each step that executes over a fifth more than its baseline, or that has none."""
    problems = [f"{name}: no baseline" for name in counted if name not in baseline]
    for name, before in baseline.items():
        now = counted.get(name)
        if now is None:
            problems.append(f"{name}: in the baseline, but not measured any more")
        elif now > before * GROWTH_MAX:
            problems.append(f"{name}: {now:.0f} opcodes, {now / before:.2f} × the baseline's {before:.0f}")
    return problems


@click.command()
@click.option("--opcodes", "count_opcodes", is_flag=True, help="Count Python's bytecode instructions, not time.")
@click.option("--write-baseline", is_flag=True, help="Keep the opcodes of this Python as its baseline.")
@click.option("--check", is_flag=True, help="Exit with 1 when a step has grown by more than a fifth.")
@click.option("--json", "as_json", is_flag=True, help="Print data, not words.")
def main(count_opcodes: bool, write_baseline: bool, check: bool, as_json: bool) -> None:
    """Measure each step of an enrolment alone."""
    figures = measure(count_opcodes=count_opcodes or write_baseline or check)
    kept: dict[str, dict[str, float]] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if write_baseline:
        BASELINE.write_text(json.dumps({**kept, python_version(): figures}, indent=2, sort_keys=True) + "\n")
    if as_json:
        click.echo(json.dumps(figures))
    else:
        unit = "opcodes" if count_opcodes or write_baseline or check else "µs"
        for name, value in figures.items():
            click.echo(f"{name:42} {value:8.1f} {unit}")
    if check:
        problems = grown(figures, kept.get(python_version(), {}))
        for problem in problems:
            click.echo(problem, err=True)
        sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
