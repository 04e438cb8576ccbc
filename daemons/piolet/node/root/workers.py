"""The monitor's workers: each is forked before there is an order for it, so that the fork is not on a step's way."""

from __future__ import annotations

import contextlib
import selectors
import socket

from piolet.container import worker
from piolet.system import children, linux
from piolet.system.children import Child
from piolet.transport.packets import MESSAGE_MAX

SPARE_S = 0.05
"""So long after a step's start the next worker is forked: before, the step would wait for that."""


class Workers:
    """Workers in the loop of `selector`, where each is collected, and the one of them that waits.

    `namespace` is a descriptor of the mount namespace that they go to.
    """

    def __init__(self, selector: selectors.BaseSelector, namespace: int) -> None:
        self._selector = selector
        self._namespace = namespace
        self._spare: tuple[Child, socket.socket] | None = None

    def due(self, last_start: float) -> list[float]:
        """Return when `keep_spare` has something to do: when the tasks of the last step have begun."""
        return [last_start + SPARE_S] if self._spare is None else []

    def keep_spare(self) -> bool:
        """Have a worker ready for the next step; return whether there is one."""
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = self._fork(ahead=True)
        return self._spare is not None

    def give(self, order: worker.WorkerOrder, image: int | None, own: int | None) -> tuple[Child, socket.socket]:
        """Give an order to the waiting worker, or to a new one: there may be none, or it was killed meanwhile."""
        if self._spare is not None:
            child, channel = self._spare
            self._spare = None
            try:
                worker.send_order(channel, order, image, own)
                return child, channel
            except ConnectionError:
                channel.close()
        child, channel = self._fork(ahead=False)
        worker.send_order(channel, order, image, own)
        return child, channel

    def _fork(self, ahead: bool) -> tuple[Child, socket.socket]:
        ours, theirs = linux.message_pair(2 * MESSAGE_MAX)
        with theirs:
            try:
                child = children.fork({theirs.fileno(), self._namespace})
            except OSError:
                ours.close()
                raise
            if child is None:
                worker.run(theirs, self._namespace, ahead)
                raise AssertionError("a worker never returns")
        ours.setblocking(False)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._on_end(child))
        return child, ours

    def _on_end(self, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        child.collect()
