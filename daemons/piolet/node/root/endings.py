"""The monitor's part in a step's end: its container is emptied, whatever those in it do against that.

A container is its user namespace. A killer joins it and calls kill(-1): that walks all processes under the lock that
fork needs, so a call that has returned left nobody. Until then, which is some microseconds, a killer can be killed or
stopped by the user whose namespace it is in. So its exit status says whether it came to that; one that does not end is
ended by root, and the next one is sent, until one has made the call. The namespace is kept as long. From the third one
on, root also kills from outside whom it sees in there, and the step's control group where it is of version 2.
"""

from __future__ import annotations

import logging
import os
import selectors
from collections.abc import Callable
from dataclasses import dataclass

from piolet.container import labels
from piolet.node.root import leftovers
from piolet.node.root.state import Known, StepFiles
from piolet.system.children import Child

_log = logging.getLogger("pioletd.monitor")

_LOOK_AGAIN_S = 0.02
_LOOK_AGAIN_MAX_S = 1.0
_LOOKS_MAX = 60
# A killer is done in a millisecond; a loaded machine takes its time to let it run.
_KILLER_S, _KILLER_MAX_S = 1.0, 10.0
_TRIES_GENTLE = 2
_AGAIN_S, _AGAIN_MAX_S = 0.002, 2.0
_TRIES_TOLD = 50


@dataclass(frozen=True)
class Remains:
    """What may still run of a step: what is in the user namespace behind `user_ns`, the ending's to close."""

    of: Known
    user_ns: int


@dataclass(eq=False)
class _Ending:
    """A container that is being emptied: `due` is when its killer is late, or when the next one is sent."""

    remains: Remains
    due: float = 0.0
    killer: Child | None = None
    tries: int = 0


@dataclass
class _Labelled:
    """A container of an earlier daemon, known by its label only: looked for until nothing is found."""

    step: str
    label: str
    next_look: float
    looks: int = 0


class Endings:
    """Ends what is left of steps, in the loop of `selector`."""

    def __init__(self, files: StepFiles, selector: selectors.BaseSelector, clock: Callable[[], float]) -> None:
        self._files = files
        self._selector = selector
        self._clock = clock
        self._endings: list[_Ending] = []
        self._labelled: list[_Labelled] = []

    def empty(self, remains: Remains) -> None:
        """Kill everything in the container; takes the descriptors over."""
        ending = _Ending(remains)
        self._endings.append(ending)
        self._send_killer(ending)

    def empty_labelled(self, step: str, label: str) -> None:
        """Kill everything in the containers with this label."""
        self._look(_Labelled(step, label, 0.0))

    def next_due(self) -> float | None:
        """Return when `tick` has something to do, although nothing else happens."""
        times = [one.next_look for one in self._labelled] + [one.due for one in self._endings]
        return min(times, default=None)

    def tick(self) -> None:
        """Do what is due."""
        now = self._clock()
        for ending in [one for one in self._endings if now >= one.due]:
            if ending.killer is None:
                self._send_killer(ending)
            else:
                ending.killer.kill()
                ending.due = now + _KILLER_MAX_S
        due = [one for one in self._labelled if now >= one.next_look]
        self._labelled = [one for one in self._labelled if now < one.next_look]
        for one in due:
            self._look(one)

    def _send_killer(self, ending: _Ending) -> None:
        remains, now = ending.remains, self._clock()
        ending.tries += 1
        by_force = ending.tries > _TRIES_GENTLE
        try:
            # While slurmstepd is there, the step's control group is its business, and it is in there itself.
            step = remains.of.step if by_force and not remains.of.alive() else None
            killer = leftovers.start_killing(remains.user_ns, by_force, step)
        except OSError as error:
            _log.warning("step %s: cannot end what runs in its container yet: %s", remains.of.step, error.strerror)
            ending.due = now + _AGAIN_MAX_S
            return
        ending.killer, ending.due = killer, now + min(_KILLER_MAX_S, _KILLER_S * ending.tries)
        self._selector.register(killer.pidfd, selectors.EVENT_READ, lambda: self._on_killer(ending, killer))

    def _on_killer(self, ending: _Ending, killer: Child) -> None:
        self._selector.unregister(killer.pidfd)
        status, step = killer.collect(), ending.remains.of.step
        ending.killer = None
        if status == 0:
            self._endings.remove(ending)
            os.close(ending.remains.user_ns)
            if all(other.remains.of.step != step for other in self._endings):
                self._files.remove(step)
            return
        ending.due = self._clock() + min(_AGAIN_MAX_S, _AGAIN_S * (ending.tries - 1) ** 2)
        if ending.tries in (1, _TRIES_TOLD):
            _log.warning("step %s: what runs in its container does not end (%s); it is tried again", step, status)

    def _look(self, one: _Labelled) -> None:
        found = labels.in_containers().get(one.label, [])
        for user_ns in leftovers.user_namespaces(one.label, found):
            self.empty(Remains(Known(one.step, 0, None), user_ns))
        one.looks += 1
        if not found:
            self._files.remove(one.step)
        elif one.looks >= _LOOKS_MAX:
            _log.error("step %s: %d processes in its container do not end", one.step, len(found))
        else:
            one.next_look = self._clock() + min(_LOOK_AGAIN_MAX_S, _LOOK_AGAIN_S * one.looks)
            self._labelled.append(one)
