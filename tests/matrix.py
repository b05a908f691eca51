"""The authorisation matrix (D20) on paper: the labels, who asks, and what the documents say that they are told.

`expected` is the short statement of the rules that the server is judged by. It is written from docs/authorisation.md
and from the table of what each failure answers, and it knows nothing of estd: no import, no value, no order of its
code. A client certificate is what the table CERTIFICATES says of it; making it so is matrix_world's work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

Answer = tuple[int, str]
"""Status, and the reason that the metrics count; empty where nothing was refused."""


@dataclass(frozen=True)
class Label:
    """A label as an operator would describe it: the ways in, in the order in which they are tried, and its switches."""

    ways: tuple[str, ...] = ()
    admits: tuple[str, ...] = ()
    """Other labels whose certificates its way `issued` takes."""
    window: bool = False
    """A certificate of ours that expired less than 30 days ago renews itself."""
    approval: bool = False
    linked: bool = False
    enforced: bool = False
    """A request must be as csrattrs says: with the profile's usages."""
    challenged: bool = False
    """A request's revocationChallenge is kept beside its certificate."""
    keygen: bool = False
    csrattrs: bool = True
    renewal_info: bool = True
    proxy: bool = False


LABELS: dict[str, Label] = {
    "closed": Label(csrattrs=False, renewal_info=False),
    "basic": Label(("basic:factory",)),
    "plant": Label(("basic:plant",)),
    "issued": Label(("issued",)),
    "cross": Label(("issued",), admits=("issued",)),
    "slept": Label(("issued", "basic:factory"), window=True),
    "anchors": Label(("anchors:maker",)),
    "root": Label(("anchors:ours",)),
    "default": Label(("issued", "anchors:maker", "basic:factory"), keygen=True),
    "registry": Label(("issued", "registry:maker", "secret"), keygen=True),
    "hooked": Label(("issued", "hook:maker")),
    "asked": Label(("hook",)),
    "ra": Label(("ra", "issued")),
    "approval": Label(("issued", "basic:factory"), approval=True),
    "linked": Label(("ra", "issued", "basic:factory"), linked=True),
    "enforced": Label(("issued", "basic:factory"), enforced=True),
    "challenged": Label(("issued", "basic:factory"), challenged=True),
    "keys": Label(("issued", "basic:factory"), keygen=True),
    "proxied": Label(("issued", "anchors:maker", "anchors:ours", "basic:factory"), proxy=True),
}


@dataclass(frozen=True)
class Certificate:
    """What is true of a client certificate."""

    issuer: str
    """"maker" (the factory's CA), "ours", or "strangers"."""
    state: str = "valid"
    under: str = ""
    """The label that the ledger holds it under; empty: the ledger does not hold it."""
    row: str = ""
    """The registry's row of its device: "enabled", "disabled", "gone", or empty where it has to do with none."""
    listed: bool = False
    """In the labels' file of registration authorities."""


STATES = ("valid", "expired", "late", "early", "revoked", "revoked and expired", "for servers", "no signatures")
"""Of ours. `late` expired 40 days ago, `expired` a quarter of an hour."""
MAKERS_STATES = ("expired", "early", "on the CRL", "for servers", "no signatures", "a CA's")

CERTIFICATES: dict[str, Certificate] = {
    **{f"ours {state} of {label}": Certificate("ours", state, label) for state in STATES for label in LABELS},
    "ours, not in the ledger": Certificate("ours"),
    "the server's own": Certificate("ours", "for servers"),
    "our CA's own": Certificate("ours", "a CA's"),
    **{f"of a device {row}": Certificate("ours", under="registry", row=row) for row in ("enabled", "disabled", "gone")},
    "RA": Certificate("ours", under="registrars", listed=True),
    "RA unlisted": Certificate("ours", under="registrars"),
    "RA revoked": Certificate("ours", "revoked", under="registrars", listed=True),
    "RA expired": Certificate("ours", "expired", under="registrars", listed=True),
    "idevid": Certificate("maker", row="enabled"),
    **{f"idevid {state}": Certificate("maker", state, row="enabled") for state in MAKERS_STATES},
    "idevid disabled": Certificate("maker", row="disabled"),
    "idevid unknown": Certificate("maker", row="gone"),
    "the maker's CA": Certificate("maker", "a CA's"),
    "a stranger's": Certificate("strangers"),
    "a stranger's with a serial number of ours": Certificate("strangers"),
    "the proxy's": Certificate("strangers"),
}


