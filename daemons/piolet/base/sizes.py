"""Sizes as people write and read them: 500GiB, 2 TB."""

from __future__ import annotations

import re

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_UNITS = {unit.lower(): 1024**power for power, unit in enumerate(_BINARY)} | {
    unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb", "pb"))
}
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([a-zA-Z]{1,3})", re.ASCII)


def bytes_of(text: str) -> int | None:
    """Return how many bytes "500GiB" or "1.5 TB" are; None: it is no size, or none that has a unit."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    return None if match is None or unit is None else int(float(match[1]) * unit)


def shown(count: float) -> str:
    """Return `count` bytes for people: "1.5 GiB"."""
    for unit in _BINARY[:-2]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
