"""The lines that a node writes: one JSON object each, and how they are read again.

A node writes
    hello     its runner has begun
    address   where its pair server listens
    verdict   what one eval came to
    end       all evals that it judges by itself have been told; a node without it was lost
    met       what one meeting came to
    failed    why it takes no further part in meetings
    part      a piece of a longer line (parts.py)
and is sent orders (meeting.py).

Whoever reads them trusts nothing: a line may be too long, cut off, or somebody else's print. This module runs
under Python 3.8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from piolet.api import EITHER, INCONCLUSIVE, NODE, OUTCOMES, USER, Verdict

LINE_MAX = 64 * 1024
REASON_MAX = 2000
_WORD_MAX = 200
_CLEANED = {
    "reason": REASON_MAX, "measure": _WORD_MAX, "unit": _WORD_MAX, "kind": REASON_MAX, "peer": REASON_MAX,
    "better": _WORD_MAX,
}  # fmt: skip
_NUMBERS = ("value", "limit", "effect", "past", "usual")
_WHOSE = (NODE, USER, EITHER)
MARK = "piolet-vet"


_NOTHING: Mapping[str, Any] = {}


class Record(NamedTuple):
    """The verdict of one eval on one node. A tuple, since there are as many as nodes times evals.

    eval      the name in the protocol
    kind      the short name or dotted class
    seconds   how long it took
    cached    it was taken from an earlier run
    peer      for a pair: the other node
    better    as the eval's class says where it was loaded; '': it says nothing, or was not loaded
    effect    likewise, None: it was not loaded
    past      how many earlier values of the node are known; None: with none was to be compared
    usual     their median
    whose     whose problem it is, as in a Verdict
    """

    node: str
    eval: str
    kind: str
    outcome: str
    reason: str = ""
    measure: str = ""
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    seconds: float = 0.0
    cached: bool = False
    peer: str = ""
    details: Mapping[str, Any] = _NOTHING
    better: str = ""
    effect: float | None = None
    past: int | None = None
    usual: float | None = None
    whose: str = EITHER

    def verdict(self) -> Verdict:
        """Return the verdict alone."""
        return Verdict(
            self.outcome, self.reason, self.measure, self.value, self.limit, self.unit, self.details, self.whose
        )


def record(node: str, name: str, kind: str, verdict: Verdict, seconds: float, cached: bool = False) -> Record:
    """Return the record of a verdict."""
    return Record(
        node, name, kind, verdict.outcome, clean(verdict.reason), clean(verdict.measure, _WORD_MAX), verdict.value,
        verdict.limit, clean(verdict.unit, _WORD_MAX), round(seconds, 6), cached, "", verdict.details,
        whose=verdict.whose,
    )  # fmt: skip


def clean(text: str, most: int = REASON_MAX) -> str:
    """Return `text` as one line of at most `most` characters: what is not printable is escaped as in Python."""
    text = text[: most + 1]
    if not text.isprintable():
        text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def encode(kind: str, content: Mapping[str, Any]) -> bytes:
    """Return one line. What is no JSON becomes text, what is too long loses its details."""
    line = json.dumps({MARK: kind, **content}, default=str, allow_nan=False, separators=(",", ":"))
    if len(line) >= LINE_MAX:
        line = json.dumps({MARK: kind, **content, "details": {"left out": "too long"}}, default=str)
    return line.encode("ascii") + b"\n"


def encode_record(one: Record) -> bytes:
    """Return the line of a record."""
    try:
        return encode("verdict", one._asdict())
    except ValueError:  # a NaN or an infinity in the details
        return encode("verdict", {**one._asdict(), "details": {"left out": "not finite"}})


def decode(line: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return the kind and the content of a line, or None: it is no line of ours."""
    if len(line) > LINE_MAX:
        return None
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    kind = value.pop(MARK, None) if isinstance(value, dict) else None
    return (kind, value) if isinstance(kind, str) else None


def to_record(value: Mapping[str, Any]) -> Record | None:
    """Return the record in the content of a 'verdict' line, or None when it is malformed."""
    try:
        found = Record(**value)
    except TypeError:
        return None
    if found.outcome not in OUTCOMES or found.whose not in _WHOSE or not isinstance(found.details, dict):
        return None
    if not (isinstance(found.node, str) and isinstance(found.eval, str) and _is_number(found.seconds)):
        return None
    changed: dict[str, Any] = {} if found.details else {"details": _NOTHING}
    # Its node may be anybody's, and its lines must not look like others of the screen.
    for name, most in _CLEANED.items():
        text = value.get(name, "")
        if not isinstance(text, str):
            return None
        if len(text) > most or not text.isprintable():
            changed[name] = clean(text, most)
    for name in _NUMBERS:
        number = value.get(name)
        if number is not None and not _is_number(number):
            return None
    return found._replace(**changed) if changed else found


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def answered(node: str, name: str, kind: str, answer: Any, seconds: float) -> Record:
    """Return the record of the answer that a worker wrote; what is none becomes inconclusive."""
    about = {"node": node, "eval": name, "kind": kind, "seconds": round(seconds, 6), "cached": False, "peer": ""}
    one = to_record({**answer, **about}) if isinstance(answer, dict) else None
    return one or record(node, name, kind, Verdict(INCONCLUSIVE, "the eval's answer is malformed"), seconds)
