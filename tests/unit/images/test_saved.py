"""A root as a tar: what is in it, and what is not, while programs go on in it."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import saved
from piolet.images.saved import Count, Hashed, Pipe, Root


class Memory:
    """A sink; `act` is called before the content of a file is copied."""

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.data = bytearray()
        self._act = act

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        pass

    def copy(self, file: int, size: int) -> int:
        self._act()
        found = b""
        while len(found) < size and (piece := os.read(file, size - len(found))):
            found += piece
        self.data += found
        return len(found)


def tar(room: Path, sink: Memory | None = None, **more: object) -> tuple[tarfile.TarFile, Count]:
    sink, count = sink or Memory(), Count()
    directory = os.open(room, os.O_RDONLY)
    try:
        saved.write(Root(directory, **more), sink, count, lambda _: None)  # type: ignore[arg-type]
    finally:
        os.close(directory)
    return tarfile.open(fileobj=io.BytesIO(sink.data), errors="surrogateescape"), count


@pytest.fixture
def room(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


def content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def test_files_links_and_directories(room: Path) -> None:
    (room / "a" / "b").mkdir(parents=True, mode=0o750)
    (room / "a" / "file").write_bytes(b"x" * 700)
    (room / "a" / "file").chmod(0o4755)
    os.utime(room / "a" / "file", (5, 1_000_000))
    os.symlink("../nowhere", room / "a" / "link")
    os.link(room / "a" / "file", room / "z")
    odd = os.fsencode(room) + b"/\xff\n" + b"n" * 120
    with open(odd, "wb"):
        pass
    archive, count = tar(room)
    names = archive.getnames()
    assert names == ["a", "a/b", "a/file", "a/link", "z", "\udcff\n" + "n" * 120]
    file, link = archive.getmember("a/file"), archive.getmember("z")
    assert (file.mode, file.mtime, file.uid, file.gid) == (0o4755, 1_000_000, 0, 0)
    assert content(archive, "a/file") == b"x" * 700
    assert link.islnk() and link.linkname == "a/file"
    assert archive.getmember("a/link").linkname == "../nowhere"
    assert (count.names, count.bytes, count.specials) == (6, 700, 0)


def test_what_is_no_file_is_left_out_and_counted(room: Path) -> None:
    os.mkfifo(room / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(room / "socket"))
    if os.getuid() == 0:
        os.mknod(room / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(room / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    archive, count = tar(room)
    server.close()
    assert archive.getnames() == [] and count.specials == (4 if os.getuid() == 0 else 2)


def test_attributes_are_left_out(room: Path) -> None:
    (room / "f").touch()
    os.setxattr(room / "f", "user.x", b"1")
    if os.getuid() == 0:
        os.setxattr(room / "f", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
        os.setxattr(room / "f", "trusted.overlay.opaque", b"y")
    archive, _ = tar(room)
    assert archive.getmember("f").pax_headers == {} and archive.getmember("f").size == 0


@pytest.mark.parametrize("change", [b"longer than before", b""])
def test_a_file_that_changes_while_it_is_saved_has_the_length_that_it_had(room: Path, change: bytes) -> None:
    (room / "f").write_bytes(b"12345")
    (room / "g").write_bytes(b"after")

    def act() -> None:
        (room / "f").write_bytes(change)

    archive, _ = tar(room, Memory(act))
    assert content(archive, "f") == (change[:5] or bytes(5)) and content(archive, "g") == b"after"


def test_a_file_that_grows_for_ever_ends(room: Path) -> None:
    file = open(room / "log", "ab", buffering=0)  # noqa: SIM115
    file.write(b"x")

    class Growing(Memory):
        def copy(self, descriptor: int, size: int) -> int:
            file.write(bytes(100))
            return super().copy(descriptor, size)

    with file:
        archive, count = tar(room, Growing())
    assert content(archive, "log") == b"x" and count.bytes == 1


def test_what_vanishes_meanwhile_is_not_there(room: Path) -> None:
    (room / "a").write_bytes(b"1")
    (room / "b").write_bytes(b"2")
    (room / "c").mkdir()
    archive, _ = tar(room, Memory(lambda: (room / "b").unlink(missing_ok=True)))
    assert archive.getnames() == ["a", "c"]


def test_a_directory_that_becomes_a_link_leads_nowhere(room: Path, tmp_path: Path) -> None:
    """What runs in there could otherwise have files of the host saved, and an image with them published."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "secret").write_text("of the host")
    (room / "a").write_bytes(b"1")
    (room / "b").mkdir()

    def act() -> None:
        if (room / "b").is_symlink():
            return
        (room / "b").rmdir()
        os.symlink(tmp_path / "host", room / "b")

    archive, _ = tar(room, Memory(act))
    assert "b/secret" not in archive.getnames()


