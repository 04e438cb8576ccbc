"""The journal: what the sampler writes while a step runs. Standard library only, for the sampler must stay small.

One file per node, only ever appended to: frames of a 16-byte head (magic, kind, length, CRC-32 of the body) and a
body. A frame is either whole and right, or it is the torn end of the file; so a reader gets everything up to the
last frame that was written, whatever killed the writer. Kinds:

    H   JSON: the step, the node, devices, columns, collectors, the clock's origin. First, and again after a restart
    G   samples of GPUs: records of <uint16 device, float32 span, int64 end, float64 value per column>
    N   samples of the host, the same with its own columns (device is 65535)
    E   JSON: an event (gap, late, restart, error), with its time
    Q   JSON: running totals of data quality and of the sampler's own cost; the last one counts

It refuses nothing while writing, and never raises a struct.error: values are floats, NaN is "missing".
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from piolet.api import Reading
from piolet.score.failures import ScoreError

SUFFIX = ".journal"
VERSION = 1
_HEAD = struct.Struct("<4s1sxxxII")
_MAGIC = b"PSJ1"
_RECORD = "<Hfq"
_BODY_MAX = 16 << 20


@dataclass(frozen=True)
class Frame:
    """One frame and where it ends in the file."""

    kind: str
    body: bytes
    end: int

    def json(self) -> Any:
        """Return the body of an H, E or Q frame."""
        return json.loads(self.body)


def frame(kind: str, body: bytes) -> bytes:
    """Return a frame as it stands in the file."""
    return _HEAD.pack(_MAGIC, kind.encode(), len(body), zlib.crc32(body)) + body


def json_frame(kind: str, content: dict[str, Any]) -> bytes:
    """Return a frame of JSON."""
    return frame(kind, json.dumps(content, separators=(",", ":"), allow_nan=False).encode())


class Packer:
    """Makes G or N frames of one table: `columns` in all, of which a collector gives some."""

    def __init__(self, kind: str, columns: Sequence[str]) -> None:
        self._kind = kind
        self._columns = {name: index for index, name in enumerate(columns)}
        self._record = struct.Struct(f"{_RECORD}{len(columns)}d")
        self._empty = [float("nan")] * len(columns)

    def places(self, quantities: Sequence[str]) -> tuple[int, ...]:
        """Return where the values of a collector go."""
        return tuple(self._columns[name] for name in quantities)

    def pack(self, reading: Reading, places: tuple[int, ...]) -> bytes:
        """Return one record."""
        values = self._empty.copy()
        for place, value in zip(places, reading.values, strict=True):
            values[place] = value
        device = 65535 if reading.device < 0 else reading.device
        return self._record.pack(device, reading.span, reading.end, *values)

    def frame(self, records: list[bytes]) -> bytes:
        """Return a frame of records."""
        return frame(self._kind, b"".join(records))


def record_type(columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return the fields of a record as numpy's dtype takes them (packed, little-endian)."""
    return [("device", "<u2"), ("span", "<f4"), ("end", "<i8"), *((name, "<f8") for name in columns)]


def read(path: str, start: int = 0) -> Iterator[Frame]:
    """Yield the frames from byte `start` on, up to the first that is not whole. Raises ScoreError: not a journal."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            at = start
            while True:
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    if at == 0 and head and not _MAGIC.startswith(head[:4]):
                        raise ScoreError(f"{path} is not a journal of Piolet's sampler")
                    return
                magic, kind, length, crc = _HEAD.unpack(head)
                if magic != _MAGIC and at == 0:
                    raise ScoreError(f"{path} is not a journal of Piolet's sampler")
                if magic != _MAGIC or length > _BODY_MAX:
                    return
                body = file.read(length)
                if len(body) < length or zlib.crc32(body) != crc:
                    return
                at += _HEAD.size + length
                yield Frame(kind.decode("ascii", "replace"), body, at)
    except OSError as error:
        raise ScoreError(f"cannot read {path}: {error.strerror}") from None


def sound_length(path: str) -> int:
    """Return the length of the part of a journal that is whole: where a restarted writer goes on."""
    end = 0
    for each in read(path):
        end = each.end
    return end


def open_for_writing(path: str) -> int:
    """Return a descriptor that appends, after cutting off a torn end. The file is made if it is not there.

    Called by a process that is the user; never follows a link, since the directory is the user's.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags, 0o644)
        os.ftruncate(fd, sound_length(path))
    except OSError as error:
        raise ScoreError(f"cannot write {path}: {error.strerror}") from None
    return fd
