"""How steps failed in the last days, kept in memory: what users are told at the end of theirs is made of it.

A step failed by itself on a node where the first task that ended badly there did so of its own: it said a status other
than 0, or died of a signal that nobody sends to end a step. srun ends the tasks on other nodes then, and that is no
failure of theirs.
"""

from __future__ import annotations

import itertools
import json
import signal
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from piolet.central.conclusions import Conclusion
from piolet.central.failures import Failures
from piolet.central.rules.components import StepKey, step_of
from piolet.central.rules.users import Failed
from piolet.events.envelope import Event

WEEK_S = 7 * 86400.0
FAILURES_MOST, FAILURES_OF_A_USER = 200_000, 20_000
NODES_OF_A_STEP = 2
"""On more nodes than these, a step that failed says nothing of a node."""
SENT = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)
SENT_STATUS = tuple(128 + number for number in SENT)


class Engine(Protocol):
    """What judges events."""

    def take(self, event: Event, received: float | None = None) -> Iterable[Conclusion]:
        """Return what an event concludes."""


StepOf = tuple[int | None, int, str]
"""Whose, job and step, of whichever run."""


@dataclass
class FailedStep:
    """A step that failed: which it is, when, and how it did so on each node, '' where it was ended."""

    key: StepKey
    at: float
    nodes: dict[str, str] = field(default_factory=dict)

    @property
    def by_itself(self) -> dict[str, str]:
        """The nodes on which it failed by itself."""
        return {node: word for node, word in self.nodes.items() if word}

    @property
    def uid(self) -> int | None:
        """Whose it is."""
        return self.key[0]

    @property
    def of(self) -> StepOf:
        """The step of any run."""
        return self.key[:3]


def how(body: Mapping[str, Any]) -> str | None:
    """Return how tasks ended that failed by themselves, in words that are the same where others ended alike.

    '': they were ended by a signal that is sent for that. None: they did not fail.
    """
    why, status, number = body.get("why"), body.get("status"), body.get("signal")
    if why == "out_of_memory":
        return "out_of_memory"
    if why == "exit" and type(status) is int and status:
        return "" if status in SENT_STATUS else f"status {status}"
    if why == "signal" and type(number) is int:
        return "" if number in SENT else f"signal {number}"
    return "" if why == "time_limit" else None