@dataclass(frozen=True)
class Who:
    """What a client shows. Words in braces stand for the label that is asked."""

    certificate: str = ""
    basic: str = ""
    """A name in PASSWORDS, "wrong", "unknown", "bearer", or "secret" with a name in SECRETS."""
    otp: str = ""
    """A name in SECRETS: a one-time secret in the request's otpChallenge."""
    header: str = ""
    """A certificate in the header Client-Cert."""


PASSWORDS = ("factory", "plant")
"""Of the credential files of the labels basic and plant."""

SECRETS: dict[str, Answer | str] = {
    "right": "first",
    "used": "spent",  # a moment ago: the same request would get its certificate again, this is another one
    "used long ago": (401, "secret_spent"),
    "expired": (401, "secret_spent"),
    "wrong": (401, "wrong_credential"),
    "of nobody": (401, "wrong_credential"),
    "of a disabled device": (403, "device_disabled"),
}

WHO: dict[str, Who] = {
    "nobody": Who(),
    "Basic": Who(basic="factory"),
    "Basic of another label": Who(basic="plant"),
    "Basic, wrong password": Who(basic="wrong"),
    "Basic, unknown user": Who(basic="unknown"),
    "Bearer": Who(basic="bearer"),
    **{f"secret {one}": Who(basic=f"secret {one}") for one in SECRETS},
    **{f"otp {one}": Who(otp=one) for one in SECRETS},
    **{name: Who(name) for name in CERTIFICATES if " of " not in name and name != "our CA's own"},
    "of a device enabled": Who("of a device enabled"),
    "of a device disabled": Who("of a device disabled"),
    "of a device gone": Who("of a device gone"),
    "a stranger's with a serial number of ours": Who("a stranger's with a serial number of ours"),
    **{f"own, {state}": Who(f"ours {state} of {{here}}") for state in STATES},
    "of another label": Who("ours valid of issued"),
    "of another label, revoked": Who("ours revoked of issued"),
    "own, with Basic": Who("ours valid of {here}", basic="factory"),
    "own, with a wrong password": Who("ours valid of {here}", basic="wrong"),
    "own revoked, with Basic": Who("ours revoked of {here}", basic="factory"),
    "own revoked, with a wrong password": Who("ours revoked of {here}", basic="wrong"),
    "idevid, with Basic": Who("idevid", basic="factory"),
    "idevid, with a wrong secret": Who("idevid", basic="secret wrong"),
    "a stranger's, with Basic": Who("a stranger's", basic="factory"),
    "of a device disabled, with its secret": Who("of a device disabled", basic="secret of a disabled device"),
    "proxy: idevid": Who("the proxy's", header="idevid"),
    "proxy: idevid on the CRL": Who("the proxy's", header="idevid on the CRL"),
    "proxy: own": Who("the proxy's", header="ours valid of {here}"),
    "proxy: own revoked": Who("the proxy's", header="ours revoked of {here}"),
    "proxy: a stranger's": Who("the proxy's", header="a stranger's"),
    "proxy: our CA's own": Who("the proxy's", header="our CA's own"),
    "proxy: the server's own": Who("the proxy's", header="the server's own"),
    "proxy: its own": Who("the proxy's", header="the proxy's"),
    "proxy: nobody, with Basic": Who("the proxy's", basic="factory"),
    "no proxy, a header": Who(header="idevid"),
    "no proxy, a header with Basic": Who(basic="factory", header="idevid"),
    "no proxy, own with a header": Who("ours valid of {here}", header="idevid"),
}

ENROLMENTS = ("simpleenroll", "simplereenroll", "serverkeygen")
PUBLIC = ("cacerts", "csrattrs", "crls")
"""And renewal-info, which is about a certificate: in this matrix about the one that is shown."""
WORDS: dict[str, Answer | str] = {"allow": "first", "deny": (403, "not_granted"), "away": (503, "webhook_away")}
"""What the webhook says, or that it says nothing."""


@dataclass(frozen=True)
class Cell:
    label: str
    """Empty: the path without a label."""
    method: str
    operation: str
    who: str
    form: str = "plain"
    """The request: "plain", "linked" to its connection, "fit" as csrattrs says, with a revocationChallenge
    ("challenged"), or for "other names"."""
    word: str = "allow"

    @property
    def here(self) -> str:
        return self.label or "default"

    @property
    def shown(self) -> Who:
        who = WHO[self.who]
        return replace(
            who,
            certificate=who.certificate.replace("{here}", self.here),
            header=who.header.replace("{here}", self.here),
        )  # fmt: skip

    @property
    def signs(self) -> bool:
        """Whether the token is to sign once; otherwise never."""
        return expected(self) == (200, "") and self.operation in ENROLMENTS


