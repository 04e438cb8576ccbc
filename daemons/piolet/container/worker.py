"""The process that becomes the job's user and builds one container.

Forked by the monitor ahead of time, one for each step and node; it ends as soon as the monitor has opened its
namespaces. It leaves the monitor's mount namespace, where images are, before it has an order. Conversation, over a
socket pair: monitor Order, with the image's mount or file; worker "unshared"; monitor "mapped"; worker Built.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from piolet.base.errors import ContainerError, PioletError
from piolet.container import accounts, extras, folders, fuse, keeper, mountpoints, native, ownpages, plan, rootoverlay
from piolet.steps import hierarchies, jobnamespaces
from piolet.system import ldcache, linux, usernamespaces
from piolet.transport import packets
from piolet.transport.packets import MESSAGE_MAX

UNSHARED, MAPPED = b"unshared", b"mapped"
_TEXT_MAX = 900
_ROOM = 120_000  # glibc gives back more than 128 KiB
_CODE = (native, plan, folders, mountpoints, accounts, extras, packets, linux, ldcache)


@dataclass(frozen=True)
class Means:
    """What every worker builds with, from the monitor's own configuration: a directory, two programs, and `piolet`."""

    scratch: str
    crun: str
    squashfuse: str
    program: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerOrder:
    """What the monitor gives a worker: who it becomes, and what it builds.

    stepd   the slurmstepd of the step whose control groups it enters, or 0
    served  the image comes as an open file, which squashfuse is to serve, and not as a mount
    label   the name of the container's root, where root is to mount its overlay (rootoverlay.py); or ''
    helped  users may make no user namespace here: this one keeps CAP_SYS_ADMIN until it has
    own     the job has a mount namespace of its own, which comes as a descriptor, after the image's
    """

    uid: int
    gid: int
    groups: list[int]
    stepd: int
    plan: str
    means: Means
    served: bool = False
    label: str = ""
    helped: bool = False
    own: bool = False


@dataclass(frozen=True)
class Built:
    """The worker's answer: `error` is empty if the container stands. It is the user's word.

    `start` is where tasks start, of the plan's directories; empty where it has none of them.
    `marks` are [name, monotonic seconds] of when each phase was over: where the time of a step's start goes.
    """

    error: str = ""
    hint: str = ""
    marks: list[tuple[str, float]] = field(default_factory=list)
    start: str = ""


