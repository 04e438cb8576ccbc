"""What a vetting found, in lines for people: nodes with one reason stand on one line. Pure functions.

The failing value comes first, what could not be judged stands apart from what is bad, and each line says whose problem
it is: the node's, the user's (or the protocol's), or either's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from piolet.api import EITHER, FAIL, NODE, USER
from piolet.base import hostlist, texts
from piolet.vet import whose
from piolet.vet.runner.plan import WARN, Plan
from piolet.vet.runner.records import Record
from piolet.vet.verdicts import BAD, Decision, effect_of
from piolet.vet.whose import ALL

_LINES_MAX = 20
_NODES_WIDTH = 60
_REASON_WIDTH = 110
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_WHOSE = {NODE: "node's", EITHER: "unclear", USER: "yours", ALL: "all nodes"}
_TITLES = ("bad", "not judged", "warning")
_ORDER = (NODE, EITHER, USER, ALL)


@dataclass
class _Group:
    """Records with one reason; what differs is numbers."""

    title: str
    whose: str
    records: list[Record] = field(default_factory=list)

    @property
    def nodes(self) -> list[str]:
        return list(dict.fromkeys(record.node for record in self.records))


def lines(plan: Plan, decision: Decision) -> list[str]:
    """Return a line for each reason, the bad ones first, and how to leave out those nodes that are not well."""
    found: dict[tuple[str, str, str, str], _Group] = {}
    tasks = {task.name: task for task in plan.tasks}
    lost = _silent(decision.records)
    among = whose.meant(decision.records)
    out: dict[str, None] = {}
    for record in decision.records:
        effect = effect_of(tasks[record.eval], record) if record.reason and record.eval in tasks else ""
        if not effect or effect == "pass":
            continue
        title = "warning" if effect == WARN else "bad" if record.outcome == FAIL else "not judged"
        own = among[record.eval, record.whose] if effect != WARN else EITHER
        # A node that told nothing has one reason, and not one for each eval.
        name = "" if record.node in lost else record.eval
        key = (title, own, name, _NUMBER.sub("#", record.reason))
        found.setdefault(key, _Group(title, own)).records.append(record)
        if effect != WARN and own not in (USER, ALL):
            out[record.node] = None
    result = []
    excluded = [node for node, state in decision.state.items() if state == BAD and node in out]
    for title in _TITLES:
        if title == "warning" and excluded:
            result.append(f"left out: --exclude={hostlist.compress(excluded)}")
        groups = sorted((one for one in found.values() if one.title == title), key=lambda one: _ORDER.index(one.whose))
        result += [_line(group, lost) for group in groups[:_LINES_MAX]]
        if len(groups) > _LINES_MAX:
            more = {node for group in groups[_LINES_MAX:] for node in group.nodes}
            result.append(
                f"{title}: {len(groups) - _LINES_MAX} more reasons on {texts.counted(len(more), 'node')}, see the"
                " result file"
            )
    return result


def some(nodes: Iterable[str], width: int = _NODES_WIDTH) -> str:
    """Return the nodes as Slurm writes them; how many there are, and the first, if that is too long."""
    own = list(nodes)
    text = hostlist.compress(own)
    if len(text) <= width:
        return text
    first = text[:width].rpartition(",")[0] or own[0]
    # A bracket that was cut off is closed.
    first += "]" if first.count("[") > first.count("]") else ""
    return f"{len(own)} nodes ({first} …)"


def spares(total: int, good: int, wanted: int) -> str:
    """Return how many spares are left of an allocation of `total` nodes, and how many to ask for; '': all are well."""
    if good == total or wanted > total or not good:
        return ""
    had = total - wanted
    left = f"{max(0, good - wanted)} of {had} left" if had else "there were none"
    short = f", {texts.counted(wanted - good, 'good node')} short" if good < wanted else ""
    ask = -(-wanted * total // good)
    return f"spares: {left}{short}; with so many bad ones, {wanted} good nodes take -N {ask}"


def _silent(records: Sequence[Record]) -> set[str]:
    """Return the nodes that say the same, and nothing else, of several evals."""
    said: dict[str, set[str]] = {}
    count: dict[str, int] = {}
    for record in records:
        said.setdefault(record.node, set()).add(record.reason)
        count[record.node] = count.get(record.node, 0) + 1
    return {node for node, reasons in said.items() if len(reasons) == 1 and "" not in reasons and count[node] > 1}


def _line(group: _Group, lost: set[str]) -> str:
    called = f" ({_WHOSE[group.whose]})" if group.title != "warning" else ""
    first = group.records[0]
    name = "" if first.node in lost else f"{first.eval}: "
    reason, more = _reason(group.records)
    return f"{group.title}{called}: {some(group.nodes)}: {_shortened(name + reason)}{more}"


def _reason(own: Sequence[Record]) -> tuple[str, str]:
    """Return the reason of records that differ in numbers, the value first, and what is said behind it."""
    first = own[0]
    values = [record.value for record in own if record.value is not None]
    said = f"{first.measure} {_number(first.value)} " if first.value is not None else ""
    if said and len(values) == len(own) and all(record.reason.startswith(f"{first.measure} ") for record in own):
        rest = first.reason.removeprefix(said)
        if rest != first.reason:
            span = [_number(one) for one in (min(values), max(values))]
            value = span[0] if span[0] == span[1] else f"{span[0]} to {span[1]}"
            return f"{value} {rest} ({first.measure})", _past(own)
    alike = len({record.reason for record in own}) == 1
    return first.reason, _past(own) if alike else " (the others likewise)"


def _past(own: Sequence[Record]) -> str:
    """Return what one node's value used to be."""
    first = own[0]
    if len(own) > 1 or not first.past or first.usual is None:
        return ""
    return f"; {_number(first.usual)} {first.unit}".rstrip() + f" is its median of {texts.counted(first.past, 'run')}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _shortened(text: str) -> str:
    return text if len(text) <= _REASON_WIDTH else text[: _REASON_WIDTH - 1] + "…"
