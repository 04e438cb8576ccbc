"""Who is at fault when nodes are measured in pairs or against each other. Pure functions.

A slow pair names nobody: one of the two is slow, or the way between them. So everybody meets everybody in rounds
(circle method), and a node is named only when most of its pairs with good nodes are bad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

# A normal distribution's standard deviation is 1.4826 times its median absolute deviation (MAD).
_MAD_TO_SIGMA = 1.4826
_SIGMAS = 5.0
_APART = 3.0
_EMPTY = 0.4
PEERS_MIN = 4
"""With fewer values the median is as likely the bad one."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Meeting:
    """What came of two nodes' meeting: `value` None when they could not meet; `bad` by an absolute limit."""

    pair: Pair
    value: float | None
    bad: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Fault:
    """A node that is named, and why."""

    node: str
    reason: str
    value: float | None = None
    limit: float | None = None


def rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """Return rounds of disjoint pairs in which every two nodes meet once.

    One node stays, the others move on by one place (circle method): N-1 rounds of N/2 pairs for an even number;
    with an odd number one node pauses in each of N rounds.
    """
    circle: list[str | None] = list(nodes)
    if len(circle) % 2:
        circle.append(None)
    found = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        halves = zip(circle[:half], reversed(circle[half:]), strict=True)
        found.append([(a, b) for a, b in halves if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return [pairs for pairs in found if pairs]


def peer_limit(values: Sequence[float], better: str, effect: float) -> float | None:
    """Return the limit that `values` set for each other, or None: there are too few.

    It is 5 robust standard deviations from the median, but at least the fraction `effect` of it: on a machine
    whose nodes are all alike a deviation of a thousandth is no fault. `better` is 'higher' or 'lower'.

    Times and bandwidths scatter by factors, so positive values are compared by their logarithms: else the limit of
    a noisy bandwidth would be below zero, and a node a hundred times slower than all others would pass.
    """
    if len(values) < PEERS_MIN:
        return None
    middle = median(values)
    if min(values) <= 0:
        distance = max(_SIGMAS * _spread(values), effect * abs(middle))
        return middle - distance if better == "higher" else middle + distance
    factor = exp(_SIGMAS * _spread([log(value) for value in values]))
    return (
        min(middle / factor, middle * (1 - effect))
        if better == "higher"
        else max(middle * factor, middle * (1 + effect))
    )


def _spread(values: Sequence[float]) -> float:
    """Return the robust standard deviation."""
    middle = median(values)
    return _MAD_TO_SIGMA * median(abs(value - middle) for value in values)


def outliers(values: Mapping[str, float], better: str, effect: float) -> tuple[float | None, list[str]]:
    """Return the limit that peers set, and who is beyond it, the worst first."""
    limit = peer_limit(list(values.values()), better, effect)
    if limit is None:
        return None, []
    beyond = [node for node, value in values.items() if _beyond(value, limit, better)]
    return limit, sorted(beyond, key=lambda node: values[node], reverse=better == "lower")


def two_groups(values: Sequence[float], effect: float) -> tuple[list[float], list[float]] | None:
    """Return the two groups that `values` fall into, the smaller values first, or None: they are one.

    Each has more than a third of the values. Their medians differ by more than the fraction `effect`, and by more than
    3 times what either spreads over without its outer eighths; 2/5 of the way between them are empty. Then the median
    is between them, or one group's, and says nothing of who is well: two kinds of nodes look like that, too.
    Figures that scatter like one normal distribution of a third of `effect` practically never look so.
    """
    least = len(values) // 3 + 1
    if len(values) < max(PEERS_MIN, 2 * least):
        return None
    ordered = sorted(values)
    scaled = [log(value) for value in ordered] if ordered[0] > 0 else ordered
    at = max(range(least, len(values) - least + 1), key=lambda place: scaled[place] - scaled[place - 1])
    low, high = scaled[:at], scaled[at:]
    distance = median(high) - median(low)
    worth = log(1 + effect) if ordered[0] > 0 else effect * abs(median(scaled))
    together = distance <= max(worth, _APART * _width(low), _APART * _width(high))
    if together or scaled[at] - scaled[at - 1] <= _EMPTY * distance:
        return None
    return ordered[:at], ordered[at:]


def _width(ordered: Sequence[float]) -> float:
    """Return what the values spread over without the outer eighth on each side."""
    outer = len(ordered) // 8
    return ordered[len(ordered) - 1 - outer] - ordered[outer]


def odd_ones(facts: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Return, by node, what differs from the strict majority: 'kernel is A, not B'. No majority names nobody."""
    found: dict[str, list[str]] = {}
    for name in sorted({name for own in facts.values() for name in own}):
        counts: dict[str, int] = {}
        for own in facts.values():
            counts[own.get(name, "")] = counts.get(own.get(name, ""), 0) + 1
        usual, times = max(counts.items(), key=lambda item: item[1])
        if times * 2 <= len(facts) or len(facts) < 3:
            continue
        for node, own in facts.items():
            if own.get(name, "") != usual:
                found.setdefault(node, []).append(f"{name} is '{own.get(name, '')[:60]}', not '{usual[:60]}'")
    return found


def bad_meetings(meetings: Sequence[Meeting], better: str, effect: float) -> tuple[float | None, list[Meeting]]:
    """Return the limit that the nodes set for each other, and the meetings that are bad by it or by themselves.

    The limit is that of the nodes' medians: one bad node is in 2/N of all pairs, which would widen a limit made of
    the pairs, but it is only one of N medians.
    """
    own: dict[str, list[float]] = {}
    for meeting in meetings:
        for node in meeting.pair if meeting.value is not None else ():
            own.setdefault(node, []).append(meeting.value or 0.0)
    limit = peer_limit([median(values) for values in own.values()], better, effect)
    bad = [
        meeting
        for meeting in meetings
        if meeting.bad or meeting.value is None or (limit is not None and _beyond(meeting.value, limit, better))
    ]
    return limit, bad


def suspects(meetings: Sequence[Meeting], better: str, effect: float) -> list[str]:
    """Return the nodes of bad meetings, the one with the most first."""
    _, bad = bad_meetings(meetings, better, effect)
    counts: dict[str, int] = {}
    for meeting in bad:
        for node in meeting.pair:
            counts[node] = counts.get(node, 0) + 1
    return sorted(counts, key=lambda node: (-counts[node], node))


def pair_again(suspected: Sequence[str], nodes: Sequence[str], times: int = 2) -> list[list[Pair]]:
    """Return rounds in which every suspect meets `times` different good nodes; empty when there is none."""
    good = [node for node in nodes if node not in suspected]
    found: list[list[Pair]] = []
    for shift in range(min(times, len(good))):
        waiting = list(enumerate(suspected))
        while waiting:  # more suspects than good nodes take several rounds
            taken: set[str] = set()
            pairs, rest = [], []
            for index, node in waiting:
                partner = good[(index + shift) % len(good)]
                if partner in taken:
                    rest.append((index, node))
                else:
                    taken.add(partner)
                    pairs.append((node, partner))
            found.append(pairs)
            waiting = rest
    return found


def localise(meetings: Sequence[Meeting], better: str, effect: float) -> tuple[list[Fault], list[str]]:
    """Return who is at fault, and sentences on what is wrong but names nobody.

    A node is at fault when more than half of its meetings with nodes that are not at fault are bad, and it had at
    least two. The worst node is named first and taken out, so that it does not make others look bad.
    """
    limit, bad = bad_meetings(meetings, better, effect)
    faults: list[Fault] = []
    named: set[str] = set()
    while True:
        worst = _worst(meetings, bad, named)
        if worst is None:
            break
        named.add(worst)
        faults.append(_fault(worst, [one for one in bad if worst in one.pair], limit, better))
    # Two who were good with each other are the measure; without them everything may be slow.
    if faults and not any(named.isdisjoint(one.pair) for one in meetings if one not in bad):
        return [], ["most pairs are bad, so that no node can be named"]
    left = [one for one in bad if named.isdisjoint(one.pair)]
    return faults, [f"the way between {a} and {b} is bad, but neither is with others" for a, b in _pairs(left)]


def _worst(meetings: Sequence[Meeting], bad: Sequence[Meeting], named: set[str]) -> str | None:
    open_ones = [meeting for meeting in meetings if named.isdisjoint(meeting.pair)]
    total: dict[str, int] = {}
    wrong: dict[str, int] = {}
    for meeting in open_ones:
        for node in meeting.pair:
            total[node] = total.get(node, 0) + 1
            wrong[node] = wrong.get(node, 0) + (meeting in bad)
    candidates = [node for node in total if total[node] >= 2 and wrong[node] * 2 > total[node]]
    if not candidates:
        return None
    first = max(candidates, key=lambda node: (wrong[node] / total[node], wrong[node]))
    # Two that are equally bad cannot be told apart while they are each other's evidence only.
    return first if wrong[first] >= 2 else None


def _fault(node: str, own: Sequence[Meeting], limit: float | None, better: str) -> Fault:
    values = [meeting.value for meeting in own if meeting.value is not None]
    reasons = [meeting.reason for meeting in own if meeting.reason]
    partners = sorted({other for meeting in own for other in meeting.pair if other != node})
    with_whom = ", ".join(partners[:3]) + (", …" if len(partners) > 3 else "")
    reason = f"bad with {len(partners)} others ({with_whom})" + (f": {reasons[0]}" if reasons else "")
    if not values:
        return Fault(node, reason, None, limit)
    return Fault(node, reason, median(values), limit)


def _pairs(meetings: Sequence[Meeting]) -> list[Pair]:
    return list(dict.fromkeys((min(one.pair), max(one.pair)) for one in meetings))


def _beyond(value: float, limit: float, better: str) -> bool:
    return value < limit if better == "higher" else value > limit
