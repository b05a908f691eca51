"""Labels and profiles: the part of the configuration that says who gets which certificate."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from estd import device_rules, name_bounds
from estd.device_keys import GENERATED_KINDS
from estd.device_rules import Hook, RegistryRule
from estd.name_map import NameMap
from estd.toml_table import Table, string

OPERATIONS = (
    "cacerts",
    "simpleenroll",
    "simplereenroll",
    "fullcmc",
    "serverkeygen",
    "csrattrs",
    "crls",
    "renewal-info",
)
"""Names that no label may have (RFC 7030 §3.2.2), whether or not the operation is served."""

LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")

KEY_KINDS = (
    "ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096", "ml-dsa-44", "ml-dsa-65",
    "ml-dsa-87",
)  # fmt: skip
_FOR_SIGNATURES = ("digital_signature", "content_commitment")
KEY_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "key_agreement")
EXTENDED_KEY_USAGES = {
    "serverAuth": "1.3.6.1.5.5.7.3.1",
    "clientAuth": "1.3.6.1.5.5.7.3.2",
    "codeSigning": "1.3.6.1.5.5.7.3.3",
    "emailProtection": "1.3.6.1.5.5.7.3.4",
    "timeStamping": "1.3.6.1.5.5.7.3.8",
    "ipsecIKE": "1.3.6.1.5.5.7.3.17",
    "cmcRA": "1.3.6.1.5.5.7.3.28",
}
SUBJECT_ATTRIBUTES = ("CN", "serialNumber", "C", "ST", "L", "O", "OU", "UID", "DC")

RENEWAL_WINDOW = (60, 80)
"""Percent of a certificate's life between which it had best be renewed, where its profile does not say."""

Source = Literal["none", "identity", "csr"]
Who = Literal["basic", "certificate", "issued", "ra", "registry", "webhook"]
_WITH_ANCHORS = ("certificate", "registry", "webhook")


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRule:
    """Where names of one kind (dNSName, iPAddress, URI, CN) come from, and which of those asked for may be had."""

    source: Source
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    name: str
    validity_seconds: int
    backdate_seconds: int
    keys: frozenset[str]
    key_usage: tuple[str, ...]
    extended_key_usage: tuple[str, ...]
    """Dotted OIDs."""
    subject: Literal["identity", "csr"]
    subject_attributes: frozenset[str]
    common_name: tuple[str, ...]
    dns: NameRule
    ip: NameRule
    uri: NameRule
    max_names: int
    other_names: Literal["refuse", "replace"]
    crl_distribution_point: bool = True
    """Whether certificates name where their CA's CRL is, if it says so (ca.NAME.crl_url)."""
    supersede: Literal["never", "when-seen"] = "never"
    """Whether a certificate that was renewed is revoked once the new one has been seen."""
    renewal_window: tuple[int, int] = RENEWAL_WINDOW
    """Percent of a certificate's life; what renewal-info suggests lies between (renewal_info.suggest)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """One way into a label: who is let in, and the profile of what they get."""

    who: Who
    profile: str | None
    credentials: Path | None = None
    anchors: Path | None = None
    crls: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    certificates: Path | None = None
    """Those of the registration authorities."""
    registry: RegistryRule | None = None
    hook: Hook | None = None
    names: NameMap | None = None
    """How the identity's names are made; None: they are the certificate's, or the registry's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Which requests wait for a person, how long and how many (docs/approval.md)."""

    held: Literal["off", "first", "all"]
    """Where it is "first", a renewal that keeps its names does not wait."""
    retry_seconds: int
    window_seconds: int
    waiting: int
    waiting_each: int
    """Of one identity."""


