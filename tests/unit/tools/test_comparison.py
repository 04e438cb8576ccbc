"""docs/comparison.md says what tests hold."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import comparison
from tools.comparison import NOT_DONE, PAGE, TABLES, Thing

ROOT = Path(__file__).resolve().parents[3]
THINGS = [thing for _, things in TABLES for thing in things]


def test_the_page_is_what_would_be_written_now() -> None:
    assert PAGE.read_text("utf-8") == comparison.page(), "write it anew: python -m tools.comparison"


@pytest.mark.parametrize("test", sorted({test for thing in THINGS for test in thing.tests}))
def test_a_named_test_is_there(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_row_without_a_test_is_not_done() -> None:
    assert f"**{NOT_DONE}**: all of it" in comparison._here(Thing("x", "all of it"))
    without = [thing for thing in THINGS if not thing.tests]
    assert without
    assert PAGE.read_text("utf-8").count(f"**{NOT_DONE}**") == len(without)
