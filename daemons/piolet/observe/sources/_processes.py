"""The processes of a step, as its control groups and /proc have them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from piolet.api import Place

PROCESSES_MAX = 4096
SLURMSTEPD = "slurmstepd"


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says: `began` in clock ticks since boot."""

    name: str
    state: str
    parent: int
    began: int


def pids_of(group: Path) -> set[int]:
    """Return the processes in a group and in those below it. Raises OSError: it is gone."""
    found: set[int] = set()
    for top, _, _ in os.walk(group):
        try:
            found |= set(map(int, Path(top, "cgroup.procs").read_text().split()))
        except OSError:  # a task's group, which has ended; one of version 2 with threads only cannot be read
            if top == str(group) and not group.is_dir():
                raise
    return found


def stat_of(place: Place, pid: int) -> Stat | None:
    """Return what the kernel says of a process; None: it has ended, or may not be seen."""
    try:
        text = place.text(f"/proc/{pid}/stat")
        # The name may have any byte but is followed by the last parenthesis.
        left, _, right = text.rpartition(")")
        fields = right.split()
        return Stat(left.partition("(")[2], fields[0], int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def is_roots(place: Place, pid: int) -> bool:
    """Return whether a process is root's. One that a user started may be called as any other."""
    try:
        return os.stat(f"{place.root}/proc/{pid}").st_uid == 0
    except OSError:
        return False
