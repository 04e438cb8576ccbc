"""The processes of a step, as its control groups and /proc have them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from piolet.api import Place

PROCESSES_MAX, GROUPS_MAX = 4096, 1024
SLURMSTEPD = "slurmstepd"


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says: `began` in clock ticks since boot."""

    name: str
    state: str
    parent: int
    began: int


class TooMany(ValueError):  # noqa: N818 - what a source says of it is a reason, and no error
    """A step has more processes, or groups, than are looked at."""


def pids_of(group: Path) -> set[int]:
    """Return the processes in a group and in those below it.

    Raises OSError: it is gone; TooMany: users may make groups below their step's, and as many as they like.
    """
    found: set[int] = set()
    for number, (top, _, _) in enumerate(os.walk(group)):
        if number >= GROUPS_MAX:
            raise TooMany(f"the step has more than {GROUPS_MAX} control groups")
        try:
            found |= set(map(int, Path(top, "cgroup.procs").read_text().split()))
        except OSError:  # a task's group, which has ended; one of version 2 with threads only cannot be read
            if top == str(group) and not group.is_dir():
                raise
        if len(found) > PROCESSES_MAX:
            raise TooMany(f"the step has more than {PROCESSES_MAX} processes")
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
