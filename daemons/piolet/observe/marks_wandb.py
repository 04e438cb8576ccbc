"""Finds history in W&B's offline files (run-ID.wandb), as data: no wandb, and nothing of the file is run.

The file is a log as LevelDB's (its doc/log_format.md): after a header of 7 bytes (":W&B", a magic number, a version),
blocks of 32 KiB hold chunks of a CRC-32 (zlib's, over kind and data, as W&B 0.31 writes it), a length (2 bytes), and
a kind (1: whole, 2 to 4: first, middle, last). What they make up are Records (wandb_internal.proto): a history 2 has
items 1, each with key 1, nested_key 2 and value_json 16.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from piolet.base.errors import ObserveError
from piolet.observe import marks, records
from piolet.observe.marks import WANDB, Said
from piolet.observe.marks_tensorboard import named
from piolet.observe.records import BYTES

SUFFIX = ".wandb"
_HEADER = struct.Struct("<4sHB")
_IDENT, _MAGIC = b":W&B", 0xBEE1
_BLOCK, _HEAD = 32768, struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_RECORD_MOST = 4 << 20
_HISTORY, _ITEM, _KEY, _NESTED, _JSON = 2, 1, 1, 2, 16
_JSON_MOST = 64


def find(path: str, seconds: float = 60.0) -> tuple[list[Said], str]:
    """Return the numbers of a run's history, and what was left out, '': nothing. Raises ObserveError."""
    deadline = time.monotonic() + seconds
    found: list[Said] = []
    with records.opened(path) as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or _HEADER.unpack(head)[:2] != (_IDENT, _MAGIC):
            raise ObserveError(f"{path} is no file of an offline run of W&B")
        try:
            for record in _records(file):
                found += history(record)
                if len(found) >= marks.MOST:
                    return found[: marks.MOST], f"{path} has more than {marks.MOST} numbers"
                if time.monotonic() > deadline:
                    return found, f"{path} was read for {seconds:g} s, up to byte {file.tell()}"
        except ValueError:
            return found, f"{path} is damaged before byte {file.tell()}: nothing after that was read"
    return found, ""


def history(record: bytes) -> list[Said]:
    """Return the numbers of a Record that is history, none of another. Raises ValueError: it is none."""
    items = []
    for number, kind, value in records.fields(record):
        if (number, kind) == (_HISTORY, BYTES) and isinstance(value, bytes):
            items += [item for at, _, item in records.fields(value) if at == _ITEM and isinstance(item, bytes)]
    said = dict(filter(None, map(_item, items)))
    when = said.pop("_timestamp", None)
    when = when if when is not None and 0 <= when < 1e11 else None
    step = said.pop("_step", None)
    made = [Said(name, value, when, WANDB) for key, value in said.items() if key[:1] != "_" and (name := named(key))]
    return made + ([Said("step", step, when, WANDB)] if made and step is not None else [])


def _item(item: bytes) -> tuple[str, float] | None:
    key, nested, text = "", [], b""
    for number, kind, value in records.fields(item):
        if kind != BYTES or not isinstance(value, bytes):
            continue
        if number == _KEY:
            key = value[:256].decode("utf-8", "replace")
        elif number == _NESTED:
            nested.append(value[:256].decode("utf-8", "replace"))
        elif number == _JSON:
            text = value
    if len(text) > _JSON_MOST:
        return None
    try:
        number_said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(number_said, str) and number_said in ("NaN", "Infinity", "-Infinity"):
        number_said = float(number_said)
    if type(number_said) not in (int, float) or (abs(number_said) > 1e300 and number_said != float("inf")):
        return None
    return key or ".".join(nested), float(number_said)


def _records(file: BinaryIO) -> Iterator[bytes]:
    """Yield what the log holds. Raises ValueError where it is damaged; what is cut off is being written."""
    parts: list[bytes] = []
    while True:
        room = _BLOCK - file.tell() % _BLOCK
        if room < _HEAD.size:
            file.seek(room, os.SEEK_CUR)
            continue
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        check, length, kind = _HEAD.unpack(head)
        if (check, length, kind) == (0, 0, 0):
            file.seek(room - _HEAD.size, os.SEEK_CUR)
            continue
        data = file.read(length)
        if len(data) < length:
            return
        if length > room - _HEAD.size or zlib.crc32(bytes([kind]) + data) != check:
            raise ValueError("a chunk is damaged")
        if kind in (_WHOLE, _FIRST):
            parts = []
        parts.append(data)
        if sum(map(len, parts)) > _RECORD_MOST:
            raise ValueError("a record is too long")
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = []
