"""A file that comes to be whole or not at all, and never over another's."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import newfile


@pytest.fixture(params=["nameless", "named"])
def room(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, on file systems that have files without names and such that have not."""
    if request.param == "named":
        real = os.open

        def without(path: object, flags: int, *more: int, **named: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            return real(path, flags, *more, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", without)
    made = tmp_path / "room"
    made.mkdir()
    return made


def write(path: Path, data: bytes, *, replace: bool = False) -> None:
    with newfile.opened(str(path), replace=replace) as file:
        os.write(file, data)
        assert path.name not in os.listdir(path.parent) or path.read_bytes() != data


def test_it_is_there_at_the_end(room: Path) -> None:
    write(room / "x", b"new")
    assert (room / "x").read_bytes() == b"new" and os.listdir(room) == ["x"]


def test_nothing_is_left_of_a_failure(room: Path) -> None:
    with pytest.raises(ZeroDivisionError), newfile.opened(str(room / "x"), replace=False) as file:
        os.write(file, b"half")
        raise ZeroDivisionError
    assert os.listdir(room) == []


def test_what_is_there_stays_unless_it_is_to_be_replaced(room: Path) -> None:
    (room / "x").write_bytes(b"old")
    with pytest.raises(ImageError, match="is there already") as caught:
        write(room / "x", b"new")
    assert caught.value.hint == "name another file"
    assert (room / "x").read_bytes() == b"old"
    write(room / "x", b"new", replace=True)
    assert (room / "x").read_bytes() == b"new" and os.listdir(room) == ["x"]


def test_a_failure_while_replacing_leaves_the_old_one(room: Path) -> None:
    (room / "x").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), newfile.opened(str(room / "x"), replace=True):
        raise ZeroDivisionError
    assert (room / "x").read_bytes() == b"old" and os.listdir(room) == ["x"]


@pytest.mark.parametrize("replace", [False, True])
def test_links_and_other_things_are_not_written_over(room: Path, tmp_path: Path, replace: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    os.symlink(victim, room / "link")
    os.symlink(tmp_path / "none", room / "dangling")
    os.mkfifo(room / "fifo")
    (room / "folder").mkdir()
    for name, said in (("link", "symbolic"), ("dangling", "symbolic"), ("fifo", "plain"), ("folder", "plain")):
        with pytest.raises(ImageError, match=said):
            write(room / name, b"new", replace=replace)
    assert victim.read_bytes() == b"theirs" and not (tmp_path / "none").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes a file of another's")
def test_another_s_file_is_not_replaced(room: Path) -> None:
    (room / "x").write_bytes(b"theirs")
    os.chown(room / "x", 12345, 12345)
    with pytest.raises(ImageError, match="belongs to another user"):
        write(room / "x", b"new", replace=True)
    assert (room / "x").read_bytes() == b"theirs"


def test_what_comes_to_be_meanwhile_stays(room: Path) -> None:
    with pytest.raises(ImageError), newfile.opened(str(room / "x"), replace=False) as file:
        os.write(file, b"new")
        (room / "x").write_bytes(b"theirs")
    assert (room / "x").read_bytes() == b"theirs" and os.listdir(room) == ["x"]


def test_a_link_that_comes_to_be_meanwhile_is_not_followed(room: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"theirs")
    with pytest.raises(ImageError), newfile.opened(str(room / "x"), replace=True) as file:
        os.write(file, b"new")
        os.symlink(tmp_path / "victim", room / "x")
    assert (tmp_path / "victim").read_bytes() == b"theirs" and os.listdir(room) == ["x"]


def test_a_directory_that_is_not_there(room: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot write .*: No such file"):
        write(room / "none" / "x", b"new")


def test_the_mode_is_that_of_any_new_file(room: Path) -> None:
    before = os.umask(0o027)
    try:
        write(room / "x", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((room / "x").stat().st_mode) == 0o640
