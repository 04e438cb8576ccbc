"""SECURITY.md names tests for its promises: each is there, and no attack is missing.

The checks that attacks need removed are there to be removed.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.attacks import weaken
from tests.attacks.weakenings import WEAKENINGS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::test_\w+)`", TEXT)))
ATTACKS = sorted((ROOT / "tests/attacks").glob("test_*.py"))


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """Return the tests of a file, by name, without importing it."""
    tree = ast.parse(path.read_text("utf-8"))
    return {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def marks(test: ast.FunctionDef) -> list[ast.Call]:
    return [
        one
        for one in test.decorator_list
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in ("attack", "by_kernel")
    ]


def test_promises_have_tests() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    assert test in functions(ROOT / path), name


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.name)
def test_every_attack_is_named_and_says_what_it_is_about(path: Path) -> None:
    for name, test in functions(path).items():
        assert f"{path.relative_to(ROOT)}::{name}" in NAMED, f"{name} is not in SECURITY.md"
        text = ast.get_docstring(test) or ""
        assert "Promise:" in text or "promise" in text.lower(), f"{name} does not say which promise it attacks"
        assert len(marks(test)) == 1, f"{name} is marked neither @attack nor @by_kernel"


def test_no_link_of_security_md_is_dead() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_every_check_that_attacks_remove_is_there() -> None:
    """One that has changed would leave the attack without proof."""
    assert set(weaken.sources(ROOT)) <= {file for one in WEAKENINGS.values() for file, _, _ in one.changes}
    used = {
        argument.value
        for path in ATTACKS
        for test in functions(path).values()
        for mark in marks(test)
        if isinstance(mark.func, ast.Name) and mark.func.id == "attack"
        for argument in mark.args
        if isinstance(argument, ast.Constant)
    }
    assert used == set(WEAKENINGS)


def test_a_weakening_that_does_not_apply_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "daemons/piolet").mkdir(parents=True)
    for one in WEAKENINGS.values():
        for file, _, _ in one.changes:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("nothing\n")
    with pytest.raises(weaken.WeakenError, match="has this 0 times, not once"):
        weaken.sources(tmp_path)
