"""A running container's own root, without what is mounted in it: to be read, by its user.

The kernel lets a user enter the user namespace that they made, and gives nobody else's away: /proc/PID/ns of another
user's process cannot be opened, and a namespace that another has made not be joined.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from dataclasses import dataclass

from piolet.base.errors import ContainerError
from piolet.container import labels
from piolet.system import linux
from piolet.transport import packets

_POINTS_MAX = 4 << 20
_ANSWER_S = 10.0


@dataclass(frozen=True)
class View:
    """A detached mount of the root, and the places where something is mounted that is no directory.

    below  what is mounted in it comes along: an OCI runtime has locked it together
    """

    tree: int
    points: tuple[str, ...]
    below: bool = False


@dataclass(frozen=True)
class Seen:
    """What of a view travels beside the mount's descriptor."""

    points: list[str]
    below: bool


def here() -> View:
    """Return the view of the container that this process is in, with every capability there. Raises OSError."""
    try:
        return View(linux.clone_tree("/", recursive=False), tuple(mount_points()))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return View(linux.clone_tree("/"), tuple(mount_points()), True)


def mount_points() -> list[str]:
    """Return where something is mounted that is no directory; nothing where /proc does not say."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        places = [line.split(" ", 5)[4] for line in file]
        plain = (re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place) for place in places)
        return [place for place in plain if not os.path.isdir(place)]
    return []


def find(step: str, place: str) -> int:
    """Return a process of the caller's in the container of "JOB.STEP" on this node; `place` as in labels.

    Raises ContainerError: there is none.
    """
    label, node = labels.label(step, place), place.partition(".")[0]
    for pid in labels.in_containers().get(label, []):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                return pid
    raise ContainerError(
        f"no process of yours runs in a container of step {step} on {node}",
        "the step has ended, has no environment, does not run on this node, or is another user's",
    )


def of(pid: int) -> View:
    """Enter the user namespace of the container that the process is in, and return the view of it.

    This process is in that namespace afterwards, with every capability there, and where it was otherwise.

    Raises ContainerError: it is another user's, or has ended.
    """
    try:
        user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        linux.setns(user, linux.CLONE_NEWUSER)
    except OSError as error:
        raise ContainerError(f"the container of process {pid} cannot be entered: {error.strerror}") from None
    ours, theirs = linux.message_pair(_POINTS_MAX)
    ours.settimeout(_ANSWER_S)
    with ours, theirs:
        child = os.fork()
        if child == 0:
            _look(mounts, theirs)
        theirs.close()
        os.close(mounts)
        try:
            packet = packets.receive(ours, _POINTS_MAX, 1)
        except OSError as error:
            raise ContainerError(f"the container's root cannot be had: {error}") from None
        finally:
            os.waitpid(child, 0)
    if not packet.descriptors:
        why = packet.data.decode("utf-8", "replace") or "the kernel does not say why"
        raise ContainerError(f"the container's root cannot be had: {why}")
    seen = packets.decode(Seen, packet.data)
    return View(packet.descriptors[0], tuple(seen.points), seen.below)


def _look(mounts: int, channel: socket.socket) -> None:
    """In a child: go to the container's mounts, and send what is to be seen. Never returns."""
    try:
        linux.setns(mounts, linux.CLONE_NEWNS)
        view = here()
        told = {"points": view.points, "below": view.below}
        packets.send(channel, packets.encode(told), [view.tree])
    except OSError as error:
        channel.send((error.strerror or "error").encode())
    finally:
        os._exit(0)
