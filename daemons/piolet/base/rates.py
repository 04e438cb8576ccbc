"""How much of something each may take: so much a second, and so much at once after a rest.

What is kept of those who do nothing is forgotten, so that keys cost no memory for ever. Standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

_KEYS_MOST = 4096


class Rates:
    """For each key: `a_second` of it a second, `burst` after a rest. Not for use by several threads at once."""

    def __init__(self, a_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.a_second = a_second
        self.burst = burst
        self._clock = clock
        self._left: dict[Hashable, tuple[float, float]] = {}

    def take(self, key: Hashable, amount: float = 1.0) -> bool:
        """Take so much for `key`; False: it may not have that now, and nothing was taken."""
        now = self._clock()
        left, then = self._left.pop(key, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.a_second)
        taken = left >= amount
        self._left[key] = (left - amount if taken else left, now)
        if len(self._left) > _KEYS_MOST:
            self._forget(now)
        return taken

    def _forget(self, now: float) -> None:
        """Forget those who have rested; where none has, the one who asked longest ago."""
        rested = [key for key, (left, then) in self._left.items() if left + (now - then) * self.a_second >= self.burst]
        for key in rested or [next(iter(self._left))]:
            del self._left[key]
