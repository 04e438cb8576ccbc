"""Finds and ends what still runs in a container after its step.

A container is its user namespace: no process can leave it upwards, whatever it forks, mounts or unshares. The monitor
holds it from the moment that it is made. After a restart of the daemon it is found by the label of its root mount.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal

from piolet.container import labels
from piolet.steps import hierarchies, identity
from piolet.system import children, linux, processes
from piolet.system.children import Child

_NS_GET_PARENT = 0xB702
# Users and groups with the highest bit set are nobody's. A killer's own pid makes its user its own, too: otherwise
# two that are at work at one time could kill each other.
_NOBODY_AT_ALL = 0x80000000


def start_killing(user_ns: int, by_force: bool = False, step: str | None = None) -> Child:
    """Kill everything in the user namespace behind the descriptor and in those below it, at once.

    Returns the child that does it; its status is 0 if the call was made. kill(-1) walks the processes under the lock
    that fork needs, so that not even a storm of forks gets away. Whom it reaches the kernel decides: the child belongs
    to a user without processes, and has capabilities in that namespace only. There it can be killed by the user whose
    namespace it is; `by_force` kills as root from outside before that whoever is seen to be in there, and with `step`
    ("JOB.STEP", whose slurmstepd has ended) all in the control group (version 2) of that step that one of them is in.
    """
    monitor = os.getpid()
    child = children.fork({user_ns})
    if child is not None:
        return child
    status = 1
    try:
        if by_force:
            _kill_seen(user_ns, step)
        linux.keep_capabilities()
        own = _NOBODY_AT_ALL | os.getpid()
        os.setgroups([])
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)
        # What comes now is short: from here on the user can kill this process.
        linux.setns(user_ns, linux.CLONE_NEWUSER)
        if not _may_signal(1) and not _may_signal(monitor):
            os.kill(-1, signal.SIGKILL)
            status = 0
    except ProcessLookupError:
        status = 0  # nobody was left
    finally:
        os._exit(status)


def _kill_seen(user_ns: int, step: str | None = None) -> None:
    """Kill every process that is seen to be in the user namespace or below it: not all, if they fork fast."""
    wanted = os.fstat(user_ns).st_ino
    if wanted == os.stat("/proc/self/ns/user").st_ino:
        raise PermissionError("that is the node's own user namespace")
    for pid in processes.pids():
        with contextlib.suppress(OSError):
            process = os.pidfd_open(pid)
            try:
                # Looked at after it is held: the number may have become another's before.
                if _is_below(pid, wanted):
                    if step is not None:
                        _kill_group(pid, step)
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)


def _kill_group(pid: int, step: str) -> None:
    """Kill all in the step's control group, if it is of version 2 and the process is in it."""
    where = hierarchies.step_group(hierarchies.of(pid), *identity.parts(step))
    if where is not None:
        with contextlib.suppress(FileNotFoundError):  # before Linux 5.14 there is no such switch
            hierarchies.kill(where)


def _is_below(pid: int, wanted: int) -> bool:
    """Return whether the process is in the user namespace with the number `wanted`, or in one below it."""
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.fstat(namespace).st_ino != wanted:
            parent = fcntl.ioctl(namespace, _NS_GET_PARENT)  # EPERM above our own
            os.close(namespace)
            namespace = parent
        return True
    finally:
        os.close(namespace)


def _may_signal(pid: int) -> bool:
    """Return whether this process could kill `pid`: the proof that its capabilities stayed behind."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    return True


def user_namespaces(label: str, pids: list[int]) -> list[int]:
    """Return a descriptor for each user namespace below our own that one of the processes with this label is in."""
    seen = {os.stat("/proc/self/ns/user").st_ino}
    found = []
    for pid in pids:
        try:
            descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        number = os.fstat(descriptor).st_ino
        # Its number may have become another process's since it was found; that one has another label.
        if number in seen or labels.label_of(pid) != label:
            os.close(descriptor)
            continue
        seen.add(number)
        found.append(descriptor)
    return found
