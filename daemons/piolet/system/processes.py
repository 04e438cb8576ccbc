"""Processes of this machine, by their numbers in /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator


def pids() -> Iterator[int]:
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


def start_time(pid: int) -> int | None:
    """Return when the process started, in clock ticks after boot (field 22 of /proc/PID/stat), or None."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
