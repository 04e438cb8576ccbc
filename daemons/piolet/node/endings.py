"""The monitor's part in a step's end: its container is emptied, with a look afterwards where one is needed."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from piolet.node import leftovers
from piolet.node.state import StepFiles

_log = logging.getLogger("pioletd.monitor")

_LOOK_AGAIN_S = 0.02
_LOOK_AGAIN_MAX_S = 1.0
_LOOKS_MAX = 60


@dataclass
class _Labelled:
    """A container of an earlier daemon, known by its label only: looked for until nothing is found."""

    step: str
    label: str
    next_look: float
    looks: int = 0


class Endings:
    """Ends what is left of steps. The times are those of the caller's clock, in seconds."""

    def __init__(self, files: StepFiles) -> None:
        self._files = files
        self._killers: dict[int, str] = {}
        self._held: list[tuple[str, int]] = []
        self._labelled: list[_Labelled] = []

    def empty(self, step: str, user_ns: int) -> None:
        """Kill everything in the container with this user namespace; takes the descriptor over."""
        self._held.append((step, user_ns))
        self._start()

    def empty_labelled(self, step: str, label: str, now: float) -> None:
        """Kill everything in the containers with this label."""
        self._look(_Labelled(step, label, now), now)

    def busy(self) -> bool:
        """Return whether `tick` has to be called before long, although nothing else happens."""
        return bool(self._killers or self._held)

    def next_look(self) -> float | None:
        """Return when `tick` has something to look for."""
        return min((one.next_look for one in self._labelled), default=None)

    def tick(self, now: float) -> None:
        """Collect the children that have done their work, and do what is due."""
        for pid in list(self._killers):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                step = self._killers.pop(pid)
                if status:
                    _log.error("step %s: what runs in its container could not be ended", step)
        self._start()
        due = [one for one in self._labelled if now >= one.next_look]
        self._labelled = [one for one in self._labelled if now < one.next_look]
        for one in due:
            self._look(one, now)

    def _start(self) -> None:
        while self._held:
            step, user_ns = self._held[0]
            try:
                self._killers[leftovers.start_killing(user_ns)] = step
            except OSError as error:
                _log.warning("step %s: cannot end what runs in its container yet: %s", step, error.strerror)
                return
            self._held.pop(0)
            os.close(user_ns)
            self._files.remove(step)

    def _look(self, one: _Labelled, now: float) -> None:
        found = leftovers.in_containers().get(one.label, [])
        for user_ns in leftovers.user_namespaces(found):
            self._held.append((one.step, user_ns))
        self._start()
        one.looks += 1
        if not found:
            self._files.remove(one.step)
        elif one.looks >= _LOOKS_MAX:
            _log.error("step %s: %d processes in its container do not end", one.step, len(found))
        else:
            one.next_look = now + min(_LOOK_AGAIN_MAX_S, _LOOK_AGAIN_S * one.looks)
            self._labelled.append(one)
