"""What each user may have at once of something that all share; and a log that says of many errors only some."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """So many of something at once: `each` of one user, `total` in all."""

    each: int
    total: int

    def reached(self, uid: int, users: list[int]) -> bool:
        """Return whether no other of this user's may begin; `users` has, for each that is at work, whose it is."""
        return len(users) >= self.total or users.count(uid) >= self.each


class Sparse:
    """Says things in the log, at most one in `every_s` seconds; those between are counted, and told with the next."""

    def __init__(self, log: logging.Logger, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._next = float("-inf")
        self._between = 0

    def error(self, text: str, *values: object) -> None:
        """Log it as an error, or count it."""
        now = self._clock()
        if now < self._next:
            self._between += 1
            return
        more = f" ({self._between} more like it before)" if self._between else ""
        self._log.error(text + "%s", *values, more)
        self._between = 0
        self._next = now + self._every_s
