"""Control groups of a task: which there are, where they lie, and which step of Slurm they say that it belongs to.

Version 1 (several hierarchies, each with one or more controllers), version 2, and both at once. Where a hierarchy is
mounted says mountinfo: the name of a combined one, such as cpu,cpuacct, is another on each distribution.

Names of groups are believed where root made them: in a part that is delegated, a user may make `job_1/step_0`, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass

from piolet.base.errors import PioletError
from piolet.steps import identity

_NAME = re.compile(r"[A-Za-z0-9_+-]{1,60}")
_STEP, _JOB = "step_", "job_"
_LOOK_S = 0.001


@dataclass(frozen=True)
class Group:
    """A line of /proc/PID/cgroup: the controllers of version 1, none for version 2, and the path in the hierarchy."""

    controllers: tuple[str, ...]
    path: str


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy: version 2 or its controllers, the group that it begins with, and where it is."""

    controllers: tuple[str, ...]
    root: str
    point: str


def parse(text: str) -> list[Group]:
    """Return the groups in the text of a /proc/PID/cgroup."""
    found = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found.append(Group(tuple(filter(None, controllers.split(","))), path))
    return found


def of(pid: int) -> list[Group]:
    """Return the groups that the process is in. Raises OSError."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def mounts(text: str) -> list[Hierarchy]:
    """Return the hierarchies in the text of a mountinfo."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        options = tuple(tail[2].split(",")) if tail[0] == "cgroup" else ()
        found.append(Hierarchy(options, _plain(fields[3]), _plain(fields[4])))
    return found


def own_mounts() -> list[Hierarchy]:
    """Return the hierarchies that this process sees. Raises OSError."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return mounts(file.read())


def directory(group: Group, seen: Sequence[Hierarchy]) -> str | None:
    """Return where the group lies, or None: no mount shows it."""
    for mount in seen:
        if bool(mount.controllers) != bool(group.controllers) or not set(group.controllers) <= set(mount.controllers):
            continue
        base = mount.root.rstrip("/")
        if ".." in group.path.split("/") or not (group.path + "/").startswith(base + "/"):
            continue
        path = (mount.point + group.path[len(base) :]).rstrip("/")
        if os.path.isdir(path):
            return path
    return None


def in_step(group: Group) -> bool:
    """Return whether the path is that of a step."""
    return any(part.startswith(_STEP) for part in group.path.split("/"))


def in_job(group: Group) -> bool:
    """Return whether the path is that of a job, or of a step."""
    return any(part.startswith((_JOB, _STEP)) for part in group.path.split("/"))


def enter(groups: Sequence[Group], seen: Sequence[Hierarchy]) -> None:
    """Move this process into the groups. Raises PioletError: those of the step are not to be had."""
    for group in groups:
        where = directory(group, seen)
        try:
            if where is None:
                raise FileNotFoundError(2, "no mount shows it")
            with open(f"{where}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
        except OSError as error:
            if in_step(group):
                name = ",".join(group.controllers) or "version 2"
                raise PioletError(
                    f"the step's control group {group.path} ({name}) cannot be entered: {error.strerror}"
                ) from None


def of_task(stepd: int, within_s: float = 2.0) -> list[Group]:
    """Return the groups of a step, which are those of a task of it, once slurmstepd has forked one. Raises OSError.

    It announces a step before it makes the step's groups, one after the other, and forks the tasks when it has made
    them all; then it moves each task from its own groups to the task's.
    """
    end = time.monotonic() + within_s
    while True:
        late = time.monotonic() >= end
        tasks = children_of(stepd)
        if tasks or late:
            jobs = [group for group in of(stepd) if in_job(group)]
            groups = of(tasks[0]) if tasks else []
            if all(any(one.controllers == job.controllers and in_step(one) for one in groups) for job in jobs):
                return groups
            if late:
                return groups or jobs
        time.sleep(_LOOK_S)


def children_of(pid: int) -> list[int]:
    """Return the children of all threads of a process. Raises OSError."""
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def step_group(groups: Sequence[Group], job: str, step: str) -> str | None:
    """Return the directory of the step's group of version 2, if these groups are in it and root made it."""
    for group in groups:
        parts = group.path.split("/")
        for place in range(1, len(parts)):
            if not group.controllers and (parts[place - 1], identity.base(parts[place])) == (_JOB + job, _STEP + step):
                where = directory(Group((), "/".join(parts[: place + 1])), own_mounts())
                return where if where is not None and roots_own(where) else None
    return None


def kill(where: str) -> None:
    """Kill every process in the group at `where`, whatever it does meanwhile. Raises OSError."""
    with open(f"{where}/cgroup.kill", "w", encoding="ascii") as file:
        file.write("1")


def of_step(groups: Sequence[Group], seen: Sequence[Hierarchy]) -> list[tuple[str, str]]:
    """Return the directories of the step: for each controller of version 1 that it has a group of, '' for version 2.

    The step's is the first group on the way that is called so: it has its tasks' groups below it, and is root's.
    """
    found = []
    for group in groups:
        parts = group.path.split("/")
        steps = [number for number, part in enumerate(parts) if part.startswith(_STEP)]
        where = directory(Group(group.controllers, "/".join(parts[: steps[0] + 1])), seen) if steps else None
        if where is not None:
            found += [(name, where) for name in group.controllers or ("",)]
    return found


def step_of(groups: Sequence[Group], seen: Sequence[Hierarchy]) -> tuple[str, str | None] | None:
    """Return the job and the step whose groups these are; None where there are none, or where they do not agree.

    A job that has no number in the path (Slurm 26.05 puts its SLUID there) is called as it is called there.
    """
    found = {one for one in (_step_in(group, seen) for group in groups) if one is not None}
    return found.pop() if len(found) == 1 else None


def _step_in(group: Group, seen: Sequence[Hierarchy]) -> tuple[str, str | None] | None:
    parts = group.path.split("/")
    steps = [number for number, part in enumerate(parts) if part.startswith(_STEP)]
    jobs = [number for number, part in enumerate(parts) if part.startswith(_JOB)]
    at = steps[0] - 1 if steps else jobs[0] if jobs else 0
    if at < 1:
        return None
    step = parts[at + 1].removeprefix(_STEP) if steps else None
    job = parts[at].removeprefix(_JOB)
    if not all(_NAME.fullmatch(name) for name in (job, *([step] if step is not None else []))):
        return None
    for last in range(at, at + (2 if steps else 1)):
        where = directory(Group(group.controllers, "/".join(parts[: last + 1])), seen)
        if where is None or not roots_own(where):
            return None
    return job, step


def roots_own(path: str) -> bool:
    """Return whether root, and nobody else, may write there."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _plain(text: str) -> str:
    """Undo mountinfo's way of writing spaces and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
