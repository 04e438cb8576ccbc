"""Tar, read strictly and written plainly.

The reader takes ustar, GNU and pax archives, sparse files in all four GNU forms, and gives names as
bytes. It takes only a stream, so nothing is ever unpacked to a file system. Refused: wrong
checksums, truncation, kinds of entries that no image has, names and extended headers beyond limits.
The writer makes GNU headers, the form that keeps names of any bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from piolet.base.errors import ImageError
from piolet.images.blob import LayerStream

BLOCK = 512
NAME_LIMIT = 4096
_EXTENDED_LIMIT = 1024 * 1024
_SEGMENT_LIMIT = 100_000
_ZERO = bytes(BLOCK)
_ZEROS = bytes(1024 * 1024)
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "link",
    b"2": "symlink",
    b"3": "special",
    b"4": "special",
    b"5": "dir",
    b"6": "special",
}
_FLAGS = {"file": b"0", "link": b"1", "symlink": b"2", "dir": b"5"}


@dataclass(slots=True)
class Member:
    """One entry. `kind` is 'file', 'dir', 'symlink', 'link' or 'special'; `size` is that of the whole file,
    `stored` what the archive holds of it; `segments` are (offset, length) of a sparse file's data."""

    name: bytes
    kind: str
    mode: int
    mtime: int
    size: int
    target: bytes
    stored: int
    segments: list[tuple[int, int]] | None = None


class TarReader:
    """The members of the archive in `stream`; `copy` gives the content of the one yielded last."""

    def __init__(self, stream: LayerStream) -> None:
        self._stream = stream
        self._left = 0
        self._padding = 0

    def members(self) -> Iterator[Member]:
        """Yield each member in order; raises ImageError for what is no tar."""
        first = True
        while True:
            self._skip()
            block = self._stream.read(BLOCK)
            if not block and not first:
                return  # some writers leave out the two empty blocks; the layer's digest tells of a cut
            if len(block) < BLOCK:
                raise ImageError("it is not a tar archive, or a truncated one")
            if block == _ZERO:
                if self._stream.read(BLOCK) not in (_ZERO, b""):
                    raise ImageError("its tar archive has an empty block in the middle")
                return
            member = self._member(block, first)
            first = False
            if member is not None:
                yield member

    def copy(self, member: Member, take: Callable[[bytes], object]) -> None:
        """Hand the content of `member`, the last one yielded, to `take`: exactly `member.size` bytes."""
        if member.segments is None:
            self._data(member.stored, take)
            return
        at = 0
        for offset, length in member.segments:
            _zeros(offset - at, take)
            self._data(length, take)
            at = offset + length
        _zeros(member.size - at, take)

    def _member(self, block: bytes, first: bool) -> Member | None:
        """Return the member whose first header is `block`, its extended headers applied; None: nothing of use."""
        name: bytes | None = None
        target: bytes | None = None
        pax: dict[bytes, bytes] = {}
        sparse_pairs: list[bytes] = []
        while True:
            _check_sum(block, first)
            flag = block[156:157]
            if flag not in (b"L", b"K", b"x", b"g", b"X"):
                break
            data = self._extended(_number(block[124:136]))
            if flag == b"L":
                name = data.split(b"\0", 1)[0]
            elif flag == b"K":
                target = data.split(b"\0", 1)[0]
            elif flag != b"g":
                _read_pax(data, pax, sparse_pairs)
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK:
                raise ImageError("its tar archive is truncated after an extended header")
        if flag == b"V":
            self._claim(_number(block[124:136]))
            return None
        kind = _KINDS.get(flag)
        if kind is None:
            raise ImageError(f"its tar archive has an entry of the unknown type {flag!r}")
        if name is None:
            name = _text(block[0:100])
            if block[257:263] == b"ustar\0" and block[345] != 0:
                name = _text(block[345:500]) + b"/" + name
        name = pax.get(b"GNU.sparse.name", pax.get(b"path", name))
        target = pax.get(b"linkpath", target if target is not None else _text(block[157:257]))
        if len(name) > NAME_LIMIT or len(target) > NAME_LIMIT:
            raise ImageError(f"its tar archive has a name longer than {NAME_LIMIT} bytes")
        if b"\0" in name or b"\0" in target:
            raise ImageError("its tar archive has a name with a NUL byte")
        if flag == b"\0" and name.endswith(b"/"):
            kind = "dir"
        stored = _decimal(pax[b"size"]) if b"size" in pax else _number(block[124:136])
        if kind != "file":
            stored = 0  # as every writer of layers reads it: only files have content
        mtime = _decimal(pax[b"mtime"].split(b".")[0]) if b"mtime" in pax else _number(block[136:148])
        mode = _number(block[100:108]) & 0o7777
        member = Member(name, kind, mode, min(max(mtime, 0), 2**32 - 1), stored, target, stored)
        if flag == b"S":
            self._old_sparse(block, member)
        self._claim(stored)
        if kind == "file" and any(key.startswith(b"GNU.sparse.") for key in pax):
            self._pax_sparse(member, pax, sparse_pairs)
        if member.segments is not None:
            _check_segments(member)
            self._stream.charge(max(0, member.size - member.stored))
        return member

    def _claim(self, stored: int) -> None:
        if stored < 0:
            raise ImageError("its tar archive has an entry of negative size")
        self._left, self._padding = stored, -stored % BLOCK

    def _data(self, count: int, take: Callable[[bytes], object]) -> None:
        self._left -= count
        if self._left < 0 or self._stream.pass_on(count, take) != count:
            raise ImageError("its tar archive is truncated inside a file")

    def _skip(self) -> None:
        count = self._left + self._padding
        self._left = self._padding = 0
        if count and self._stream.pass_on(count, len) != count:
            raise ImageError("its tar archive is truncated inside a file")

    def _extended(self, size: int) -> bytes:
        if not 0 <= size <= _EXTENDED_LIMIT:
            raise ImageError(f"its tar archive has an extended header of {size} bytes")
        self._claim(size)
        data = self._stream.read(size)
        if len(data) != size:
            raise ImageError("its tar archive is truncated inside an extended header")
        self._left = 0
        self._skip()
        return data

    def _old_sparse(self, block: bytes, member: Member) -> None:
        segments = _pairs(block[386:482])
        more = block[482]
        member.size = _number(block[483:495])
        while more:
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK or len(segments) > _SEGMENT_LIMIT:
                raise ImageError("its tar archive has a malformed sparse file")
            segments += _pairs(block[0:504])
            more = block[504]
        member.segments = segments

    def _pax_sparse(self, member: Member, pax: dict[bytes, bytes], pairs: list[bytes]) -> None:
        size = pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size"))
        if size is None:
            raise ImageError("its tar archive has a sparse file without a size")
        member.size = _decimal(size)
        if pax.get(b"GNU.sparse.major") == b"1":
            member.segments = self._map_in_data(member)
            return
        numbers = pax[b"GNU.sparse.map"].split(b",") if b"GNU.sparse.map" in pax else pairs
        values = [_decimal(item) for item in numbers if item]
        member.segments = list(zip(values[0::2], values[1::2], strict=False))

    def _map_in_data(self, member: Member) -> list[tuple[int, int]]:
        """Return the map that version 1.0 puts in front of the data, lines of digits in whole blocks."""
        text = b""
        wanted: int | None = None
        while wanted is None or text.count(b"\n") < wanted:
            pieces: list[bytes] = []
            self._data(BLOCK, pieces.append)
            member.stored -= BLOCK
            text += b"".join(pieces)
            if wanted is None and b"\n" in text:
                count = _decimal(text.split(b"\n", 1)[0])
                wanted = 1 + 2 * count
            if len(text) > _EXTENDED_LIMIT or (wanted is not None and not 0 < wanted <= 2 * _SEGMENT_LIMIT):
                raise ImageError("its tar archive has a malformed sparse file")
        values = [_decimal(item) for item in text.split(b"\n")[1:wanted]]
        return list(zip(values[0::2], values[1::2], strict=False))


