"""Where a mount is attached, and that nothing is made, replaced or written in what comes from the host.

A directory below tmp_path stands for what is mounted: `own` has the numbers of the container's own file systems, and
says whether tmp_path is one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.base.errors import ContainerError
from piolet.container.mountpoints import NewPlaces, find, opened
from piolet.container.plan import PlannedMount


def own(path: Path) -> set[int]:
    return {os.stat(path).st_dev}


def listing(path: Path) -> list[tuple[str, str]]:
    return sorted((str(one), os.readlink(one) if one.is_symlink() else "") for one in path.rglob("*"))


@pytest.mark.parametrize("directory", [True, False])
def test_a_missing_place_is_made_in_the_container_s_own(tmp_path: Path, directory: bool) -> None:
    place = f"{tmp_path}/a/b"
    assert find(PlannedMount("/s", place), directory, own(tmp_path)) == place
    assert os.path.isdir(place) == directory
    assert os.path.exists(place)


@pytest.mark.parametrize("directory", [True, False])
def test_nothing_is_made_in_what_is_mounted(tmp_path: Path, directory: bool) -> None:
    before = listing(tmp_path)
    with pytest.raises(ContainerError) as caught:
        find(PlannedMount("/s", f"{tmp_path}/a/b"), directory, set())
    assert caught.value.message == (
        f"cannot mount /s at {tmp_path}/a/b in the container: it is not there, and nothing is made in what is mounted "
        "above it"
    )
    assert caught.value.hint == f"make it yourself, or have it made by the flag x-create: /s:{tmp_path}/a/b:x-create"
    assert find(PlannedMount("/s", f"{tmp_path}/a/b", optional=True), directory, set()) is None
    assert listing(tmp_path) == before


def test_what_is_there_serves(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    assert find(PlannedMount("/s", f"{tmp_path}/d"), True, set()) == f"{tmp_path}/d"
    assert find(PlannedMount("/s", f"{tmp_path}/f"), False, set()) == f"{tmp_path}/f"


@pytest.mark.parametrize("directory", [True, False])
def test_x_create_makes_it_all_the_same(tmp_path: Path, directory: bool) -> None:
    place = f"{tmp_path}/a/b"
    assert find(PlannedMount("/s", place, flags=("x-create",)), directory, set()) == place
    assert os.path.isdir(place) == directory


def test_a_link_of_the_user_s_is_not_replaced(tmp_path: Path) -> None:
    """/etc/localtime is one in many images; in a directory that the user mounted over /etc it is the user's."""
    (tmp_path / "localtime").symlink_to("/usr/share/zoneinfo/Zulu")
    before = listing(tmp_path)
    ours = PlannedMount("/etc/localtime", f"{tmp_path}/localtime", optional=True, file=True)
    assert find(ours, False, set()) is None
    assert listing(tmp_path) == before
    assert find(ours, False, own(tmp_path)) == f"{tmp_path}/localtime"
    assert (tmp_path / "localtime").is_file()
    assert not (tmp_path / "localtime").is_symlink()


@pytest.mark.parametrize(
    ("place", "directory", "why", "hint"),
    [
        ("loop/x", True, "a symbolic link there leads to itself", "choose another destination"),
        ("loop", False, "a symbolic link there leads to itself", "choose another destination"),
        ("file/x", True, "Not a directory", "the source is a directory; the destination must be one too"),
        ("file", True, "Not a directory", "the source is a directory; the destination must be one too"),
        (".", False, "Is a directory", "the source is a file; the destination must be one too"),
    ],
)
def test_a_place_that_cannot_be(tmp_path: Path, place: str, directory: bool, why: str, hint: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(ContainerError) as caught:
        find(PlannedMount("/s", f"{tmp_path}/{place}"), directory, own(tmp_path))
    assert caught.value.message.endswith(f"in the container: {why}")
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("directory", [True, False])
def test_a_new_place_and_the_directories_above_it(tmp_path: Path, directory: bool) -> None:
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").mkdir()
    new = NewPlaces(own(tmp_path))
    assert new.make(f"{tmp_path}/link/a/b/c", directory) == f"{tmp_path}/real/a/b/c"
    assert new.make(f"{tmp_path}/link/a/b/d", directory) == f"{tmp_path}/real/a/b/d"
    assert os.path.isdir(f"{tmp_path}/real/a/b/d") == directory
    for there in (f"{tmp_path}/real/a/b/d", f"{tmp_path}/link", f"{tmp_path}/real/a/b/d/"):
        assert new.make(there, directory) is None


@pytest.mark.parametrize("directory", [True, False])
def test_no_new_place_in_what_is_mounted_nor_through_a_link_to_nothing(tmp_path: Path, directory: bool) -> None:
    before = listing(tmp_path)
    assert NewPlaces(set()).make(f"{tmp_path}/a/b", directory) is None
    assert NewPlaces(set()).make(f"{tmp_path}/a", directory) is None
    assert listing(tmp_path) == before
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to("loop")
    before = listing(tmp_path)
    for place in ("dangling/a", "dangling", "loop/a/b", "loop"):
        assert NewPlaces(own(tmp_path)).make(f"{tmp_path}/{place}", directory) is None
    assert listing(tmp_path) == before


def test_a_place_is_opened_where_nothing_is_to_be_done_to_it(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "around").symlink_to(".")
    found = {}
    for name in ("directory", "file", "link", "around/link", "around/file", "nothing"):
        for directory in (True, False):
            for file in (True, False):
                there = opened(PlannedMount("/s", f"{tmp_path}/{name}", file=file), directory)
                if there is not None:
                    found[name, directory, file] = os.path.basename(os.readlink(f"/proc/self/fd/{there}"))
                    os.close(there)
    assert found == {
        ("directory", True, False): "directory",
        ("directory", True, True): "directory",
        ("file", False, False): "file",
        ("file", False, True): "file",
        ("link", False, False): "file",  # but where a link is to be replaced, `find` does it
        ("around/link", False, False): "file",
        ("around/file", False, False): "file",
        ("around/file", False, True): "file",
    }