def test_a_file_that_becomes_a_link_is_not_followed(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("of the host")
    (room / "a").write_text("mine")
    real = os.stat

    def swap(name: object, **more: object) -> os.stat_result:
        found = real(name, **more)  # type: ignore[arg-type]
        if name == "a" and not (room / "a").is_symlink():
            (room / "a").unlink()
            os.symlink(tmp_path / "secret", room / "a")
        return found

    monkeypatch.setattr(os, "stat", swap)
    with pytest.raises(ImageError, match="cannot save /a: Too many levels"):
        tar(room)


def test_hidden_paths_points_and_given_files(room: Path) -> None:
    for name in ("run/piolet/x", "etc/rc", "etc/hosts", "lib/full.so", "lib/empty.so"):
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        (room / name).touch()
    (room / "lib/full.so").write_text("x")
    points = (b"etc/hosts", b"lib/full.so", b"lib/empty.so", b"proc")
    archive, _ = tar(room, hidden=(b"run/piolet",), points=points, given={b"etc/rc": b"new"})
    assert archive.getnames() == ["etc", "lib", "lib/full.so", "run", "etc/rc"]
    assert content(archive, "etc/rc") == b"new"


def test_limits(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (room / "a").write_bytes(b"12345")
    (room / "b").write_bytes(b"12345")
    monkeypatch.setattr(saved, "UNPACKED_MOST", 9)
    with pytest.raises(ImageError, match="has more than 9 B"):
        tar(room)
    monkeypatch.setattr(saved, "UNPACKED_MOST", 10)
    monkeypatch.setattr(saved, "FILES_MOST", 1)
    with pytest.raises(ImageError, match="more than 1 names"):
        tar(room)


def test_a_path_that_nobody_could_open_is_refused(room: Path) -> None:
    at = os.open(room, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=at)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    with pytest.raises(ImageError, match="a path of more than 4095 bytes"):
        tar(room)


def test_descriptors_are_closed(room: Path) -> None:
    (room / "a" / "b").mkdir(parents=True)
    (room / "a" / "f").touch()
    before = len(os.listdir("/proc/self/fd"))
    tar(room)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_has_what_memory_has(room: Path, tmp_path: Path) -> None:
    for name, size in (("a", 3_000_000), ("b", 1), ("c", 100_000), ("d", (1 << 17) + 1), ("e", 1 << 17), ("f", 0)):
        (room / name).write_bytes(os.urandom(size))
    sink = Memory()
    tar(room, sink)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        saved.write(Root(os.open(room, os.O_RDONLY)), Pipe(write), Count(), lambda _: None)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == bytes(sink.data)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_hashed_file_has_what_memory_has(room: Path, tmp_path: Path) -> None:
    import hashlib

    (room / "big").write_bytes(os.urandom(3_000_000))
    sink = Memory()
    tar(room, sink)
    with open(tmp_path / "out", "w+b") as file:
        out = Hashed(file.fileno())
        saved.write(Root(os.open(room, os.O_RDONLY)), out, Count(), lambda _: None)
        digest = out.end()
    assert (tmp_path / "out").read_bytes() == bytes(sink.data)
    assert digest == hashlib.sha256(sink.data).hexdigest() and out.size == len(sink.data)