class Marks:
    """When each phase of the building was over."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, float]] = []

    def add(self, name: str) -> None:
        """Note that the phase `name` is over."""
        self.taken.append((name, time.monotonic()))


def get_ready() -> None:
    """Do in the monitor what each of its workers would have to do otherwise."""
    packets.learn(WorkerOrder, Built, plan.ContainerPlan)


def _take_pages() -> None:
    """Do in a waiting worker what copies the memory that an order will have it touch."""
    ownpages.copy((*_CODE, sys.modules[__name__]))
    mount = plan.PlannedMount("/a", "/b", flags=("ro",))
    folder = plan.PlannedFolder("/a", "/b", ("c",), (("d", "c"),), ("c",))
    text = plan.ContainerPlan("", mounts=(mount,), folders=(folder,), links=(("/d", "c"),)).to_json()
    none = WorkerOrder(0, 0, [0], 0, text, Means("", "", ""))
    plan.from_json(packets.decode(WorkerOrder, packets.encode(none)).plan)
    packets.encode(Built(marks=[("", 0.0)]))
    bytearray(b"x") * _ROOM  # freed at once, and so in the heap
    ldcache.extended(ldcache.extended(b"", [("a.so.1", "/a", False)], "x86_64"), [("b.so.2", "/b", False)], "x86_64")


def send_order(channel: socket.socket, order: WorkerOrder, image: int | None, namespace: int | None) -> None:
    """Give a waiting worker its order, with the image's detached mount or its file, and the job's namespace if any."""
    packets.send(channel, packets.encode(order), [one for one in (image, namespace) if one is not None])


def run(monitor: socket.socket, namespace: int, ahead: bool) -> None:
    """Wait for an order in a fresh child of the monitor, and carry it out. Never returns.

    `namespace` is a descriptor of the mount namespace to build in: the node's mounts, and no image. `ahead`: there is
    no order yet.
    """
    status = 1
    try:
        linux.set_name("pioletd-worker")
        linux.setns(namespace, linux.CLONE_NEWNS)
        linux.leave_keyring()
        if ahead:
            _take_pages()
        packet = packets.receive(monitor, 2 * MESSAGE_MAX, 2)
        if not packet.data:
            os._exit(0)
        order = packets.decode(WorkerOrder, packet.data)
        try:
            image, kind = _prepare(order, packet.descriptors, namespace)
        except PioletError as error:
            monitor.send(packets.encode(Built(error.message[:_TEXT_MAX], (error.hint or "")[:_TEXT_MAX])))
            raise
        linux.become(order.uid, order.gid, order.groups, administrator=order.helped, keyring=False)
        # The change of user has cleared it.
        linux.die_with_parent(signal.SIGKILL)
        linux.no_new_privileges()
        marks = Marks()
        marks.add("become the user")
        why, hint, start = _build(order, image, kind, monitor, marks)
        monitor.send(packets.encode(Built(why[:_TEXT_MAX], hint[:_TEXT_MAX], marks.taken, start)))
        # The monitor closes its end when it holds the namespaces.
        monitor.recv(16)
        status = 0
    except (OSError, PioletError):
        pass
    finally:
        os._exit(status)


def _prepare(order: WorkerOrder, descriptors: list[int], namespace: int) -> tuple[int | None, str]:
    """Do what is root's to do, who has read nothing of the user's; return what the image comes as. Raises PioletError.

    `namespace` leads to the mount namespace that this process is in, and is closed.
    """
    kind, what = native.FILE if order.served else native.MOUNT, "enter the step's control groups"
    try:
        if order.stepd:
            hierarchies.enter(hierarchies.of_task(order.stepd), hierarchies.own_mounts())
        if order.own:
            what, own = "enter the job's mount namespace", descriptors.pop()
            os.close(namespace)
            namespace = jobnamespaces.enter(own, order.means.scratch)
            os.close(own)
        image = descriptors[0] if descriptors else None
        if image is not None and order.label:
            what, mount = "mount the container's overlay", image
            image = rootoverlay.make(mount, (order.uid, order.gid), order.label, order.means.scratch, namespace)
            kind = native.ROOT
            os.close(mount)
        os.close(namespace)
        return image, kind
    except OSError as error:
        raise ContainerError(f"cannot {what}: {error.strerror} ({error.filename})") from None


def _build(
    order: WorkerOrder, image: int | None, kind: str, monitor: socket.socket, marks: Marks
) -> tuple[str, str, str]:
    """Build the container; return an error, empty if it stands, a hint, and where tasks start."""
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        mounter = None
        marks.add("unshare")
        monitor.send(UNSHARED)
        todo = plan.from_json(order.plan)  # while the monitor writes the maps
        if monitor.recv(16) != MAPPED:
            sys.exit(1)
        marks.add("map ids")
        if order.served or todo.sqsh is not None or any(mount.kind == "sqsh" for mount in todo.mounts):
            mounter = fuse.Mounter(order.means.squashfuse)
        kept = None if todo.save is None else keeper.Keeper(order.means.program)
        linux.unshare(linux.CLONE_NEWNS)
        start = native.build(todo, image, kind, order.means.scratch, order.means.crun, mounter, marks.add)
        if kept is not None and todo.save is not None:
            kept.hand_over(todo.save)
    except PioletError as error:
        return error.message, error.hint or "", ""
    except OSError as error:
        hint = usernamespaces.hint() if error.filename == "unshare" else ""
        return f"cannot build the container: {error.strerror} ({error.filename})", hint, ""
    return "", "", start
