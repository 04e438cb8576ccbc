"""Root's process for what is recorded of every step: it keeps two others running, and reads nothing of theirs.

The sampler (node/server/observer.py) is the account without privileges, with descriptors of the files that only root
may open and that sources name (api/sources.py, `needs`). Beside it runs a process that may read /proc/PID/io of all
users: the account as well, with CAP_SYS_PTRACE and a filter of system calls, and nothing but that (observe/moved.py;
decision 136). If either ends, both are started again; and so they are where a file that sources need comes to be, as
when Lustre is mounted.
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

from piolet.images import seccomp
from piolet.observe import moved
from piolet.system import linux

_log = logging.getLogger("pioletd.observing")

Observe = Callable[[socket.socket, Mapping[str, int]], None]
_AGAIN_S = 1.0
_LOOK_S = 60.0
_END_S = 3.0


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
        self._stuck: list[int] = []  # processes that the kernel does not let go of

    def run(self) -> None:
        """Serve until the other end of `stop` closes."""
        while True:
            began = time.monotonic()
            children, held = self._start()
            why = self._wait(children, held)
            self._end(children)
            if not why:
                return
            _log.warning("%s; the sampling of steps begins anew", why)
            time.sleep(max(0.0, began + _AGAIN_S - time.monotonic()))

    def _start(self) -> tuple[list[int], set[str]]:
        """Start both; return their pids, and what is held."""
        held = self._hold()
        ours, theirs = moved.pair()
        children = [
            self._fork("pioletd-io", lambda: moved.serve(theirs), {theirs.fileno()}, debugger=True),
            self._fork("pioletd-observe", lambda: self._observe(ours, held), {ours.fileno(), *held.values()}),
        ]
        for descriptor in held.values():
            os.close(descriptor)
        ours.close()
        theirs.close()
        return children, set(held)

    def _hold(self) -> dict[str, int]:
        """Open what sources need."""
        held = {}
        for path in self._there():
            with contextlib.suppress(OSError):
                held[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        return held

    def _there(self) -> set[str]:
        return {path for pattern in self._needs for path in glob.glob(pattern)}

    def _fork(self, name: str, work: Callable[[], None], keep: set[int], *, debugger: bool = False) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            linux.close_all_but(keep)
            linux.set_name(name)
            linux.die_with_parent(signal.SIGKILL)
            own = self._account
            linux.become(own.pw_uid, own.pw_gid, [own.pw_gid], debugger=debugger)
            linux.die_with_parent(signal.SIGKILL)
            linux.no_new_privileges()
            linux.not_dumpable()
            if debugger and seccomp.known():
                seccomp.deny(network=False)
            work()
        except Exception:  # noqa: BLE001 - logged, and both are started again
            _log.exception("%s failed", name)
        finally:
            os._exit(0)

    def _wait(self, children: list[int], held: set[str]) -> str:
        """Return why the two are to be started again, '' when the daemon ends."""
        ends = {os.pidfd_open(pid): pid for pid in children}
        look = time.monotonic() + _LOOK_S
        try:
            while True:
                ready = select.select([self._stop, *ends], [], [], max(0.0, look - time.monotonic()))[0]
                if self._stop in ready:
                    return ""
                if ready:
                    return "a process of the sampling of steps has ended"
                look = time.monotonic() + _LOOK_S
                self._stuck = [pid for pid in self._stuck if not os.waitpid(pid, os.WNOHANG)[0]]
                if new := self._there() - held:
                    return f"there is {min(new)} now"
        finally:
            for descriptor in ends:
                os.close(descriptor)

    def _end(self, children: list[int]) -> None:
        """End both, the sampler so that it can write what it knows; one that the kernel keeps is left alone."""
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        for pid in children:
            while not os.waitpid(pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    self._stuck.append(pid)
                    break
                time.sleep(0.02)
