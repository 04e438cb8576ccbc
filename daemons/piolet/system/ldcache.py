"""The cache of the dynamic loader, /etc/ld.so.cache: reading it, and adding libraries to one.

The format is glibc's own (sysdeps/generic/dl-cache.h): a header, entries in descending order of their names, strings,
and since 2.33 an extension with offsets of its own. Before 2.32 an older format of no interest stands in front. To add
a few libraries takes half a millisecond; ldconfig would read every library of an image again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence

LIMIT = 16 << 20
"""No cache is larger."""

_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER = struct.Struct("<20sIIB3xI12x")
_ENTRY = struct.Struct("<iIIIQ")
_SECTION = struct.Struct("<IIII")
_EXTENSION_MAGIC, _HWCAPS = 0xEAA42174, 1
_LITTLE_ENDIAN = 2
_KINDS = {"x86_64": 0x0303, "aarch64": 0x0A03, "ppc64le": 0x0503}
Key = tuple[bytes | int, ...]

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
    # Views, and one joining at the end: in a process that was just forked each new page of memory costs 3 microseconds.
    view = memoryview(data)
    words, rest = view[at : at + count * _ENTRY.size], view[at + count * _ENTRY.size :]
    text = bytearray()
    first = _HEADER.size + (count + len(added)) * _ENTRY.size
    # In the order of the file, so that each is looked for from the place of the one before: they are often neighbours.
    ordered = sorted(((_key(name.encode()), name, path, last) for name, path, last in added), key=_front, reverse=True)
    entries: list[tuple[int, bytes]] = []
    names = _Names(data, base, count)
    place = 0
    for key, name, path, last in ordered:
        place = _place(names, key, place, last)
        start = first + len(text)
        text += f"{name}\0{path}\0".encode()
        entries.append((place, _ENTRY.pack(kind, start, start + len(name.encode()) + 1, 0, 0)))
    text += bytes(-len(text) % 8)
    shift = len(added) * _ENTRY.size + len(text)
    moved = memoryview(_moved(words, shift))
    pieces: list[bytes | bytearray | memoryview] = [b""]
    done = 0
    for place, entry in entries:
        pieces += [moved[done : place * _ENTRY.size], entry]
        done = place * _ENTRY.size
    pieces += [moved[done:], text]
    if extension:
        start = extension - at - count * _ENTRY.size
        if start < 0:
            raise MalformedError("a broken cache of the dynamic loader")
        pieces += [rest[:start], _extension(rest[start:], extension, shift - base)]
        extension += shift - base
    else:
        pieces.append(rest)
    pieces[0] = _HEADER.pack(_MAGIC, count + len(added), strings + len(text), _LITTLE_ENDIAN, extension)
    return b"".join(pieces)


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


def _key(name: bytes) -> Key:
    """Return what the loader compares names by: numbers as numbers, and after all characters, the end before them."""
    parts = _NUMBER.split(name)
    key: list[bytes | int] = [part + b"\xff" for part in parts]
    try:
        key[1::2] = map(int, parts[1::2])
    except ValueError:  # more digits than Python takes
        raise MalformedError("a broken cache of the dynamic loader") from None
    key[-1] = parts[-1] + b"\0"
    return tuple(key)


def _front(entry: tuple[Key, str, str, bool]) -> tuple[Key, bool]:
    """Return what added libraries are sorted by, descending: of one name, those before the image's own first."""
    return entry[0], not entry[3]


class _Names:
    """The names of the libraries in a cache, as keys; each is made once, since the same few are looked at again."""

    def __init__(self, data: bytes, base: int, count: int) -> None:
        self.count = count
        self._data = data
        self._base = base
        self._keys: dict[int, Key] = {}

    def come_before(self, number: int, wanted: Key, last: bool) -> bool:
        """Return whether the entry with this number comes before a name that is to be put in. Raises MalformedError."""
        there = self._keys.get(number)
        if there is None:
            place = self._base + _HEADER.size + number * _ENTRY.size
            (at,) = struct.unpack_from("<I", self._data, place + 4)
            there = self._keys[number] = _key(_text(self._data, self._base + at))
        return there > wanted or (last and there == wanted)


def _place(names: _Names, wanted: Key, start: int, last: bool) -> int:
    """Return before which entry, from `start` on, a name goes: the first of its name, or with `last` what follows them.

    Entries are in descending order. Steps of 1, 2, 4, … find a stretch that is then halved.
    """
    low, high, step = start, start, 1
    while high < names.count and names.come_before(high, wanted, last):
        low, high, step = high + 1, high + step, 2 * step
    high = min(high, names.count)
    while low < high:
        middle = (low + high) // 2
        if names.come_before(middle, wanted, last):
            low = middle + 1
        else:
            high = middle
    return low


def _moved(entries: memoryview, shift: int) -> bytes:
    """Return the entries with `shift` added to where their strings are, as one long number. Raises MalformedError."""
    each = struct.pack("<IIIIQ", 0, shift, shift, 0, 0)
    moved = int.from_bytes(entries, "little") + int.from_bytes(each * (len(entries) // len(each)), "little")
    try:
        return moved.to_bytes(len(entries), "little")
    except OverflowError:
        raise MalformedError("a broken cache of the dynamic loader") from None


def _extension(data: memoryview, extension: int, shift: int) -> bytearray:
    """Return the extension, which is at `extension` of the file, with its own offsets moved. Raises MalformedError."""
    result = bytearray(data)
    try:
        magic, count = struct.unpack_from("<II", result)
        if magic != _EXTENSION_MAGIC or count > 64:
            raise MalformedError("a broken cache of the dynamic loader")
        for number in range(count):
            place = 8 + number * _SECTION.size
            tag, flags, offset, size = _SECTION.unpack_from(result, place)
            _SECTION.pack_into(result, place, tag, flags, offset + shift, size)
            if tag == _HWCAPS:
                # Names of subdirectories for newer processors: where their strings are.
                start = offset - extension
                if start < 0:
                    raise MalformedError("a broken cache of the dynamic loader")
                names = struct.unpack_from(f"<{size // 4}I", result, start)
                struct.pack_into(f"<{size // 4}I", result, start, *(name + shift for name in names))
    except struct.error:
        raise MalformedError("a broken cache of the dynamic loader") from None
    return result
