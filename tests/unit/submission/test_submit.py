"""The submit record: its bytes, its cache, and how it is written."""

from __future__ import annotations

import os
import select
import struct
import threading
from pathlib import Path

import pytest
from piolet._wire import ffi
from piolet.base.errors import PioletError
from piolet.base.files import Stamp
from piolet.environment.definition import LIMIT_BYTES
from piolet.submission import cache, record
from piolet.submission.dependencies import Dependency, Kind
from piolet.vet.store import cache_directory

HEAD = struct.Struct("=6I")
ENTRY = struct.Struct("=4I5Q")


def unpack(record: bytes) -> tuple[list[Dependency], bytes]:
    """Read a record as wire.h describes it, with a layout of the test's own."""
    magic, version, length, count, definition, reserved = HEAD.unpack_from(record)
    assert (magic, version, length, reserved) == (0x524C4950, 2, len(record), 0)
    pos, found = HEAD.size, []
    for _ in range(count):
        kind, size, name, value, *stamp = ENTRY.unpack_from(record, pos)
        assert size % 8 == 0
        start = pos + ENTRY.size
        assert record[start + name - 1] == 0
        assert record[start + name + value - 1] == 0
        assert not any(record[start + name + value : pos + size])
        first = os.fsdecode(record[start : start + name - 1])
        second = os.fsdecode(record[start + name : start + name + value - 1])
        found.append(Dependency(Kind(kind), first, second, Stamp(*stamp) if any(stamp) else None))
        pos += size
    assert len(record) == pos + definition
    return found, record[pos:]


def packed(*dependencies: Dependency, definition: bytes = b"{}") -> bytes:
    whole = record.pack(definition, "./x.toml", "/work", dependencies)
    assert whole is not None
    return whole


def test_the_kinds_and_limits_are_those_of_wire_h() -> None:
    assert ffi.sizeof("struct piolet_record") == HEAD.size
    assert ffi.sizeof("struct piolet_dependency") == ENTRY.size
    for kind in Kind:
        assert ffi.integer_const(f"PIOLET_DEP_{kind.name}") == kind
    assert record.DEFINITION_MAX == LIMIT_BYTES


def test_a_record_begins_with_its_request() -> None:
    stamp = Stamp(1, 2, 3, 2**63, 5)
    given = [
        Dependency(Kind.FILE, "/a b/é", stamp=stamp),
        Dependency(Kind.VARIABLE, "X", "1=2"),
        Dependency(Kind.UNSET, "Y"),
        Dependency(Kind.EXISTS, os.fsdecode(b"/\xff")),
    ]
    found, definition = unpack(packed(*given, definition=b'{"a":1}'))
    assert found == [Dependency(Kind.REQUEST, "./x.toml", "/work"), *given]
    assert definition == b'{"a":1}'


def test_the_bytes_of_a_record() -> None:
    assert packed(definition=b"{}") == (
        HEAD.pack(0x524C4950, 2, 24 + 56 + 16 + 2, 1, 2, 0)
        + ENTRY.pack(6, 56 + 16, 9, 6, 0, 0, 0, 0, 0)
        + b"./x.toml\0/work\0\0{}"
    )


def test_a_record_is_bounded() -> None:
    one = Dependency(Kind.VARIABLE, "X", "y" * 100_000)
    assert record.pack(b"{}", "r", "/", [one] * 20) is None
    assert record.pack(b"{}", "r", "/", [Dependency(Kind.UNSET, "X")] * 4096) is None
    assert record.pack(b"{}", "r", "/", [Dependency(Kind.UNSET, "X")] * 4095) is not None
    with pytest.raises(PioletError, match=f"is {LIMIT_BYTES + 1} bytes long, more than the limit of {LIMIT_BYTES}"):
        record.pack(b" " * (LIMIT_BYTES + 1), "r", "/", [])


@pytest.mark.parametrize(
    ("data", "value"), [(b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)]
)
def test_fnv1a(data: bytes, value: int) -> None:
    assert cache.fnv1a(data) == value


