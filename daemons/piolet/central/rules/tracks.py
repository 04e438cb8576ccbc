"""What is kept of the events that one rule counts on one node: a bounded list of bursts, and whether a case is open."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from operator import attrgetter

from piolet.central.rules.language import Rule
from piolet.central.rules.trust import Evidence

_time = attrgetter("time")


class Track:
    """The bursts of one rule on one node, of one subject where the rule counts these apart.

    bursts  by time, at most `rule.keep`; where there are more, the oldest of whoever has most of them goes, so that no
            user's events push out another's
    total   bursts ever
    floor   only what came after this counts
    case    the open case's number and when it was opened
    waits   the earliest time at which it is still to be judged, where the rule has `settle`
    """

    __slots__ = ("bursts", "case", "floor", "total", "waits")

    def __init__(self) -> None:
        self.bursts: list[Evidence] = []
        self.total = 0
        self.floor = float("-inf")
        self.case: tuple[str, float] | None = None
        self.waits: float | None = None

    def add(self, word: Evidence, rule: Rule) -> bool:
        """Count an event, and return whether it is anything new: not for a copy, or more of a burst."""
        bursts = self.bursts
        place = bisect_right(bursts, word.time, key=_time)
        first = place
        while first > 0 and word.time - bursts[first - 1].time < rule.burst:
            first -= 1
        for index in range(first, len(bursts)):
            other = bursts[index]
            if other.time - word.time >= rule.burst:
                break
            if other.key == word.key:
                return False
            if other.job == word.job and other.uid == word.uid and other.subject == word.subject:
                if word.time < other.time:  # it came late, and was the first
                    bursts[index] = other._replace(time=word.time)
                    bursts.sort(key=_time)
                return False
        if len(bursts) >= rule.keep:
            if place == 0:
                return False  # older than all that is kept: it may have been counted before
            self._forget()
            place = bisect_right(bursts, word.time, key=_time)
        bursts.insert(place, word)
        self.total += 1
        return True

    def _forget(self) -> None:
        owners = Counter(burst.uid for burst in self.bursts)
        most = max(owners.values())
        del self.bursts[next(i for i, burst in enumerate(self.bursts) if owners[burst.uid] == most)]

    def counted(self, rule: Rule, at: float, floor: float, now: float) -> list[Evidence]:
        """Return the bursts that count at a time: in the window, after `floor`, settled, and of this node alone."""
        begin, settled, alone = max(at - rule.window, floor), now - rule.settle, rule.alone
        return [
            burst
            for burst in self.bursts
            if begin < burst.time <= at
            and burst.arrived <= settled
            and not (alone and len(burst.group) > alone)
            and len(burst.pair) < 2
        ]

    @staticmethod
    def episodes(counted: list[Evidence], apart: float, worked: Callable[[float, float], float]) -> int:
        """Return of how many episodes bursts are: between two of them the node has `worked` for `apart` seconds."""
        return sum(
            index == 0 or worked(counted[index - 1].time, burst.time) >= apart for index, burst in enumerate(counted)
        )

    def unsettled(self, rule: Rule, now: float) -> float | None:
        """Return when the next burst will be settled that is not yet, or None."""
        return min((one.arrived + rule.settle for one in self.bursts if one.arrived > now - rule.settle), default=None)

    def later(self, time: float, within: float) -> list[float]:
        """Return the times of bursts after one that came late: a rule may be so at any of them."""
        return [burst.time for burst in self.bursts if time < burst.time <= time + within]
