"""One line of the operator's configuration, changed so that everything else stays: a CA's key_id."""

from __future__ import annotations

import re
import tomllib


def with_key_id(text: str, name: str, old: str, new: str) -> str | None:
    """The configuration with [ca.NAME]'s key_id `new` instead of `old` (hexadecimal); the same text where it says so
    already. None where the line is not in the plain form, so that a person has to change it."""
    data = tomllib.loads(text)
    if data["ca"][name]["key_id"].lower() == new:
        return text
    table = re.search(rf"^\[ca\.{re.escape(name)}\][^\n]*\n(?:(?!\[)[^\n]*(?:\n|\Z))*", text, re.MULTILINE)
    if table is None:
        return None
    line = rf"""^(key_id[ \t]*=[ \t]*)(["']){old}\2"""
    changed, found = re.subn(line, rf"\g<1>\g<2>{new}\g<2>", table[0], flags=re.MULTILINE | re.IGNORECASE)
    if found != 1:
        return None
    whole = text[: table.start()] + changed + text[table.end() :]
    data["ca"][name]["key_id"] = new
    return whole if tomllib.loads(whole) == data else None
