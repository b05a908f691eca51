"""docs/requirements.md is true: each requirement has its row, and each test that a row names is there for it."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs import ROOT

_PAGE = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
ROWS = {int(row[1]): row for row in re.finditer(r"^\| R(\d+) \|([^|]*)\|([^|]*)\|([^|]*)\|$", _PAGE, re.MULTILINE)}
WAITING = {28, 30, 31, 32}
"""CMS follows on its own."""


@cache
def _words(module: str) -> dict[str, str]:
    """Each test function of the module with its name and docstring."""
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    return {one.name: f"{one.name.replace('_', ' ')} {ast.get_docstring(one)}" for one in functions}


def test_every_requirement_has_one_row() -> None:
    """All 51 in their order, once each."""
    assert re.findall(r"^\| R(\d+) ", _PAGE, re.MULTILINE) == [str(number) for number in range(1, 52)]
    assert list(ROWS) == list(range(1, 52))


@pytest.mark.parametrize("number", ROWS)
def test_each_test_that_a_row_names_is_there_for_it(number: int) -> None:
    """The named tests exist and carry the number, but for those that show what is refused until it is there."""
    done, shown = ROWS[number][3], re.findall(r"`(\w+)::(\w+)`", ROWS[number][4])
    assert done.strip().startswith("not yet") == (number in WAITING)
    assert shown or number in WAITING
    for module, name in shown:
        assert name in _words(module), f"{module} has no {name}"
        assert number in WAITING or re.search(rf"\bR{number}\b", _words(module)[name]), f"{name} does not say R{number}"


def test_the_readmes_table_has_every_requirement() -> None:
    """Each number is in the last column of README.md's "What it does", alone or in a range; what waits is said to."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What it does")[2].partition("\n## ")[0]
    found: set[int] = set()
    for done, numbers in re.findall(r"^\|[^|]*\|([^|]*)\|([^|]*)\|$", table, re.MULTILINE):
        row: set[int] = set()
        for first, last in re.findall(r"R(\d+)(?:–R(\d+))?", numbers):
            row |= set(range(int(first), int(last or first) + 1))
        assert not row & WAITING or "not yet" in done
        found |= row
    assert found == set(ROWS)
