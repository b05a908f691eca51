"""What a webhook said of a request: read strictly, carried from the edge that asked to the issuer. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Say = Literal["allow", "deny", "away"]
_NAMES_MAX = 256
_TEXT_MAX = 2048
_NAMES_TEXT_MAX = 65_536
"""Characters of all names in one verdict, which has to fit into a frame."""
_WHY_MAX = 200


class Verdict(NamedTuple):
    say: Say
    profile: str
    """Empty: the rule's."""
    names: Mapping[str, Any]
    """What `given_names.made` takes; empty: the certificate's, or the user's."""
    why: str
    retry_after: int
    """Seconds, where the webhook did not answer."""


class BadAnswer(ValueError):
    """The webhook's answer, or the secret that it is shown, is not as docs/devices.md has it."""


def away(why: str, retry_after: int) -> Verdict:
    """The webhook gave no answer that counts."""
    return Verdict("away", "", {}, why, retry_after)


def pack(verdict: Verdict) -> bytes:
    return json.dumps(verdict, separators=(",", ":")).encode()


def unpack(data: bytes) -> Verdict | None:
    return Verdict(*json.loads(data)) if data else None


def _text(value: Any, what: str, most: int = _TEXT_MAX) -> str:
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise BadAnswer(f"{what} is not a text of at most {most} printable characters")
    return value


def _names(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) - {"subject", "dns", "ip", "uri"}:
        raise BadAnswer("names has other keys than subject, dns, ip, uri")
    lists: dict[str, Any] = {"subject": _text(value.get("subject", ""), "names.subject")}
    for kind in ("dns", "ip", "uri"):
        found = value.get(kind, [])
        if not isinstance(found, list) or len(found) > _NAMES_MAX:
            raise BadAnswer(f"names.{kind} is not a list of at most {_NAMES_MAX} names")
        lists[kind] = [_text(one, f"a name in names.{kind}") for one in found]
    if sum(len(text) for found in lists.values() for text in found) > _NAMES_TEXT_MAX:
        raise BadAnswer(f"names has more than {_NAMES_TEXT_MAX} characters")
    return lists if any(lists.values()) else {}


def _verdict(value: Any) -> tuple[int, Verdict]:
    if not isinstance(value, dict) or set(value) - {"id", "allow", "profile", "names", "why"}:
        raise BadAnswer("an answer has other keys than id, allow, profile, names, why")
    number, allow = value.get("id"), value.get("allow")
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(allow, bool):
        raise BadAnswer("an answer has no whole id, or no allow that is true or false")
    return number, Verdict(
        "allow" if allow else "deny",
        _text(value.get("profile", ""), "profile", 64),
        _names(value.get("names", {})),
        _text(value.get("why", ""), "why", _WHY_MAX),
        0,
    )


def read(body: bytes, asked: int) -> list[Verdict]:
    """The verdicts on the questions 0 to `asked` - 1, each exactly once. Raises BadAnswer."""

    left = 1 + 2 * asked  # the whole, each answer and its names

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise BadAnswer(f"it has more objects than answers to {asked} questions and their names")
        found = dict(pairs)
        if len(found) != len(pairs):
            raise BadAnswer("a key stands twice in one object")
        return found

    def no_number(text: str) -> Any:
        raise BadAnswer(f"{text} is no JSON")

    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_number)
    except BadAnswer:
        raise
    except (ValueError, RecursionError):
        raise BadAnswer("it is not JSON in UTF-8") from None
    if not isinstance(found, dict) or set(found) != {"answers"} or not isinstance(found["answers"], list):
        raise BadAnswer('it is not {"answers": [...]}')
    if len(found["answers"]) != asked:
        raise BadAnswer(f"it has {len(found['answers'])} answers to {asked} questions")
    answers = dict(_verdict(one) for one in found["answers"])
    if set(answers) != set(range(asked)):
        raise BadAnswer("its ids are not those of the questions")
    return [answers[number] for number in range(asked)]
