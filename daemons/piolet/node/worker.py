"""The process that becomes the job's user and builds one container.

Forked by the monitor for each step and node; it ends as soon as the monitor has opened its namespaces.
Conversation, over a socket pair: worker "unshared"; monitor "mapped"; worker {"ok": true} or an error.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import dataclass

from piolet.errors import PioletError
from piolet.node import container, fuse, linux, plan

UNSHARED, MAPPED = b"unshared", b"mapped"


@dataclass(frozen=True)
class Order:
    """What the monitor gives a worker: who it becomes, and what it builds."""

    uid: int
    gid: int
    groups: list[int]
    plan: str
    scratch: str
    image: int | None


def run(order: Order, monitor: socket.socket) -> None:
    """Carry out the order in a fresh child of the monitor. Never returns."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        keep = {monitor.fileno()} | ({order.image} if order.image is not None else set())
        linux.close_all_but(keep)
        linux.become(order.uid, order.gid, order.groups)
        linux.die_with_parent(signal.SIGKILL)
        linux.no_new_privileges()
        answer = _build(order, monitor)
        monitor.send(json.dumps(answer).encode())
        # The monitor closes its end when it holds the namespaces.
        monitor.recv(16)
        status = 0
    except OSError:
        pass
    finally:
        os._exit(status)


def _build(order: Order, monitor: socket.socket) -> dict[str, object]:
    try:
        todo = plan.from_json(order.plan)
        mounter = None
        if todo.sqsh is not None or any(mount.kind == "sqsh" for mount in todo.mounts):
            mounter = fuse.Mounter(todo.squashfuse)
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        monitor.send(UNSHARED)
        if monitor.recv(16) != MAPPED:
            sys.exit(1)
        container.build(todo, order.image, order.scratch, mounter)
    except PioletError as error:
        return {"error": error.message, "hint": error.hint or ""}
    except OSError as error:
        hint = "user namespaces may be switched off: sysctl user.max_user_namespaces"
        return {"error": f"cannot build the container: {error.strerror} ({error.filename})", "hint": hint}
    return {"ok": True}
