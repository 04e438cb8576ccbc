"""Runs the evals of a plan on this node, side by side where they do not disturb each other.

Every eval ends as exactly one record, whatever happens to its process: a deadline, a crash, a kill and a class
that cannot be imported make it inconclusive, with the reason. Nothing here waits without a bound. It runs under
Python 3.8, since it is also what runs inside images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from piolet.api import INCONCLUSIVE, Context, Verdict
from piolet.vet.runner import child, records, scratch
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

_SIDE_BY_SIDE_MAX = 16
_REAP_S = 0.2
_LOOK_S = 0.5
_ANSWER_MAX = child.ANSWER_MAX + len(child.READY + child.END)
# An eval that looks at its deadline answers before it is killed.
_GRACE_S = 0.25

if TYPE_CHECKING:  # Python 3.8 cannot evaluate them
    from piolet.vet.runner.child import Resolve as Resolve

    Emit = Callable[[Record], None]
    Amend = Callable[[Record], Record]
    Write = Callable[[bytes], None]


@dataclass(eq=False)
class _Running:
    """A child and what came out of it."""

    task: Task
    pid: int
    answer_fd: int
    tail_fd: int
    started: float
    deadline: float
    why_late: str
    ready: bool = False
    answer: bytes = b""
    tail: bytes = b""
    status: int | None = None


def run(
    tasks: Sequence[Task], context: Context, emit: Emit, resolve: Resolve | None = None, resolve_s: float = 120.0
) -> None:
    """Judge every one of `tasks` and give each record to `emit`, in the order in which they end.

    `context.deadline` is the end of it all. `resolve` is called in a child, which is killed when a task's
    requirements are not there after `resolve_s`.
    """
    _Runner(context, emit, resolve, resolve_s).run(tasks)


def run_plan(
    plan: Plan, where: str, context: Context, write: Write, resolve: Resolve | None = None,
    known: Mapping[str, Record] | None = None, keep: Emit | None = None, amend: Amend | None = None,
) -> None:  # fmt: skip
    """Judge the plan's tasks of scope 'node' for `where`; give lines to `write`, the last one is 'end'.

    known   records by task digest that are still fresh: they are told again instead of judged
    keep    is given each record that was judged, for the cache
    amend   has the last word on a record before it is told: the node's own past is compared there
    """
    here = [task for task in plan.tasks if task.where == where and task.scope == "node"]
    count = 0

    def emit(record: Record) -> None:
        nonlocal count
        count += 1
        if amend is not None and not record.cached:
            record = amend(record)
        write(records.encode_record(record))
        if keep is not None and not record.cached:
            keep(record)

    write(records.encode("hello", {"node": context.node, "where": where, "evals": len(here)}))
    todo = []
    for task in here:
        old = (known or {}).get(task.digest())
        if old is not None:
            emit(again(task, old, context.node))
        else:
            todo.append(task)
    if todo:
        run(todo, context, emit, resolve, plan.requirements_s)
    write(records.encode("end", {"node": context.node, "where": where, "evals": count}))


def again(task: Task, record: Record, node: str) -> Record:
    """Return a kept record as the verdict of `task`."""
    return record._replace(node=node, eval=task.name, kind=task.kind, cached=True, seconds=0.0)


def write_all(descriptor: int, data: bytes) -> None:
    """Write `data` to a descriptor that blocks."""
    while data:
        data = data[os.write(descriptor, data) :]


class _Runner:
    def __init__(self, context: Context, emit: Emit, resolve: Resolve | None, resolve_s: float) -> None:
        self._context = context
        self._emit = emit
        self._resolve = resolve
        self._resolve_s = resolve_s
        self._selector = selectors.DefaultSelector()
        self._running: list[_Running] = []

    def run(self, tasks: Sequence[Task]) -> None:
        # Installing disturbs measurements, so it comes first.
        waiting = sorted(tasks, key=lambda task: not task.requirements)
        with scratch.directory(self._context.scratch) as path:
            try:
                while waiting or self._running:
                    waiting = self._start(waiting, path)
                    self._wait()
            finally:
                for one in self._running:
                    child.end(one.pid)
                self._selector.close()

    def _start(self, waiting: list[Task], directory: str) -> list[Task]:
        """Start what may run now and return the rest, in order."""
        rest: list[Task] = []
        busy = {load for one in self._running for load in one.task.loads}
        installing = any(one.task.requirements and not one.ready for one in self._running)
        for task in waiting:
            if time.monotonic() >= self._context.deadline:
                self._tell(task, Verdict(INCONCLUSIVE, "the budget was spent before its turn came"), 0.0)
            elif installing and task.loads and not task.requirements:
                rest.append(task)
            elif len(self._running) < _SIDE_BY_SIDE_MAX and busy.isdisjoint(task.loads):
                self._start_one(task, directory)
                installing = installing or (bool(task.requirements) and self._resolve is not None)
                busy |= set(task.loads)
            else:
                rest.append(task)
                busy |= set(task.loads)  # what comes later must not overtake for ever
        return rest

    def _start_one(self, task: Task, directory: str) -> None:
        now = time.monotonic()
        own = dataclasses.replace(self._context, scratch=directory, deadline=self._context.deadline - _GRACE_S)
        try:
            pid, answer_fd, tail_fd = child.start(task, own, self._resolve)
        except OSError as error:
            self._tell(task, Verdict(INCONCLUSIVE, f"cannot start a process for it: {error.strerror}"), 0.0)
            return
        preparing = task.requirements and self._resolve is not None
        bound = self._resolve_s if preparing else task.timeout_s
        late, deadline = self._bound(now, bound, "its requirements were not installed" if preparing else "")
        one = _Running(task, pid, answer_fd, tail_fd, now, deadline, late)
        self._running.append(one)
        self._selector.register(answer_fd, selectors.EVENT_READ, one)
        self._selector.register(tail_fd, selectors.EVENT_READ, one)

    def _bound(self, now: float, seconds: float, what: str = "") -> tuple[str, float]:
        """Return what to say when it is too late, and when that is."""
        what = what or "it did not answer"
        if self._context.deadline < now + seconds:
            return f"{what} before the budget was spent", self._context.deadline
        return f"{what} within {seconds:g} s", now + seconds

    def _wait(self) -> None:
        if not self._running:
            return
        soonest = min(one.deadline for one in self._running)
        events = self._selector.select(max(0.0, min(soonest - time.monotonic(), _LOOK_S)))
        for key, _ in events:
            self._read(key.data, key.fd)
        if not events:
            self._look()
        now = time.monotonic()
        for one in [one for one in self._running if now >= one.deadline]:
            child.end(one.pid)
            self._finish(one, Verdict(INCONCLUSIVE, one.why_late, details=_printed(one)))

    def _look(self) -> None:
        """Find those that are dead while something they have started holds their pipes open."""
        for one in list(self._running):
            one.status = _reap(one.pid, 0.0)
            if one.status is not None:
                self._read(one, one.answer_fd)  # it may have answered since
                if one in self._running:
                    self._died(one)

    def _read(self, one: _Running, descriptor: int) -> None:
        if one not in self._running:
            return
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        if descriptor == one.tail_fd:
            one.tail = (one.tail + data)[-child.TAIL_MAX :]
            if not data:
                self._selector.unregister(descriptor)
            return
        if data and not one.ready:
            one.ready, data = True, data[len(child.READY) :]
            one.why_late, one.deadline = self._bound(time.monotonic(), one.task.timeout_s)
            if not data:
                return
        one.answer += data
        if child.END in data:
            self._answered(one)
        elif not data or len(one.answer) > _ANSWER_MAX:
            self._died(one)

    def _answered(self, one: _Running) -> None:
        """Its answer is whole: it counts, whoever still holds the pipe."""
        try:
            answer = json.loads(one.answer.partition(child.END)[0].decode("utf-8"))
        except (ValueError, RecursionError):
            answer = None
        _reap(one.pid)  # its end is work, too, which must not disturb what is measured next
        self._close(one)
        seconds = time.monotonic() - one.started
        self._emit(records.answered(self._context.node, one.task.name, one.task.kind, answer, seconds))

    def _died(self, one: _Running) -> None:
        status = _reap(one.pid) if one.status is None else one.status
        with contextlib.suppress(OSError):
            one.tail = (one.tail + os.read(one.tail_fd, 65536))[-child.TAIL_MAX :]
        self._finish(one, Verdict(INCONCLUSIVE, _death(status), details=_printed(one)))

    def _finish(self, one: _Running, verdict: Verdict) -> None:
        self._close(one)
        self._tell(one.task, verdict, time.monotonic() - one.started)

    def _close(self, one: _Running) -> None:
        child.end(one.pid)  # what it may have left behind
        _reap(one.pid, 0.0)
        self._running.remove(one)
        for descriptor in (one.answer_fd, one.tail_fd):
            with contextlib.suppress(KeyError):
                self._selector.unregister(descriptor)
            os.close(descriptor)

    def _tell(self, task: Task, verdict: Verdict, seconds: float) -> None:
        self._emit(records.record(self._context.node, task.name, task.kind, verdict, seconds))


def _reap(pid: int, within_s: float = _REAP_S) -> int | None:
    """Return the wait status of a child that is about to end; None when it does not, or was reaped already."""
    end = time.monotonic() + within_s
    while True:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if found == pid:
            return status
        if time.monotonic() >= end:
            return None
        time.sleep(0.001)


def _death(status: int | None) -> str:
    if status is None:
        return "its process closed its answer without one"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"its process was killed by {name}"
    return f"its process ended with status {os.WEXITSTATUS(status)} and without an answer"


def _printed(one: _Running) -> dict[str, str]:
    text = one.tail.decode("utf-8", "replace").strip()
    return {"printed": text} if text else {}
