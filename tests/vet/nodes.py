"""A vetting of several nodes on this machine: a process for each, pipes in the place of Slurm."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from piolet.api import Context
from piolet.vet.coordinator import Coordinator
from piolet.vet.runner import runner, session
from piolet.vet.runner.plan import HOST, Plan
from piolet.vet.verdicts import Decision

TOKEN = b"0123456789abcdef-for-tests"
Work = Callable[[str, int, int], None]


@dataclass
class Node:
    """One node's process and the pipes to and from it."""

    name: str
    pid: int
    into: int
    out: int
    data: bytes = field(default=b"")


def start(name: str, work: Work) -> Node:
    """Fork a node that does `work(name, in_fd, out_fd)`."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(in_write)
            os.close(out_read)
            work(name, in_read, out_write)
        finally:
            os._exit(0)
    os.close(in_read)
    os.close(out_write)
    return Node(name, pid, in_write, out_read)


def take_part(plan: Plan, shared: str = "", scratch: str = "/tmp") -> Work:
    """Return the work of a node that takes part as pioletd's worker does."""

    def work(name: str, in_fd: int, out_fd: int) -> None:
        context = Context(name, time.monotonic() + 60, uid=os.getuid(), environ=dict(os.environ), scratch=scratch)
        place = session.Place("127.0.0.1", TOKEN, shared)
        session.serve(plan, HOST, context, place, in_fd, functools.partial(runner.write_all, out_fd))

    return work


def vet(plan: Plan, nodes: Sequence[Node], within_s: float = 40.0) -> Decision:
    """Lead the vetting to its end and return what it comes to; the nodes' processes are gone then."""
    leader = Coordinator(plan, [node.name for node in nodes], time.monotonic)
    open_ones = {node.out: node for node in nodes}
    end = time.monotonic() + within_s
    try:
        while not leader.done:
            assert time.monotonic() < end, "the vetting does not end"
            leader.advance()
            for order in leader.orders():
                for node in open_ones.values():
                    with contextlib.suppress(BrokenPipeError):
                        runner.write_all(node.into, order)
            if leader.done:
                break
            wait = max(0.0, min(leader.deadline, end) - time.monotonic())
            for out in select.select(list(open_ones), [], [], wait)[0]:
                _read(leader, open_ones, out)
    finally:
        for node in nodes:
            os.close(node.into)
            os.close(node.out)
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGKILL)
            os.waitpid(node.pid, 0)
    return leader.found.decision(plan, [node.name for node in nodes])


def _read(leader: Coordinator, open_ones: dict[int, Node], out: int) -> None:
    node = open_ones[out]
    piece = os.read(out, 65536)
    if not piece:
        leader.lose(node.name, "its task ended")
        del open_ones[out]
        return
    node.data += piece
    *lines, node.data = node.data.split(b"\n")
    for line in lines:
        leader.feed(node.name, line)
