"""The table of ids in a SquashFS file of the store: read, checked, and written anew for one user.

A SquashFS keeps every owner and group in one table, in which inodes name places; what the image service writes has uid
0 and gid 1 there, or in files of earlier releases 0 alone (decision 70). This takes the two layouts that mksquashfs
gives those, not compressed and near the end of the file, and refuses all else: nothing here parses a file system.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

BLOCK = 4096
_MAGIC, _VERSION = b"hsqs", (4, 0)
_SUPERBLOCK = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
_NOT_COMPRESSED = 0x8000
_BEHIND_MAX = 64 << 10


@dataclass(frozen=True)
class IdTable:
    """Where the ids are, and which; `end` is where the file system ends."""

    offset: int
    ids: tuple[int, ...]
    end: int


def read(image: int) -> IdTable:
    """Return the table of the SquashFS file behind a descriptor.

    Raises OSError with EUCLEAN: the file is not one that the image service writes.
    """
    length = os.fstat(image).st_size
    start = os.pread(image, _SUPERBLOCK.size, 0)
    if len(start) != _SUPERBLOCK.size:
        raise _unclean("it is too short")
    fields = _SUPERBLOCK.unpack(start)
    count, version, end, pointer = fields[8], fields[9:11], fields[12], fields[13]
    if fields[0] != _MAGIC or version != _VERSION:
        raise _unclean("it is not SquashFS 4.0")
    if count not in (1, 2):
        raise _unclean(f"it has {count} ids")
    if not _SUPERBLOCK.size <= end <= length or not _SUPERBLOCK.size <= pointer <= end - 8:
        raise _unclean("its table of ids is outside of it")
    (block,) = struct.unpack("<Q", _exactly(image, 8, pointer))
    size = 4 * count
    if not _SUPERBLOCK.size <= block <= pointer - 2 - size or end - block > _BEHIND_MAX:
        raise _unclean("its ids are not where they belong")
    head, *ids = struct.unpack(f"<H{count}I", _exactly(image, 2 + size, block))
    if head != _NOT_COMPRESSED | size:
        raise _unclean("its table of ids is compressed")
    if sorted(ids) != list(range(count)):
        raise _unclean("its ids are not 0 and 1")
    return IdTable(block + 2, tuple(ids), end)


def tail(image: int, table: IdTable, owners: dict[int, int]) -> tuple[int, bytes]:
    """Return from where on the file needs replacing so that its ids become those of `owners`, and by what.

    Both are multiples of a block. Raises OSError: it is EOVERFLOW where the table has one id and needs two.
    """
    if len(table.ids) == 1 and owners[0] != owners[1]:
        raise OSError(errno.EOVERFLOW, "the image has one id, and its user another group", "image")
    cut = table.offset - table.offset % BLOCK
    content = bytearray(_exactly(image, table.end - cut, cut))
    struct.pack_into(f"<{len(table.ids)}I", content, table.offset - cut, *(owners[number] for number in table.ids))
    return cut, bytes(content) + bytes(-len(content) % BLOCK)


def _exactly(image: int, count: int, offset: int) -> bytes:
    data = os.pread(image, count, offset)
    if len(data) != count:
        raise _unclean("it is cut off")
    return data


def _unclean(why: str) -> OSError:
    return OSError(errno.EUCLEAN, f"not an image that piolet wrote: {why}", "image")
