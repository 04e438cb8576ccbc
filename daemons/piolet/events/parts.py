"""The files of a spool: how they are called, and what their last whole line is (decision 104).

A part is a file of a stream: `node-EPOCH-FIRST.jsonl` or `uid-UID-EPOCH-FIRST.jsonl`, FIRST being the number of its
first record. Only whole lines count. Whoever reads trusts no size, and finds that any file may be gone.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from piolet.events.envelope import LINE_MAX, number_of

_NAME = re.compile(r"(?:node|uid-(\d{1,10}))-([0-9a-f]{16})-(\d{20})\.jsonl", re.ASCII)
PARTS_MAX = 65536
"""So many entries of the directory are looked at."""
_DAMAGED_MAX = 8 << 20


@dataclass(frozen=True)
class Part:
    """One file; `uid` is None in the node's own stream."""

    uid: int | None
    epoch: str
    first: int

    @property
    def name(self) -> str:
        """Its name in the directory."""
        whose = "node" if self.uid is None else f"uid-{self.uid}"
        return f"{whose}-{self.epoch}-{self.first:020d}.jsonl"


def parts(directory: str) -> list[Part]:
    """Return what is there, those of an epoch in the order of their numbers. Raises OSError."""
    found: list[Part] = []
    with os.scandir(directory) as entries:
        for entry, _ in zip(entries, range(PARTS_MAX), strict=False):
            match = _NAME.fullmatch(entry.name)
            if match is not None and int(match[3]) > 0:
                found.append(Part(None if match[1] is None else int(match[1]), match[2], int(match[3])))
    return sorted(found, key=lambda part: (part.epoch, part.first))


def open_part(directory: str, part: Part, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of the file. Raises OSError."""
    path = os.path.join(directory, part.name)
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)


def tail(descriptor: int) -> tuple[bytes, int]:
    """Return the last whole line, and where whole lines end. Raises OSError.

    The line is b'' where there is none, or where it is longer than a line may be.
    """
    size = os.fstat(descriptor).st_size
    start = max(0, size - 2 * LINE_MAX)
    data = b""
    while start + len(data) < size and (piece := os.pread(descriptor, size - start - len(data), start + len(data))):
        data += piece
    end = data.rfind(b"\n") + 1
    if end == 0:
        return b"", 0
    begin = data.rfind(b"\n", 0, end - 1) + 1
    line = data[begin:end] if begin or not start else b""
    return line, start + end


def last_line(directory: str, part: Part) -> bytes:
    """Return the last whole line of the file, b'' where there is none."""
    with contextlib.suppress(OSError):
        descriptor = open_part(directory, part)
        try:
            return tail(descriptor)[0]
        finally:
            os.close(descriptor)
    return b""


def last_number(directory: str, part: Part) -> int:
    """Return the number of the last whole record of the file, `part.first` - 1 where there is none.

    After a node lost its power there may be anything at the end of a file; then all of it is looked at.
    """
    try:
        descriptor = open_part(directory, part)
    except OSError:
        return part.first - 1
    try:
        line, end = tail(descriptor)
        number = number_of(line)
        if number is not None and number[0] == part.epoch:
            return number[1]
        with open(descriptor, "rb", closefd=False) as file:
            numbers = [number_of(line) for line in file.read(min(end, _DAMAGED_MAX)).splitlines(keepends=True)]
    except OSError:
        return part.first - 1
    finally:
        os.close(descriptor)
    return max([part.first - 1, *(one[1] for one in numbers if one is not None and one[0] == part.epoch)])
