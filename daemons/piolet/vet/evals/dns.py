"""Do names resolve, and fast enough?"""

from __future__ import annotations

import math
import queue
import socket
import threading
import time
from dataclasses import dataclass

from piolet.api import FAIL, INCONCLUSIVE, Context, Eval, Verdict, at_most, parameter

_THREADS = 8
_NODES = 4
"""Without names of its own, each node asks for itself and the next ones: the whole job asks a few times for each."""


@dataclass(frozen=True)
class Dns(Eval):
    """Asks the resolver of the C library, as applications do."""

    name = "dns"
    text = "names resolve, and fast enough"
    how = "getaddrinfo for every name, eight at a time; the slowest counts"
    source = "the system's resolver"
    unit = "s"
    better = "lower"

    names: tuple[str, ...] = parameter((), text="names; without any, of this node and the three after it")
    max_time: float = parameter(1.0, text="how long each may take", unit="s", least=0.001)

    def check(self, context: Context) -> Verdict:
        """Look all names up, a few at once."""
        names = list(self.names) or _neighbours(context)
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in names:
            waiting.put(name)
        begun: set[str] = set()
        answers: queue.SimpleQueue[tuple[str, float, str]] = queue.SimpleQueue()
        threads = 0
        for _ in range(min(_THREADS, len(names))):
            try:
                threading.Thread(target=_look_up, args=(waiting, begun, answers), daemon=True).start()
            except RuntimeError:  # the user has no more processes: fewer do it as well
                break
            threads += 1
        if not threads:
            return Verdict(INCONCLUSIVE, "no thread can be started")
        # A late answer and none at all are told apart, so it is waited for a little longer than is allowed.
        rounds = math.ceil(len(names) / threads)
        end = min(context.deadline, time.monotonic() + 2 * self.max_time * rounds)
        return self._verdict(names, begun, *_gather(set(names), answers, end), context.deadline)

    def _verdict(
        self, names: list[str], begun: set[str], slowest: float, wrong: list[str], silent: set[str], deadline: float
    ) -> Verdict:
        if silent and not wrong and time.monotonic() >= deadline:
            return Verdict(INCONCLUSIVE, f"there was no time to wait for {', '.join(sorted(silent))[:200]}")
        if time.monotonic() < deadline:
            wrong += [f"{name}: no answer within {2 * self.max_time:g} s" for name in sorted(silent & begun)]
        if wrong:
            return Verdict(FAIL, "; ".join(wrong)[:500], "slowest answer", slowest, self.max_time, "s")
        if silent:
            return Verdict(INCONCLUSIVE, f"there was no time to ask for {', '.join(sorted(silent))[:200]}")
        return at_most("slowest answer", slowest, self.max_time, "s", names=len(names))


def _neighbours(context: Context) -> list[str]:
    """Return this node and the next few of the job, round its end."""
    nodes = list(context.nodes)
    at = nodes.index(context.node) if context.node in nodes else 0
    return [nodes[(at + step) % len(nodes)] for step in range(min(_NODES, len(nodes)))] or [context.node]


def _gather(
    silent: set[str], answers: queue.SimpleQueue[tuple[str, float, str]], end: float
) -> tuple[float, list[str], set[str]]:
    """Return the slowest answer in seconds, what is wrong with answers, and the names that have none by `end`."""
    slowest, wrong = 0.0, []
    while silent:
        try:
            name, seconds, problem = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        silent.discard(name)
        slowest = max(slowest, seconds)
        if problem:
            wrong.append(f"{name}: {problem}")
    return slowest, wrong, silent


def _look_up(
    waiting: queue.SimpleQueue[str], begun: set[str], answers: queue.SimpleQueue[tuple[str, float, str]]
) -> None:
    while True:
        try:
            name = waiting.get_nowait()
        except queue.Empty:
            return
        begun.add(name)
        started = time.monotonic()
        problem = ""
        try:
            socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        answers.put((name, time.monotonic() - started, problem))
