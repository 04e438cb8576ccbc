"""One node's part in a vetting of several: its own evals first, then the meetings that the coordinator asks for.

It reads lines from one descriptor and writes lines to another; Slurm carries them (the vet step's standard input
reaches every task, and its output comes back). The coordinator's orders are

    {"piolet-vet": "meet", "eval": NAME, "round": K, "sets": [[NODE, …], …], "where": {NODE: [HOST, PORT]}}
    {"piolet-vet": "stop"}

In a meeting of a pair eval the first of a set measures; in one of a group eval all of them do. It ends at 'stop',
at the end of its input, and at the deadline.
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
from piolet.vet.evals import _link
from piolet.vet.runner import child, records, runner
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

    def obey(self, in_fd: int) -> None:
        """Do what the coordinator says until it says stop."""
        data = b""
        while time.monotonic() < self._context.deadline:
            if not select.select([in_fd], [], [], self._context.remaining())[0]:
                return
            piece = os.read(in_fd, _READ)
            if not piece:
                return
            data += piece
            *lines, data = data.split(b"\n")
            if len(data) > records.LINE_MAX:
                return
            for line in lines:
                order = records.decode(line)
                if order is not None and order[0] == "stop":
                    return
                if order is not None and order[0] == "meet":
                    self._meet(order[1])

    def _meet(self, order: Mapping[str, Any]) -> None:
        task = self._tasks.get(order.get("eval", ""))
        sets = [one for one in order.get("sets", []) if isinstance(one, list)]
        mine = next((number for number, one in enumerate(sets) if self._context.node in one), None)
        if task is None or mine is None:
            return
        members, number = sets[mine], int(order.get("round", 0))
        facts = dict(self._context.facts)
        if task.scope == "pair":
            if members[0] != self._context.node:
                return
            host, port = order["where"][members[1]]
            facts["peer"] = {"node": members[1], "host": host, "port": port}
            facts["token"] = self._place.token.hex()
        else:
            rank = members.index(self._context.node)
            path = os.path.join(self._place.shared, f"{number}-{mine}") if self._place.shared else ""
            facts["group"] = {"rank": rank, "size": len(members), "path": path}
        self._judge(task, facts, members, number)

    def _judge(self, task: Task, facts: Mapping[str, Any], members: list[str], number: int) -> None:
        others = ",".join(node for node in members if node != self._context.node)

        def emit(record: Record) -> None:
            content = dataclasses.asdict(dataclasses.replace(record, peer=others[:1000]))
            self._write(records.encode("met", {"round": number, **content}))

        runner.run([task], dataclasses.replace(self._context, facts=facts), emit, self._resolve)
