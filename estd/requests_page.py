"""The pages on which a person sees the requests that wait and decides on them: pure functions from what the ledger
holds to HTML. No script, nothing from elsewhere; each text is escaped by its type (estd/markup.py)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from estd.ledger_requests import REASON_MAX, Decision, HeldRequest
from estd.markup import Markup, fill, join

ROOT = "/requests"
PAGE_ROWS = 50
_TABS = (
    ("pending", "Waiting"), ("approved", "Approved"), ("issued", "Issued"), ("denied", "Denied"),
    ("expired", "Expired"), ("all", "All"),
)  # fmt: skip
TABS = tuple(word for word, _ in _TABS)
_WORDS = {**dict(_TABS), "pending": "waiting", "approved": "approved", "issued": "issued", "denied": "denied",
          "expired": "expired"}  # fmt: skip

_LAYOUT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · estd</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/requests/style.css">
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><a class="brand" href="/requests">estd <span>requests</span></a>{user}</header>
<main id="main">
{body}
</main>
</body>
</html>
"""


class Form(NamedTuple):
    """What a decision's form carries besides the decision."""

    token: str
    """Proof that the page came from here and belongs to this login."""
    error: str = ""
    """What was wrong with the last try."""
    reason: str = ""
    """What had been typed then."""


def layout(title: str, body: Markup, user: str = "") -> str:
    shown = fill('<span class="user">signed in as <bdi>{user}</bdi></span>', user=user) if user else Markup()
    return fill(_LAYOUT, title=title, body=body, user=shown)


def message(title: str, sentence: str, user: str = "") -> str:
    """A page that says one thing."""
    body = fill(
        '<div class="empty"><h1>{title}</h1><p>{sentence}</p><p><a href="/requests">All that waits</a></p></div>',
        title=title,
        sentence=sentence,
    )
    return layout(title, body, user)


def listing(rows: Sequence[HeldRequest], *, state: str, text: str, before: int | None, now_ms: int, user: str) -> str:
    """One page of the list; `rows` may hold one more than a page, which makes the link to the next."""
    shown, more = rows[:PAGE_ROWS], len(rows) > PAGE_ROWS
    tabs = join(
        fill(
            '<li><a href="{link}"{current}>{name}</a></li>',
            link=_link(state=word, q=text),
            current=Markup(' aria-current="page"') if word == state else Markup(),
            name=name,
        )
        for word, name in _TABS
    )
    older = Markup()
    if more:
        link = _link(state=state, q=text, before=str(shown[-1].id))
        older = fill('<p class="pages"><a class="button" href="{link}">Older requests</a></p>', link=link)
    body = fill(
        """<h1>Requests</h1>
<p class="lead">Devices that asked for a certificate and wait for somebody to say that they may have it.</p>
<div class="bar">
<nav aria-label="State"><ul class="tabs">{tabs}</ul></nav>
<form class="search" method="get" action="/requests" role="search">
<input type="hidden" name="state" value="{state}">
<label for="q">Search</label>
<input id="q" type="search" name="q" value="{text}" maxlength="200" placeholder="name, client, address, fingerprint">
<button>Find</button>
</form>
</div>
{table}{older}""",
        tabs=tabs,
        state=state,
        text=text,
        table=_table(shown, now_ms) if shown else _empty(state, text, before),
        older=older,
    )
    return layout("Requests", body, user)


def _link(**query: str) -> str:
    return f"{ROOT}?" + urlencode({name: value for name, value in query.items() if value})


def _table(rows: Sequence[HeldRequest], now_ms: int) -> Markup:
    lines = join(
        fill(
            """<tr>
<th scope="row"><a href="{link}"><bdi>{subject}</bdi></a>{names}</th>
<td data-name="Asked by"><bdi>{identity}</bdi></td>
<td data-name="Label">{label}</td>
<td data-name="Key">{key}</td>
<td data-name="Asked">{asked}</td>
<td data-name="State">{badge}</td>
</tr>""",
            link=f"{ROOT}/{one.id}",
            subject=_title(one),
            names=fill('<span class="names"><bdi>{names}</bdi></span>', names=", ".join(one.names))
            if one.names and one.subject
            else Markup(),
            identity=one.identity,
            label=one.label,
            key=one.key_kind,
            asked=_when(one.asked_at, now_ms),
            badge=_badge(one),
        )
        for one in rows
    )
    return fill(
        """<table>
<caption class="hidden">Requests, newest first</caption>
<thead><tr><th scope="col">Request</th><th scope="col">Asked by</th><th scope="col">Label</th><th scope="col">Key</th>
<th scope="col">Asked</th><th scope="col">State</th></tr></thead>
<tbody>{lines}</tbody>
</table>""",
        lines=lines,
    )


def _empty(state: str, text: str, before: int | None) -> Markup:
    if text:
        said = "Nothing fits this search", "Try a shorter part of the name, or look under All."
    elif state == "pending" and before is None:
        said = "Nothing waits for you", "When a device asks for a certificate under a label that holds requests, it " \
            "appears here."  # fmt: skip
    else:
        said = "Nothing here", "No request is in this state."
    return fill('<div class="empty"><h2>{title}</h2><p>{sentence}</p></div>', title=said[0], sentence=said[1])


