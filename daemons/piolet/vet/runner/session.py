"""One node's part in a vetting of several: its own evals first, then the meetings that the coordinator asks for.

It reads lines from one descriptor and writes lines to another; Slurm carries them (the vet step's standard input
reaches every task, and its output comes back). The coordinator's orders are described in meeting.py.

In a meeting of a pair eval the first of two measures; in one of a group eval all of them do. It ends at 'stop',
at the end of its input, and at the deadline. An order that it cannot read is told to the coordinator, and ends it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from piolet.api import Context
from piolet.base.errors import VetError
from piolet.vet.evals import _link
from piolet.vet.runner import child, meeting, records, runner
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

_READ = 65536


@dataclass(frozen=True)
class Place:
    """Where a session runs.

    address   of this node, for its partners; '': it takes no part in meetings
    token     the run's secret, at least 16 bytes; it came with the plan, over Slurm
    shared    a directory that all nodes see, for the first contact of process groups; '': there is none
    """

    address: str
    token: bytes
    shared: str = ""


def serve(
    plan: Plan, where: str, context: Context, place: Place, in_fd: int, write: runner.Write,
    resolve: runner.Resolve | None = None, known: Mapping[str, Record] | None = None, keep: runner.Emit | None = None,
    amend: runner.Amend | None = None, until: float = 0.0,
) -> None:  # fmt: skip
    """Take part in a vetting: its own evals end at `context.deadline`, the meetings at `until` (monotonic seconds)."""
    server, port = _start_server(plan, place, in_fd)
    try:
        if port:
            hello = {"node": context.node, "host": place.address, "port": port}
            write(records.encode("address", hello))
        runner.run_plan(plan, where, context, write, resolve, known, keep, amend)
        later = dataclasses.replace(context, deadline=max(context.deadline, until))
        _Meetings(plan, where, later, place, write, resolve).obey(in_fd)
    finally:
        if server:
            child.end(server)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(server, 0)


def _start_server(plan: Plan, place: Place, in_fd: int) -> tuple[int, int]:
    """Fork the pair server when the plan has pairs; return its pid and port, or zeros."""
    if not place.address or not any(task.scope == "pair" for task in plan.tasks):
        return 0, 0
    server = _link.Server(place.address, place.token)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            child.die_with(parent)
            os.close(in_fd)
            server.serve()
        finally:
            os._exit(0)
    port = server.port
    server.close_own()
    return pid, port


class _Meetings:
    def __init__(
        self,
        plan: Plan,
        where: str,
        context: Context,
        place: Place,
        write: runner.Write,
        resolve: runner.Resolve | None,
    ) -> None:
        self._tasks = {task.name: task for task in plan.tasks if task.where == where and task.scope != "node"}
        self._context = context
        self._place = place
        self._write = write
        self._resolve = resolve
        self._orders = meeting.Orders(context.node)

    def obey(self, in_fd: int) -> None:
        """Do what the coordinator says until it says stop."""
        try:
            self._obey(in_fd)
        except VetError as error:
            self._write(records.encode("failed", {"node": self._context.node, "reason": error.message}))

    def _obey(self, in_fd: int) -> None:
        data = b""
        while time.monotonic() < self._context.deadline:
            if not select.select([in_fd], [], [], self._context.remaining())[0]:
                return
            piece = os.read(in_fd, _READ)
            if not piece:
                return
            data += piece
            *lines, data = data.split(b"\n")
            longest = max(map(len, [*lines, data]))
            if longest > records.LINE_MAX:
                raise VetError(
                    f"an order of srun is at least {longest} bytes long, more than the limit of {records.LINE_MAX}"
                )
            for line in lines:
                order = records.decode(line)
                if order is not None and order[0] == "stop":
                    return
                if order is not None:
                    self._take(*order)

    def _take(self, kind: str, content: Mapping[str, Any]) -> None:
        task = self._tasks.get(str(content.get("eval", "")))
        if kind == "meet" and task is None:
            return
        by_pairs = task is not None and task.scope == "pair"
        found = self._orders.take(kind, content, by_pairs)
        if found is None or task is None:
            return
        facts = dict(self._context.facts)
        if by_pairs:
            if found.members[0] != self._context.node or found.peer is None:
                return
            facts["peer"] = {"node": found.peer.name, "host": found.peer.host, "port": found.peer.port}
            facts["token"] = self._place.token.hex()
        else:
            rank = found.members.index(self._context.node)
            path = os.path.join(self._place.shared, f"{found.number}-{found.key}") if self._place.shared else ""
            facts["group"] = {"rank": rank, "size": len(found.members), "path": path}
        self._judge(task, facts, found)

    def _judge(self, task: Task, facts: Mapping[str, Any], found: meeting.Assembly) -> None:
        others = ",".join(node for node in found.members if node != self._context.node)

        def emit(record: Record) -> None:
            content = record._replace(peer=others[:1000])._asdict()
            self._write(records.encode("met", {"round": found.number, **content}))

        runner.run([task], dataclasses.replace(self._context, facts=facts), emit, self._resolve)
