"""What a definition was made from: paths in one form, and facts that are noted once."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.submission.dependencies import Host, Kind, squeeze


@pytest.mark.parametrize(
    ("path", "result"),
    [
        ("/a//b/./c/", "/a/b/c"),
        ("x", "/w/d/x"),
        ("./x//y", "/w/d/x/y"),
        ("../x", "/w/x"),
        ("../../../x", "/x"),
        ("x/../y", "/w/d/x/../y"),
        (".", "/w/d"),
        ("/", "/"),
        ("/a/../b", "/a/../b"),
    ],
)
def test_absolute(path: str, result: str) -> None:
    assert Host({}, "/w/d").absolute(path) == result


def test_squeeze_of_the_root() -> None:
    assert squeeze("///") == "/"


def test_a_fact_is_noted_once_with_its_first_answer(tmp_path: Path) -> None:
    at = Host({"A": "1"}, "/")
    assert (at.variable("A"), at.variable("A"), at.variable("B")) == ("1", "1", None)
    at.watch(f"{tmp_path}/none")
    at.watch(str(tmp_path))
    kinds = [dependency.kind for dependency in at.dependencies]
    assert kinds == [Kind.VARIABLE, Kind.UNSET, Kind.ABSENT, Kind.FILE]
