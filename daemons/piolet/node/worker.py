"""The process that becomes the job's user and builds one container.

Forked by the monitor ahead of time, one for each step and node; it ends as soon as the monitor has opened its
namespaces. Conversation, over a socket pair: monitor order, with the image's mount; worker "unshared"; monitor
"mapped"; worker {"ok": true} or an error. With it go marks, [name, monotonic seconds], of when each phase was
over: where the time of a step's start goes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass

from piolet.errors import PioletError
from piolet.node import container, fuse, linux, plan
from piolet.node.requests import MESSAGE_MAX

NO_NAMESPACE_HINT = "user namespaces may be switched off, or used up: sysctl user.max_user_namespaces"
UNSHARED, MAPPED = b"unshared", b"mapped"


@dataclass(frozen=True)
class Means:
    """What every worker builds with, from the monitor's own configuration: a directory, and two programs."""

    scratch: str
    crun: str
    squashfuse: str


@dataclass(frozen=True)
class Order:
    """What the monitor gives a worker: who it becomes, and what it builds."""

    uid: int
    gid: int
    groups: list[int]
    plan: str
    means: Means


class Marks:
    """When each phase of the building was over."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, float]] = []

    def add(self, name: str) -> None:
        """Note that the phase `name` is over."""
        self.taken.append((name, time.monotonic()))


def send_order(channel: socket.socket, order: Order, image: int | None) -> None:
    """Give a waiting worker its order, with the image's detached mount."""
    socket.send_fds(channel, [json.dumps(asdict(order)).encode()], [] if image is None else [image])


def run(monitor: socket.socket) -> None:
    """Wait for an order in a fresh child of the monitor, and carry it out. Never returns."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        linux.set_name("pioletd-worker")
        linux.die_with_parent(signal.SIGKILL)
        linux.close_all_but({monitor.fileno()})
        data, descriptors, _, _ = socket.recv_fds(monitor, 2 * MESSAGE_MAX, 1)
        if not data:
            os._exit(0)
        said = json.loads(data)
        order = Order(**{**said, "means": Means(**said["means"])})
        linux.become(order.uid, order.gid, order.groups)
        # The change of user has cleared it.
        linux.die_with_parent(signal.SIGKILL)
        linux.no_new_privileges()
        marks = Marks()
        marks.add("become the user")
        answer = _build(order, descriptors[0] if descriptors else None, monitor, marks)
        answer["marks"] = marks.taken
        monitor.send(json.dumps(answer).encode())
        # The monitor closes its end when it holds the namespaces.
        monitor.recv(16)
        status = 0
    except OSError:
        pass
    finally:
        os._exit(status)


def _build(order: Order, image: int | None, monitor: socket.socket, marks: Marks) -> dict[str, object]:
    try:
        todo = plan.from_json(order.plan)
        mounter = None
        linux.unshare(linux.CLONE_NEWUSER)
        marks.add("unshare")
        monitor.send(UNSHARED)
        if monitor.recv(16) != MAPPED:
            sys.exit(1)
        marks.add("map ids")
        if todo.sqsh is not None or any(mount.kind == "sqsh" for mount in todo.mounts):
            mounter = fuse.Mounter(order.means.squashfuse)
        linux.unshare(linux.CLONE_NEWNS)
        container.build(todo, image, order.means.scratch, order.means.crun, mounter, marks.add)
    except PioletError as error:
        return {"error": error.message, "hint": error.hint or ""}
    except OSError as error:
        hint = NO_NAMESPACE_HINT if error.filename == "unshare" else ""
        return {"error": f"cannot build the container: {error.strerror} ({error.filename})", "hint": hint}
    return {"ok": True}
