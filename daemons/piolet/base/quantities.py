"""Numbers with units, as protocols write them: '8 GB', '20 GB/s', '30s', '5 min'.

Prefixes mean what they say: GB is 1e9 bytes, GiB is 2^30. A plain number is in the parameter's own unit.
It refuses a unit of another kind, a negative number, and what is no finite number.
"""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)", re.DOTALL)
_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS = {
    "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "min": 60.0,
    "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0, "d": 86400.0, "day": 86400.0,
    "days": 86400.0,
}  # fmt: skip
_EXAMPLES = {"s": "'30s' or '5 min'", "B": "'8 GB' or '2 GiB'", "/s": "'20 GB/s'"}


def parse(text: str, unit: str) -> float:
    """Return `text` in `unit`. Raises ValueError with a reason that can stand after 'must be'."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(_expected(unit))
    value, written = float(match[1]), match[2].strip()
    if not math.isfinite(value):
        raise ValueError("a finite number")
    if not written:
        return value
    scale, wanted = _scale(written), _scale(unit)
    if scale is None or wanted is None or scale[1] != wanted[1]:
        if written == unit:
            return value
        raise ValueError(_expected(unit))
    return value * scale[0] / wanted[0]


def _scale(unit: str) -> tuple[float, str] | None:
    """Return the factor to the base unit, and which that is: 's', 'B' or 'B/s'."""
    low = unit.lower()
    if low in _SECONDS:
        return _SECONDS[low], "s"
    match = re.fullmatch(r"([kmgtp]?)(i?)b(/s)?", low)
    # Gb is a gigabit to a network engineer, and nobody knows what else somebody meant.
    if match is None or "b" in unit or (match[2] and not match[1]):
        return None
    return float(1024 if match[2] else 1000) ** _PREFIXES[match[1]], "B" + (match[3] or "")


def _expected(unit: str) -> str:
    scale = _scale(unit)
    if scale is None:
        return f"a number ({unit})" if unit else "a number"
    example = _EXAMPLES["/s" if scale[1] == "B/s" else scale[1]]
    return f"a number in {unit}, or a quantity such as {example}"
