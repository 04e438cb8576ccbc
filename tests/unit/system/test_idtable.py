"""The table of ids of an image: found in what mksquashfs writes, patched, and refused where it is anything else."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.node.root.devicemapper import TINY
from piolet.system import idtable


def make(room: Path, *options: str, size: int = 0) -> Path:
    """Write a SquashFS file as the image service does, but for `options`."""
    (room / "t").mkdir()
    (room / "t" / "file").write_bytes(b"x\n")
    if size:
        (room / "t" / "big").write_bytes(os.urandom(size))
    out = room / "image.sqsh"
    command = ["mksquashfs", str(room / "t"), str(out), "-noappend", "-no-xattrs", "-noI", "-quiet", "-no-progress"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("image")
    yield descriptor
    os.close(descriptor)


def write(memory: int, data: bytes) -> int:
    os.ftruncate(memory, 0)
    os.pwrite(memory, data, 0)
    return memory


@pytest.mark.parametrize("size", [0, 1, 3000, 4090, 5000, 200_000])
@pytest.mark.parametrize(
    ("options", "ids"), [(("-all-root", "-force-gid", "1"), (0, 1)), (("-all-root",), (0,))], ids=["two", "one"]
)
def test_the_ids_of_a_real_file_become_the_users(
    tmp_path: Path, memory: int, options: tuple[str, ...], ids: tuple[int, ...], size: int
) -> None:
    path = make(tmp_path, *options, size=size)
    data = path.read_bytes()
    with path.open("rb") as file:
        table = idtable.read(file.fileno())
        assert table.ids == ids
        cut, end = idtable.tail(file.fileno(), table, {0: 4242, 1: 4242 + len(ids) - 1})
    assert cut % 4096 == len(end) % 4096 == 0 and len(end) in (4096, 8192)
    # What is told apart from the file is the ids alone; unsquashfs reads it as the user's.
    changed = data[:cut] + end
    differ = [
        n for n, (old, new) in enumerate(zip(data.ljust(len(changed), b"\0"), changed, strict=True)) if old != new
    ]
    assert set(differ) <= set(range(table.offset, table.offset + 4 * len(ids)))
    (tmp_path / "changed.sqsh").write_bytes(changed)
    said = subprocess.run(
        ["unsquashfs", "-lln", str(tmp_path / "changed.sqsh")], capture_output=True, text=True, check=True
    ).stdout
    owners = {line.split()[1] for line in said.splitlines() if "squashfs-root" in line}
    assert owners == {f"4242/{4242 + len(ids) - 1}"}


def test_one_id_is_no_help_where_two_are_needed(tmp_path: Path) -> None:
    path = make(tmp_path, "-all-root")
    with path.open("rb") as file:
        table = idtable.read(file.fileno())
        with pytest.raises(OSError) as caught:
            idtable.tail(file.fileno(), table, {0: 1001, 1: 1002})
    assert caught.value.errno == errno.EOVERFLOW


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-force-uid", "33", "-force-gid", "1"), "ids are not 0 and 1"),
        (("-force-uid", "7", "-force-gid", "7"), "ids are not 0 and 1"),
    ],
)
def test_other_ids_are_refused(tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    with make(tmp_path, *options).open("rb") as file, pytest.raises(OSError, match=why) as caught:
        idtable.read(file.fileno())
    assert caught.value.errno == errno.EUCLEAN


def patched(offset: int, kind: str, value: int) -> bytes:
    data = bytearray(TINY)
    struct.pack_into(kind, data, offset, value)
    return bytes(data)


END, POINTER, BLOCK = struct.unpack_from("<QQ", TINY, 40) + struct.unpack_from(
    "<Q", TINY, struct.unpack_from("<Q", TINY, 48)[0]
)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "too short"),
        (TINY[:95], "too short"),
        (b"sqsh" + TINY[4:], "not SquashFS 4.0"),
        (patched(28, "<H", 3), "not SquashFS 4.0"),
        (patched(30, "<H", 1), "not SquashFS 4.0"),
        (patched(26, "<H", 0), "it has 0 ids"),
        (patched(26, "<H", 3), "it has 3 ids"),
        (patched(26, "<H", 65535), "it has 65535 ids"),
        (patched(26, "<H", 1), "compressed"),
        (patched(40, "<Q", 2**64 - 1), "outside"),
        (patched(40, "<Q", 4097), "outside"),
        (patched(40, "<Q", 95), "outside"),
        (patched(40, "<Q", END - 1), "outside"),
        (patched(48, "<Q", 2**64 - 1), "outside"),
        (patched(48, "<Q", 95), "outside"),
        (patched(POINTER, "<Q", 2**64 - 1), "not where they belong"),
        (patched(POINTER, "<Q", 2**63), "not where they belong"),
        (patched(POINTER, "<Q", 95), "not where they belong"),
        (patched(POINTER, "<Q", POINTER - 9), "not where they belong"),
        (patched(BLOCK, "<H", 0x0008), "compressed"),
        (patched(BLOCK, "<H", 0x8004), "compressed"),
        (patched(BLOCK, "<H", 0x800C), "compressed"),
        (patched(BLOCK + 2, "<I", 1), "not 0 and 1"),
        (patched(BLOCK + 6, "<I", 0), "not 0 and 1"),
        (patched(BLOCK + 6, "<I", 2**32 - 1), "not 0 and 1"),
        (TINY[:BLOCK] + bytes(100_000), "not where they belong"),
    ],
    ids=lambda value: value if isinstance(value, str) else sha256(value).hexdigest()[:8],
)
def test_a_table_that_is_not_as_written_is_refused(memory: int, data: bytes, why: str) -> None:
    with pytest.raises(OSError, match=why) as caught:
        idtable.read(write(memory, data))
    assert caught.value.errno == errno.EUCLEAN


def test_a_table_far_from_the_end_is_refused(memory: int) -> None:
    data = bytearray(TINY[:BLOCK] + bytes(100_000) + TINY[BLOCK:])
    struct.pack_into("<QQ", data, 40, END + 100_000, POINTER + 100_000)
    struct.pack_into("<Q", data, POINTER + 100_000, BLOCK)
    with pytest.raises(OSError, match="not where they belong"):
        idtable.read(write(memory, bytes(data)))


@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=12), st.integers(0, 4096))
def test_whatever_is_in_the_file_is_a_table_or_refused(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(TINY)
    for place, value in changes:
        data[place] = value
    memory = os.memfd_create("image")
    try:
        table = idtable.read(write(memory, bytes(data[:length])))
        assert sorted(table.ids) == list(range(len(table.ids)))
        cut, end = idtable.tail(memory, table, {0: 5, 1: 5})
        assert cut == 0 and len(end) == 4096
    except OSError as error:
        assert error.errno == errno.EUCLEAN
    finally:
        os.close(memory)
