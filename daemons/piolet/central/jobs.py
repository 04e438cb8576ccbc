"""What Slurm says of jobs: whose they are and where they run, asked for all of them at once, now and then.

Data of steps are held against it, and their meta.json says it. What Slurm does not know (any more) is nobody's word
against a node's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from piolet.base.errors import PioletError
from piolet.slurm import queue

_LOG = logging.getLogger("piolet-central")
_EVERY_S = 60.0


@dataclass(frozen=True)
class Known:
    """A job as Slurm has it: its owner, and its nodes, none where it did not say."""

    uid: int | None
    nodes: frozenset[str]


class Jobs:
    """Asks for the jobs that run, in a thread, and hands what it hears to `note`, by number, as keys of layout.META."""

    def __init__(
        self,
        note: Callable[[Mapping[str, dict[str, Any]]], None],
        ask: Callable[[], Mapping[str, queue.RunningJob]] = queue.running,
        every_s: float = _EVERY_S,
    ) -> None:
        self._note, self._ask, self._every_s = note, ask, every_s
        self._known: dict[str, Known] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._failed = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a question that is being asked is not waited for."""
        self._ended.set()

    def __call__(self, job: str) -> Known | None:
        """Return what Slurm said of a job that runs; None: it does not run, or Slurm cannot be asked."""
        return self._known.get(job)

    def _run(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(self._every_s)

    def look(self) -> None:
        """Ask once. What is not answered is not known: an old answer could be of a job that is over."""
        begun = time.monotonic()
        try:
            found = self._ask()
            self._known = {job: Known(one.uid, frozenset(one.nodes)) for job, one in found.items()}
            self._note({job: one.meta for job, one in found.items()})
            self._failed = ""
        except PioletError as error:
            self._known = {}
            if error.message != self._failed:
                _LOG.warning("what Slurm knows of running jobs is not known: %s", error.message)
            self._failed = error.message
        _LOG.debug("jobs asked for in %.1f s", time.monotonic() - begun)
