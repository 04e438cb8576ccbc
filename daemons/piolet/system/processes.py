"""Processes of this machine, by their numbers in /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says of a process: a letter for its state, its parent, and when it started.

    That is in the kernel's clock ticks since the boot, and tells a process from the next one with its number.
    """

    state: str
    parent: int
    started: int


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


def stat(pid: int) -> Stat:
    """Return what the kernel says of the process. Raises OSError: it is gone."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The program's name comes first, in brackets, and may have blanks and brackets of its own.
        fields = file.read().rpartition(b")")[2].split()
    try:
        return Stat(fields[0].decode("ascii"), int(fields[1]), int(fields[19]))
    except (IndexError, ValueError):
        raise ProcessLookupError(3, "No such process") from None


def start_time(pid: int) -> int | None:
    """Return when the process started, in clock ticks since the boot; None: it is gone."""
    try:
        return stat(pid).started
    except OSError:
        return None


def still_runs(pid: int, started: int | None) -> bool:
    """Return whether the process is the one that started then; one of which that is not known is none."""
    return started is not None and start_time(pid) == started
