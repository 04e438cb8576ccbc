"""Do names resolve, and fast enough?"""

from __future__ import annotations

import queue
import socket
import threading
import time
from dataclasses import dataclass

from piolet.api import FAIL, INCONCLUSIVE, Context, Eval, Verdict, at_most, parameter


@dataclass(frozen=True)
class Dns(Eval):
    """Asks the resolver of the C library, as applications do."""

    name = "dns"
    text = "names resolve, and fast enough"
    how = "getaddrinfo for every name, one thread each, the slowest counts"
    source = "the system's resolver"
    unit = "s"
    better = "lower"

    names: tuple[str, ...] = parameter((), text="names; without any, those of the nodes")
    max_time: float = parameter(1.0, text="how long each may take", unit="s", least=0.001)

    def check(self, context: Context) -> Verdict:
        """Look all names up at once."""
        names = list(self.names or context.nodes or (context.node,))
        answers: queue.Queue[tuple[str, float, str]] = queue.Queue()
        for name in names:
            threading.Thread(target=_look_up, args=(name, answers), daemon=True).start()
        waiting, slowest, wrong = set(names), 0.0, []
        # A late answer and none at all are told apart, so it is waited for a little longer than is allowed.
        end = min(context.deadline, time.monotonic() + 2 * self.max_time)
        while waiting:
            try:
                name, seconds, problem = answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            waiting.discard(name)
            slowest = max(slowest, seconds)
            if problem:
                wrong.append(f"{name}: {problem}")
        if waiting and time.monotonic() >= context.deadline:
            return Verdict(INCONCLUSIVE, f"there was no time to wait for {', '.join(sorted(waiting))[:200]}")
        wrong += [f"{name}: no answer within {2 * self.max_time:g} s" for name in sorted(waiting)]
        if wrong:
            return Verdict(FAIL, "; ".join(wrong)[:500], "slowest answer", slowest, self.max_time, "s")
        return at_most("slowest answer", slowest, self.max_time, "s", names=len(names))


def _look_up(name: str, answers: queue.Queue[tuple[str, float, str]]) -> None:
    started = time.monotonic()
    problem = ""
    try:
        socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    answers.put((name, time.monotonic() - started, problem))
