"""What each user may take of something that all share: so many at once, and so much a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

_USERS_MAX = 4096


@dataclass(frozen=True)
class Bound:
    """So many of something at once: `each` of one user, `total` in all."""

    each: int
    total: int

    def reached(self, uid: int, users: list[int]) -> bool:
        """Return whether no other of this user's may begin; `users` has, for each that is at work, whose it is."""
        return len(users) >= self.total or users.count(uid) >= self.each


class Shares:
    """A token bucket for each user. A user who has taken nothing for a while costs no memory."""

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._rate = per_second
        self._clock = clock
        self._users: dict[int, tuple[float, float]] = {}

    def take(self, uid: int, amount: float = 1.0) -> bool:
        """Take so much for the user; False: it is not there, and nothing was taken."""
        now = self._clock()
        left, when = self._users.get(uid, (self._burst, now))
        left = min(self._burst, left + (now - when) * self._rate)
        taken = left >= amount
        self._users[uid] = (left - amount if taken else left, now)
        if len(self._users) > _USERS_MAX:
            self._forget(now)
        return taken

    def _forget(self, now: float) -> None:
        full_s = self._burst / self._rate
        self._users = {uid: one for uid, one in self._users.items() if now - one[1] < full_s}


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
