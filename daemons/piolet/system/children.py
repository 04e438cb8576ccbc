"""A child process of the monitor: ended, waited for and looked into by what cannot become another process's.

A process's number is free again once its parent has collected it. The monitor is the only one who collects its
children, and one that was collected here gives ESRCH, whoever has its number by then.
"""

from __future__ import annotations

import errno
import os
import signal

from piolet.system import linux


class Child:
    """A child that runs, or has ended and waits to be collected. `pidfd` can be read when it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._collected = False

    def kill(self) -> None:
        """Kill it, if it has not been collected."""
        if not self._collected:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def collect(self) -> int | None:
        """Return its exit status (-N: killed by the signal N) and forget it, or None: it still runs."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        if ended is None:
            return None
        self._collected = True
        os.close(self.pidfd)
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait(self) -> None:
        """Wait for the end of one that was killed, and collect it."""
        if not self._collected:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
            self.collect()

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a file of its directory in /proc. Raises OSError."""
        if self._collected:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), name)
        return os.open(f"/proc/{self.pid}/{name}", flags | os.O_CLOEXEC)

    def write_map(self, name: str, pairs: list[tuple[int, int]]) -> None:
        """Write single-id mappings (inside, outside) into its uid_map or gid_map, in one write as it must be."""
        descriptor = self.open(name, os.O_WRONLY)
        try:
            os.write(descriptor, "".join(f"{inside} {outside} 1\n" for inside, outside in pairs).encode())
        finally:
            os.close(descriptor)


def fork(keep: set[int]) -> Child | None:
    """Fork; return the child, or None in the child, which has of the monitor's descriptors only those in `keep`.

    Raises OSError in the parent: no more processes, or descriptors.
    """
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            linux.close_all_but(keep)
            linux.die_with_parent(signal.SIGKILL)
        except OSError:
            os._exit(1)
        return None
    try:
        return Child(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # it has not been collected, so the number is its own
        os.waitpid(pid, 0)
        raise
