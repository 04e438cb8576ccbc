"""What is run once more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import again


def test_names_are_without_their_group() -> None:
    said = ["tests/a.py::test_b[x@y]@cluster", "tests/a.py::test_c", "tests/a.py::test_d@unit/base/test_d"]
    assert again.names(said) == ["tests/a.py::test_b[x@y]", "tests/a.py::test_c", "tests/a.py::test_d"]


@pytest.mark.parametrize(
    "said", [None, "{}", "nonsense", '{"a": true, "b": true, "c": true, "d": true, "e": true, "f": true}']
)
def test_nothing_or_too_much_is_no_matter_of_what_ran_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    monkeypatch.setattr(again, "FAILED", tmp_path / "lastfailed")
    if said is not None:
        again.FAILED.write_text(said)
    assert again.main() == 1


@pytest.mark.parametrize(("body", "status"), [("pass", 0), ("assert False", 1)])
def test_what_fails_alone_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, status: int) -> None:
    (tmp_path / "test_one.py").write_text(f"def test_it():\n    {body}\n")
    (tmp_path / "lastfailed").write_text('{"test_one.py::test_it@cluster": true}')
    monkeypatch.setattr(again, "FAILED", tmp_path / "lastfailed")
    monkeypatch.chdir(tmp_path)
    assert again.main() == status
