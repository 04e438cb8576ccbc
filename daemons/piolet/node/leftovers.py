"""Finds and ends what still runs in a container after its step.

A container is known by its mount namespace while the monitor holds it (the number cannot be given to another
namespace meanwhile), and by the label of its root mount after a restart of the daemon.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

LABEL = "piolet:"


def label(step: str, node: str) -> str:
    """Return the name of a container's root mount: several nodes may share one kernel, as in a test cluster."""
    return f"{LABEL}{node}:{step}"


def processes() -> Iterator[int]:
    """Yield the pid of every process."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def namespace_of(pid: int) -> int | None:
    """Return the number of the process's mount namespace, or None when it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return None


def label_of(pid: int) -> str | None:
    """Return the label of the container that the process is in, or None."""
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                fields, tail = left.split(), right.split()
                if fields[4] == "/" and len(tail) > 1 and tail[0] == "overlay" and tail[1].startswith(LABEL):
                    return tail[1]
    except (OSError, IndexError):
        pass
    return None


def in_namespace(number: int) -> list[int]:
    """Return the processes in the mount namespace with this number."""
    return [pid for pid in processes() if namespace_of(pid) == number]


def in_containers() -> dict[str, list[int]]:
    """Return the processes of every container of ours, by label."""
    own = namespace_of(os.getpid())
    labels: dict[int, str | None] = {}
    found: dict[str, list[int]] = {}
    for pid in processes():
        number = namespace_of(pid)
        if number is None or number == own:
            continue
        if number not in labels:
            labels[number] = label_of(pid)
        label = labels[number]
        if label is not None:
            found.setdefault(label, []).append(pid)
    return found


def kill(pid: int, namespace: int) -> None:
    """Kill the process if it is (still) in this mount namespace."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            # Asked again with the descriptor in hand: the pid may have been given to another process.
            if namespace_of(pid) == namespace:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def start_time(pid: int) -> int | None:
    """Return when the process started, in clock ticks after boot (field 22 of /proc/PID/stat), or None."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def stepds() -> dict[str, int]:
    """Return the pid of every slurmstepd of this node, by "JOB.STEP": it says in its title whose it is."""
    own = os.stat("/proc/self/ns/uts").st_ino
    found = {}
    for pid in processes():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read(256).split(b"\0")[0].decode("ascii", "replace")
            if title.startswith("slurmstepd: [") and os.stat(f"/proc/{pid}/ns/uts").st_ino == own:
                found[title[13:].partition("]")[0]] = pid
        except OSError:
            continue
    return found
