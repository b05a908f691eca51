"""Names made of fields: `CN = "{serialNumber}.devices.example.com"`, `uri = ["urn:dev:{serialNumber}"]`.

The fields are a closed set, a template is read at start-up, and a value cannot break out of its place. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

REGISTRY_FIELDS = ("serialNumber", "manufacturer", "label")
"""What is known of every device of the registry: its key."""
CERTIFICATE_FIELDS = (
    "subject.CN", "subject.serialNumber", "subject.O", "subject.OU", "subject.C", "subject.UID", "san.dns", "san.ip",
    "san.uri",
)  # fmt: skip
"""What a certificate or a request may say once: where it says it twice, the field has no value."""

SUBJECT_WORDS = ("C", "O", "OU", "UID", "serialNumber", "CN")
"""The attributes that a map may give, in the order in which they stand in the subject."""
SAN_WORDS = ("dns", "ip", "uri")
_FITS = {"dns": re.compile(r"[A-Za-z0-9-]+"), "ip": re.compile(r"[0-9A-Fa-f]{1,4}")}
"""What a value may be in its place, where that cannot be had by encoding it."""
_IN_HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
"""The beginning of a URI whose host is not over."""
_PIECE = re.compile(r"\{([A-Za-z.]+)\}|([^{}]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A text with fields in it."""

    text: str
    pieces: tuple[tuple[bool, str], ...]
    """(True, a field) or (False, what stands for itself)."""

    @property
    def fields(self) -> set[str]:
        return {text for is_field, text in self.pieces if is_field}

    def fill(self, kind: str, values: Mapping[str, str]) -> str:
        """The text with the fields' values. Raises ValueError where one has no value, or one that would change the
        name's structure: a value is one label of a dNSName, one group of an iPAddress, and in a URI one label of its
        host or percent-encoded; only a name of that kind, alone, stands as it is."""
        filled = ""
        for is_field, text in self.pieces:
            if not is_field:
                filled += text
                continue
            value = values.get(text, "")
            if not value:
                raise ValueError(f"the device has no {text}, or more than one, for the name {self.text!r}")
            if self.text != f"{{san.{kind}}}":
                place = "dns" if kind == "uri" and _IN_HOST.fullmatch(filled) else kind
                if place in _FITS and not _FITS[place].fullmatch(value):
                    raise ValueError(f"the device's {text} {value[:64]!r} does not fit into the name {self.text!r}")
                if kind == "uri":
                    value = quote(value, safe="")
            filled += value
        if kind == "uri" and {".", ".."} & set(re.split("[/?#]", filled)):
            raise ValueError(f"the name {self.text!r} would lead to {filled[:200]!r}, another path")
        return filled


def _template(value: Any, fields: tuple[str, ...]) -> Template:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a text with fields")
    pieces = tuple((bool(one[1]), one[1] or one[2]) for one in _PIECE.finditer(value))
    if "".join(f"{{{text}}}" if is_field else text for is_field, text in pieces) != value:
        raise ValueError(f"{value!r} has a brace that is no field")
    odd = [text for is_field, text in pieces if is_field and text not in fields]
    if odd:
        raise ValueError(f"{value!r} has the field {odd[0]!r}, which is none of {', '.join(fields)}")
    return Template(text=value, pieces=pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameMap:
    """What `names` of a rule says."""

    subject: tuple[tuple[str, Template], ...]
    dns: tuple[Template, ...]
    ip: tuple[Template, ...]
    uri: tuple[Template, ...]

    def fill(self, values: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[str], list[str], list[str]]:
        """The subject's words and values, and the names of each kind. Raises ValueError."""
        return (
            [(word, template.fill("subject", values)) for word, template in self.subject],
            [template.fill("dns", values) for template in self.dns],
            [template.fill("ip", values) for template in self.ip],
            [template.fill("uri", values) for template in self.uri],
        )


def read(value: Any, fields: tuple[str, ...]) -> NameMap:
    """The table `names` of a rule. Raises ValueError that says what is wrong with it."""
    if not isinstance(value, dict) or not value:
        raise ValueError
    odd = [word for word in value if word not in (*SUBJECT_WORDS, *SAN_WORDS)]
    if odd:
        raise ValueError(f"{odd[0]!r} is none of {', '.join((*SUBJECT_WORDS, *SAN_WORDS))}")
    lists: dict[str, tuple[Template, ...]] = {}
    for kind in SAN_WORDS:
        texts = value.get(kind, [])
        if not isinstance(texts, list):
            raise ValueError(f"{kind} is a list of texts with fields")
        lists[kind] = tuple(_template(one, fields) for one in texts)
    return NameMap(
        subject=tuple((word, _template(value[word], fields)) for word in SUBJECT_WORDS if word in value), **lists
    )