def test_where_the_cache_is() -> None:
    name = f"{cache.fnv1a(b'/w' + bytes(1) + b'r' + bytes(1) + b'/e' + bytes(1) + b'7' + bytes(1)):016x}.rec"
    where = cache.path_of
    assert where({"HOME": "/h"}, "/w", "r", "/e", 7) == f"/h/.cache/piolet/env/{name}"
    assert where({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/w", "r", "/e", 7) == f"/c/piolet/env/{name}"
    assert where({"HOME": "/h", "XDG_CACHE_HOME": "c"}, "/w", "r", "/e", 7) == f"/h/.cache/piolet/env/{name}"
    assert where({"HOME": "h"}, "/w", "r", "/e", 7) is None
    assert where({}, "/w", "r", "/e", 7) is None
    # A vetting's own files are in the same place as its records.
    for variables in ({"HOME": "/h"}, {"HOME": "/h", "XDG_CACHE_HOME": "c"}, {"XDG_CACHE_HOME": "/c", "HOME": "h"}):
        path = where(variables, "/w", "r", "/e", 7, "vet")
        assert path is not None and os.path.dirname(path) == cache_directory(variables)


def test_a_stored_record_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "c/piolet/env/1.rec"
    assert cache.store(str(path), b"one")
    assert cache.store(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["1.rec"]


def test_a_cache_that_cannot_be_written_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not cache.store(f"{tmp_path}/file/x.rec", b"x")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert not cache.store(f"{tmp_path}/open/x.rec", b"x")
    (tmp_path / "dir/x.rec").mkdir(parents=True)
    (tmp_path / "dir").chmod(0o700)
    assert not cache.store(f"{tmp_path}/dir/x.rec", b"x")
    assert [entry.name for entry in (tmp_path / "dir").iterdir()] == ["x.rec"]


def test_the_cache_does_not_grow_for_ever(tmp_path: Path) -> None:
    for index in range(cache.ENTRIES):
        (tmp_path / f"{index}.rec").touch()
        os.utime(tmp_path / f"{index}.rec", (index, index))
    tmp_path.chmod(0o700)
    # What a vetting keeps is in the same place, and is not the records' to delete.
    others = {"node-n1.json", "job-c-1-abc.json"}
    for name in others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    assert cache.store(f"{tmp_path}/new.rec", b"x")
    left = {entry.name for entry in tmp_path.iterdir()}
    assert others <= left
    left -= others
    assert len(left) == cache.ENTRIES // 2
    assert {"new.rec", f"{cache.ENTRIES - 1}.rec"} <= left
    assert "0.rec" not in left


@pytest.mark.parametrize(
    ("mtime", "ctime", "now", "settled"),
    [
        (1_000_000_001, 1_000_000_001, 1_060_000_000, True),
        (1_000_000_001, 1_000_000_001, 1_040_000_000, False),
        (1_000_000_001, 1_030_000_000, 1_060_000_000, False),
        (9_000_000_001, 9_000_000_001, 1_000_000_000, False),
        (1_000_000_000, 1_000_000_000, 2_500_000_000, False),
        (1_000_000_000, 1_000_000_000, 3_000_000_000, True),
    ],
)
def test_a_file_that_changed_just_now_is_not_settled(mtime: int, ctime: int, now: int, settled: bool) -> None:
    facts = [Dependency(Kind.UNSET, "X"), Dependency(Kind.FILE, "/f", stamp=Stamp(1, 1, 1, mtime, ctime))]
    assert cache.is_settled(facts, now) is settled


def test_writing_to_a_memory_file() -> None:
    descriptor = os.memfd_create("record")
    try:
        record.write(descriptor, b"x" * 100_000)
        assert os.pread(descriptor, 200_000, 0) == b"x" * 100_000
    finally:
        os.close(descriptor)


def test_writing_to_a_pipe_that_is_read() -> None:
    reader, writer = os.pipe()
    pieces: list[bytes] = []

    def drain() -> None:
        while piece := os.read(reader, 65536):
            pieces.append(piece)

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        record.write(writer, b"x" * 500_000)
    finally:
        os.close(writer)
        thread.join(30)
        os.close(reader)
    assert b"".join(pieces) == b"x" * 500_000


def test_writing_to_a_pipe_that_nobody_reads_ends() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(PioletError, match=f"nobody reads descriptor {writer}"):
            record.write(writer, b"x" * 500_000, timeout_s=0.05)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("descriptor", [-1, 987_654, 2**40])
def test_writing_to_no_descriptor(descriptor: int) -> None:
    with pytest.raises(PioletError, match=f"cannot write the record to descriptor {descriptor}"):
        record.write(descriptor, b"x")


def test_a_file_that_cannot_be_written_whole_is_left_empty() -> None:
    descriptor = os.memfd_create("record", os.MFD_ALLOW_SEALING)
    try:
        limit = 4 * select.PIPE_BUF
        os.ftruncate(descriptor, limit)
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        with pytest.raises(PioletError, match="Operation not permitted"):
            record.write(descriptor, b"x" * (limit * 2))
        assert os.fstat(descriptor).st_size == 0
    finally:
        os.close(descriptor)
