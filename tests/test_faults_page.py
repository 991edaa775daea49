"""docs/faults.md names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "faults.md").read_text()
ROWS = [row for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE) if "|---" not in row]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py::[\w:]+)`", PAGE)))


@lru_cache
def names_in(file: str) -> frozenset[str]:
    """Names of tests as pytest writes them, without importing anything."""

    def names(body: list[ast.stmt], within: str) -> list[str]:
        found = []
        for node in body:
            if isinstance(node, ast.ClassDef):
                found += names(node.body, f"{within}{node.name}::")
            elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.append(within + node.name)
        return found

    return frozenset(names(ast.parse((TESTS / file).read_text()).body, ""))


@pytest.mark.parametrize("named", NAMED)
def test_each_test_that_is_named_exists(named: str) -> None:
    file, _, name = named.partition("::")
    assert name in names_in(file)


def test_each_fault_names_a_test() -> None:
    faults = [row for row in ROWS if not row.endswith("| tests |")]
    assert len(faults) > 24
    assert all("::" in row.rsplit("|", 2)[1] for row in faults)


def test_each_public_situation_is_on_the_page() -> None:
    file = "cases/test_cases.py"
    situations = PAGE.split("## Situations from public reports")[1]
    assert {f"{file}::{name}" for name in names_in(file)} <= set(NAMED)
    assert situations.count("\n| ") - 1 == 24
