"""What the monitor knows of a step, and of an image that steps wait for."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from piolet.node.children import Child
from piolet.node.endings import Remains
from piolet.node.mounts import Mounting, Wanted
from piolet.node.requests import Announced, Build


@dataclass
class Step:
    """A step with a container, being built or running."""

    order: Build
    who: Announced
    deadline: float
    worker: Child | None = None
    channel: socket.socket | None = None
    remains: Remains | None = None
    ready: bool = False
    marks: list[tuple[str, float]] = field(default_factory=list)

    @property
    def wanted(self) -> Wanted | None:
        """The image of the store that it is to have, if it is to have one."""
        if self.order.digest is None:
            return None
        return Wanted(self.order.digest, self.order.identity, self.who.uid, self.who.gid)


@dataclass
class Awaited:
    """An image that is being mounted, until when, and the steps that wait for it."""

    mounting: Mounting
    deadline: float
    waiting: list[int]