# The rules.


def expected(cell: Cell) -> Answer:
    """What the client of this cell is told."""
    label = LABELS.get(cell.here)
    if label is None:
        return 404, "unknown_label"
    offered = {
        "cacerts": "GET", "crls": "GET", "simpleenroll": "POST", "simplereenroll": "POST",
        **({"csrattrs": "GET"} if label.csrattrs else {}), **({"serverkeygen": "POST"} if label.keygen else {}),
        **({"renewal-info": "GET"} if label.renewal_info else {}),
    }  # fmt: skip
    if cell.operation not in offered:
        return 404, "unknown_operation"
    if cell.shown.header and not _from_proxy(label, cell.shown):
        return 403, "proxy"
    if cell.method != offered[cell.operation]:
        return 405, "method"
    if cell.operation == "csrattrs" and set(label.ways) <= {"issued"}:
        return 204, ""  # no rule names a profile, so nothing is asked for
    if cell.operation == "renewal-info":
        return _told_when(cell.shown)
    if cell.operation in PUBLIC:
        return 200, ""
    who, refusal = _evidence(label, cell.shown)
    if refusal:
        return refusal
    _, found = _way_in(label, cell, who)
    return _granted(found, label, cell) if isinstance(found, str) else found


def identity(cell: Cell) -> str:
    """How the ledger begins to say who it is that was let in: by the way, so that nobody is taken for another."""
    label = LABELS[cell.here]
    who, _ = _evidence(label, cell.shown)
    kind = _way_in(label, cell, who)[0].partition(":")[0]
    if kind == "issued":
        return "device:registry//" if CERTIFICATES[who.certificate].row else "cert:"
    return {
        "basic": "basic:factory", "anchors": "idevid:", "registry": "device:registry/Maker/",
        "secret": "device:registry//SN-", "hook": "webhook:", "ra": "ra:",
    }[kind]  # fmt: skip


def _told_when(who: Who) -> Answer:
    """Everybody is told about every certificate of the ledger, a dead one too, and about no other."""
    if not who.certificate:
        return 400, "bad_cert_id"
    return (200, "") if CERTIFICATES[who.certificate].under else (404, "unknown_certificate")


def _from_proxy(label: Label, who: Who) -> bool:
    return label.proxy and who.certificate == "the proxy's"


def _evidence(label: Label, who: Who) -> tuple[Who, Answer | None]:
    """What there is to judge, after the proxy and the password."""
    if _from_proxy(label, who):
        who = replace(who, certificate=who.header)
    elif who.certificate == "the proxy's":
        return who, (403, "proxy")
    hears_claims = "secret" in label.ways or "hook" in label.ways
    is_right = who.basic in PASSWORDS and f"basic:{who.basic}" in label.ways
    if who.basic == "bearer" or (who.basic and not is_right and not hears_claims):
        return who, (401, "wrong_credential")
    if not who.certificate and not who.basic and not (who.otp and "secret" in label.ways):
        return who, (401, "no_credential")
    return who, None


def _way_in(label: Label, cell: Cell, who: Who) -> tuple[str, Answer | str]:
    """The first way that lets the client in, and how; where none does, the refusal that knows most."""
    refusals: list[Answer] = []
    for way in label.ways:
        found = _tried(way, label, cell, who)
        if isinstance(found, str):
            return way, found
        if found is not None:
            refusals.append(found)
    return "", max(refusals, key=lambda one: (one[1] != "cert_unknown", one[0]), default=(401, "cert_unknown"))


