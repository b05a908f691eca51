"""HTML that is put together from parts: text is escaped, and only what was made here is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = ("meta", "br", "col")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str | Markup, **attributes: str | None) -> Markup:
    """An element. `class_` is the attribute class and an underscore within a name a hyphen; None leaves one out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in _VOID else f"</{name}>"
    return Markup(f"<{name}{given}>{join(children)}{end}")


def join(parts: Iterable[str | Markup]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def number(value: float, text: str) -> Markup:
    """A figure as it is shown, with its exact value beside it for a program that reads the page."""
    return tag("data", text, value=repr(value))
