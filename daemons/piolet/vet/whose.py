"""Whose problem a bad verdict is: the node's, or the user's and their protocol's, which no other node would mend.

Pure functions over records. What a verdict says by itself holds whatever the number of nodes. What may be either's is
taken as everybody's only if every node of the vetting, and at least 3, could not pass the eval for such a reason:
two nodes may well be sick in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from piolet.api import EITHER, NODE, PASS, USER
from piolet.vet.runner.records import Record

SHARED_MIN = 3
ALL: Final = "all"
"""Beside a verdict's NODE, USER and EITHER: either's, and all nodes have it."""


def shared(records: Sequence[Record]) -> frozenset[str]:
    """Return the evals that no node passed for what may be either's; `records` are one of each node for each eval."""
    by_eval: dict[str, list[Record]] = {}
    for record in records:
        by_eval.setdefault(record.eval, []).append(record)
    return frozenset(name for name, own in by_eval.items() if len(own) >= SHARED_MIN and all(map(_open, own)))


def _open(record: Record) -> bool:
    return record.outcome != PASS and record.whose != NODE


def of(record: Record, among: frozenset[str]) -> str:
    """Return NODE, USER, EITHER or ALL; `among` is what `shared` returned."""
    return ALL if record.whose == EITHER and record.eval in among else record.whose


def futile(record: Record, among: frozenset[str]) -> str:
    """Return why other nodes would be no better, or ''."""
    why = {USER: "that is yours or the protocol's", ALL: "all nodes say so"}.get(of(record, among))
    return f"{record.eval}: {record.reason}; {why}" if why else ""
