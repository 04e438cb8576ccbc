"""The monitor's part in attaching: a step enters the container of another step of its job, by the same namespaces.

Who asks is what START of root's slurmstepd says, and whose the container is, too: user and job have to be the same. A
container of an earlier daemon is found by what root noted of it, never by a name that a mount or a process has: its
slurmstepd still runs (its number, and when it started), one of that one's tasks is in the two namespaces whose numbers
were noted, and the kernel says that the user made them. slurmstepd keeps both open, so no other has those numbers.

A step that attaches has descriptors of the namespaces in its queue, and its tasks may enter late: its user can hold
slurmstepd up. So a container that is over is emptied again and again for as long as such a step is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from piolet.base.errors import ContainerError
from piolet.node.requests import Announced, Answer, Attach
from piolet.node.root.endings import Endings, Remains
from piolet.node.root.state import Known
from piolet.node.root.steps import Step
from piolet.steps import hierarchies

_NS_GET_OWNER_UID = 0xB704
_AGAIN_S, _AGAIN_MAX_S = 0.05, 1.0


@dataclass(eq=False)
class _Attached:
    """A step in a container of another; `due` is when that is emptied again, once it is over. `user_ns` is ours."""

    of: Known
    user_ns: int
    due: float | None = None
    wait_s: float = _AGAIN_S


@dataclass
class _Earlier:
    """A step of an earlier daemon, and descriptors of its container's namespaces, once they were found again."""

    known: Known
    inside: tuple[int, ...] = ()


class Attachments:
    """The steps that are attached, by the server's key, and the steps of an earlier daemon."""

    def __init__(self, endings: Endings, clock: Callable[[], float]) -> None:
        self._endings = endings
        self._clock = clock
        self._attached: dict[int, _Attached] = {}
        self._earlier: dict[str, _Earlier] = {}

    def know(self, step: Known) -> None:
        """Note a step of an earlier daemon, which still runs."""
        self._earlier[step.step] = _Earlier(step)

    def take(self, order: Attach, who: Announced, target: Step | None) -> tuple[Answer, Sequence[int]]:
        """Return the answer to a step that wants to enter, and descriptors of the two namespaces.

        target  the step of that name which this daemon has built a container for, or None

        Raises ContainerError; the same for another user's step as for one that is not there. Raises OSError.
        """
        nothing = ContainerError(
            f"step {order.to} has no container on this node",
            "it is over, on other nodes, or was started without --environment: see scontrol show step",
        )
        if order.key in self._attached:
            raise ContainerError("the server used a number twice")
        if target is None:
            return self._take_earlier(order, who, self._earlier.get(order.to), nothing)
        if (target.who.uid, target.who.job) != (who.uid, who.job):
            raise nothing
        if not target.ready or target.remains is None:
            raise ContainerError(f"the container of step {order.to} is not ready yet", "try again in a moment")
        self._attached[order.key] = _Attached(target.remains.of, os.dup(target.remains.user_ns))
        return Answer(order.key, made_in=target.made_in, start=target.start), target.inside

    def _take_earlier(
        self, order: Attach, who: Announced, earlier: _Earlier | None, nothing: ContainerError
    ) -> tuple[Answer, Sequence[int]]:
        if earlier is None or (earlier.known.uid, earlier.known.step.partition(".")[0]) != (who.uid, str(who.job)):
            raise nothing
        known = earlier.known
        earlier.inside = earlier.inside or find_again(known)
        if not earlier.inside:
            raise ContainerError(
                f"the container of step {order.to} is not proved to be its own: pioletd was restarted since it began",
                "start a step of its own in the same environment: srun --overlap --environment=FILE",
            )
        self._attached[order.key] = _Attached(known, os.dup(earlier.inside[0]))
        return Answer(order.key, made_in=known.made_in, start=known.start), earlier.inside

    def end(self, key: int) -> None:
        """The step with this key is over, whether it was attached or not."""
        one = self._attached.pop(key, None)
        if one is None:
            return
        if one.due is None:
            os.close(one.user_ns)
        else:
            self._endings.empty(Remains(one.of, one.user_ns))

    def over(self, step: str) -> None:
        """A step is over, and its container is being emptied: so it is again, while others may still enter it."""
        earlier = self._earlier.pop(step, None)
        for descriptor in earlier.inside if earlier is not None else ():
            os.close(descriptor)
        for one in self._attached.values():
            if one.of.step == step and one.due is None:
                one.due = self._clock() + one.wait_s

    def next_due(self) -> float | None:
        """Return when `tick` has something to do."""
        return min((one.due for one in self._attached.values() if one.due is not None), default=None)

    def tick(self) -> None:
        """Empty the containers that are over again."""
        now = self._clock()
        for one in self._attached.values():
            if one.due is not None and now >= one.due:
                self._endings.empty(Remains(one.of, os.dup(one.user_ns)))
                one.wait_s = min(_AGAIN_MAX_S, 2 * one.wait_s)
                one.due = now + one.wait_s


def find_again(known: Known) -> tuple[int, ...]:
    """Return descriptors of a container's two namespaces; none: nothing proves which they are."""
    if not known.alive() or not known.user or not known.mounts:
        return ()
    with contextlib.suppress(OSError):
        for pid in hierarchies.children_of(known.peer):
            with contextlib.suppress(OSError):
                found = _namespaces(pid)
                numbers = tuple(os.fstat(one).st_ino for one in found)
                if numbers == (known.user, known.mounts) and _owner(found[0]) == known.uid and known.alive():
                    return found
                for descriptor in found:
                    os.close(descriptor)
    return ()


def _namespaces(pid: int) -> tuple[int, int]:
    process = os.open(f"/proc/{pid}/ns", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        user = os.open("user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        try:
            return user, os.open("mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        except OSError:
            os.close(user)
            raise
    finally:
        os.close(process)


def _owner(user_ns: int) -> int:
    """Return the user, as we see them, that made a user namespace."""
    return int(struct.unpack("=I", fcntl.ioctl(user_ns, _NS_GET_OWNER_UID, bytes(4)))[0])
