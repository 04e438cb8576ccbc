"""How often nodes failed lately, and for how many hours they were known: what advice on spare nodes is made of.

What counts as a failure is what a replay counts (piolet.central.rules.replay): a user's doing is none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from piolet.central.rules.replay import ONE_FAILURE_S, is_failure
from piolet.events.envelope import Event

WINDOW_S = 90 * 86400.0
MOST = 200_000
_BEAT = "node.heartbeat"


@dataclass(frozen=True)
class Known:
    """What is known of the nodes of a cluster.

    failures   how often they failed in the last WINDOW_S
    hours      node-hours of that time between the first and the last word of each node, or of Slurm's of it
    """

    failures: int
    hours: float


class Failures:
    """Counts them as records come; of any thread."""

    def __init__(self) -> None:
        self._nodes: dict[str, list[float]] = {}  # when it was first and last heard of, and when it last failed
        self._times: deque[float] = deque(maxlen=MOST)
        self._lock = threading.Lock()

    def take(self, event: Event, received: float) -> None:
        """Take an event, and when it came, by the service's clock."""
        at = min(event.time - (event.offset or 0.0), received)
        with self._lock:
            node = self._nodes.get(event.node)
            if node is None:
                node = self._nodes[event.node] = [at, at, float("-inf")]
            node[0], node[1] = min(node[0], at), max(node[1], at)
            if event.kind != _BEAT and is_failure(event) and abs(at - node[2]) >= ONE_FAILURE_S:
                node[2] = at
                self._times.append(at)

    def known(self, now: float) -> Known:
        """Return what is known of the time before now, in seconds since 1970."""
        begin = now - WINDOW_S
        with self._lock:
            hours = sum(max(0.0, last - max(first, begin)) for first, last, _ in self._nodes.values()) / 3600
            return Known(sum(begin < time <= now for time in self._times), hours)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield all of it, as objects of JSON."""
        with self._lock:
            nodes, times = {name: list(node) for name, node in self._nodes.items()}, list(self._times)
        yield {"failed": times}
        for name, node in nodes.items():
            yield {"node": name, "times": node}

    def resume(self, said: dict[str, Any]) -> None:
        """Take one of what `lines` said. Raises KeyError, TypeError, ValueError: it is none of these."""
        if "failed" in said:
            self._times.extend(said["failed"])
        else:
            first, last, failed = said["times"]
            self._nodes[said["node"]] = [first, last, failed]
