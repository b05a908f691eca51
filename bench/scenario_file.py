"""Scenarios as small TOML files, read strictly: an unknown key is an error that names it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bench import quantities
from bench.mix import NAMES
from bench.ramp import Ramp
from bench.scenario import AUTHENTICATIONS, OPERATIONS, TLS_VERSIONS, Goals, Scenario
from estd.toml_table import Table, string

FOLDER = Path(__file__).with_name("scenarios")
_WEIGHT_MAX = 1000

T = TypeVar("T")


class ScenarioError(Exception):
    """Everything that is wrong with a scenario file, a sentence for each."""


def names() -> list[str]:
    """The scenarios that come with the bench."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Scenario:
    """The scenario of that name in bench/scenarios, or in the file of that path. Raises ScenarioError."""
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{error}; the scenarios here are {', '.join(names())}") from None
    return parse(text, path.stem)


def parse(text: str, name: str) -> Scenario:
    """The scenario in `text`. Raises ScenarioError with every problem."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"not TOML: {error}") from None
    problems: list[str] = []
    scenario = _scenario(Table(data, "", problems, Path()), name)
    if problems:
        raise ScenarioError("\n".join(problems))
    return scenario


def _given(table: Table, key: str, kind: Callable[[Any], T], otherwise: T, needs: str) -> T:
    """The key's value, or `otherwise` where it is not there."""
    return table.take(key, kind, None, needs) if key in table.left else otherwise


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _scenario(table: Table, name: str) -> Scenario:
    usual = Scenario()
    scenario = Scenario(
        name=name,
        about=table.string("about"),
        operation=table.choice("operation", usual.operation, OPERATIONS),
        authentication=table.choice("auth", usual.authentication, AUTHENTICATIONS),
        label=_given(table, "label", string, None, "a label's name"),
        count=_given(table, "count", _whole, None, "a whole number from 1"),
        seconds=_given(table, "seconds", quantities.seconds, None, 'a duration such as "20s"'),
        rate_per_second=_given(table, "rate", quantities.rate, None, 'a rate such as "3000/s"'),
        share=_given(table, "share", quantities.share, None, "a part of the capacity such as 0.7"),
        connections=table.whole("connections", usual.connections, 1, 65_536),
        fresh=table.flag("fresh", usual.fresh),
        devices=_given(table, "devices", _whole, None, "a whole number from 1"),
        generators=table.whole("generators", usual.generators, 1, 64),
        tls=table.choice("tls", usual.tls, TLS_VERSIONS),
        timeout_seconds=_given(
            table, "timeout", quantities.seconds, usual.timeout_seconds, 'a duration such as "15s"'
        ),
        retry=table.flag("retry", usual.retry),
        tries=table.whole("tries", usual.tries, 1, 1000),
        herd=_given(table, "herd", _whole, None, "how many devices switch on at once"),
        ramp=_ramp(table.table("ramp")) if "ramp" in table.left else None,
        mix=_mix(table.table("mix")),
        goals=_goals(table.table("goals")),
    )  # fmt: skip
    _done(table)
    return scenario


def _ramp(table: Table) -> Ramp:
    usual = Ramp()

    def factor(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1.05 <= value <= 10:
            raise ValueError
        return float(value)

    def precision(value: Any) -> float:
        if quantities.part(value) < 0.01:
            raise ValueError
        return float(value)

    ramp = Ramp(
        to_per_second=_given(table, "to", quantities.rate, usual.to_per_second, 'a rate such as "20000/s"'),
        factor=_given(table, "factor", factor, usual.factor, "a number from 1.05 to 10"),
        repeats=table.whole("repeats", usual.repeats, 0, 10),
        precision=_given(table, "precision", precision, usual.precision, "a part from 0.01 to 1"),
    )
    _done(table)
    return ramp


def _mix(table: Table) -> dict[str, int]:
    weights = {name: table.whole(name, 0, 0, _WEIGHT_MAX) for name in NAMES if name in table.left}
    _done(table)
    return {name: weight for name, weight in weights.items() if weight}


def _goals(table: Table) -> Goals:
    goals = Goals(
        rate_per_second=_given(table, "rate", quantities.rate, None, 'a rate such as "3000/s"'),
        p99_us=_given(table, "p99", quantities.microseconds, None, 'a duration such as "25ms"'),
        errors=_given(table, "errors", quantities.part, 0.0, "a part of the requests such as 0.001"),
    )
    _done(table)
    return goals


def _done(table: Table) -> None:
    for key in table.left:
        table.wrong(key, "is not a key that a scenario has")
