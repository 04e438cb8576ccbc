"""The monitor's part in a step's end: its container is emptied, whatever those in it do against that.

A container is its user namespace. A killer joins it and calls kill(-1): that walks all processes under the lock that
fork needs, so a call that has returned left nobody. Until then, which is some microseconds, a killer can be killed or
stopped by the user whose namespace it is in. So its exit status says whether it came to that; one that does not end is
ended by root, and the next one is sent, until one has made the call. The namespace is kept as long. Where the step has
a control group of version 2, that is killed, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
from collections.abc import Callable
from dataclasses import dataclass

from piolet.node import hierarchies, leftovers
from piolet.node.children import Child
from piolet.node.state import StepFiles

_log = logging.getLogger("pioletd.monitor")

_LOOK_AGAIN_S = 0.02
_LOOK_AGAIN_MAX_S = 1.0
_LOOKS_MAX = 60
# A killer is done in a millisecond; a loaded machine takes its time to let it run.
_KILLER_S, _KILLER_MAX_S = 1.0, 10.0
_TRIES_GENTLE = 2
_AGAIN_S, _AGAIN_MAX_S = 0.002, 2.0
_TRIES_TOLD = 50


@dataclass
class Remains:
    """What may still run of a step. The descriptors are the ending's to close.

    user_ns   the container's user namespace
    group     the step's control group of version 2, where it has one
    stepd     a pidfd of its slurmstepd, where it has a group: the group is killed only when that has ended
    """

    step: str
    user_ns: int
    group: int | None = None
    stepd: int | None = None

    def close(self) -> None:
        """Let go of the namespace and the group."""
        for descriptor in (self.user_ns, self.group, self.stepd):
            if descriptor is not None:
                os.close(descriptor)


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
            if by_force:
                _kill_group(remains)
            killer = leftovers.start_killing(remains.user_ns, by_force)
        except OSError as error:
            _log.warning("step %s: cannot end what runs in its container yet: %s", remains.step, error.strerror)
            ending.due = now + _AGAIN_MAX_S
            return
        ending.killer, ending.due = killer, now + min(_KILLER_MAX_S, _KILLER_S * ending.tries)
        self._selector.register(killer.pidfd, selectors.EVENT_READ, lambda: self._on_killer(ending, killer))

    def _on_killer(self, ending: _Ending, killer: Child) -> None:
        self._selector.unregister(killer.pidfd)
        status, step = killer.collect(), ending.remains.step
        ending.killer = None
        if status == 0:
            self._endings.remove(ending)
            ending.remains.close()
            if all(other.remains.step != step for other in self._endings):
                self._files.remove(step)
            return
        ending.due = self._clock() + min(_AGAIN_MAX_S, _AGAIN_S * (ending.tries - 1) ** 2)
        if ending.tries in (1, _TRIES_TOLD):
            _log.warning("step %s: what runs in its container does not end (%s); it is tried again", step, status)

    def _look(self, one: _Labelled) -> None:
        found = leftovers.in_containers().get(one.label, [])
        for user_ns in leftovers.user_namespaces(one.label, found):
            self.empty(Remains(one.step, user_ns))
        one.looks += 1
        if not found:
            self._files.remove(one.step)
        elif one.looks >= _LOOKS_MAX:
            _log.error("step %s: %d processes in its container do not end", one.step, len(found))
        else:
            one.next_look = self._clock() + min(_LOOK_AGAIN_MAX_S, _LOOK_AGAIN_S * one.looks)
            self._labelled.append(one)


def _kill_group(remains: Remains) -> None:
    if remains.group is None or remains.stepd is None or not select.select([remains.stepd], [], [], 0)[0]:
        return
    with contextlib.suppress(OSError):  # Slurm has removed it, with all that was in it
        hierarchies.kill(remains.group)
