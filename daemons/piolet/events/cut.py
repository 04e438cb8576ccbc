"""Bounds what is said of an event, at its source: what is too long is cut, with a mark that says how long it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SHORT = 200
_TURNS = 200


def within(value: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Return a copy of `value` that is at most `most` bytes of JSON long; the longest of its parts are cut.

    A text keeps its beginning, and what else is cut becomes a text. Raises ValueError: it cannot be that short.
    """
    found: dict[str, Any] = dict(value)
    for _ in range(_TURNS):
        size = _size(found)
        if size <= most:
            return found
        _shorten(found, size - most)
    raise ValueError("it is too long")


def plain(value: Any, depth: int) -> Any:
    """Return a JSON value without what no record has: numbers beyond 64 bits, and what is nested too deep."""
    if isinstance(value, dict) and depth > 0:
        return {str(key): plain(one, depth - 1) for key, one in value.items()}
    if isinstance(value, list) and depth > 0:
        return [plain(one, depth - 1) for one in value]
    if isinstance(value, dict | list):
        return _mark("", _size(value))
    return float(value) if type(value) is int and abs(value) >= 2**63 else value


def _shorten(table: dict[str, Any], excess: int) -> None:
    """Cut the longest entry of the table, by about so much."""
    if not table:
        raise ValueError("it is too long")
    key = max(table, key=lambda name: _size(table[name]))
    one = table[key]
    size = _size(one)
    if isinstance(one, dict) and one and size > 2 * _SHORT:
        inner = dict(one)
        _shorten(inner, excess)
        table[key] = inner if _size(inner) < size else _mark("", size)
    elif isinstance(one, str) and size > 2 * _SHORT:
        # A character may be twelve bytes of JSON.
        keep = max(_SHORT // 4, min(len(one) // 2, len(one) - excess - _SHORT // 2))
        table[key] = _mark(one[:keep], size)
    elif size > _SHORT // 4:
        table[key] = _mark("", size)
    else:
        del table[key]


def _mark(begin: str, size: int) -> str:
    return f"{begin}… (cut, {size} bytes)" if begin else f"(cut, {size} bytes)"


def _size(value: object) -> int:
    return len(json.dumps(value, default=str, separators=(",", ":")))
