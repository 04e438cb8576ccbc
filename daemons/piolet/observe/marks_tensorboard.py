"""Finds scalars in TensorBoard's event files, as data: no TensorFlow, and nothing of the file is run.

A file is a row of records: the length (8 bytes), its masked CRC-32C, the data, theirs (tensorflow.org, "TFRecord and
tf.train.Example"). Each is an Event (event.proto): wall_time 1, step 2, summary 5; a Summary's values 1 have a tag 1,
and a simple_value 2 or a tensor 8 (summary.proto, tensor.proto: dtype 1, tensor_content 4, float_val 5, double_val 6).
A record of which the end is missing is one that is being written; a wrong checksum ends the file.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Iterator

from piolet.observe import marks, records
from piolet.observe.marks import TENSORBOARD, Said
from piolet.observe.records import BYTES, FIXED32, FIXED64, VARINT

NAMES = "events.out.tfevents."
_RECORD_MOST = 16 << 20
_SMALL = 64 << 10  # images and histograms are larger; a scalar is not, and the checksum of a large one takes long
_FLOAT, _DOUBLE = 1, 2
_BAD = "the record at byte {} of {} is damaged: nothing after it was read"


def find(path: str, seconds: float = 60.0) -> tuple[list[Said], str]:
    """Return the scalars of a file, and what was left out, '': nothing. Raises ObserveError: it cannot be read."""
    deadline = time.monotonic() + seconds
    found: list[Said] = []
    with records.opened(path) as file:
        while len(head := file.read(12)) == 12:
            place = file.tell() - 12
            length, check = struct.unpack("<QI", head)
            if records.masked(records.crc32c(head[:8])) != check or length > _RECORD_MOST:
                return found, _BAD.format(place, path)
            if length > _SMALL:
                file.seek(length + 4, os.SEEK_CUR)
                continue
            data = file.read(length + 4)
            if len(data) < length + 4:
                break
            if records.masked(records.crc32c(data[:length])) != struct.unpack("<I", data[length:])[0]:
                return found, _BAD.format(place, path)
            try:
                found += scalars(data[:length])
            except ValueError:
                return found, _BAD.format(place, path)
            if len(found) >= marks.MOST:
                return found[: marks.MOST], f"{path} has more than {marks.MOST} scalars"
            if time.monotonic() > deadline:
                return found, f"{path} was read for {seconds:g} s, up to byte {file.tell()}"
    return found, ""


def scalars(event: bytes) -> Iterator[Said]:
    """Yield the scalars of an Event. Raises ValueError: it is none."""
    when, step, summaries = None, 0, []  # a step of 0 is left out, says proto3
    for number, kind, value in records.fields(event):
        if (number, kind) == (1, FIXED64):
            when = records.double(value)
        elif (number, kind) == (2, VARINT) and isinstance(value, int):
            step = value
        elif (number, kind) == (5, BYTES) and isinstance(value, bytes):
            summaries.append(value)
    when = when if when is not None and math.isfinite(when) and 0 <= when < 1e11 else None
    said = False
    for summary in summaries:
        for number, kind, value in records.fields(summary):
            if (number, kind) == (1, BYTES) and isinstance(value, bytes) and (one := _scalar(value)) is not None:
                said = True
                yield Said(*one, when, TENSORBOARD)
    if said:
        yield Said("step", float(step), when, TENSORBOARD)


def _scalar(data: bytes) -> tuple[str, float] | None:
    tag, scalar = "", None
    for number, kind, value in records.fields(data):
        if (number, kind) == (1, BYTES) and isinstance(value, bytes):
            tag = value[:256].decode("utf-8", "replace")
        elif (number, kind) == (2, FIXED32):
            scalar = records.single(value)
        elif (number, kind) == (8, BYTES) and isinstance(value, bytes):
            scalar = _tensor(value)
    name = named(tag)
    return (name, scalar) if name and scalar is not None else None


def _tensor(data: bytes) -> float | None:
    """Return the one number of a tensor that has one; of others None."""
    kind_of, content, numbers = 0, b"", []
    for number, kind, value in records.fields(data):
        if (number, kind) == (1, VARINT):
            kind_of = int(value) if isinstance(value, int) else 0
        elif not isinstance(value, bytes):
            continue
        elif (number, kind) == (4, BYTES):
            content = value
        elif number in (5, 6):
            size, read = (4, records.single) if number == 5 else (8, records.double)
            numbers += [read(value[at : at + size]) for at in range(0, min(len(value), 2 * size), size)]
    if len(content) == 4 and kind_of == _FLOAT:
        numbers.append(records.single(content))
    elif len(content) == 8 and kind_of == _DOUBLE:
        numbers.append(records.double(content))
    return numbers[0] if len(numbers) == 1 else None


def named(tag: str) -> str:
    """Return the name of a mark that a tag stands for: 'train/loss', 'lr-group 0' -> 'lr-group_0'; '' for none."""
    name = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "_./-") else "_" for letter in tag[:64]
    )
    return name if marks.NAME.fullmatch(name) else f"_{name}"[:64] if name else ""
