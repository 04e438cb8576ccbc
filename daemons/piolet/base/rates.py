"""How often somebody may do something: so many times a second, and so many at once after a rest.

What is kept of those who do nothing is forgotten, so that keys cost no memory for ever. Standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

_KEYS_MOST = 4096


class Rates:
    """For each key: `a_second` times a second, `burst` times after a rest. Not for use by several threads at once."""

    def __init__(self, a_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.a_second = a_second
        self.burst = burst
        self._clock = clock
        self._left: dict[Hashable, tuple[float, float]] = {}

    def take(self, key: Hashable) -> bool:
        """Return whether `key` may do it once more now, and count it if so."""
        now = self._clock()
        left, then = self._left.pop(key, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.a_second)
        self._left[key] = (left - 1, now) if left >= 1 else (left, now)
        if len(self._left) > _KEYS_MOST:
            self._forget(now)
        return left >= 1

    def _forget(self, now: float) -> None:
        """Forget those who have rested; where none has, the one who asked longest ago."""
        rested = [key for key, (left, then) in self._left.items() if left + (now - then) * self.a_second >= self.burst]
        for key in rested or [next(iter(self._left))]:
            del self._left[key]
