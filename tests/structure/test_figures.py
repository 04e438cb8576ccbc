"""Headline figures have a witness or a reason, everywhere: their type asks for it, and nobody goes around it."""

from __future__ import annotations

import ast
import dataclasses
import typing
from pathlib import Path

import pytest
from piolet.score import headlines, summary
from piolet.score.figure import Figure

PACKAGE = Path(summary.__file__).parent
FIELDS = ("value", "low", "high", "coverage")


def test_every_headline_is_a_figure() -> None:
    """In the summary, from which everything is laid out; and each is made in one place."""
    kinds = typing.get_type_hints(summary.Summary)
    assert {name for name, kind in kinds.items() if kind is Figure} == set(summary.HEADLINES)
    for name in summary.HEADLINES:
        assert typing.get_type_hints(getattr(headlines, name))["return"] is Figure
    assert {field.name for field in dataclasses.fields(Figure)} == {"low", "high", "witness", "reason"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_figures_are_made_by_three_functions(path: Path) -> None:
    """Nobody else calls the type."""
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Figure"
    ]
    assert path.stem == "figures" or bool(calls) == (path.stem == "figure")


@pytest.mark.parametrize("name", ["report/screen", "report/html", "report/figures", "compare", "export"])
def test_what_is_laid_out_is_the_figure(name: str) -> None:
    """The number behind the saturation is asked for whether it is there, and never written."""
    text = (PACKAGE / f"{name}.py").read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr in FIELDS and _is_score(node.value):
            line = text.splitlines()[node.lineno - 1]
            assert "is None" in line or "is not None" in line, f"{name}.py:{node.lineno}"


def _is_score(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "score") or (
        isinstance(node, ast.Attribute) and node.attr == "score"
    )
