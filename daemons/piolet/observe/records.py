"""Reads what others' files of records are made of: fields of protocol buffers, and checksums of CRC-32C.

The wire format is documented at protobuf.dev (Encoding); the polynomial is Castagnoli's (RFC 3720, appendix B.4). Every
length is checked against what is there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from piolet.base import files
from piolet.base.errors import ObserveError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIELDS_MOST = 1_000_000

Value = int | bytes


def opened(path: str) -> BinaryIO:
    """Open a file, and nothing that is none. Raises ObserveError."""
    try:
        return os.fdopen(files.open_regular(path), "rb")
    except (OSError, files.NotRegularError) as error:
        raise ObserveError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no file'}") from None


def _table() -> tuple[int, ...]:
    made = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        made.append(number)
    return tuple(made)


_TABLE = _table()


def crc32c(data: bytes, start: int = 0) -> int:
    """Return the CRC-32C of some bytes; `start` is that of those before them."""
    crc = start ^ 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """Return a checksum as TFRecord files keep it: rotated by 15 bits, and a constant added."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """Yield (number, kind, value) of a message's fields. Raises ValueError: it is none."""
    at = count = 0
    while at < len(data):
        count += 1
        if count > _FIELDS_MOST:
            raise ValueError("a message has too many fields")
        key, at = _varint(data, at)
        kind = key & 7
        value: Value
        if kind == VARINT:
            value, at = _varint(data, at)
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(kind, -1)
            if kind == BYTES:
                size, at = _varint(data, at)
            if size < 0 or at + size > len(data):
                raise ValueError("a message is cut off")
            value, at = data[at : at + size], at + size
        yield key >> 3, kind, value


def double(value: Value) -> float:
    """Return the number in eight bytes of a field. Raises ValueError."""
    if not isinstance(value, bytes) or len(value) != 8:
        raise ValueError("a field is no double")
    return float(struct.unpack("<d", value)[0])


def single(value: Value) -> float:
    """Return the number in four bytes of a field. Raises ValueError."""
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError("a field is no float")
    return float(struct.unpack("<f", value)[0])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ValueError("a number is cut off")
