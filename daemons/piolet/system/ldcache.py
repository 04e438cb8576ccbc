"""The cache of the dynamic loader, /etc/ld.so.cache: reading it, and adding libraries to one.

The format is glibc's own (sysdeps/generic/dl-cache.h): a header, entries in descending order of their names, strings,
and since 2.33 an extension with offsets of its own. Before 2.32 an older format of no interest stands in front. To add
a few libraries takes half a millisecond; ldconfig would read every library of an image again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence

LIMIT = 16 << 20
"""No cache is larger."""

_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER = struct.Struct("<20sIIB3xI12x")
_ENTRY = struct.Struct("<iIIIQ")
_SECTION = struct.Struct("<IIII")
_EXTENSION_MAGIC, _HWCAPS = 0xEAA42174, 1
_LITTLE_ENDIAN = 2
_KINDS = {"x86_64": 0x0303, "aarch64": 0x0A03, "ppc64le": 0x0503}
_NUMBER = re.compile(rb"(\d+)")


class MalformedError(ValueError):
    """It is no cache, or a broken one."""


def libraries(data: bytes, machine: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the path of each library for `machine` in a cache. Raises MalformedError."""
    base, count, _, _ = _open(data)
    for number in range(count):
        flags, key, value, _, _ = _ENTRY.unpack_from(data, base + _HEADER.size + number * _ENTRY.size)
        if flags == _KINDS.get(machine):
            yield (
                _text(data, base + key).decode("utf-8", "replace"),
                _text(data, base + value).decode("utf-8", "replace"),
            )


def extended(data: bytes, added: Sequence[tuple[str, str, bool]], machine: str) -> bytes:
    """Return a cache with more libraries.

    data     the cache, or b"" where there is none
    added    name, path, and whether it comes after those of its name that were there, and not before
    machine  whose libraries they are

    Raises MalformedError: `data` is no cache; KeyError: a machine that is not known.
    """
    kind = _KINDS[machine]
    base, count, strings, extension = _open(data) if data else (0, 0, 0, 0)
    at = base + _HEADER.size
    words = bytearray(data[at : at + count * _ENTRY.size])
    rest = data[at + count * _ENTRY.size :]
    text = bytearray()
    first = _HEADER.size + (count + len(added)) * _ENTRY.size
    new: dict[int, list[bytes]] = {}
    for name, path, last in added:
        key = first + len(text)
        text += name.encode() + b"\0" + path.encode() + b"\0"
        value = key + len(name.encode()) + 1
        place = _place(data, base, count, name.encode(), last)
        new.setdefault(place, []).append(_ENTRY.pack(kind, key, value, 0, 0))
    text += bytes(-len(text) % 8)
    shift = len(added) * _ENTRY.size + len(text)
    _move(words, shift)
    order = _sorter(bytes(text), first)
    entries, done = bytearray(), 0
    for place in sorted(new):
        entries += words[done : place * _ENTRY.size]
        here: list[bytes] = sorted(new[place], key=order, reverse=True)
        entries += b"".join(here)
        done = place * _ENTRY.size
    entries += words[done:]
    if extension:
        rest = _extension(rest, extension - at - count * _ENTRY.size, extension, shift - base)
        extension += shift - base
    header = _HEADER.pack(_MAGIC, count + len(added), strings + len(text), _LITTLE_ENDIAN, extension)
    return header + bytes(entries) + bytes(text) + rest


def _open(data: bytes) -> tuple[int, int, int, int]:
    """Return where the cache begins, its number of entries, length of strings, and where its extension is, or 0."""
    base = 0 if data.startswith(_MAGIC) else data.find(b"\0" + _MAGIC) + 1
    if not data.startswith(_MAGIC, base) or len(data) < base + _HEADER.size:
        raise MalformedError("not a cache of the dynamic loader")
    _, count, strings, flags, extension = _HEADER.unpack_from(data, base)
    if flags & 3 not in (0, _LITTLE_ENDIAN) or base + _HEADER.size + count * _ENTRY.size > len(data):
        raise MalformedError("a broken cache of the dynamic loader")
    return base, count, strings, extension


def _text(data: bytes, at: int) -> bytes:
    end = data.find(b"\0", at)
    if at >= len(data) or end < 0:
        raise MalformedError("a broken cache of the dynamic loader")
    return data[at:end]


def _key(name: bytes) -> tuple[bytes | int, ...]:
    """Return what the loader compares names by: numbers as numbers, and after all characters, the end before them."""
    parts = _NUMBER.split(name)
    key: list[bytes | int] = [part + b"\xff" for part in parts]
    key[1::2] = map(int, parts[1::2])
    key[-1] = parts[-1] + b"\0"
    return tuple(key)


def _sorter(text: bytes, first: int) -> Callable[[bytes], tuple[bytes | int, ...]]:
    """Return what entries are sorted by, whose strings are in `text`, which will be at `first`."""
    return lambda entry: _key(_text(text, _ENTRY.unpack(entry)[1] - first))


def _place(data: bytes, base: int, count: int, name: bytes, last: bool) -> int:
    """Return before which entry `name` goes: the first of its name, or with `last` the one after these."""
    wanted, low, high = _key(name), 0, count
    while low < high:
        middle = (low + high) // 2
        (key,) = struct.unpack_from("<I", data, base + _HEADER.size + middle * _ENTRY.size + 4)
        there = _key(_text(data, base + key))
        if there > wanted or (last and there == wanted):
            low = middle + 1
        else:
            high = middle
    return low


def _move(entries: bytearray, shift: int) -> None:
    """Add `shift` to where the strings of the entries are."""
    numbers = list(struct.unpack(f"<{len(entries) // 4}I", entries))
    for member in (1, 2):
        numbers[member::6] = [(number + shift) & 0xFFFFFFFF for number in numbers[member::6]]
    entries[:] = struct.pack(f"<{len(numbers)}I", *numbers)


def _extension(rest: bytes, at: int, extension: int, shift: int) -> bytes:
    """Return what follows the entries, with the extension's own offsets moved. Raises MalformedError.

    at  where the extension is in `rest`, which is at `extension` of the file
    """
    result = bytearray(rest)
    try:
        magic, count = struct.unpack_from("<II", result, at)
        if at < 0 or magic != _EXTENSION_MAGIC or count > 64:
            raise MalformedError("a broken cache of the dynamic loader")
        for number in range(count):
            place = at + 8 + number * _SECTION.size
            tag, flags, offset, size = _SECTION.unpack_from(result, place)
            _SECTION.pack_into(result, place, tag, flags, offset + shift, size)
            if tag == _HWCAPS:
                # Names of subdirectories for newer processors: where their strings are.
                start = at + offset - extension
                names = struct.unpack_from(f"<{size // 4}I", result, start)
                struct.pack_into(f"<{size // 4}I", result, start, *(name + shift for name in names))
    except struct.error:
        raise MalformedError("a broken cache of the dynamic loader") from None
    return bytes(result)