def _tried(way: str, label: Label, cell: Cell, who: Who) -> Answer | str | None:
    """How a way takes the client ("first" certificate, "spent" secret, "renews", "ra"), or refuses it, or None where
    it is about others."""
    kind, _, which = way.partition(":")
    renewal = cell.operation == "simplereenroll"
    if way in ("basic:factory", "basic:plant", "secret", "hook"):
        if renewal and who.certificate:
            return None  # a renewal goes by the certificate that it renews
        if kind == "basic":
            return "first" if who.basic == which else None
        if kind == "hook":
            return WORDS[cell.word] if who.basic else None
        if who.basic:
            return SECRETS.get(who.basic.removeprefix("secret "), (401, "wrong_credential"))
        return SECRETS[who.otp] if who.otp else None
    if not who.certificate:
        return None
    shown = CERTIFICATES[who.certificate]
    if dead := _dead(shown):
        return dead
    if kind == "issued":
        if not shown.under:
            return None
        asleep = shown.state == "expired" and label.window and renewal
        if not asleep and (bad := _bad(shown)):
            return bad
        return "renews" if shown.under in (cell.here, *label.admits) else (403, "not_granted")
    if kind == "ra":
        return (_bad(shown) or "ra") if shown.listed else None
    if shown.state in ("for servers", "no signatures", "a CA's"):
        return 401, "cert_not_client"  # whoever issued it
    if shown.issuer != which:
        return 401, "cert_unknown"
    if bad := _bad(shown):
        return bad
    if kind == "registry" and shown.row != "enabled":
        return 403, "device_disabled" if shown.row == "disabled" else "device_unknown"
    return WORDS[cell.word] if kind == "hook" else "first"


def _dead(shown: Certificate) -> Answer | None:
    """A certificate of ours that is dead in every label, whatever else is said of it."""
    if shown.under and shown.state.startswith("revoked"):
        return 403, "revoked"
    if shown.under and shown.row in ("disabled", "gone"):
        return 403, "device_disabled" if shown.row == "disabled" else "device_unknown"
    return None


def _bad(shown: Certificate) -> Answer | None:
    if shown.state in ("for servers", "no signatures", "a CA's"):
        return 401, "cert_not_client"
    if shown.state in ("expired", "late", "early"):
        return 401, "cert_expired"
    return (403, "revoked") if shown.state == "on the CRL" else None


def _granted(how: str, label: Label, cell: Cell) -> Answer:
    """What one who is let in gets."""
    if label.linked and how != "ra" and cell.form != "linked":
        return 400, "linking"
    if label.enforced and cell.form != "fit":
        return 400, "csrattrs"
    if cell.operation == "simplereenroll" and how in ("first", "spent"):
        return 403, "not_issued"
    if cell.form == "other names" and how == "renews":
        return 403, "name_refused"
    if cell.form == "other names" and how == "ra" and cell.operation == "simplereenroll":
        return 403, "not_issued"
    if how == "spent":
        return 401, "secret_spent"
    return (202, "waiting") if label.approval and how != "renews" else (200, "")


# The cells.


def cells() -> list[Cell]:
    """Every combination that is possible and says something that its neighbour does not."""
    return [*_public(), *_nowhere(), *_headers(), *(cell for word in WORDS for cell in _enrolments(word))]


def _public() -> Iterator[Cell]:
    """What needs no credential is told to everybody, whatever they show."""
    for label in ("", *LABELS):
        for operation in PUBLIC:
            for who in ("nobody", "own, revoked") if label in ("", "closed", "proxied") else ("nobody",):
                yield Cell(label, "GET", operation, who)
    for label in ("", "closed", "issued", "proxied"):
        for who in (*_SOME, "idevid", "ours, not in the ledger", "of a device disabled", "of another label"):
            yield Cell(label, "GET", "renewal-info", who)


def _nowhere() -> Iterator[Cell]:
    """Wrong methods, operations and labels that there are not: the same for everybody who sends no proxy's header,
    before anything is judged."""
    for who in ("nobody", "own, valid"):
        for label in ("", "closed", "keys"):
            for method, operation in (
                *_WRONG_METHODS, ("POST", "fullcmc"), ("GET", "fullcmc"), ("POST", "renew"),
                ("POST", "closed%2Fsimpleenroll"),
            ):  # fmt: skip
                yield Cell(label, method, operation, who)
    for who in ("nobody", "Basic", "idevid"):
        for operation in ("cacerts", *ENROLMENTS):
            yield Cell("nowhere", "GET" if operation == "cacerts" else "POST", operation, who)


def _headers() -> Iterator[Cell]:
    """A proxy's header where it is looked at before the method, and where there is nothing to look for; and a proxy
    without one, whose certificate counts at enrolments alone."""
    for label in ("", "closed", "proxied"):
        for who in (*_WITH_HEADER, "the proxy's"):
            for method, operation in (*_WRONG_METHODS, ("POST", "fullcmc")):
                yield Cell(label, method, operation, who)
            for operation in (*PUBLIC, "renewal-info"):
                yield Cell(label, "GET", operation, who)
    for who in ("no proxy, a header", "proxy: idevid"):
        yield Cell("nowhere", "POST", "simpleenroll", who)


