"""HTML that is safe by its type: `fill` escapes every value that is not Markup already, and only `fill` and literals
of ours make Markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

from estd.ledger_requests import plain_text


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def fill(template: str, **values: object) -> Markup:
    """The template, a literal, with its {fields} filled in. Markup goes in as it is, all else as escaped text."""
    return Markup(template.format_map({name: _safe(value) for name, value in values.items()}))


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("".join(parts))


def _safe(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(plain_text(str(value)), quote=True))
