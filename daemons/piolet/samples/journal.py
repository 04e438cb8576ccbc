"""The journal: what the sampler writes while a step runs. Standard library only, for the sampler must stay small.

One file per node, only ever appended to: frames of a 16-byte head (magic, kind, length, CRC-32 of the body) and a
body. A frame is either whole and right, or it is the torn end of the file; so a reader gets everything up to the
last frame that was written, whatever killed the writer. Kinds:

    H   JSON: the step, the node, devices, columns, collectors, the clock's origin. First, and again after a restart
    G   samples of GPUs: records of <uint16 device, float32 span, int64 end, float64 value per column>
    N   samples of the host, the same with its own columns (device is 65535)
    E   JSON: an event (late, restart, error, shared, full, thinned, end), with its time
    Q   JSON: running totals of data quality and of the sampler's own cost; the last one counts
    S   the sums of all samples that stand before it, and what else is known of the node: see compact.py
    Z   behind the last S: where that begins

It refuses nothing while writing, and never raises a struct.error: values are floats, NaN is "missing".
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from piolet.api import Reading
from piolet.base import files, locks
from piolet.base.errors import ScoreError

SUFFIX = ".journal"
VERSION = 1
_HEAD = struct.Struct("<4s1sxxxII")
_MAGIC = b"PSJ1"
_RECORD = "<Hfq"
_BODY_MAX = 16 << 20
_Z_SIZE = _HEAD.size + 8
_LOCK_S = 30.0


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


def read(path: str) -> Iterator[Frame]:
    """Yield the frames up to the first that is not whole. Raises ScoreError: not a journal."""
    try:
        with os.fdopen(files.open_regular(path), "rb") as file:
            yield from _frames(file, path)
    except files.NotRegularError:
        raise _no_file(path) from None
    except OSError as error:
        raise ScoreError(f"cannot read {path}: {error.strerror}") from None


def _no_file(path: str) -> ScoreError:
    return ScoreError(f"{path} is no file")


def _frames(file: BinaryIO, path: str) -> Iterator[Frame]:
    at = 0
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


def tail(path: str, most: int) -> Iterator[Frame]:
    """Yield the first frame of a journal, and the whole ones in its last `most` bytes. Raises ScoreError.

    What is torn, or a part of a frame at the begin of these, is passed over.
    """
    try:
        with os.fdopen(files.open_regular(path), "rb") as file:
            first = next(_frames(file, path), None)
            if first is None:
                return
            yield first
            size = os.fstat(file.fileno()).st_size
            start = max(first.end, size - most)
            file.seek(start)
            data = file.read(most)
    except files.NotRegularError:
        raise _no_file(path) from None
    except OSError as error:
        raise ScoreError(f"cannot read {path}: {error.strerror}") from None
    at = data.find(_MAGIC)
    while at >= 0 and len(data) - at >= _HEAD.size:
        _, kind, length, crc = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        whole = length <= _BODY_MAX and len(body) == length and zlib.crc32(body) == crc
        if whole:
            at += _HEAD.size + length
            yield Frame(kind.decode("ascii", "replace"), body, start + at)
        at = data.find(_MAGIC, at if whole else at + 1)


def last_summary(path: str) -> bytes:
    """Return the body of the S that a journal ends with; b"" if it ends with something else."""
    try:
        with os.fdopen(files.open_regular(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _Z_SIZE))
            end = file.read(_Z_SIZE)
            if len(end) < _Z_SIZE or _HEAD.unpack(end[: _HEAD.size]) != (_MAGIC, b"Z", 8, zlib.crc32(end[-8:])):
                return b""
            file.seek(int.from_bytes(end[-8:], "little"))
            magic, kind, length, crc = _HEAD.unpack(file.read(_HEAD.size))
            body = file.read(length) if (magic, kind) == (_MAGIC, b"S") and length <= _BODY_MAX else b""
            return body if len(body) == length and zlib.crc32(body) == crc else b""
    except (files.NotRegularError, OSError, struct.error, OverflowError):
        return b""  # whoever reads it whole says why


def end_frame(place: int) -> bytes:
    """Return the frame that says where the last S begins."""
    return frame("Z", place.to_bytes(8, "little"))


def split(data: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
    """Return the whole frames at the begin of a stream's bytes, each with its kind, and what is behind them.

    Raises ScoreError: it is no stream of frames.
    """
    frames, at = [], 0
    while len(data) - at >= _HEAD.size:
        magic, kind, length, _ = _HEAD.unpack_from(data, at)
        if magic != _MAGIC or length > _BODY_MAX:
            raise ScoreError("what comes from the sampler is no journal")
        end = at + _HEAD.size + length
        if end > len(data):
            break
        frames.append((kind.decode("ascii", "replace"), data[at:end]))
        at = end
    return frames, data[at:]


def open_for_writing(path: str, may: Callable[[Any], None] = lambda _: None) -> int:
    """Return a descriptor that appends, after cutting off a torn end. The file is made if it is not there.

    `may` is given the header, if there is one, and raises ScoreError if the journal is another's. The file is opened
    once, and locked: whoever writes to it still is waited for a while, since a frame of theirs may be half written.

    Called by a process that is the user; never follows a link, since the directory is the user's.
    """
    try:
        fd = files.open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            if _lock(fd, path):
                end = 0
                with os.fdopen(fd, "rb", closefd=False) as file:
                    for each in _frames(file, path):
                        if end == 0 and each.kind == "H":
                            may(each.json())
                        end = each.end
                os.ftruncate(fd, end)
                return fd
        except Exception:
            os.close(fd)
            raise
        os.close(fd)
    except files.NotRegularError:
        raise _no_file(path) from None
    except OSError as error:
        raise ScoreError(f"cannot write {path}: {error.strerror}") from None
    if not os.path.lexists(path):
        raise ScoreError(f"{path} was finished meanwhile")
    return open_for_writing(path, may)  # compact.py has put a smaller one in its place


def _lock(fd: int, path: str) -> bool:
    """Return whether the file is still where it was when it was opened."""
    try:
        if not locks.take(fd, time.monotonic() + _LOCK_S):
            raise ScoreError(f"{path} is being written by another process")
    except OSError:
        pass  # not every network file system has locks
    return os.fstat(fd).st_nlink > 0