_WRONG_METHODS = (
    ("GET", "simpleenroll"), ("PUT", "simplereenroll"), ("GET", "serverkeygen"), ("POST", "cacerts"),
    ("POST", "csrattrs"), ("POST", "crls"), ("POST", "renewal-info"),
)  # fmt: skip
_WITH_HEADER = ("no proxy, a header", "no proxy, own with a header", "proxy: idevid")


def _enrolments(word: str) -> Iterator[Cell]:
    for name, label in LABELS.items():
        for who in WHO:
            if not _concerns(name, label, who) or (word != "allow" and not _hears(label, who)):
                continue
            for operation in ENROLMENTS:
                if operation == "serverkeygen" and who not in (_KEY_SEEKERS if label.keygen else _SOME):
                    continue
                for form in _forms(label, who, operation):
                    yield Cell(name, "POST", operation, who, form, word)
                    if name == "default" and who in _SOME:
                        yield Cell("", "POST", operation, who, form, word)


_SOME = ("nobody", "Basic", "own, valid", "own, revoked")
"""Enough where the answer is the same for whoever asks."""
_KEY_SEEKERS = (
    *_SOME, "Basic, wrong password", "own, expired", "of another label", "idevid", "idevid on the CRL", "a stranger's",
    "secret right", "secret used", "otp right", "otp wrong", "of a device enabled", "of a device disabled",
    "no proxy, a header",
)  # fmt: skip


_LIKE_OTHERS = (
    "plant", "slept", "cross", "root", "ra", "approval", "linked", "enforced", "challenged", "keys", "issued",
    "anchors", "hooked",
)  # fmt: skip
_SAID_ELSEWHERE = (
    "Bearer", "Basic, unknown user", "Basic of another label", "secret right", "otp right", "the proxy's",
    "idevid, with Basic", "idevid, with a wrong secret", "own, with a wrong password", "the maker's CA",
    "own revoked, with a wrong password", "of a device disabled, with its secret", "of another label, revoked",
    "no proxy, a header with Basic", "no proxy, own with a header",
)  # fmt: skip
"""Who is told the same in those labels as in the others, by the same rule."""


def _hears(label: Label, who: str) -> bool:
    """Whether a webhook's other words are worth a cell: for those it is asked about, and for some whom it is not."""
    if "hook:maker" in label.ways:
        return who in ("idevid", "idevid expired", "idevid on the CRL", *_SOME)
    return "hook" in label.ways and who in ("Basic", "own, with Basic", "own, revoked", "nobody", "Bearer")


def _concerns(name: str, label: Label, who: str) -> bool:
    """Leaves out combinations in which nothing new can happen (a certificate's states where no way looks at such,
    kinds of one-time secrets where none is heard), and those that cannot be."""
    shown = WHO[who]
    if name in _LIKE_OTHERS and who in _SAID_ELSEWHERE:
        return False
    makers, ours = any(":maker" in way for way in label.ways), "anchors:ours" in label.ways
    if shown.basic.startswith("secret ") or shown.otp:
        return "secret" in label.ways or who in ("secret right", "otp right")
    if who.startswith("proxy: "):
        return label.proxy or (who in ("proxy: idevid", "proxy: own") and name in ("closed", "default", "anchors"))
    if who in ("own, late", "own, revoked and expired"):
        return "issued" in label.ways  # where our CA is an anchor it would be older than its CA, which cannot be
    if who.startswith("own, ") and "with" not in who:
        return who in ("own, valid", "own, revoked") or ours or name in ("issued", "slept", "default", "ra", "closed")
    if who.startswith("idevid "):
        return makers
    if who.startswith("of a device"):
        return ours or name in ("registry", "issued", "default")
    if who.startswith("RA "):
        return ours or "ra" in label.ways
    if who == "the maker's CA" or who.startswith("a stranger's with"):
        return makers or ours or name == "issued"
    return True


def _forms(label: Label, who: str, operation: str) -> tuple[str, ...]:
    """The request that the label wants; and another, from some."""
    if label.linked:
        return ("linked", "plain") if who in (*_SOME, "RA", "idevid") else ("linked",)
    if label.enforced:
        return ("fit", "plain") if who in _SOME else ("fit",)
    if label.challenged:
        return ("challenged", "plain") if who in _SOME else ("challenged",)
    if "issued" in label.ways and who in ("own, valid", "RA") and operation != "serverkeygen":
        return "plain", "other names"
    return ("plain",)
