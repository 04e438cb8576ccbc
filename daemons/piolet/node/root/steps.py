"""What the monitor knows of a step, and of an image that steps wait for."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field, replace

from piolet.node.requests import Announced, Build
from piolet.node.root.endings import Remains
from piolet.node.root.mountedimages import Mounting, WantedImage
from piolet.node.root.state import Known
from piolet.steps import jobnamespaces
from piolet.system import processes
from piolet.system.children import Child


@dataclass
class Step:
    """A step with a container, being built or running.

    `namespace` is a descriptor of the job's own mount namespace, if it has one, until a worker has it; `made_in` is its
    number. `inside` are descriptors of the container's user and mount namespaces, from when it is ready, and `start` is
    as in Answer.
    """

    order: Build
    who: Announced
    deadline: float
    worker: Child | None = None
    channel: socket.socket | None = None
    remains: Remains | None = None
    ready: bool = False
    marks: list[tuple[str, float]] = field(default_factory=list)
    namespace: int | None = None
    made_in: int = 0
    inside: tuple[int, ...] = ()
    start: str = ""

    @property
    def wanted(self) -> WantedImage | None:
        """The image of the store that it is to have, if it is to have one."""
        if self.order.digest is None:
            return None
        return WantedImage(self.order.digest, self.order.identity, self.who.uid, self.who.gid)

    def find_namespace(self, home: jobnamespaces.Home) -> None:
        """Look for the job's own mount namespace; as jobnamespaces.find does, which raises PioletError."""
        self.namespace = jobnamespaces.find(self.who.peer, self.who.job, home)
        self.made_in = 0 if self.namespace is None else os.fstat(self.namespace).st_ino

    def know_peer(self) -> None:
        """Note when the slurmstepd was started, by which it is known later; while the worker is at work."""
        if self.remains is not None:
            self.remains = replace(
                self.remains, of=replace(self.remains.of, started=processes.start_time(self.who.peer))
            )

    def known(self) -> Known | None:
        """Return what a later daemon has to know of it; None: it has no container."""
        if self.remains is None or len(self.inside) != 2:
            return None
        of, (user, mounts) = self.remains.of, (os.fstat(one).st_ino for one in self.inside)
        return Known(of.step, of.peer, of.started, self.who.uid, user, mounts, self.made_in, self.start)

    def leave(self) -> None:
        """Close the container's namespaces."""
        for descriptor in self.inside:
            os.close(descriptor)
        self.inside = ()

    def forget_namespace(self) -> None:
        """Close the descriptor of the job's mount namespace."""
        if self.namespace is not None:
            os.close(self.namespace)
            self.namespace = None


@dataclass
class Awaited:
    """An image that is being mounted, until when, and the steps that wait for it."""

    mounting: Mounting
    deadline: float
    waiting: list[int]
