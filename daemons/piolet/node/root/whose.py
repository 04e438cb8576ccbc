"""Whose a process is that the kernel's log names by its number, as far as /proc and its control groups still tell.

A line is read some milliseconds after it was written: the process may be gone, and its number another's by then. So
this is a hint, and nobody where it cannot be known: where /proc hides it (hidepid), or where the process that has the
number is younger than the line. A process chooses its name, and none of the three lines that are read here. A user
with subordinate ids (subuid(5)) has processes of thousands of uids, which are no users: of these nobody is known.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass

from piolet.steps import hierarchies

_UID = re.compile(rb"^Uid:\t(\d{1,10})\t", re.MULTILINE)
_STEP = re.compile(r"[a-z0-9+]{1,60}")
_TICKS = os.sysconf("SC_CLK_TCK")
_EARLIER_S = 1.0  # by so much a process may seem younger than its line: both are rounded
_FILE_MAX = 64 * 1024
_SUBORDINATE_MAX = 4 << 20
SUBORDINATE = "/etc/subuid"


@dataclass(frozen=True)
class Whose:
    """Uid, job and step of a process; None and '': not known, as of a job whose number is not where its process is."""

    uid: int | None = None
    job: int | None = None
    step: str = ""


NOBODY = Whose()


def whose(pid: int, age: float, proc: str = "/proc", subordinate: str = SUBORDINATE) -> Whose:
    """Return whose the process `pid` is, of which a line spoke `age` seconds ago; NOBODY: that is not known."""
    try:
        directory = os.open(f"{proc}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return NOBODY
    try:
        # All of it is of the process that this directory is of: of one that is gone nothing can be read there.
        began = _began(_read(directory, "stat"))
        uid = _UID.search(_read(directory, "status"))
        if began is None or uid is None or time.clock_gettime(time.CLOCK_BOOTTIME) - began < age - _EARLIER_S:
            return NOBODY
        job, step = _step_of(_read(directory, "cgroup"))
        return Whose(None if is_subordinate(int(uid[1]), subordinate) else int(uid[1]), job, step)
    except OSError:
        return NOBODY
    finally:
        os.close(directory)


def is_subordinate(uid: int, path: str = SUBORDINATE) -> bool:
    """Return whether a uid is one of those that users have besides their own, as the file says that lists them."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_SUBORDINATE_MAX).splitlines()
    except OSError:
        return False
    ranges = (line.split(b":") for line in lines)
    return any(
        len(one) == 3 and one[1].isdigit() and one[2].isdigit() and 0 <= uid - int(one[1]) < int(one[2])
        for one in ranges
    )  # fmt: skip


def _read(directory: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(file, _FILE_MAX)
    finally:
        os.close(file)


def _began(stat: bytes) -> float | None:
    """Return when a process began, in seconds since boot; its name is what stands before the last bracket."""
    fields = stat[stat.rfind(b")") + 2 :].split()
    return int(fields[19]) / _TICKS if len(fields) > 19 and fields[19].isdigit() else None


def _step_of(text: bytes) -> tuple[int | None, str]:
    with contextlib.suppress(OSError, ValueError):
        groups = hierarchies.parse(text.decode("utf-8", "surrogateescape"))
        named = hierarchies.step_of(groups, hierarchies.own_mounts())
        if named is not None and named[0].isdecimal() and 0 < int(named[0]) < 2**32:
            step = (named[1] or "").lower()
            return int(named[0]), step if _STEP.fullmatch(step) else ""
    return None, ""
