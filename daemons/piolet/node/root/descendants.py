"""Ends everything that a process of ours has started, and what that has started in turn.

Whoever calls `collect_orphans` is handed every descendant whose parent has ended, whatever sessions, process groups or
namespaces it made for itself: so what it left is found by parentage, and that nothing is left says the kernel (ECHILD).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

from piolet.system import linux, processes

_FAST_PASSES = 16
_PAUSE_S, _PAUSE_MAX_S = 0.0002, 0.05
_LATE_S, _LATE_PAUSE_S = 2.0, 0.5


def collect_orphans() -> None:
    """Become the parent of every descendant that loses its own. Not inherited by children. Raises OSError."""
    linux.become_subreaper()


def children() -> list[int]:
    """Return the children of this process, which has one thread. None has a number that could be another's: they are
    not waited for yet."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid, (parent, _) in _table().items() if parent == os.getpid()]


def end_all(within_s: float) -> bool:
    """Kill all descendants until there are none; return whether that is so, after `within_s` at the latest.

    Each that is killed leaves its children to this process, which kills them next. One that forks faster than this
    is met by passes over the whole tree.
    """
    began = time.monotonic()
    passes, pause = 0, _PAUSE_S
    while _reap():
        for pid in children():
            _kill(pid)
        if passes >= _FAST_PASSES:
            table = _table()
            for pid in _below(os.getpid(), table):
                _kill(pid, table)
        spent = time.monotonic() - began
        if spent >= within_s:
            return not _reap()
        passes += 1
        time.sleep(min(pause, within_s - spent))
        # What is left so late forks no more: it hangs in the kernel, or its control group is frozen.
        most = _PAUSE_MAX_S if spent < _LATE_S else _LATE_PAUSE_S
        pause = min(2 * pause, most) if passes >= _FAST_PASSES else pause
    return True


def end_strays(keep: Collection[int], within_s: float) -> None:
    """Kill the children of this process but those in `keep`, and what they leave to it, at most so long."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        strays = set(children()) - set(keep)
        for pid in strays:
            _kill(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if not strays:
            return
        time.sleep(_PAUSE_S)


def _reap() -> bool:
    """Wait for those that have ended; return whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _kill(pid: int, table: dict[int, tuple[int, int]] | None = None) -> None:
    """Kill the process; one that is no child of this process, if it and its parent are still those of the table."""
    with contextlib.suppress(OSError, KeyError):
        process = os.pidfd_open(pid)
        try:
            if table is None or all(_entry(one) == table[one] for one in (pid, table[pid][0])):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)


def _table() -> dict[int, tuple[int, int]]:
    """Return the parent and the start time of every process."""
    found = {}
    for pid in processes.pids():
        with contextlib.suppress(OSError):
            found[pid] = _entry(pid)
    return found


def _entry(pid: int) -> tuple[int, int]:
    found = processes.stat(pid)
    return found.parent, found.started


def _below(root: int, table: dict[int, tuple[int, int]]) -> list[int]:
    below: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        below.setdefault(parent, []).append(pid)
    found, todo = [], list(below.get(root, []))
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += below.get(pid, [])
    return found
