"""What nodes told last of each step that runs, in memory: what `piolet top` shows of a step that no `--score` samples.

Of each node of a step there is its last frame, and its last word of what it samples; a service that was started anew
has them when nodes send again. Who may see them is what the catalogue says (central/stepanswers.py).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from piolet.base.errors import EventError
from piolet.events.envelope import decode
from piolet.observe import journal
from piolet.observe.gathering import CLOCK_S
from piolet.observe.spool import Batch, Line

BYTES_MOST = 64 << 20
OLD_S = 600.0
_LINE_MOST = 16 << 10
_TABLES = ("gpu", "host")
Key = tuple[str, str, int, int]
"""Of a step: job, step, run, uid."""


@dataclass
class _Node:
    """What a node told last of a step; `heard` is when, by this machine's clock."""

    heard: float
    ahead: float
    frame: bytes = b""
    about: bytes = b""
    ended: bool = False

    @property
    def size(self) -> int:
        return 200 + len(self.frame) + len(self.about)


class Latest:
    """The last frames; any thread may ask."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._nodes: OrderedDict[tuple[Key, str], _Node] = OrderedDict()
        self._of: dict[Key, set[str]] = {}
        self._bytes = 0

    def take(self, batch: Batch) -> None:
        """Take what a node sent."""
        with self._lock:
            for line in batch.records:
                if isinstance(line, Line) and len(line.text) <= _LINE_MOST:
                    self._take(line, batch)
            self._forget(batch.received)

    def _take(self, line: Line, batch: Batch) -> None:
        key = line.job, line.step, line.run, line.uid
        node = self._nodes.pop((key, batch.node), None) or _Node(batch.received, 0.0)
        self._bytes -= node.size if batch.node in self._of.get(key, ()) else 0
        node.heard, node.ahead = batch.received, batch.ahead or 0.0
        if line.kind == journal.FRAME:
            node.frame = line.text
        elif line.kind == journal.STEP:
            node.about = line.text
        node.ended = node.ended or line.ended
        self._nodes[key, batch.node] = node
        self._of.setdefault(key, set()).add(batch.node)
        self._bytes += node.size

    def _forget(self, now: float) -> None:
        while self._nodes:
            (key, name), node = next(iter(self._nodes.items()))
            if self._bytes <= BYTES_MOST and now - node.heard < OLD_S:
                return
            self._nodes.popitem(last=False)
            self._bytes -= node.size
            self._of[key].discard(name)
            if not self._of[key]:
                del self._of[key]

    def of(self, key: Key, most: int) -> dict[str, dict[str, Any]]:
        """Return by node what it told last: `age` (s), `ended`, tables of its frame, and what it says of them."""
        with self._lock:
            names = sorted(self._of.get(key, ()), key=lambda name: (len(name), name))[:most]
            found = {name: self._nodes[key, name] for name in names}
        return {name: self._said(node) for name, node in found.items()}

    def _said(self, node: _Node) -> dict[str, Any]:
        said: dict[str, Any] = {"ended": node.ended}
        try:
            if node.frame:
                event = decode(node.frame)
                when = event.time - (node.ahead if abs(node.ahead) > CLOCK_S else 0.0)
                said["age"] = round(max(0.0, self._clock() - when), 1)
                said |= {name: event.body[name] for name in ("span", *_TABLES) if name in event.body}
            if node.about:
                body = decode(node.about).body
                said |= {name: body[name] for name in ("devices", "sources", "simulated") if name in body}
        except EventError:
            return {"ended": node.ended}
        return said