class Recent:
    """The failures of the last `window_s` seconds, at most `most` of them and `each` of a user; of any thread.

    nodes   how often nodes failed, which no step is needed for
    """

    def __init__(self, window_s: float = WEEK_S, most: int = FAILURES_MOST, each: int = FAILURES_OF_A_USER) -> None:
        self._window_s, self._most, self._each = window_s, most, each
        self._steps: OrderedDict[StepKey, FailedStep] = OrderedDict()
        self._of_node: dict[str, OrderedDict[StepKey, None]] = {}
        self._of_user: dict[tuple[int, str], OrderedDict[StepKey, None]] = {}
        self._runs: dict[StepOf, OrderedDict[StepKey, None]] = {}
        self._mine: dict[int | None, OrderedDict[StepKey, None]] = {}
        self._counts: dict[int | None, int] = {}
        self._count = 0
        self._lock = threading.Lock()
        self.nodes = Failures()

    def take(self, event: Event, received: float) -> None:
        """Take an event; of steps anything but a failure changes nothing."""
        self.nodes.take(event, received)
        step = step_of(event) if event.kind == "step.outcome" else None
        word = how(event.body)
        if step is not None and word is not None:
            self._take(step, received, event.node, word, first=event.body.get("order") == 0)

    def _take(self, key: StepKey, received: float, node: str, word: str, *, first: bool = False) -> None:
        """Take how tasks of a step ended on a node; `first` of the tasks of their component there."""
        with self._lock:
            step = self._steps.setdefault(key, FailedStep(key, received))
            # Once: how the first of its tasks ended that did not end well. Where components share a node, the one that
            # failed by itself may come after one that was ended for it.
            again = node in step.nodes
            if again and (step.nodes[node] or not (word and first)):
                return
            step.nodes[node] = word
            self._runs.setdefault(step.of, OrderedDict())[key] = None
            self._mine.setdefault(step.uid, OrderedDict())[key] = None
            self._counts[step.uid] = self._counts.get(step.uid, 0) + (not again)
            self._count += not again
            if word:
                self._of_node.setdefault(node, OrderedDict())[key] = None
            if word and step.uid is not None:  # whose it was said to be first: so it is forgotten, too
                self._of_user.setdefault((step.uid, word), OrderedDict())[key] = None
            # Nobody pushes out what was found of others.
            while self._counts.get(step.uid, 0) > self._each:
                self._forget(next(iter(self._mine[step.uid])))
            while self._steps and (self._count > self._most or self._oldest().at < received - self._window_s):
                self._forget(next(iter(self._steps)))

    def lines(self) -> Iterator[bytes]:
        """Yield all of it, a line of JSON for each step and each node."""
        with self._lock:
            steps = list(self._steps.items())
        of_steps = ([key, step.at, step.nodes] for key, step in steps)
        for said in itertools.chain(of_steps, self.nodes.lines()):
            yield json.dumps(said, separators=(",", ":")).encode("ascii") + b"\n"

    def resume(self, said: Iterable[bytes]) -> None:
        """Take what `lines` said, into an empty one. Raises ValueError, TypeError, KeyError: it is none of these."""
        for line in said:
            one = json.loads(line)
            if isinstance(one, dict):
                self.nodes.resume(one)
                continue
            (uid, job, step, run), at, nodes = one
            for node, word in nodes.items():
                self._take((uid, job, step, run), at, node, word)

    def _oldest(self) -> FailedStep:
        return next(iter(self._steps.values()))

    def _forget(self, key: StepKey) -> None:
        step = self._steps.pop(key)
        self._count -= len(step.nodes)
        self._counts[step.uid] -= len(step.nodes)
        if not self._counts[step.uid]:
            del self._counts[step.uid]
        _drop(self._runs, step.of, key)
        _drop(self._mine, step.uid, key)
        for node, word in step.nodes.items():
            _drop(self._of_node, node, key)
            if step.uid is not None:
                _drop(self._of_user, (step.uid, word), key)

    def step(self, of: StepOf) -> FailedStep | None:
        """Return a step that failed by itself, of the job's last run, with the nodes that are known by now."""
        with self._lock:
            runs = self._runs.get(of)
            if not runs:
                return None
            known = self._steps[max(runs, key=lambda key: key[3])]
            return FailedStep(known.key, known.at, known.by_itself) if known.by_itself else None

    def failed(self, node: str, now: float, but: StepOf | None = None) -> tuple[Failed, frozenset[int]]:
        """Return how many steps failed on a node and on no more than one besides, and whose; without the step `but`."""
        users, steps = set(), 0
        with self._lock:
            for key in self._of_node.get(node, ()):
                one = self._steps[key]
                if one.of != but and len(one.by_itself) <= NODES_OF_A_STEP and one.at >= now - self._window_s:
                    steps += 1
                    users |= {one.uid} if one.uid is not None else set()
        return Failed(steps, len(users)), frozenset(users)

    def others(self, failed: FailedStep) -> int:
        """Return on how many other nodes steps of the same user failed alike."""
        nodes: set[str] = set()
        with self._lock:
            for word in set(failed.nodes.values()):
                for key in self._of_user.get((failed.uid if failed.uid is not None else -1, word), ()):
                    if self._steps[key].of != failed.of:
                        nodes |= {node for node, other in self._steps[key].nodes.items() if other == word}
        return len(nodes - failed.nodes.keys())


def _drop(index: dict[Any, OrderedDict[StepKey, None]], name: Any, key: StepKey) -> None:
    keys = index.get(name)
    if keys is not None:
        keys.pop(key, None)
        if not keys:
            del index[name]


class Taker(Protocol):
    """What sees events beside the rules."""

    def take(self, event: Event, received: float) -> None:
        """Take an event."""


class Watched:
    """An engine whose events `recent` sees, too."""

    def __init__(self, engine: Engine, recent: Taker) -> None:
        self._engine, self._recent = engine, recent
        self.rules = getattr(engine, "rules", ())
        self.nodes = getattr(engine, "nodes", {})

    @property
    def open(self) -> set[str] | None:
        """The cases that the engine has open; None where it does not tell."""
        return getattr(self._engine, "open", None)

    def take(self, event: Event, received: float | None = None) -> Iterable[Conclusion]:
        """Return what the engine concludes."""
        self._recent.take(event, event.time if received is None else received)
        return self._engine.take(event, received)
