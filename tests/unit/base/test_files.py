"""Files: written whole or not at all, with nothing left beside them; and read without waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.base import files


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path, aside = tmp_path / "a", tmp_path / "a.new"
    path.write_text("old")
    with path.open("rb") as before:
        files.write_whole(str(path), b"new", str(aside))
        assert before.read() == b"old", "who has it open keeps what was there"
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a"]


@pytest.mark.parametrize(("mode", "found"), [(None, 0o640), (0o600, 0o600), (0o644, 0o644), (0o666, 0o666)])
def test_the_mode_is_the_umasks_or_the_given_one(tmp_path: Path, mode: int | None, found: int) -> None:
    before = os.umask(0o027)
    try:
        files.write_whole(str(tmp_path / "a"), b"", str(tmp_path / "a.new"), mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o7777 == found


def test_what_a_killed_process_left_is_overwritten_or_refused(tmp_path: Path) -> None:
    path, aside = tmp_path / "a", tmp_path / "a.new"
    aside.write_text("left, and longer")
    with pytest.raises(FileExistsError):
        files.write_whole(str(path), b"new", str(aside), exclusive=True)
    assert names(tmp_path) == ["a.new"], "what is another's stays"
    files.write_whole(str(path), b"new", str(aside))
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a"]


def test_an_exclusive_file_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "a.new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        files.write_whole(str(tmp_path / "a"), b"new", str(tmp_path / "a.new"), exclusive=True)
    assert names(tmp_path) == ["a.new"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_whole(str(tmp_path / "a"), b"new", str(tmp_path / "a.new"), sync=True)
    with pytest.raises(ZeroDivisionError), files.replacing(str(tmp_path / "b"), str(tmp_path / "b.new")):
        (tmp_path / "b.new").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["a"]


def test_a_stamp_tells_a_file_from_itself_before_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    before = files.Stamp.of(path.stat())
    assert before == files.Stamp.of(path.stat())
    assert (before.size, before.mtime_ns, before.inode) == (3, 1, path.stat().st_ino)
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    after = files.Stamp.of(path.stat())
    assert after != before and after._replace(ctime_ns=before.ctime_ns) == before
    assert files.identity_of(path.stat()) == list(after)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    for most, found in ((4, b"12345"), (3, b"1234"), (5, b"12345"), (9, b"12345")):
        data, status = files.read_small(str(tmp_path / "a"), most)
        assert data == found and files.Stamp.of(status) == files.Stamp.of((tmp_path / "a").stat())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = set(os.listdir("/proc/self/fd"))
    for path in (str(tmp_path / "fifo"), "/dev/zero"):
        with pytest.raises(files.NotRegularError):
            files.read_small(path, 100)
    for flags in (os.O_RDONLY, os.O_RDWR):
        with pytest.raises(IsADirectoryError, match=f"Is a directory: '{tmp_path}'"):
            files.open_regular(str(tmp_path), flags)
    assert not set(os.listdir("/proc/self/fd")) - before  # what earlier tests left may be closed meanwhile


def test_a_link_is_followed_unless_that_is_not_wanted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to("a")
    assert files.read_small(str(tmp_path / "link"), 9)[0] == b"x"
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        files.open_regular(str(tmp_path / "link"), os.O_RDONLY | os.O_NOFOLLOW)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        descriptor = files.open_regular("a", dir_fd=folder)
        assert os.read(descriptor, 9) == b"x" and not os.get_inheritable(descriptor)
        os.close(descriptor)
    finally:
        os.close(folder)


def test_where_caches_are() -> None:
    assert files.cache_directory({"XDG_CACHE_HOME": "/c/", "HOME": "/h"}, "x") == "/c/piolet/x"
    assert files.cache_directory({"XDG_CACHE_HOME": "c", "HOME": "/h"}, "x") == "/h/.cache/piolet/x"
    assert files.cache_directory({"XDG_CACHE_HOME": "c", "HOME": "h"}, "x") is None
    assert files.state_directory({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == "/s/piolet"
    assert files.state_directory({"XDG_STATE_HOME": "s", "HOME": "/h"}) == "/h/.local/state/piolet"
    assert files.state_directory({"HOME": "h"}) is None
    assert files.cache_directory({}, "x") is None
