"""What a node leaves of itself: the sums of all its samples, in some ten kilobytes. Pure: bytes in, bytes out.

The sums are an object made of arrays, numbers, sets of whole numbers and timelines; `unpack` fills another one of the
same shape. Nothing in the bytes says what is made of them, so a file of somebody else's can be read; what does not fit
is refused. Sums stand for peaks of GPUs: `key` says which, and others are no match.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from piolet.base.errors import ScoreError
from piolet.score.timelines import Timelines

VERSION = 1
_MOST = 64 << 20
_ROWS = "row."
_LEVEL = 6
_SMALL = 1024  # bytes: the order of those of a small array is nobody's gain


def pack(sums: object, key: str) -> bytes:
    """Return the content of `sums`."""
    values: dict[str, Any] = {}
    arrays: list[tuple[str, str, list[int]]] = []
    body: list[bytes] = []
    rows: list[bytes] = []
    for path, _, leaf in _leaves(sums, ""):
        content = leaf.state() if isinstance(leaf, Timelines) else (("", leaf),)
        for name, value in content:
            if isinstance(value, np.ndarray):
                arrays.append((path + name, value.dtype.str, list(value.shape)))
                (rows if name.startswith(_ROWS) else body).append(_bytes_of(value))
            else:
                values[path + name] = sorted(value) if isinstance(value, set) else value
    head = json.dumps({"version": VERSION, "key": key, "values": values, "arrays": arrays}).encode()
    first = zlib.compress(len(head).to_bytes(4, "little") + head + b"".join(body), _LEVEL)
    return len(first).to_bytes(4, "little") + first + zlib.compress(b"".join(rows), _LEVEL)


def _bytes_of(array: np.ndarray[Any, Any]) -> bytes:
    """Return an array's bytes; of a large one those of the same rank are together, for they are alike."""
    if array.nbytes <= _SMALL:
        return array.tobytes()
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize).T.tobytes()


def unpack(data: bytes, sums: object, key: str, detail: bool = True) -> bool:
    """Fill `sums` with what was packed; return False if it stands for other peaks, or was made by another version.

    detail    with what there is of single devices over time, else of all together only; these are apart

    Raises ScoreError: it is no summary; then part of it may have been taken.
    """
    try:
        place = 4 + int.from_bytes(data[:4], "little")
        plain = _expanded(data[4:place])
        rows = _expanded(data[place:]) if detail else b""
        size = int.from_bytes(plain[:4], "little")
        head = json.loads(plain[4 : 4 + size])
        if head["version"] != VERSION or head["key"] != key:
            return False
        known = dict(head["values"])
        places = {False: 4 + size, True: 0}
        for name, kind, shape in head["arrays"]:
            if kind not in ("<f8", "<f4", "<i8", "<u2", "|u1") or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"{name} is of no kind that is known")
            dtype = np.dtype(kind)
            count = math.prod(shape)
            bytes_ = count * dtype.itemsize
            is_row = name.rpartition("/")[2].startswith(_ROWS)
            if is_row and not detail:
                continue
            raw = np.frombuffer(rows if is_row else plain, np.uint8, bytes_, places[is_row])
            if bytes_ > _SMALL:
                raw = np.ascontiguousarray(raw.reshape(dtype.itemsize, count).T)
            known[name] = raw.view(dtype).reshape(shape)
            places[is_row] += bytes_
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ScoreError(f"a node's summary is not one: {str(error)[:200]}") from None
    return _fill(sums, known)


def _expanded(data: bytes) -> bytes:
    reader = zlib.decompressobj()
    plain = reader.decompress(data, _MOST)
    if not reader.eof:
        raise ValueError("it does not end")
    return plain


def _fill(sums: object, known: dict[str, Any]) -> bool:
    leaves = list(_leaves(sums, ""))
    if {path for path, _, leaf in leaves if not isinstance(leaf, Timelines)} - set(known):
        return False  # another version counts other things
    for path, (holder, name), leaf in leaves:
        try:
            if isinstance(leaf, Timelines):
                leaf.restore({key[len(path) :]: value for key, value in known.items() if key.startswith(path)})
            elif isinstance(leaf, np.ndarray):
                if known[path].shape != leaf.shape:
                    raise ValueError("it has another shape")
                leaf[...] = known[path]
            elif isinstance(leaf, set):
                leaf.clear()
                leaf.update(int(code) for code in known[path])
            else:
                setattr(holder, name, type(leaf)(known[path]))
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ScoreError(f"a node's summary does not fit, at {path}: {error}") from None
    return True


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
