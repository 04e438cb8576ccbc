"""Asks Slurm's accounting, now and then, what became of jobs and nodes.

Where it stands is a cursor in the store, one for jobs and one for nodes: the time up to which all was asked. Each turn
asks again for the time before it, since slurmctld tells slurmdbd late, and what is known already has the same key. Long
times are asked in pieces, which get smaller where there is too much in one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from piolet.base.errors import PioletError, SlurmError
from piolet.central.accounted import events_of_jobs, events_of_states
from piolet.events.envelope import Event
from piolet.slurm import past
from piolet.slurm.asking import TooMuchError

_log = logging.getLogger("piolet-central")

CURSOR, STATES_CURSOR = "slurm.accounting", "slurm.states"
OVERLAP_S = 3600.0
PIECE_S, PIECE_LEAST_S = 86400.0, 900.0
BATCH = 500
_FAILED_WAIT_S = 300.0


class Keeper(Protocol):
    """The service, as far as the poller knows it."""

    def take_own(self, events: Sequence[Event]) -> int:
        """Keep the service's own events; return how many of them were new."""

    def cursor(self, name: str) -> float | None:
        """Return what `set_cursor` said last."""

    def set_cursor(self, name: str, value: float) -> None:
        """Keep where something stands."""


class Poller:
    """Polls for `cluster` every `every_s` seconds; the first time it goes back `history_s`.

    hidden   what of 'jobs' and 'events' accounting does not show to this account
    """

    def __init__(
        self,
        keeper: Keeper,
        cluster: str,
        every_s: float,
        history_s: float,
        ask_jobs: Callable[[float, float], list[past.EndedJob]] = past.ask_jobs,
        ask_states: Callable[[float], list[past.NodeState]] = past.ask_states,
        clock: Callable[[], float] = time.time,
        hidden: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._keeper = keeper
        self._hidden = hidden
        self._cluster = cluster
        self._every_s, self._history_s = every_s, history_s
        self._ask_jobs, self._ask_states, self._clock = ask_jobs, ask_states, clock
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slurm-accounting", daemon=True)
        self.failed = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self, within_s: float = 5.0) -> None:
        """End after the piece that is being asked, or be left behind."""
        self._ending.set()
        self._thread.join(within_s)

    def poll(self) -> int:
        """Ask for all that happened since the last time; return how many events were new. Raises SlurmError."""
        now = self._clock()
        since, refused = self._since(CURSOR, now), None
        try:
            new = self._take(events_of_states(self._ask_states(self._since(STATES_CURSOR, now)), self._cluster))
            self._keeper.set_cursor(STATES_CURSOR, now)
        except SlurmError as error:  # slurmdbd may hide these from the account, and not the jobs
            new, refused = 0, error
        piece = PIECE_S
        while not self._ending.is_set():
            until = min(since + piece, now)
            try:
                jobs = self._ask_jobs(since, until)
            except TooMuchError:
                piece = min(piece, until - since) / 2
                if piece < PIECE_LEAST_S:
                    raise
                continue
            new += self._take(events_of_jobs(jobs, self._cluster))
            self._keeper.set_cursor(CURSOR, until)
            if until >= now:
                break
            since = until
        if refused is not None:
            raise refused
        return new

    def _since(self, cursor: str, now: float) -> float:
        known = self._keeper.cursor(cursor)
        # A clock that was put back asks from there on.
        return now - self._history_s if known is None else min(known, now) - OVERLAP_S

    def _take(self, events: Iterator[Event]) -> int:
        found = sorted(events, key=lambda event: event.time)
        return sum(self._keeper.take_own(found[at : at + BATCH]) for at in range(0, len(found), BATCH))

    def _look(self) -> None:
        """Say what accounting keeps from the service: it answers as if there were none of it. Raises SlurmError."""
        words = self._hidden()
        if words:
            _log.warning("slurmdbd hides %s from this account (PrivateData): docs/central.md says what is missing then",
                         " and ".join(sorted(words)))  # fmt: skip

    def _run(self) -> None:
        looked = False
        while not self._ending.is_set():
            wait = self._every_s
            try:
                if not looked:
                    self._look()
                    looked = True
                self.poll()
                self.failed = ""
            except PioletError as error:
                if error.message != self.failed:
                    _log.error("Slurm's accounting is not known: %s", error.message)
                self.failed = error.message
                wait = max(wait, _FAILED_WAIT_S)
            self._ending.wait(wait)
