"""The control groups that Slurm has made for a step, as the kernel names them in /proc/PID/cgroup.

Slurm's plugins call a step's group `step_N`, below its job's, in every hierarchy that they use. Where they make none
(proctrack/linuxproc) there is nothing to enter, and nothing of the step's to end.
"""

from __future__ import annotations

import os

_ROOT = "/sys/fs/cgroup"
_STEP = "step_"

Group = tuple[str, str]
"""The controllers of a hierarchy, separated by commas and '' for version 2; the path of a group in it."""


def of(pid: int) -> list[Group]:
    """Return the groups that the process is in, one a hierarchy. Raises OSError."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        fields = [line.rstrip("\n").split(":", 2) for line in file]
    return [(one[1], one[2]) for one in fields if len(one) == 3]


def of_steps(groups: list[Group]) -> list[Group]:
    """Return those that are in a step's group."""
    return [group for group in groups if any(part.startswith(_STEP) for part in group[1].split("/"))]


def directory(group: Group) -> str | None:
    """Return the group's directory, or None where its hierarchy is not mounted as usual."""
    controllers, path = group
    name = controllers.removeprefix("name=")
    if not name:
        places = [f"{_ROOT}{path}"] if os.path.exists(f"{_ROOT}/cgroup.procs") else [f"{_ROOT}/unified{path}"]
    else:
        places = [f"{_ROOT}/{one}{path}" for one in (name, *name.split(","))]
    return next((place for place in places if os.path.isdir(place)), None)


def enter(groups: list[Group]) -> None:
    """Move this process into the groups. Raises OSError: one of them is gone, or takes no process."""
    for group in groups:
        place = directory(group)
        if place is not None:
            with open(f"{place}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")


def open_step(groups: list[Group], job: int) -> int | None:
    """Return a descriptor of the step's group of version 2, which stays that group's; None where there is none.

    Only below a group of that job, so that a number that was used again cannot lead to another's.
    """
    for group in groups:
        parts = group[1].split("/")
        steps = [place for place, part in enumerate(parts) if part.startswith(_STEP)]
        if group[0] == "" and steps and f"job_{job}" in parts[: steps[0]]:
            place = directory(("", "/".join(parts[: steps[0] + 1])))
            if place is not None and os.path.exists(f"{place}/cgroup.kill"):
                return os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return None


def kill(step: int) -> None:
    """Kill every process in the step's group, at once and whatever it does meanwhile. Raises OSError."""
    switch = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=step)
    try:
        os.write(switch, b"1")
    finally:
        os.close(switch)
