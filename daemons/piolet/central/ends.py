"""Whose scancel ended a task: a node sees a signal, and accounting knows who cancelled the job.

Of a step that was cancelled by itself, and of `scancel --signal`, accounting says nothing, so nothing is said of these.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from piolet.central.recent import SENT, SENT_STATUS
from piolet.events.envelope import Event

MOST = 50_000
NEAR_S = 300.0
"""slurmctld writes down a job's end when its last node has told it, KillWait (30 s) and more after the signal."""


class Ends:
    """Which jobs were cancelled by whom, at most `most` of them; of any thread.

    before   what the service knew before it was started: asked for once, when it is first needed
    """

    def __init__(self, before: Iterable[Event] = (), most: int = MOST) -> None:
        self._before: Iterable[Event] | None = before
        self._most = most
        self._lock = threading.Lock()
        self._by: OrderedDict[tuple[int, float], int] = OrderedDict()
        self._ends: dict[int, list[float]] = {}

    def take(self, event: Event, received: float) -> None:
        """Take an event; anything but the end of a job that was cancelled changes nothing."""
        by = event.body.get("by")
        if event.kind != "slurm.job_end" or event.job is None or event.body.get("state") != "CANCELLED":
            return
        if type(by) is not int:
            return
        with self._lock:
            self._note(event.job, event.time, by)

    def _note(self, job: int, when: float, by: int) -> None:
        if (job, when) not in self._by:
            self._ends.setdefault(job, []).append(when)
        self._by[job, when] = by
        while len(self._by) > self._most:
            (old, then), _ = self._by.popitem(last=False)
            self._ends[old].remove(then)
            if not self._ends[old]:
                del self._ends[old]

    def cancelled(self, event: Event) -> int | None:
        """Return whose scancel ended the tasks of a `step.outcome`; None: not known, or nobody's."""
        if event.kind != "step.outcome" or event.job is None or not _was_sent(event):
            return None
        self._load()
        at = event.time - (event.offset or 0.0)
        with self._lock:
            near = [when for when in self._ends.get(event.job, ()) if abs(when - at) <= NEAR_S]
            return self._by[event.job, min(near, key=lambda when: abs(when - at))] if near else None

    def _load(self) -> None:
        with self._lock:
            before, self._before = self._before, None
        for event in before or ():
            self.take(event, event.time)


def _was_sent(event: Event) -> bool:
    why, status, number = (event.body.get(name) for name in ("why", "status", "signal"))
    return (why == "signal" and number in SENT) or (why == "exit" and status in SENT_STATUS)
