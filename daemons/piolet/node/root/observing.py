"""Root's process for what is recorded of every step: it keeps the sampler running, and reads nothing of anybody's.

The sampler (node/server/observer.py) is the account without privileges, with descriptors of the files that only root
may open and that sources name (api/sources.py, `needs`). It asks here for processes that are the steps' users and tell
how many bytes their processes moved (observe/moved.py; decision 136). If the sampler ends it is started again; and so
it is where a file that sources need comes to be, as when Lustre is mounted.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import pwd
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from piolet.images import seccomp
from piolet.node.shares import Sparse
from piolet.observe import moved
from piolet.system import linux

_log = logging.getLogger("pioletd.observing")

Observe = Callable[[socket.socket, Mapping[str, int]], None]
MOVERS_MAX = 64
_AGAIN_S = 1.0
_LOOK_S = 60.0
_POLL_S = 5.0
_END_S = 3.0
_NICE = 5


class Observing:
    """The loop. `observe` is what the sampler does, as the account, with its end of the pair and what is held.

    needs    patterns of paths that are opened for it
    stop     closes when the daemon ends
    """

    def __init__(self, account: pwd.struct_passwd, observe: Observe, needs: list[str], stop: socket.socket) -> None:
        self._account = account
        self._observe = observe
        self._needs = needs
        self._stop = stop
        self._movers: set[int] = set()
        self._stuck: list[int] = []  # samplers that the kernel does not let go of
        self._refused = Sparse(_log)

    def run(self) -> None:
        """Serve until the other end of `stop` closes."""
        while True:
            began = time.monotonic()
            held = self._hold()
            ours, theirs = moved.pair()
            sampler = self._start(theirs, held)
            theirs.close()
            for descriptor in held.values():
                os.close(descriptor)
            why = self._serve(sampler, ours, set(held))
            ours.close()
            self._end(sampler)
            if not why:
                return
            _log.warning("%s; the sampling of steps begins anew", why)
            time.sleep(max(0.0, began + _AGAIN_S - time.monotonic()))

    def _hold(self) -> dict[str, int]:
        """Open what sources need."""
        held = {}
        for path in self._there():
            with contextlib.suppress(OSError):
                held[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        return held

    def _there(self) -> set[str]:
        return {path for pattern in self._needs for path in glob.glob(pattern)}

    def _start(self, channel: socket.socket, held: Mapping[str, int]) -> int:
        pid = os.fork()
        if pid:
            return pid
        own = self._account
        self._be("pioletd-observe", {channel.fileno(), *held.values()}, (own.pw_uid, own.pw_gid))
        return self._work(lambda: self._observe(channel, held))

    def _mover(self, channel: int, who: tuple[int, int]) -> None:
        """Start a process that is a user."""
        pid = os.fork()
        if pid:
            self._movers.add(pid)
            return
        self._be("pioletd-io", {channel, 2}, who)
        os.environ.clear()
        os.chdir("/")
        if seccomp.known():
            seccomp.deny(network=False)
        self._work(lambda: moved.serve(socket.socket(fileno=channel)))

    @staticmethod
    def _be(name: str, keep: set[int], who: tuple[int, int]) -> None:
        """Become what a child is, or end."""
        try:
            linux.close_all_but(keep)
            linux.set_name(name)
            linux.become(*who, [who[1]])
            linux.die_with_parent(signal.SIGKILL)
            linux.no_new_privileges()
            linux.not_dumpable()
            os.nice(_NICE)
        except Exception:  # noqa: BLE001 - logged; nothing that is still root may go on
            _log.exception("%s cannot be started", name)
            os._exit(1)

    @staticmethod
    def _work(work: Callable[[], None]) -> NoReturn:
        """Do what a child is for, and never return."""
        try:
            work()
        except Exception:  # noqa: BLE001 - logged; the sampler is started again
            _log.exception("a process of the sampling of steps failed")
        finally:
            os._exit(0)

    def _serve(self, sampler: int, channel: socket.socket, held: set[str]) -> str:
        """Return why the sampler is to be started again, '' when the daemon ends."""
        ended = os.pidfd_open(sampler)
        look = time.monotonic() + _LOOK_S
        try:
            while True:
                wait = min(_POLL_S if self._movers or self._stuck else _LOOK_S, max(0.0, look - time.monotonic()))
                ready = select.select([self._stop, ended, channel], [], [], wait)[0]
                self._reap()
                if self._stop in ready:
                    return ""
                if ended in ready:
                    return "the sampler of steps has ended"
                if channel in ready:
                    self._take(channel)
                if time.monotonic() >= look:
                    look = time.monotonic() + _LOOK_S
                    if new := self._there() - held:
                        return f"there is {min(new)} now"
        finally:
            os.close(ended)

    def _take(self, channel: socket.socket) -> None:
        data, descriptors, flags, _ = socket.recv_fds(channel, moved.WHO.size + 1, 1)
        try:
            if len(data) != moved.WHO.size or len(descriptors) != 1 or flags & socket.MSG_CTRUNC:
                return
            uid, gid = moved.WHO.unpack(data)
            if uid == 0 or gid == 0 or len(self._movers) >= MOVERS_MAX:
                why = "too many users" if uid and gid else "they are root's"
                self._refused.error("bytes that processes of uid %d moved are not told: %s", uid, why)
                return
            self._mover(descriptors[0], (uid, gid))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _reap(self) -> None:
        self._movers = {pid for pid in self._movers if not os.waitpid(pid, os.WNOHANG)[0]}
        self._stuck = [pid for pid in self._stuck if not os.waitpid(pid, os.WNOHANG)[0]]

    def _end(self, sampler: int) -> None:
        """End the sampler so that it can write what it knows; one that the kernel keeps is left alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(sampler, signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        while not os.waitpid(sampler, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(sampler, signal.SIGKILL)
                self._stuck.append(sampler)
                return
            time.sleep(0.02)
