"""The monitor's workers: each is forked before there is an order for it, so that the fork is not on a step's way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from piolet.node import linux, worker
from piolet.node.requests import MESSAGE_MAX


class Workers:
    """All workers that have not been collected, and the one of them that waits."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._spare: tuple[int, socket.socket] | None = None

    def keep_spare(self) -> None:
        """Have a worker ready for the next step."""
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = self._fork()

    def give(self, order: worker.Order, image: int | None) -> tuple[int, socket.socket]:
        """Give an order to the waiting worker, or to a new one: there may be none, or it was killed meanwhile."""
        if self._spare is not None:
            pid, channel = self._spare
            self._spare = None
            try:
                worker.send_order(channel, order, image)
                return pid, channel
            except ConnectionError:
                channel.close()
        pid, channel = self._fork()
        worker.send_order(channel, order, image)
        return pid, channel

    def _fork(self) -> tuple[int, socket.socket]:
        ours, theirs = linux.message_pair(2 * MESSAGE_MAX)
        pid = os.fork()
        if pid == 0:
            worker.run(theirs)
        theirs.close()
        ours.setblocking(False)
        self._pids.add(pid)
        return pid, ours

    def kill(self, pid: int) -> None:
        """Kill a worker, if it is one that still runs."""
        if pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ending(self) -> bool:
        """Return whether there are some that `collect` has to look for."""
        return len(self._pids) > (self._spare is not None)

    def collect(self) -> None:
        """Collect those that have ended."""
        for pid in list(self._pids):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._pids.discard(pid)
