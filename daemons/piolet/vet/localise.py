"""Who is at fault when nodes are measured in pairs or against each other. Pure functions.

A slow pair names nobody: one of the two is slow, or the way between them. So nodes meet in rounds (schedule.py),
each time somebody else, and a node is named only when most of its pairs with good nodes are bad. All of it is linear
in the number of meetings, but for a logarithm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import exp, inf, log
from statistics import median
from typing import NamedTuple

from piolet.base.errors import VetError
from piolet.vet.runner import schedule

# A normal distribution's standard deviation is 1.4826 times its median absolute deviation (MAD).
_MAD_TO_SIGMA = 1.4826
_SIGMAS = 5.0
_APART = 3.0
_EMPTY = 0.4
PEERS_MIN = 4
"""With fewer values the median is as likely the bad one."""

_LATE_EVERY = 256
_WAYS_SHOWN = 9
_BEHIND_MIN = 3
_MOSTLY = 2 / 3
Pair = tuple[str, str]
Late = Callable[[], bool]


class Meeting(NamedTuple):
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


def rounds(nodes: Sequence[str], seed: int = 0) -> Iterator[Iterator[Pair]]:
    """Yield rounds of disjoint pairs in which every two nodes meet once; each is made when it is asked for.

    N-1 rounds of N/2 pairs for an even number; with an odd number one node pauses in each of N rounds.
    """
    order = schedule.shuffled(len(nodes), seed)
    for turn in range(schedule.turns(len(nodes))):
        yield ((nodes[a], nodes[b]) for a, b in schedule.pairs(order, turn))


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


def bad_meetings(
    meetings: Sequence[Meeting], better: str, effect: float, scheduled: int | None = None
) -> tuple[float | None, list[Meeting]]:
    """Return the limit that the nodes set for each other, and the meetings that are bad by it or by themselves.

    The limit is that of the nodes' medians: one bad node is in 2/N of all pairs, which would widen a limit made of
    the pairs, but it is only one of N medians. Only the first `scheduled` meetings make it (None: all): when suspects
    meet good nodes again, the good ones would have mostly bad meetings, and nobody would be slow.
    """
    own = _by_node(meetings[:scheduled])
    limit = peer_limit([median(values) for values in own.values()], better, effect)
    bad = _bad(meetings, limit, better)
    if not bad:
        # Where a third of the nodes are slow, medians of good ones differ as chance has it. Their best ones do not.
        again, slow = outliers(bests(meetings[:scheduled], better), better, effect)
        if slow:
            return again, _bad(meetings, again, better)
    return limit, bad


def bests(meetings: Sequence[Meeting], better: str) -> dict[str, float]:
    """Return the best value that each node had with anybody."""
    best = max if better == "higher" else min
    return {node: best(values) for node, values in _by_node(meetings).items()}


def _by_node(meetings: Sequence[Meeting]) -> dict[str, list[float]]:
    own: defaultdict[str, list[float]] = defaultdict(list)
    for (one, other), value, _, _ in meetings:
        if value is not None:
            own[one].append(value)
            own[other].append(value)
    return own


def _bad(meetings: Sequence[Meeting], limit: float | None, better: str) -> list[Meeting]:
    sign = 1.0 if better == "higher" else -1.0
    least = sign * limit if limit is not None else -inf
    return [one for one in meetings if one.bad or one.value is None or sign * one.value < least]


def suspects(meetings: Sequence[Meeting], better: str, effect: float) -> list[str]:
    """Return the nodes whose meetings are bad, the one with the most first.

    What is bad with a node that is bad with most others is explained, and makes no suspect.
    """
    _, bad = bad_meetings(meetings, better, effect)
    named = _named(meetings, bad, _never)
    counts: dict[str, int] = {}
    for meeting in bad:
        for node in meeting.pair:
            if node in named or named.keys().isdisjoint(meeting.pair):
                counts[node] = counts.get(node, 0) + 1
    return sorted(counts, key=lambda node: (-counts[node], node))


def pair_again(suspected: Sequence[str], nodes: Sequence[str], times: int = 2) -> Iterator[list[Pair]]:
    """Yield rounds in which every suspect meets `times` different good nodes; none when there is no good one.

    More suspects than good nodes take several rounds.
    """
    bad = set(suspected)
    good = [node for node in nodes if node not in bad]
    for shift in range(min(times, len(good))):
        for start in range(0, len(suspected), len(good)):
            some = suspected[start : start + len(good)]
            yield [(node, good[(start + at + shift) % len(good)]) for at, node in enumerate(some)]


def _never() -> bool:
    return False


def localise(
    meetings: Sequence[Meeting], better: str, effect: float, late: Late = _never
) -> tuple[list[Fault], list[str]]:
    """Return who is at fault, and sentences on what is wrong but names nobody.

    A node is at fault when more than half of its meetings with nodes that are not at fault are bad, and it had at
    least two. The worst node is named first and taken out, so that it does not make others look bad. `late` is asked
    from time to time. Raises VetError when it says that the time is up.
    """
    return explain(meetings, *bad_meetings(meetings, better, effect), late)


def explain(
    meetings: Sequence[Meeting], limit: float | None, bad: Sequence[Meeting], late: Late = _never,
    leaf: Mapping[str, str] | None = None,
) -> tuple[list[Fault], list[str]]:  # fmt: skip
    """Return what `localise` does, of what `bad_meetings` found among `meetings`.

    leaf   the switch of each node, where that is known: what is bad for all behind one, or between two, is said so
    """
    named = _named(meetings, bad, late)
    own: dict[str, list[Meeting]] = {node: [] for node in named}
    for meeting in bad:
        for node in meeting.pair:
            if node in own:
                own[node].append(meeting)
    faults = [_fault(node, own[node], limit) for node in named]
    # Two who were good with each other are the measure; without them everything may be slow.
    wrong = {id(one) for one in bad}
    if faults and not any(named.keys().isdisjoint(one.pair) for one in meetings if id(one) not in wrong):
        return [], ["most pairs are bad, so that no node can be named"]
    open_ones = [one for one in bad if named.keys().isdisjoint(one.pair)]
    notes, explained = _switches(meetings, open_ones, named, leaf or {})
    left = _pairs([one for one in open_ones if id(one) not in explained])
    if len(left) == 1:
        notes += [f"the way between {a} and {b} is bad, but neither is with others" for a, b in left]
    elif left:
        ways = ", ".join(f"{a} and {b}" for a, b in left[:_WAYS_SHOWN])
        more = f" and {len(left) - _WAYS_SHOWN} more" if len(left) > _WAYS_SHOWN else ""
        notes.append(f"the ways between two nodes are bad, but neither is with others: {ways}{more}")
    return faults, notes


def _switches(
    meetings: Sequence[Meeting], bad: Sequence[Meeting], named: Mapping[str, None], leaf: Mapping[str, str]
) -> tuple[list[str], set[int]]:
    """Return notes on switches, and which of the `bad` meetings they explain, by id."""
    if not leaf:
        return [], set()
    behind: defaultdict[str, set[str]] = defaultdict(set)
    between: defaultdict[tuple[str, str], int] = defaultdict(int)
    wrong: defaultdict[tuple[str, str], list[int]] = defaultdict(list)

    def ends(one: Meeting) -> tuple[str, str]:
        first, second = (leaf.get(node, "") for node in one.pair)
        return (first, second) if first <= second else (second, first)

    for one in meetings:
        between[ends(one)] += 1
        for node in one.pair:
            behind[leaf.get(node, "")].add(node)
    for one in bad:
        wrong[ends(one)].append(id(one))
    notes = [
        f"all {len(nodes)} nodes at the switch {switch} are bad: look at it first"
        for switch, nodes in behind.items()
        if switch and len(nodes) >= _BEHIND_MIN and nodes <= named.keys()
    ]
    explained: set[int] = set()
    for (one_end, other), ids in wrong.items():
        total = between[one_end, other]
        if one_end and one_end != other and len(ids) >= max(_BEHIND_MIN, _MOSTLY * total):
            notes.append(f"the ways between the switches {one_end} and {other} are bad: {len(ids)} of {total} meetings")
            explained.update(ids)
    return notes, explained


def _named(meetings: Sequence[Meeting], bad: Sequence[Meeting], late: Late) -> dict[str, None]:
    """Return who is named, the worst first, by counts that follow as each is taken out.

    Two that are equally bad cannot be told apart while they are each other's evidence only.
    """
    wrong = {id(one) for one in bad}
    # Of the others, which are most, nothing has to be known.
    counts = {node: [0, 0] for meeting in bad for node in meeting.pair}
    own: dict[str, list[Meeting]] = {node: [] for node in counts}
    for meeting in meetings:
        for node in meeting.pair:
            if node in counts:
                counts[node][0] += 1
                counts[node][1] += id(meeting) in wrong
                own[node].append(meeting)
    first = {node: at for at, node in enumerate(counts)}

    def rank(node: str) -> tuple[float, int, int, str]:
        total, worse = counts[node]
        return -worse / total, -worse, first[node], node

    def suspicious(node: str) -> bool:
        total, worse = counts[node]
        return total >= 2 and worse * 2 > total

    heap = [rank(node) for node in counts if suspicious(node)]
    heapify(heap)
    named: dict[str, None] = {}
    steps = 0
    while heap:
        steps += 1
        if steps % _LATE_EVERY == 0 and late():
            raise VetError("the time for judging was up")
        entry = heappop(heap)
        node = entry[3]
        # An entry that is out of date is dropped: with each change a newer one came.
        if node in named or not suspicious(node) or rank(node) != entry:
            continue
        named[node] = None
        for meeting in own[node]:
            other = meeting.pair[meeting.pair[0] == node]
            if other in counts and other not in named:
                counts[other][0] -= 1
                counts[other][1] -= id(meeting) in wrong
                if suspicious(other):
                    heappush(heap, rank(other))
    return named


def _fault(node: str, own: Sequence[Meeting], limit: float | None) -> Fault:
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
