"""Whose steps are recorded: what a site says of users and partitions in `[observe]`.

Of a partition slurmctld is asked, once a job, and only where the site names one; a directory of users only where it
names users. Both may hang, and are asked in a lane. What is not known is not recorded.
"""

from __future__ import annotations

import pwd
import threading
import time
from collections.abc import Callable

from piolet.base.errors import PioletError
from piolet.observe.found import FoundStep
from piolet.observe.lanes import Lane
from piolet.observe.lists import is_in
from piolet.observe.settings import ObserveConfig
from piolet.slurm.jobs import partition_of

_JOBS_MAX = 1024
_AGAIN_S = 60.0


class Switches:
    """Says of steps whether they are recorded."""

    def __init__(
        self,
        settings: ObserveConfig,
        partition: Callable[[str], str] = partition_of,
        name: Callable[[int], str] | None = None,
    ) -> None:
        self._settings = settings
        self._partition = partition
        self._name = name or (lambda uid: pwd.getpwuid(uid).pw_name)
        self._known: dict[tuple[str, int], bool] = {}
        self._again: dict[tuple[str, int], float] = {}
        self._asked: tuple[str, int] | None = None
        self._lane: Lane | None = None

    def wanted(self, step: FoundStep) -> bool | None:
        """Return whether it is recorded; None: it is being asked. To be called about once a second."""
        own = self._settings
        if not own.users and not own.partitions:
            return True
        key = step.job, step.uid
        self._take()
        if key in self._known:
            return self._known[key]
        if self._asked is None and time.monotonic() >= self._again.get(key, 0.0):
            if self._lane is None:
                self._lane = Lane("switches", threading.Condition())
            if self._lane.give(lambda: self._ask(*key)):
                self._asked = key
        return None

    def _take(self) -> None:
        if self._asked is None or self._lane is None:
            return
        try:
            self._known[self._asked] = bool(self._lane.take())
        except TimeoutError:
            return
        except (PioletError, KeyError, OSError):
            self._again[self._asked] = time.monotonic() + _AGAIN_S
        self._asked = None
        for table in (self._known, self._again):
            while len(table) > _JOBS_MAX:
                del table[next(iter(table))]

    def _ask(self, job: str, uid: int) -> bool:
        own = self._settings
        if own.users and not is_in(own.users, str(uid), self._name(uid)):
            return False
        return not own.partitions or is_in(own.partitions, self._partition(job))
