"""The slurmstepds of this node: root's process beside each step."""

from __future__ import annotations

import os
import re

from piolet.steps import identity
from piolet.system import processes

_TITLE = re.compile(r"slurmstepd: \[([A-Za-z0-9_+-]{1,60})\.([A-Za-z0-9_+-]{1,60})\]")


def title(cmdline: bytes) -> tuple[str, str] | None:
    """Return the job and the step in a process's title, None: it is not that of a slurmstepd. Anybody can take one."""
    match = _TITLE.match(cmdline.split(b"\0")[0].decode("ascii", "replace"))
    return None if match is None else (match[1], match[2])


def is_program(path: str) -> bool:
    """Return whether a program is called as slurmstepd is: distributions add to the name, as in slurmstepd-wlm."""
    return os.path.basename(path).startswith("slurmstepd")


def running() -> dict[str, int]:
    """Return the pid of every slurmstepd of this node, by "JOB.STEP": it says in its title whose it is.

    Anybody can take that title, so only root's, and only of a program of that name, are believed.
    """
    own = os.stat("/proc/self/ns/uts").st_ino
    found = {}
    for pid in processes.pids():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                said = title(file.read(256))
            if said is None or os.stat(f"/proc/{pid}").st_uid != 0:
                continue
            if is_program(os.readlink(f"/proc/{pid}/exe")) and os.stat(f"/proc/{pid}/ns/uts").st_ino == own:
                found[identity.name(said[0], identity.base(said[1]))] = pid
        except OSError:
            continue
    return found
