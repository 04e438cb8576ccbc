"""Numbers with units as people write them, '8 GB', '500GiB', '20 GB/s', '30s', '5 min', '90min', and read them.

One grammar for protocols, quotas, intervals and ages: a number, then a unit, with blanks between or without. Prefixes
mean what they say: GB is 1e9 bytes, GiB is 2^30. Each caller says which kind of unit it wants, and in which bounds.
It refuses a unit of another kind, and what is no finite number.
"""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)", re.DOTALL)
_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS = {
    "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "min": 60.0,
    "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0, "d": 86400.0, "day": 86400.0,
    "days": 86400.0, "w": 604800.0, "week": 604800.0, "weeks": 604800.0,
}  # fmt: skip
_EXAMPLES = {"s": "'30s' or '5 min'", "B": "'8 GB' or '2 GiB'", "/s": "'20 GB/s'"}
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE_MOST, _TIME_MOST = 1e12, 1e9  # of whatever unit


def parse(text: str, unit: str) -> float:
    """Return `text` in `unit`; a plain number is in that unit already.

    Raises ValueError with a reason that can stand after 'must be'.
    """
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


def bytes_of(text: str) -> int | None:
    """Return how many bytes "500GiB" or "1.5 TB" are; None: it is no size, or none that has a unit."""
    found = _amount(text, _SIZE_MOST)
    if found is None:
        return None
    scale = _scale(found[1].replace("b", "B"))  # nobody has a quota of bits
    return None if scale is None or scale[1] != "B" else int(found[0] * scale[0])


def seconds_of(text: str, plain: str | None = None) -> float | None:
    """Return how many seconds "90min" or "100 ms" are; None: it is no time. A number without a unit is in `plain`."""
    found = _amount(text, _TIME_MOST)
    if found is None:
        return None
    scale = _scale(found[1] or plain or "")
    return None if scale is None or scale[1] != "s" else found[0] * scale[0]


def size(count: float) -> str:
    """Return `count` bytes for people: "1.5 GiB"."""
    for unit in _BINARY[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_BINARY[-1]}"


def age(seconds: float) -> str:
    """Return a time for people, in the largest unit that it is one of: "3 d"."""
    for unit in ("d", "h", "min"):
        if seconds >= _SECONDS[unit]:
            return f"{int(seconds // _SECONDS[unit])} {unit}"
    return f"{int(seconds)} s"


def _amount(text: str, most: float) -> tuple[float, str] | None:
    """Return the number, which is less than `most`, and the unit.

    None: there is none, or it has a sign or an exponent, as no amount has.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not match[1].isascii() or not match[1].replace(".", "").isdecimal():
        return None
    number = float(match[1])
    return (number, match[2].strip()) if number < most else None


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
