"""What was missing, and why: rows of the table `quality`, one for a stretch of time and not one for each sample."""

from __future__ import annotations

from dataclasses import dataclass

AGAIN_S = 300.0
_MOST = 64


@dataclass
class _Gap:
    start: float
    end: float
    values: int
    goes_on: bool = True


class Gaps:
    """The gaps of one step: told when they are over, and every AGAIN_S of those that go on."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, str], _Gap] = {}

    def add(self, source: str, subject: str, reason: str, start: float, end: float, values: int) -> None:
        """Take missing values of a source between two times (seconds since 1970)."""
        key = source, subject, reason
        if key not in self._open and len(self._open) >= _MOST:
            key = source, "", "more reasons than are kept"
        gap = self._open.setdefault(key, _Gap(start, end, 0))
        gap.start, gap.end = min(gap.start, end), end  # a clock may be put back
        gap.values, gap.goes_on = gap.values + values, True

    def told(self, *, all_of_them: bool = False) -> list[tuple[str, str, float, float, str, int]]:
        """Return rows of what is over, goes on for long, or, at a step's end, of all: source, subject, start, end,
        reason, values. Over is what was not added to since the last call, which each frame makes once."""
        rows = []
        for (source, subject, reason), gap in list(self._open.items()):
            over, gap.goes_on = not gap.goes_on, False
            if all_of_them or over or gap.end - gap.start >= AGAIN_S:
                rows.append((source, subject, gap.start, gap.end, reason, gap.values))
                del self._open[source, subject, reason]
        return rows