NO_APPROVAL = Approval(held="off", retry_seconds=60, window_seconds=7 * 86400, waiting=10_000, waiting_each=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    name: str
    ca: str
    allow: tuple[Allow, ...]
    linking: Literal["off", "accepted", "demanded"]
    renew: Literal["either", "same-key", "new-key"]
    pem: bool
    cacerts_one_line: bool
    body_bytes: int
    repeat_seconds: int
    approval: Approval = NO_APPROVAL
    csrattrs: Literal["off", "legacy", "template", "both"] = "legacy"
    csrattrs_profile: str | None = None
    """Whose wishes csrattrs tells; without, what all the profiles of the label's rules want alike."""
    enforce_csrattrs: bool = False
    serverkeygen: tuple[str, ...] = ()
    """Kinds of key that the server makes for clients, the first where a request names none of them; empty: none."""
    proxies: tuple[str, ...] = ()
    """Which [proxy.NAME] may pass devices' certificates on."""
    change_names: bool = False
    """Whether a re-enrolment may ask for other names by ChangeSubjectName (RFC 6402 §2.8)."""
    expired_seconds: int = 0
    """How long after its notAfter a certificate of ours still renews itself."""
    revocation_challenge: bool = False
    """Whether a request's revocationChallenge (RFC 7894 §3.2) is kept, hashed, beside its certificate."""
    renewal_info: bool = True
    """Whether whoever knows a certificate's serial number may ask when it had best be renewed."""


def _oid(text: str) -> str:
    if text in EXTENDED_KEY_USAGES:
        return EXTENDED_KEY_USAGES[text]
    if not re.fullmatch(r"[012](\.(0|[1-9]\d{0,9})){2,15}", text):
        raise ValueError(f"{text!r} is neither a known extended key usage nor a dotted OID")
    return text


def _names(table: Table, key: str) -> NameRule:
    def kind(value: Any) -> NameRule:
        if isinstance(value, list) and all(isinstance(one, str) and one for one in value):
            if key == "ip":
                for one in value:
                    ipaddress.ip_network(one)  # raises ValueError that says what is wrong with it
            return NameRule(source="csr", patterns=tuple(value))
        if value not in ("none", "identity", "csr"):
            raise ValueError
        return NameRule(source=value, patterns=())

    return table.take(
        key, kind, NameRule(source="none", patterns=()), '"none", "identity", "csr" or a list of patterns'
    )


def _percents(value: Any) -> tuple[int, int]:
    found = [re.fullmatch(r"([0-9]{1,2})%", string(one)) for one in value] if isinstance(value, list) else []
    low, high = (int(one[1]) for one in found if one)
    if len(found) != 2 or not 1 <= low < high:
        raise ValueError
    return low, high


def read_profile(name: str, table: Table) -> Profile:
    """The table [profile.NAME]; what is wrong with it goes into the table's problems."""

    def oids(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError
        return tuple(_oid(string(one)) for one in value)

    profile = Profile(
        name=name,
        validity_seconds=table.seconds("validity", "90d"),
        backdate_seconds=table.seconds("backdate", "1h"),
        keys=frozenset(table.strings("keys", ("ec-p256", "ec-p384"), KEY_KINDS)),
        key_usage=table.strings("key_usage", ("digital_signature",), KEY_USAGES),
        extended_key_usage=table.take(
            "extended_key_usage", oids, (EXTENDED_KEY_USAGES["clientAuth"],),
            "a list of " + ", ".join(EXTENDED_KEY_USAGES) + " and dotted OIDs",
        ),
        subject=table.choice("subject", "identity", ("identity", "csr")),
        subject_attributes=frozenset(table.strings("subject_attributes", ("CN", "serialNumber"), SUBJECT_ATTRIBUTES)),
        common_name=table.strings("common_name", ("*",)),
        dns=_names(table, "dns"),
        ip=_names(table, "ip"),
        uri=_names(table, "uri"),
        max_names=table.whole("max_names", 16, 0, name_bounds.SAN_MAX),
        other_names=table.choice("other_names", "refuse", ("refuse", "replace")),
        crl_distribution_point=table.flag("crl_distribution_point", True),
        supersede=table.choice("supersede", "never", ("never", "when-seen")),
        renewal_window=table.take(
            "renewal_window", _percents, RENEWAL_WINDOW,
            'two percentages of a certificate\'s life, from "1%" to "99%", the smaller first'
        ),
    )  # fmt: skip
    if profile.validity_seconds is not None and profile.validity_seconds < 60:
        table.wrong("validity", "must be a minute or more")
    if any(one.startswith("ml-dsa") for one in profile.keys) and not set(profile.key_usage) <= set(_FOR_SIGNATURES):
        table.wrong("key_usage", "an ML-DSA key is for signatures alone (RFC 9881 §5): leave key_encipherment and "
                    "key_agreement out, or give such keys a profile of their own")  # fmt: skip
    table.done()
    return profile


def superseding(profiles: Mapping[str, Profile]) -> frozenset[str]:
    """The profiles whose renewed certificates are revoked once their successors were seen."""
    return frozenset(name for name, profile in profiles.items() if profile.supersede == "when-seen")


def with_registrars(labels: Mapping[str, Label]) -> frozenset[str]:
    """The labels that a registration authority may use."""
    return frozenset(name for name, label in labels.items() if any(allow.who == "ra" for allow in label.allow))


def _allow(table: Table) -> Allow:
    ways: tuple[Who, ...] = ("basic", "certificate", "issued", "ra", "registry", "webhook")
    if "who" not in table.left:
        table.wrong("who", "is missing (needs one of " + ", ".join(ways) + ")")
    who = table.choice("who", "issued", ways)
    profile = table.string("profile") if who != "issued" or "profile" in table.left else None
    registry = device_rules.read_registry(table) if who == "registry" else None
    hook = device_rules.read_hook(table, profile or "") if who == "webhook" else None
    anchors = table.file("anchors") if who == "certificate" else None
    if who in ("registry", "webhook"):
        anchors = table.optional_file("anchors")
    allow = Allow(
        who=who,
        profile=profile,
        credentials=table.file("credentials") if who == "basic" else None,
        anchors=anchors,
        crls=tuple(table.folder / one for one in table.strings("crls", ())) if who in _WITH_ANCHORS else (),
        labels=table.strings("labels", ()) if who == "issued" else (),
        certificates=table.file("certificates") if who == "ra" else None,
        registry=registry,
        hook=hook,
        names=device_rules.read_names(table, who, with_anchors=anchors is not None)
        if who in ("certificate", "registry")
        else None,
    )
    table.done()
    return allow


def _approval(table: Table) -> Approval:
    approval = Approval(
        held=table.choice("approval", "off", ("off", "first", "all")),
        retry_seconds=table.seconds("approval_retry", "60s", "8h"),
        window_seconds=table.seconds("approval_window", "7d", "1y"),
        waiting=table.whole("approval_waiting", 10_000, 1, 100_000),
        waiting_each=table.whole("approval_waiting_each", 100, 1, 100_000),
    )
    for key, value in (("retry", approval.retry_seconds), ("window", approval.window_seconds)):
        if value < 1:
            table.wrong(f"approval_{key}", "must be a second or more")
    return approval


def _generated(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return GENERATED_KINDS if value else ()
    if not isinstance(value, list) or not value or any(one not in GENERATED_KINDS for one in value):
        raise ValueError
    return tuple(value)


def profiles_of(label: Label) -> frozenset[str]:
    """The profiles that the label's rules name, a webhook's choice too. A registry's row may name any other."""
    named = {allow.profile for allow in label.allow if allow.profile is not None}
    return frozenset(named.union(*(allow.hook.profiles for allow in label.allow if allow.hook is not None)))


def may_lead_to(label: Label, profile: str) -> bool:
    """Whether a client of the label may get that profile: a rule names it, a device's row may, or a certificate that is
    renewed brings it along: from another label, or where no rule names any."""
    named = profiles_of(label)
    brought = any(rule.registry is not None or (rule.labels and rule.profile is None) for rule in label.allow)
    return profile in named or brought or not named


def ungranted(allow: Allow, profile: Profile) -> list[str]:
    """The kinds of names that a rule makes and its profile does not take from the identity."""
    if allow.names is None:
        return []
    kinds = {"subject": profile.subject, "dns": profile.dns.source, "ip": profile.ip.source, "uri": profile.uri.source}
    return [kind for kind, source in kinds.items() if getattr(allow.names, kind) and source != "identity"]


def read_label(name: str, table: Table) -> Label:
    """The table [label.NAME]; what is wrong with it goes into the table's problems."""
    rules = table.left.pop("allow", [])
    if not isinstance(rules, list):
        table.wrong("allow", "must be an array of tables")
        rules = []
    label = Label(
        name=name,
        ca=table.string("ca"),
        allow=tuple(
            _allow(Table(rule, table.where(f"allow[{index}]"), table.problems, table.folder))
            for index, rule in enumerate(rules)
        ),
        linking=table.choice("linking", "accepted", ("off", "accepted", "demanded")),
        renew=table.choice("renew", "either", ("either", "same-key", "new-key")),
        pem=table.flag("pem", False),
        cacerts_one_line=table.flag("cacerts_one_line", False),
        body_bytes=table.size("body_limit", "64KiB", "1MiB"),
        repeat_seconds=table.seconds("repeat_window", "10m", "3h"),
        approval=_approval(table),
        csrattrs=table.choice("csrattrs", "legacy", ("off", "legacy", "template", "both")),
        csrattrs_profile=table.string("csrattrs_profile") if "csrattrs_profile" in table.left else None,
        enforce_csrattrs=table.flag("enforce_csrattrs", False),
        serverkeygen=table.take(
            "serverkeygen", _generated, (), "true, false or a list of " + ", ".join(GENERATED_KINDS)
        ),
        proxies=table.strings("proxies", ()),
        change_names=table.flag("change_names", False),
        expired_seconds=table.seconds("expired_window", "0s"),
        revocation_challenge=table.flag("revocation_challenge", False),
        renewal_info=table.flag("renewal_info", True),
    )
    if label.enforce_csrattrs and label.csrattrs == "off":
        table.wrong("enforce_csrattrs", 'has nothing to enforce: set csrattrs to "legacy", "template" or "both"')
    table.done()
    if sum(one.hook is not None for one in label.allow) > 1:
        table.wrong("allow", "has more than one webhook; a label asks one")
    if name in OPERATIONS:
        table.problems.append(f"label.{name}: a label cannot have the name of an operation (RFC 7030 §3.2.2)")
    elif not LABEL_NAME.fullmatch(name):
        table.problems.append(f"label.{name}: a label's name is one path segment of letters, digits and . _ ~ -")
    return label
