"""Whose problem a bad verdict is: the node's, or the user's and their protocol's, which no other node would mend.

Pure functions over records. The node's is so even if all nodes have it, and the user's whatever the number of nodes;
but what some nodes passed is no longer surely the user's. What may be either's is taken as everybody's only if every
node of the vetting, and at least 3, could not pass for such a reason: two nodes may well be sick in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from piolet.api import EITHER, NODE, PASS, USER
from piolet.vet.runner.records import Record

SHARED_MIN = 3
ALL: Final = "all"
"""Beside a verdict's NODE, USER and EITHER: either's, and all nodes have it."""

Meant = Mapping[tuple[str, str], str]
"""By eval and what verdicts say: what that means among all nodes."""


def meant(records: Sequence[Record]) -> Meant:
    """Return whose problem each eval's verdicts tell of; `records` are one of each node for each eval."""
    by_eval: dict[str, list[Record]] = {}
    for record in records:
        by_eval.setdefault(record.eval, []).append(record)
    found = {}
    for name, own in by_eval.items():
        everybody = len(own) >= SHARED_MIN and all(record.outcome != PASS and record.whose != NODE for record in own)
        found[name, NODE] = NODE
        found[name, EITHER] = ALL if everybody else EITHER
        found[name, USER] = EITHER if any(record.outcome == PASS for record in own) else USER
    return found


def futile(record: Record, among: Meant) -> str:
    """Return why other nodes would be no better, or ''."""
    why = {USER: "that is yours or the protocol's", ALL: "all nodes say so"}.get(among[record.eval, record.whose])
    return f"{record.eval}: {record.reason}; {why}" if why else ""
