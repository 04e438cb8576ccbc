"""When a node was in service, as Slurm tells: so that work can be told from time that goes by.

A node that fails the day after it comes back from three weeks of repair has worked for a day, and not for three weeks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

OUT = ("drain", "down", "fail", "power")
"""States of Slurm's that begin so are out of service; all others are in it."""
CHANGES_MAX = 64
OUT_MOST = 60 * 86400.0
"""Seconds that a node counts as out of service without another word: its resume may have been lost."""


class InService:
    """The last changes of one node's state, at most CHANGES_MAX; before the first of them it was in service."""

    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes: array[float] | None = None  # times, in order; negative ones are of a return

    def told(self, time: float, state: str) -> None:
        """Note that Slurm has had a node in a state since `time`, in seconds since 1970; it may be told late."""
        if self.changes is None:
            self.changes = array("d")
        self.changes.insert(bisect_right(self.changes, time, key=abs), time if state.startswith(OUT) else -time)
        if len(self.changes) > CHANGES_MAX:
            del self.changes[0]

    def worked(self, begin: float, end: float) -> float:
        """Return how many of the seconds between two times the node was in service."""
        out, since = 0.0, None
        for change in self.changes or ():
            if change > 0:
                since = change if since is None else since
            elif since is not None:
                out += _shared(since, min(-change, since + OUT_MOST), begin, end)
                since = None
        if since is not None:
            out += _shared(since, since + OUT_MOST, begin, end)
        return end - begin - out


def _shared(begin: float, end: float, other_begin: float, other_end: float) -> float:
    return max(0.0, min(end, other_end) - max(begin, other_begin))