def _check_segments(member: Member) -> None:
    at = held = 0
    for offset, length in member.segments or ():
        if offset < at or length < 0 or offset + length > member.size:
            raise ImageError("its tar archive has a malformed sparse file")
        at, held = offset + length, held + length
    if held != member.stored or member.size < 0:
        raise ImageError("its tar archive has a malformed sparse file")


def _check_sum(block: bytes, first: bool) -> None:
    plain = sum(block) - sum(block[148:156]) + 8 * 32
    digits = block[148:156].split(b"\0", 1)[0].strip()
    said = int(digits, 8) if digits and not digits.strip(b"01234567") else -1
    if said not in (plain, plain - 256 * sum(b > 127 for b in block[:148] + block[156:])):
        raise ImageError("it is not a tar archive" if first else "its tar archive has a damaged header")


def _read_pax(data: bytes, pax: dict[bytes, bytes], pairs: list[bytes]) -> None:
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 20)
        length = _decimal(data[at:space]) if space > 0 else 0
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if length < 5 or at + length > len(data) or not record.endswith(b"\n") or not equals:
            raise ImageError("its tar archive has a malformed extended header")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append(value)
        pax[key] = value
        at += length


def _pairs(field: bytes) -> list[tuple[int, int]]:
    found = [(_number(field[i : i + 12]), _number(field[i + 12 : i + 24])) for i in range(0, len(field), 24)]
    return [pair for pair in found if pair != (0, 0)]


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes) -> int:
    """Return a header's number: octal digits, or binary when the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    digits = field.split(b"\0", 1)[0].strip()
    if digits.strip(b"01234567"):
        raise ImageError("its tar archive has a header with a malformed number")
    return int(digits, 8) if digits else 0


def _decimal(text: bytes) -> int:
    if not 0 < len(text) <= 20 or not text.removeprefix(b"-").isdigit():
        raise ImageError("its tar archive has an extended header with a malformed number")
    return int(text)


def _zeros(count: int, take: Callable[[bytes], object]) -> None:
    while count > 0:
        take(_ZEROS[:count])
        count -= min(count, len(_ZEROS))


def header(name: bytes, kind: str, mode: int, mtime: int, size: int = 0, target: bytes = b"") -> bytes:
    """Return the header blocks of an entry that belongs to root."""
    blocks = b""
    for flag, text in ((b"K", target), (b"L", name)):
        if len(text) > 99:
            data = text + b"\0"
            blocks += _header(b"././@LongLink", flag, 0o644, 0, len(data), b"") + data + bytes(-len(data) % BLOCK)
    return blocks + _header(name[:99], _FLAGS[kind], mode, mtime, size, target[:99])


def _header(name: bytes, flag: bytes, mode: int, mtime: int, size: int, target: bytes) -> bytes:
    length = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    block = b"%s%07o\0%07o\0%07o\0%s%011o\0        %s%s" % (
        name.ljust(100, b"\0"),
        mode,
        0,
        0,
        length,
        mtime,
        flag,
        target.ljust(100, b"\0"),
    )
    block = (block + b"ustar  \0").ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
