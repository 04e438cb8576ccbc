"""The process that a vet step runs on a node, as the kernel knows it: its user, its surroundings, its job and step.

Root's processes look at it, since the server may not. What is told of it is the kernel's word or root's; what a user
could have written is not believed: a control group that root did not make, a process that calls itself slurmstepd.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from piolet.base.errors import PioletError
from piolet.node.vetting import CGROUP, SLURMSTEPD, UNKNOWN
from piolet.steps import hierarchies, slurmstepd
from piolet.system import peer

_log = logging.getLogger("pioletd.zygote")

_ANCESTORS_MAX = 64
_LIMITS = {
    "Max address space": resource.RLIMIT_AS,
    "Max core file size": resource.RLIMIT_CORE,
    "Max cpu time": resource.RLIMIT_CPU,
    "Max data size": resource.RLIMIT_DATA,
    "Max file size": resource.RLIMIT_FSIZE,
    "Max locked memory": resource.RLIMIT_MEMLOCK,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max processes": resource.RLIMIT_NPROC,
    "Max stack size": resource.RLIMIT_STACK,
}


@dataclass(frozen=True)
class TaskProcess:
    """A process of a vet step, as /proc knows it."""

    pid: int
    uid: int
    gid: int
    groups: list[int]
    parent: int
    cgroups: list[hierarchies.Group]
    environment: dict[str, str]
    limits: dict[str, tuple[int, int]]
    oom: int
    directory: int


@dataclass(frozen=True)
class Membership:
    """The job and step that a task belongs to, and what says so: CGROUP, SLURMSTEPD or UNKNOWN."""

    job: str | None
    step: str | None
    found: str


def of_connection(channel: socket.socket, listener: peer.File) -> tuple[TaskProcess, Membership]:
    """Return the process that made the connection, and where it belongs. Raises PioletError and OSError."""
    pid, uid, _ = peer.of_accepted(channel, listener)
    process = peer.pidfd_of(channel, pid)
    try:
        task = look_up(pid, uid)
        place = place_of(task, hierarchies.own_mounts())
        # Everything was read by number. If the process still lives, the number was its own.
        if select.select([process], [], [], 0)[0]:
            raise PioletError("the task that asked is gone")
        return task, place
    finally:
        os.close(process)


def look_up(pid: int, uid: int) -> TaskProcess:
    """Return what /proc says of the process, which must be this user's. Raises PioletError."""
    try:
        process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise PioletError("the task that asked is gone") from None
    base = f"/proc/self/fd/{process}"
    try:
        status = _status(base)
        with open(f"{base}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            groups = hierarchies.parse(file.read())
        # Anybody may read this; prlimit(2) of another user's process needs CAP_SYS_RESOURCE.
        with open(f"{base}/limits", encoding="ascii") as file:
            limits = {line[:25].rstrip(): _limit(line[25:].split()) for line in file if line[:25].rstrip() in _LIMITS}
        with open(f"{base}/environ", "rb") as raw:
            entries = [entry.partition(b"=") for entry in raw.read(4 << 20).split(b"\0") if entry.find(b"=") > 0]
        with open(f"{base}/oom_score_adj", encoding="ascii") as file:
            oom = int(file.read())
        directory = os.open(f"{base}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PioletError(f"the task that asked cannot be looked at: {error.strerror}") from None
    finally:
        os.close(process)
    # All four ids: a process that is changing its user is not to be taken for either.
    if set(map(int, status["Uid"].split())) != {uid}:
        raise PioletError("the task that asked is another user's by now")
    gids = set(map(int, status["Gid"].split()))
    if len(gids) != 1:
        raise PioletError("the task that asked has more than one primary group")
    environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in entries}
    supplementary = list(map(int, status["Groups"].split()))
    parent = int(status["PPid"])
    return TaskProcess(pid, uid, gids.pop(), supplementary, parent, groups, environment, limits, oom, directory)


def _status(base: str) -> dict[str, str]:
    with open(f"{base}/status", encoding="utf-8", errors="replace") as file:
        return dict(line.split(":", 1) for line in file if ":" in line)


def place_of(task: TaskProcess, seen: Sequence[hierarchies.Hierarchy]) -> Membership:
    """Return the job and step of the task: from its control group, else from the slurmstepd that it descends from."""
    named = hierarchies.step_of(task.cgroups, seen)
    if named is not None:
        return Membership(*named, CGROUP)
    title = _stepd_above(task.pid, task.parent)
    return Membership(None, None, UNKNOWN) if title is None else Membership(*title, SLURMSTEPD)


def _stepd_above(pid: int, parent: int) -> tuple[str, str] | None:
    """Return job and step in the title of the nearest ancestor that is root's slurmstepd on this node.

    A process whose parent ended descends from another; that its parent is still the same when that has been opened
    says that it was the parent who was opened.
    """
    child = pid
    for _ in range(_ANCESTORS_MAX):
        if parent <= 1:
            return None
        with contextlib.suppress(OSError, KeyError, ValueError):
            process = os.open(f"/proc/{parent}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                base = f"/proc/self/fd/{process}"
                title, status = _stepd_title(base), _status(base)
                if int(_status(f"/proc/{child}")["PPid"]) != parent:
                    return None
                if title is not None:
                    return title
                child, parent = parent, int(status["PPid"])
                continue
            finally:
                os.close(process)
        return None
    return None


def _stepd_title(base: str) -> tuple[str, str] | None:
    """Return job and step if the process is root's slurmstepd, of a program that is root's."""
    # The real user: that of a program with the setuid bit is the user who started it. Nothing is read of the memory of
    # a user's process, which may be a file of theirs that hangs.
    if _status(base)["Uid"].split()[0] != "0":
        return None
    with open(f"{base}/cmdline", "rb") as file:
        said = slurmstepd.title(file.read(256))
    if said is None:
        return None
    program = slurmstepd.is_program(os.readlink(f"{base}/exe"))  # of a package that was updated, a deleted file
    roots = os.stat(f"{base}/exe").st_uid == 0
    here = os.stat(f"{base}/ns/uts").st_ino == os.stat("/proc/self/ns/uts").st_ino
    return said if roots and here and program else None


def adopt(task: TaskProcess) -> None:
    """Enter the task's control groups, and take over its CPUs, niceness and resource limits.

    Raises PioletError: the control groups of its step cannot be entered.
    """
    hierarchies.enter(task.cgroups, hierarchies.own_mounts())
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(task.pid))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, task.pid))
    # Where memory ends, a vetting is no more worth than its step, whatever pioletd is.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(task.oom))
    for name, pair in task.limits.items():
        try:
            resource.setrlimit(_LIMITS[name], pair)
        except (OSError, ValueError):
            _log.warning("a vetting has not the step's limit '%s': pioletd lacks CAP_SYS_RESOURCE", name.lower())


def _limit(words: list[str]) -> tuple[int, int]:
    soft, hard = (resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in words[:2])
    return soft, hard
