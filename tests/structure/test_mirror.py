"""The tests stand as the sources do: a folder of unit tests for each room, and no test looks where nothing is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
PACKAGE = ROOT / "daemons" / "piolet"
UNIT = TESTS / "unit"
# Beside the rooms there are these.
BESIDE = {"tools", "pyslurm_ext"}
NAMED = re.compile(r"\btests/(?!unit/ROOM)[\w/.]*\w(?:::(\w+))?")
NAMES = {"ROOT": ROOT, "REPOSITORY": ROOT, "TESTS": TESTS, "PACKAGE": PACKAGE, "UNIT": UNIT}
LOOKS = {"glob", "rglob", "iterdir"}


def python_files() -> list[Path]:
    return sorted(TESTS.rglob("*.py"))


def place(node: ast.expr) -> Path | None:
    """Return the path that an expression of these names and of literals is; None for all others."""
    if isinstance(node, ast.Name):
        return NAMES.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
        before = place(node.left)
        return None if before is None else before / str(node.right.value)
    return None


def looked_into(path: Path) -> Iterator[Path]:
    """Yield the folders of the sources whose files a test lists."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOOKS:
            found = place(node.func.value)
            if found is not None:
                yield found


def test_each_folder_of_unit_tests_is_a_room() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    folders = {path.parent.name for path in UNIT.glob("*/*.py")}
    assert folders - BESIDE <= rooms
    assert all((ROOT / name).is_dir() for name in BESIDE)
    assert not list(UNIT.glob("test_*.py")), "it is of a room"


def test_folders_of_tests_are_packages() -> None:
    """So two of them can have files of one name, and what one imports of another is loaded once."""
    folders = {path.parent for path in python_files()}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_no_test_lists_a_folder_that_is_not_there() -> None:
    """It would find nothing to complain of."""
    found = [(path.name, folder) for path in python_files() for folder in looked_into(path)]
    assert len(found) > 8
    assert not [(name, folder) for name, folder in found if not folder.is_dir()]


def test_tests_that_tools_and_documents_name_are_there() -> None:
    """Such as those that an emulator cannot run; SECURITY.md has a test of its own."""
    sources = [ROOT / "Makefile", *(ROOT / "tools").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = [(path, match) for path in sources for match in NAMED.finditer(path.read_text("utf-8"))]
    assert len(found) > 80
    for path, match in found:
        named = ROOT / match[0].partition("::")[0]
        assert named.exists(), (path.name, match[0])
        assert match[1] is None or f"def {match[1]}(" in named.read_text("utf-8"), (path.name, match[0])
