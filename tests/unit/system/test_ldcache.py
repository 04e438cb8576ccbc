"""The loader's cache is read and added to as ldconfig and the loader itself understand it."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from piolet.system import elf, ldcache

MACHINE = platform.machine()
CACHE = Path("/etc/ld.so.cache")
ADDED = [
    ("libz.so.1", "/first/libz.so.1", False),
    ("libz.so.1", "/second/libz.so.1", False),
    ("libz.so.1", "/last/libz.so.1", True),
    ("libcuda.so.1", "/opt/libcuda.so.1", False),
    ("liba10.so.9", "/opt/liba10.so.9", False),
    ("liba9.so.10", "/opt/liba9.so.10", False),
    ("lib.so", "/opt/lib.so", False),
]


def printed(data: bytes, tmp_path: Path) -> list[tuple[str, str]]:
    """Return names and paths as ldconfig prints them."""
    file = tmp_path / "cache"
    file.write_bytes(data)
    ldconfig = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin")
    if ldconfig is None:
        pytest.skip("there is no ldconfig")
    done = subprocess.run([ldconfig, "-p", "-C", str(file)], capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stdout.splitlines()[1:] if "=>" in line]
    return [(line.split(" ")[0], line.rpartition("=> ")[2]) for line in lines]


def test_what_ldconfig_prints_is_what_we_read(tmp_path: Path) -> None:
    own = list(ldcache.libraries(CACHE.read_bytes(), MACHINE))
    theirs = printed(CACHE.read_bytes(), tmp_path)
    assert len(own) > 10
    assert [pair for pair in theirs if pair in set(own)] == own


def test_libraries_are_added_and_none_is_lost(tmp_path: Path) -> None:
    before = printed(CACHE.read_bytes(), tmp_path)
    after = printed(ldcache.extended(CACHE.read_bytes(), ADDED, MACHINE), tmp_path)
    assert sorted(after) == sorted(before + [(name, path) for name, path, _ in ADDED])
    of_zlib = [path for name, path in after if name == "libz.so.1"]
    assert of_zlib[:2] == ["/first/libz.so.1", "/second/libz.so.1"]
    assert of_zlib[-1] == "/last/libz.so.1"


def test_a_cache_of_these_alone(tmp_path: Path) -> None:
    """In the order in which the loader's binary search needs them: numbers as numbers, the end before all else."""
    found = printed(ldcache.extended(b"", ADDED, MACHINE), tmp_path)
    names = [name for name, _ in found]
    assert names == ["libz.so.1"] * 3 + ["libcuda.so.1", "liba10.so.9", "liba9.so.10", "lib.so"]


def test_added_twice(tmp_path: Path) -> None:
    once = ldcache.extended(CACHE.read_bytes(), ADDED[:4], MACHINE)
    twice = printed(ldcache.extended(once, ADDED[4:], MACHINE), tmp_path)
    assert sorted(twice) == sorted(printed(CACHE.read_bytes(), tmp_path) + [(name, path) for name, path, _ in ADDED])


def test_an_older_cache_in_front_is_left_out(tmp_path: Path) -> None:
    """Before glibc 2.32 the file began with another format."""
    new = ldcache.extended(b"", ADDED, MACHINE)
    old = b"ld.so-1.7.0\0" + struct.pack("<I", 1) + struct.pack("<iII", 3, 0, 0)
    found = ldcache.extended(old + new, [("libmore.so", "/opt/libmore.so", False)], MACHINE)
    assert len(printed(found, tmp_path)) == len(ADDED) + 1


def test_more_digits_than_a_number_may_have() -> None:
    """Python refuses to read them; whoever made the image decides what its cache says."""
    long = ldcache.extended(b"", [("liba1.so", "/a", False)], MACHINE).replace(
        b"liba1.so\0", b"lib" + b"1" * 5000 + b"\0"
    )
    with pytest.raises(ldcache.MalformedError):
        ldcache.extended(long, [("libb.so", "/b", False)], MACHINE)


@pytest.mark.parametrize("broken", [b"x", b"glibc-ld.so.cache1.1", b"glibc-ld.so.cache1.1" + b"\xff" * 60, b"\0" * 100])
def test_what_is_no_cache(broken: bytes) -> None:
    with pytest.raises(ldcache.MalformedError):
        ldcache.extended(broken, ADDED, MACHINE)


def test_a_name_of_a_library_and_what_it_needs() -> None:
    (path,) = [path for name, path in ldcache.libraries(CACHE.read_bytes(), MACHINE) if name == "libz.so.1"][:1]
    found = elf.read(path)
    assert found is not None
    assert (found.soname, found.machine) == ("libz.so.1", MACHINE)
    assert "libc.so.6" in found.needed
    assert elf.read("/etc/passwd") is None


def test_half_an_elf_file(tmp_path: Path) -> None:
    whole = Path("/bin/sh").resolve().read_bytes()
    for length in (4, 40, 64, 100, 4096):
        (tmp_path / "half").write_bytes(whole[:length])
        elf.read(str(tmp_path / "half"))  # whatever it says, it says it
