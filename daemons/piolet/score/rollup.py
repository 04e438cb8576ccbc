"""What a node leaves of itself: the sums of all its samples, in some ten kilobytes. Pure: bytes in, bytes out.

The sums are an object made of arrays, numbers, sets of whole numbers and timelines; `unpack` fills another one of the
same shape. Nothing in the bytes says what is made of them, so a file of somebody else's can be read; what does not fit
is refused. Sums stand for peaks of GPUs: `key` says which, and others are no match.

    4 bytes    the length of the first part, which is compressed: 4 bytes of length, JSON, numbers, arrays
    the rest   the second part, compressed: arrays of single devices over time

Numbers are all that is no timeline, one after the other; the JSON has a digest of what they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from piolet.base.errors import ScoreError
from piolet.score.timelines import Timelines

Array = np.ndarray[Any, np.dtype[Any]]

VERSION = 1
_MOST = 64 << 20
_ROWS = "row."
_KINDS = ("<f8", "<u2", "|u1")
_LEVEL = 6
_SMALL = 1024  # bytes: the order of those of a small array is nobody's gain


def pack(sums: object, key: str) -> bytes:
    """Return the content of `sums`."""
    leaves = list(_leaves(sums, ""))
    numbers = [np.ravel(leaf).astype(float) for _, _, leaf in leaves if not isinstance(leaf, set | Timelines)]
    sets = [sorted(leaf) for _, _, leaf in leaves if isinstance(leaf, set)]
    plain: dict[str, float] = {}
    arrays: list[tuple[str, str, tuple[int, ...]]] = []
    parts: dict[bool, list[bytes]] = {False: [np.concatenate(numbers).tobytes()], True: []}
    for path, _, leaf in leaves:
        for name, value in leaf.state() if isinstance(leaf, Timelines) else ():
            if isinstance(value, np.ndarray):
                arrays.append((path + name, value.dtype.str, value.shape))
                parts[name.startswith(_ROWS)].append(_bytes_of(value))
            else:
                plain[path + name] = value
    head = {"version": VERSION, "key": key, "shape": _shape(leaves), "sets": sets, "plain": plain, "arrays": arrays}
    said = json.dumps(head, separators=(",", ":")).encode()
    first = zlib.compress(len(said).to_bytes(4, "little") + said + b"".join(parts[False]), _LEVEL)
    return len(first).to_bytes(4, "little") + first + zlib.compress(b"".join(parts[True]), _LEVEL)


def unpack(data: bytes, sums: object, key: str, detail: bool = True) -> bool:
    """Fill `sums` with what was packed; return False if it stands for other peaks, or was made by another version.

    detail    with what there is of single devices over time, else of all together only; these are apart

    Raises ScoreError: it is no summary; then part of it may have been taken.
    """
    try:
        place = 4 + int.from_bytes(data[:4], "little")
        plain = _expanded(data[4:place])
        rows = _expanded(data[place:]) if detail else b""
        size = 4 + int.from_bytes(plain[:4], "little")
        head = json.loads(plain[4:size])
        leaves = list(_leaves(sums, ""))
        if head["version"] != VERSION or head["key"] != key or head["shape"] != _shape(leaves):
            return False
        count = sum(_size(leaf) for _, _, leaf in leaves)
        numbers = np.frombuffer(plain, np.float64, count, size)
        if np.isinf(numbers).any():
            raise ValueError("a sum is infinite")
        _fill(leaves, numbers, iter(head["sets"]))
        _fill_timelines(leaves, dict(head["plain"]), head["arrays"], (plain, size + 8 * count), (rows, 0), detail)
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise ScoreError(f"a node's summary is not one: {str(error)[:200]}") from None
    return True


def _fill(leaves: list[Any], numbers: Array, sets: Iterator[list[int]]) -> None:
    at = 0
    for _, (holder, name), leaf in leaves:
        size = _size(leaf)
        if isinstance(leaf, set):
            leaf.clear()
            leaf.update(int(code) for code in next(sets))
        elif isinstance(leaf, np.ndarray):
            leaf[...] = numbers[at : at + size].reshape(leaf.shape)
        elif size:
            setattr(holder, name, type(leaf)(numbers[at]))
        at += size


def _fill_timelines(
    leaves: list[Any],
    known: dict[str, Any],
    arrays: list[Any],
    plain: tuple[bytes, int],
    rows: tuple[bytes, int],
    detail: bool,
) -> None:
    sources = {False: list(plain), True: list(rows)}
    for name, kind, shape in arrays:
        is_row = name.rpartition("/")[2].startswith(_ROWS)
        if kind not in _KINDS or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"{name} is of no kind that is known")
        if is_row and not detail:
            continue
        dtype = np.dtype(kind)
        count = math.prod(shape)
        source: list[Any] = sources[is_row]
        raw = np.frombuffer(source[0], np.uint8, count * dtype.itemsize, source[1])
        source[1] += len(raw)
        if len(raw) > _SMALL:
            raw = np.ascontiguousarray(raw.reshape(dtype.itemsize, count).T)
        known[name] = raw.view(dtype).reshape(shape)
    for path, _, leaf in leaves:
        if isinstance(leaf, Timelines):
            leaf.restore({name[len(path) :]: value for name, value in known.items() if name.startswith(path)})


def _bytes_of(array: Array) -> bytes:
    """Return an array's bytes; of a large one those of the same rank are together, for they are alike."""
    if array.nbytes <= _SMALL:
        return array.tobytes()
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize).T.tobytes()


def _expanded(data: bytes) -> bytes:
    reader = zlib.decompressobj()
    plain = reader.decompress(data, _MOST)
    if not reader.eof:
        raise ValueError("it does not end")
    return plain


def _size(leaf: Any) -> int:
    """Return how many numbers a value is."""
    if isinstance(leaf, np.ndarray):
        return leaf.size
    return 0 if isinstance(leaf, set | Timelines) else 1


def _shape(leaves: list[Any]) -> str:
    """Return a digest of what the values are: releases that count other things have another."""
    names = "\n".join(f"{path}{_kind(leaf)}" for path, _, leaf in leaves)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def _kind(leaf: Any) -> str:
    if isinstance(leaf, Timelines):
        return leaf.layout
    return str(leaf.shape) if isinstance(leaf, np.ndarray) else type(leaf).__name__


def _leaves(value: Any, path: str, holder: tuple[Any, str] = (None, "")) -> Iterator[tuple[str, tuple[Any, str], Any]]:
    """Yield path, the object and the name that hold it, and the value, of all that has a content."""
    if isinstance(value, np.ndarray | int | float | set | Timelines):
        yield path, holder, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{path}{name}/")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}{number}/")
    elif hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            yield from _leaves(item, f"{path}{name}/", (value, name))