def detail(one: HeldRequest, decisions: Sequence[Decision], *, form: Form, now_ms: int, user: str) -> str:
    """One request, what was decided on it, and what can be."""
    names = join(fill("<li><bdi>{name}</bdi></li>", name=name) for name in one.names)
    rows: list[tuple[str, Markup]] = [
        ("Subject", _text(one.subject or "(empty)")),
        ("Names", fill("<ul>{names}</ul>", names=names) if names else _text("none")),
        ("Key", _text(one.key_kind)),
        ("Key's SHA-256", fill('<code class="print">{print}</code>', print=one.spki_sha256.hex(":", 2))),
        ("Asked by", _text(one.identity)),
        ("From", _text(one.peer or "unknown")),
        ("Asked", _when(one.asked_at, now_ms)),
        ("Label", _text(one.label)),
        ("Profile", _text(one.profile)),
    ]
    if one.renews is not None:
        rows.append(("Renews", fill("<code>{serial}</code>", serial=one.renews.hex())))
    if one.state in ("pending", "approved", "denied"):
        rows.append(("Until", _when(one.expires_at, now_ms)))
    if one.serial is not None:
        rows.append(("Certificate", fill("<code>{serial}</code>", serial=one.serial.hex())))
    facts = join(fill("<dt>{name}</dt><dd>{value}</dd>", name=name, value=value) for name, value in rows)
    history = join(
        fill(
            '<li><span class="badge {state}">{state}</span> by <bdi>{by}</bdi>, {when}{reason}</li>',
            state=done.state,
            by=done.by,
            when=_when(done.at, now_ms),
            reason=fill(": <q><bdi>{reason}</bdi></q>", reason=done.reason) if done.reason else Markup(),
        )
        for done in decisions
    )
    body = fill(
        """<p class="back"><a href="/requests">All that waits</a></p>
<h1><bdi>{title}</bdi> {badge}</h1>
{error}
<div class="columns">
<section aria-labelledby="what"><h2 id="what">What is asked for</h2><dl>{facts}</dl></section>
<section aria-labelledby="decide"><h2 id="decide">Decision</h2>
{history}{forms}
</section>
</div>""",
        title=_title(one),
        badge=_badge(one),
        error=fill('<p class="error" role="alert">{error}</p>', error=form.error) if form.error else Markup(),
        facts=facts,
        history=fill('<ol class="history">{lines}</ol>', lines=history) if history else Markup(),
        forms=_forms(one, form),
    )
    return layout(f"Request {one.id}", body, user)


_FORM = """<form class="decision" method="post" action="{action}">
<input type="hidden" name="token" value="{token}">
<input type="hidden" name="seen" value="{seen}">
<input type="hidden" name="decision" value="{decision}">
<label for="{decision}-reason">{asks}</label>
<input id="{decision}-reason" name="reason" maxlength="{most}" value="{reason}" autocomplete="off"{required}>
<button class="{decision}">{button}</button>
<p class="hint">{hint}</p>
</form>"""


def _forms(one: HeldRequest, form: Form) -> Markup:
    if one.state in ("issued", "expired"):
        ended = {
            "issued": "The device has its certificate. To take it back, revoke it.",
            "expired": "It waited too long. If the device asks again, it waits anew.",
        }
        return fill('<p class="hint">{said}</p>', said=ended[one.state])

    def made(decision: str, asks: str, button: str, hint: str) -> Markup:
        return fill(
            _FORM, action=f"{ROOT}/{one.id}/decision", token=form.token, seen=one.state, decision=decision, asks=asks,
            most=REASON_MAX, button=button, hint=hint, reason=form.reason if decision == "denied" else "",
            required=Markup(" required") if decision == "denied" else Markup(),
        )  # fmt: skip

    approve = made(
        "approved", "Note (for the record, may stay empty)", "Approve",
        "The device gets its certificate when it asks again.",
    )  # fmt: skip
    deny = made(
        "denied", "Reason (the device is told this)", "Deny" if one.state == "pending" else "Withdraw and deny",
        "The device is told 403 with this reason.",
    )  # fmt: skip
    return join([approve] * (one.state != "approved") + [deny] * (one.state != "denied"))


def _title(one: HeldRequest) -> str:
    return one.subject or ", ".join(one.names) or "(no name)"


def _text(text: str) -> Markup:
    return fill("<bdi>{text}</bdi>", text=text)


def _badge(one: HeldRequest) -> Markup:
    return fill('<span class="badge {state}">{word}</span>', state=one.state, word=_WORDS[one.state])


def _when(at_ms: int, now_ms: int) -> Markup:
    exact = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_ms // 1000))
    machine = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms // 1000))
    return fill(
        '<time datetime="{machine}" title="{exact}">{ago}<span class="exact">{exact}</span></time>',
        machine=machine,
        exact=exact,
        ago=_ago((now_ms - at_ms) // 1000),
    )


def _ago(seconds: int) -> str:
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = abs(seconds) // size
        if count:
            text = f"{count} {word}{'s' * (count > 1)}"
            return f"{text} ago" if seconds > 0 else f"in {text}"
    return "just now" if seconds >= 0 else "within a minute"
