"""The table of kernels in its document: rows are replaced by name, others stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.kernels.report import HEAD, Row, complaints, table, write


def row(name: str, release: str, failed: tuple[str, ...] = (), skipped: tuple[str, ...] = ()) -> Row:
    return Row(name, release, "by some way", 7, failed, skipped, 90.0)


def test_rows_are_replaced_by_name(tmp_path: Path) -> None:
    path = tmp_path / "kernels.md"
    path.write_text(f"before\n\n{HEAD}\n| --- | --- | --- | --- | --- | --- | --- |\n\nafter\n")
    write(path, [row("6.1", "6.1.0-1"), row("6.12", "6.12.1")])
    write(path, [row("6.1", "6.1.0-2", failed=("x",))])
    write(path, [row("5.10", "5.10.0", skipped=("y", "z"))])
    lines = path.read_text().splitlines()
    assert lines[:4] == ["before", "", *list(table([]))]
    assert lines[4:7] == [
        "| 6.1 | 6.1.0-2 | 7 | 1 | 0 | 1.5 | by some way |",
        "| 6.12 | 6.12.1 | 7 | 0 | 0 | 1.5 | by some way |",
        "| 5.10 | 5.10.0 | 7 | 0 | 2 | 1.5 | by some way |",
    ]
    assert lines[7] == "" and lines[8].startswith("Taken on 20") and lines[9:] == ["", "after"]


def test_what_did_not_pass_is_named() -> None:
    assert list(complaints([row("6.1", "x", ("a::b",), ("c::d: why",))])) == [
        "6.1: failed: a::b",
        "6.1: skipped: c::d: why",
    ]


def test_a_document_without_a_table(tmp_path: Path) -> None:
    path = tmp_path / "kernels.md"
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="has no table of kernels"):
        write(path, [])
