"""A label as an edge serves it: its operations, what it tells everybody, its credentials and its proxies."""

from __future__ import annotations

from estd import frames, keygen, metrics
from estd.credentials import Credentials
from estd.crl_file import CrlBody
from estd.labels import Label
from estd.logs import Log
from estd.material import Material, cacerts_body, csrattrs_body
from estd.webhook import Webhook

ENROLMENTS = {"simpleenroll": frames.ENROLL, "simplereenroll": frames.RENEW}


class Served:
    """A label as an edge serves it."""

    def __init__(self, number: int, label: Label, material: Material, slot: metrics.Slot, log: Log) -> None:
        self.number = number
        self.label = label
        self.told = {"cacerts": cacerts_body(material, label), "csrattrs": csrattrs_body(material, label)}
        self.operations = ["cacerts", *ENROLMENTS]
        if label.csrattrs != "off":
            self.operations.append("csrattrs")
        self.generated = keygen.kinds(label, material.config.profiles)
        if self.generated:
            self.operations.append("serverkeygen")
        if label.renewal_info:
            self.operations.append("renewal-info")
        self.crl: CrlBody | None = None
        self.holds = label.approval.held != "off"
        self.proxies = [material.proxies[name] for name in label.proxies]
        self.proxies_own = tuple(own for one in material.proxies.values() for own in one.certificates or ())
        self.basic = [
            (index, Credentials(rule.credentials, log))
            for index, rule in enumerate(label.allow)
            if rule.credentials is not None
        ]
        ways = {way for rule in label.allow if rule.registry is not None for way in rule.registry.secrets}
        hooks = [rule for rule in material.policies[number].rules if rule.allow.hook is not None]
        self.hears_secrets = "basic" in ways or any(rule.anchors is None for rule in hooks)
        self.hears_otp = "otpChallenge" in ways
        self.webhook = Webhook(hooks[0], label.name, slot, log) if hooks else None
