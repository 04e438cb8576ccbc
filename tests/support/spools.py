"""A node's spool of events for tests, and what is in one, as flat dictionaries."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from piolet.events.envelope import decode
from piolet.events.reader import Reader
from piolet.events.spool import Spool
from piolet.events.stream import Writer
from piolet.node.server.past import Past
from piolet.node.server.verdicts import Verdicts

BOOT = "0b1c2d3e-0000-4000-8000-000000000000"


def spool(directory: Path, node: str = "node1", past: Path | None = None) -> tuple[Spool, Verdicts]:
    """Return a spool, and what puts verdicts there; `past`: where the node's first values are kept."""
    own = Past(str(past or directory))
    one = Spool(str(directory), Writer("test", node, BOOT), {}, chore=own)
    return one, Verdicts(one, own)


def events(directory: Path, *kinds: str, uid: int | None = None) -> list[dict[str, Any]]:
    """Return the events of these kinds, of all if none is named, of one user or all; the body's keys beside its own."""
    reader = Reader(str(directory))
    found = []
    for epoch in reader.streams():
        for line in reader.read(epoch, 0, 10**6, 1 << 30):
            event = decode(line)
            if (not kinds or event.kind in kinds) and uid in (None, event.uid):
                found.append({**event.body, **dataclasses.asdict(event)})
    return sorted(found, key=lambda one: (one["time"], one["epoch"], one["seq"]))
