"""What is made in an overlay's upper directory before it is mounted, and what is left to be made later."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.container.upperlayer import UpperLayer


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "usr/lib64").mkdir(parents=True)
    (lower / "usr/lib64").chmod(0o2751)
    (lower / "lib64").symlink_to("usr/lib64")
    (lower / "file").touch()
    upper.mkdir()
    return lower, upper


def listing(path: Path) -> list[tuple[str, str]]:
    return sorted((str(one.relative_to(path)), os.readlink(one) if one.is_symlink() else "") for one in path.rglob("*"))


def test_files_and_links_in_directories_as_the_image_has_them(places: tuple[Path, Path]) -> None:
    lower, upper = places
    layer = UpperLayer(str(lower), str(upper))
    assert layer.add("/usr/lib64", ["a.so.1"], [("a.so", "a.so.1")])
    assert layer.add("/usr/lib64/", (), [("b.so", "/else")])
    assert layer.add("/opt/new", ["c"], ())
    assert listing(upper) == [
        *[("opt", ""), ("opt/new", ""), ("opt/new/c", "")],
        *[("usr", ""), ("usr/lib64", ""), ("usr/lib64/a.so", "a.so.1"), ("usr/lib64/a.so.1", "")],
        ("usr/lib64/b.so", "/else"),
    ]
    assert (upper / "usr/lib64").stat().st_mode & 0o7777 == 0o2751
    assert (upper / "opt/new").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("directory", ["/lib64", "/lib64/more", "/file", "/file/more"])
def test_no_link_of_the_image_is_followed(places: tuple[Path, Path], directory: str) -> None:
    lower, upper = places
    assert not UpperLayer(str(lower), str(upper)).add(directory, ["a"], [("b", "a")])
    assert listing(upper) == []


def test_a_link_that_leads_out_of_the_image_is_not_followed(places: tuple[Path, Path], tmp_path: Path) -> None:
    lower, upper = places
    (tmp_path / "host").mkdir()
    (lower / "out").symlink_to(tmp_path / "host")
    assert not UpperLayer(str(lower), str(upper)).add("/out", ["a"], ())
    assert not UpperLayer(str(lower), str(upper)).add("/out/more", ["a"], ())
    assert listing(upper) == [] == listing(tmp_path / "host")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_what_is_another_s_stays_so(places: tuple[Path, Path]) -> None:
    """A directory made anew would be this user's."""
    lower, upper = places
    os.chown(lower / "usr", 7, 7)
    assert not UpperLayer(str(lower), str(upper)).add("/usr/lib64", ["a"], ())
    assert listing(upper) == []


def test_two_of_one_name_are_left_to_who_can_tell_which_wins(places: tuple[Path, Path]) -> None:
    lower, upper = places
    layer = UpperLayer(str(lower), str(upper))
    assert layer.add("/opt", ["a"], ())
    assert not layer.add("/opt", (), [("a", "b")])
    assert (upper / "opt/a").is_file() and not (upper / "opt/a").is_symlink()
