"""What a shared library calls itself, and which others it needs: the dynamic section of an ELF file, and no more.

It reads files of the node that are root's. Little-endian, 64 bits: what Piolet runs on. Format: System V ABI, chapters
4 and 5 (gabi), constants as in <elf.h>.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 10, 14, 15, 29
_STRINGS_MAX = 1 << 24
_MACHINES = {62: "x86_64", 183: "aarch64", 21: "ppc64le"}


@dataclass(frozen=True)
class Dynamic:
    """The dynamic section: `soname` is '' for one that has none, `path` what RUNPATH (or RPATH) says."""

    machine: str
    soname: str = ""
    needed: tuple[str, ...] = ()
    path: tuple[str, ...] = ()


def read(path: str) -> Dynamic | None:
    """Return the dynamic section of the file at `path`; None: it is no ELF file of 64 bits, or has none.

    Raises OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return _read(descriptor)
    except (struct.error, ValueError, OverflowError):
        return None
    finally:
        os.close(descriptor)


def _read(file: int) -> Dynamic | None:
    head = os.pread(file, 64, 0)
    if head[:6] != b"\x7fELF\x02\x01":
        return None
    (machine,) = struct.unpack_from("<H", head, 18)
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    programs = os.pread(file, size * count, offset)
    loads, dynamic = [], b""
    for number in range(count):
        kind, _, start, address, _, length = struct.unpack_from("<IIQQQQ", programs, number * size)
        if kind == _PT_LOAD:
            loads.append((address, start, length))
        elif kind == _PT_DYNAMIC:
            dynamic = os.pread(file, min(length, 1 << 20), start)
    entries: list[tuple[int, int]] = []
    for tag, value in struct.iter_unpack("<QQ", dynamic[: len(dynamic) // 16 * 16]):
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    known = dict(entries)
    if _DT_STRTAB not in known:
        return None
    at = next((known[_DT_STRTAB] - a + s for a, s, n in loads if a <= known[_DT_STRTAB] < a + n), None)
    if at is None:
        return None
    strings = os.pread(file, min(known.get(_DT_STRSZ, 0), _STRINGS_MAX), at)

    def text(position: int) -> str:
        return strings[position : strings.index(b"\0", position)].decode("utf-8", "surrogateescape")

    search = known.get(_DT_RUNPATH, known.get(_DT_RPATH))
    return Dynamic(
        _MACHINES.get(machine, str(machine)),
        text(known[_DT_SONAME]) if _DT_SONAME in known else "",
        tuple(text(value) for tag, value in entries if tag == _DT_NEEDED),
        tuple(text(search).split(":")) if search is not None else (),
    )
