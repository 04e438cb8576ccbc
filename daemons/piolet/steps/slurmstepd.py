"""The slurmstepds of this node: root's process beside each step."""

from __future__ import annotations

import os

from piolet.system import processes


def running() -> dict[str, int]:
    """Return the pid of every slurmstepd of this node, by "JOB.STEP": it says in its title whose it is.

    Anybody can take that title, so only root's, and only of a program of that name, are believed.
    """
    own = os.stat("/proc/self/ns/uts").st_ino
    found = {}
    for pid in processes.pids():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read(256).split(b"\0")[0].decode("ascii", "replace")
            if not title.startswith("slurmstepd: [") or os.stat(f"/proc/{pid}").st_uid != 0:
                continue
            # Distributions add to the name: slurmstepd-wlm.
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            if program.startswith("slurmstepd") and os.stat(f"/proc/{pid}/ns/uts").st_ino == own:
                found[title[13:].partition("]")[0]] = pid
        except OSError:
            continue
    return found
