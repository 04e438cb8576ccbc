"""Columns and plurals, which many print."""

from __future__ import annotations

from piolet.base import texts


def test_a_number_has_its_noun() -> None:
    assert [texts.counted(many, "node") for many in (0, 1, 2)] == ["0 nodes", "1 node", "2 nodes"]


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    assert texts.columns([("A", "LONG", "C"), ("abc", "d", "")]) == ["A    LONG  C", "abc  d     "]


def test_columns_of_given_widths() -> None:
    rows = [("a", "b", "c"), ("toolong", "1", "rest of it")]
    assert texts.columns(rows, (4, 3), right=(1,), gap=1) == ["a      b c", "toolong   1 rest of it"]
    assert texts.columns([("x", "1")], (3, 4), right=(1,), gap=0) == ["x     1"]


def test_no_rows() -> None:
    assert texts.columns([]) == []
