"""What a vet step does on a node: `prepare` once as root, and what it returns in a child of each vetting.

The child is the user already, in the step's cgroup, with the environment of the vet step's task. It takes the plan,
which is the user's word, judges what the plan has for each node by itself, and writes lines. It raises nothing:
whatever goes wrong is a line with the reason. Where nodes have to meet, the orders for that come over the connection
that the lines go to. Evals inside an image are not its work.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import select
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from piolet.api import Context
from piolet.base import files
from piolet.base.errors import PioletError
from piolet.events import cut
from piolet.vet import cache, foreground, sitepast, store, subjects, told, verdicts
from piolet.vet.catalogue import catalogue
from piolet.vet.origin import USER, Origins, closed_environment
from piolet.vet.runner import parts, plan, records, runner, session, surroundings
from piolet.vet.runner.meeting import MEETING_VARIABLE
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

_CODE_MAX = 1 << 20

Facts = dict[str, list[str]]
Work = Callable[[bytes, int, Facts, int], None]


def preload() -> None:
    """Import what most evals need, in a process that will be forked. Call it before threads are started.

    Linear algebra gets one thread: an eval that wants more cores forks a process for each.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in ("numpy", "psutil", "pynvml"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

    for entry in catalogue().entries.values():
        assert entry.kind


def prepare(site: Sequence[str] = (), users: Sequence[str] = ()) -> Work:
    """Import what most evals need, and return what a child does. Call it before threads are started.

    `site` are the directories of the site's evals, `users` the ids of its users, as pioletd's configuration has them.
    """
    preload()
    # OpenSSL reads its configuration, which can name programs, when it is first used: not in the user's environment.
    hashlib.sha256(b"").digest()
    ssl.create_default_context()
    return functools.partial(work, site=tuple(site), closed=closed_environment(os.environ), users=tuple(users))


def work(
    data: bytes, descriptor: int, facts: Facts, spool: int = -1, site: Sequence[str] = (),
    closed: Mapping[str, str] | None = None, users: Sequence[str] = (),
) -> None:  # fmt: skip
    """Judge this node by the plan in `data` and write the lines to `descriptor`; every write is one message.

    Verdicts go to the descriptor `spool`, too, as whole lines, with the origin of what came to them. `closed` is the
    environment of evals that are root's code.
    """

    def write(line: bytes) -> None:
        runner.write_all(descriptor, parts.split(line))

    try:
        what = plan.from_json(data)
        copies = Copies(what, Origins(what, site), spool)

        def write_twice(line: bytes) -> None:
            write(line)
            copies.write(line)

        facts = {**facts, "users": list(users)} if users else dict(facts)
        amend = _against_site(what, facts.pop(sitepast.FACT, []), copies)
        _work(what, facts, write_twice if spool >= 0 else write, descriptor, copies.origins, closed or {}, amend)
    except BrokenPipeError:
        return  # the task is gone, and with it everybody who wants to know
    except Exception as error:  # noqa: BLE001 - the parent's loop must not see a user's mistake
        why = error.message if isinstance(error, PioletError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            os.write(spool, json.dumps({"refused": records.clean(why, 500)}).encode("ascii") + b"\n")
        with contextlib.suppress(OSError):
            write(json.dumps({"error": f"cannot vet on this node: {why[:500]}"}).encode("ascii") + b"\n")


class Copies:
    """Verdicts for the spool. One that it does not take at once is lost, and counted in the next."""

    def __init__(self, what: Plan, origins: Origins, spool: int) -> None:
        self.origins = origins
        self._tasks = {task.name: task for task in what.tasks}
        self._plan, self._protocol = what.digest(), records.clean(what.name, 200)
        self._spool = spool
        self._lost = 0
        gpus = surroundings.gpus_of(os.environ)
        self.ran_on = {"cpus": len(os.sched_getaffinity(0)), "gpus": -1 if gpus is None else len(gpus)}

    def write(self, line: bytes) -> None:
        """Write what is in a verdict's line; nothing for other lines."""
        decoded = records.decode(line)
        if decoded is None or decoded[0] not in ("verdict", "met"):
            return
        kind, said = decoded
        task = self._tasks.get(said["eval"])
        # What came of a meeting is the other node's word, too.
        alone = task is not None and kind == "verdict"
        origin, name = self.origins.of(task, said["cached"]) if task is not None and alone else (USER, None)
        said = {"round": said.pop("round", None), **said} if kind == "met" else said
        said.update(subjects.of(said), judge="pair" if kind == "met" else _judge_of(task, said))
        if task is not None:
            said.update(parameters=task.parameters, ran_on=self.ran_on)
        if self._lost:
            said["lost_before"] = self._lost
        envelope = {
            "origin": origin, "kind": name, "plan": self._plan, "protocol": self._protocol, "release": _release(name),
        }  # fmt: skip
        # A pipe takes so much whole or not at all.
        said = cut.within(said, select.PIPE_BUF - len(_line(envelope, {})) - 16)
        text = _line(envelope, said)
        try:
            os.write(self._spool, text)
            self._lost = 0
        except OSError:
            self._lost += 1


def _judge_of(task: Task | None, said: Mapping[str, Any]) -> str:
    if task is None:
        return "limit"
    return told.judge_of(replace(task, better=str(said.get("better") or task.better)))


@functools.cache
def _release(code: str | None) -> str | None:
    """Return what tells this code from another of its name: our release, or the SHA-256 of a site's file."""
    if code is None:
        return None
    path, colon, _ = code.rpartition(":")
    if not colon:
        return importlib.metadata.version("piolet")
    try:
        data, _ = files.read_small(path, _CODE_MAX)
    except (OSError, files.NotRegularError):
        return None
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _line(envelope: Mapping[str, object], said: Mapping[str, object]) -> bytes:
    return json.dumps({**envelope, "said": said}, default=str, separators=(",", ":")).encode("ascii") + b"\n"


def _resolver(what: Plan, base: str, origins: Origins, closed: Mapping[str, str]) -> runner.Resolve:
    """Return what an eval's process does first: it installs requirements, or leaves the user's variables behind."""
    install = foreground.resolver(what, base)

    def resolve(task: Task) -> list[str]:
        if origins.code(task) is not None:
            os.environ.clear()
            os.environ.update(closed)
        return install(task) if task.requirements else []

    return resolve


def _against_site(what: Plan, told: Sequence[str], copies: Copies) -> runner.Amend:
    """Return what holds records against the node's first values, which root has `told` as the site keeps them."""
    table = sitepast.load("".join(told))
    tasks = {task.name: task for task in what.tasks if task.baseline == sitepast.BASELINE}

    def amend(record: Record) -> Record:
        task = tasks.get(record.eval)
        if task is None:
            return record
        _, kind = copies.origins.of(task)
        name = sitepast.key(kind, task.parameters, copies.ran_on) if kind is not None else ""
        return sitepast.against(task, record, kind, [value for _, value in table.get(name, ())])

    return amend


def _work(
    what: Plan, facts: Facts, write: runner.Write, orders: int, origins: Origins, closed: Mapping[str, str],
    against_site: runner.Amend,
) -> None:  # fmt: skip
    node = surroundings.node_name(os.environ)
    # No eval is to see the secret of the meetings.
    secret, _, shared = os.environ.pop(MEETING_VARIABLE, "").partition(":")
    context = surroundings.context_of(what, node, surroundings.nodes(os.environ), facts)
    context = foreground.by_file(context, closed)
    base = store.cache_directory(os.environ)
    resolve = _resolver(what, base, origins, closed)
    # Without need the user's home is not touched: it may be a file system that hangs.
    if not any(task.cache_s > 0 or task.baseline == "history" for task in what.tasks):
        place = session.Place("", secret.encode(), shared)
        _judge(what, context, write, orders, place, resolve, amend=against_site)
        return
    path = os.path.join(base, f"node-{node}.json")
    memory = cache.Cache(path, cache.stamp("", facts.get("kernel_log", ())), time.time)
    past = {(node, digest): values for digest, values in memory.past(what).items()}
    kept: list[Record] = []

    def amend(record: Record) -> Record:
        return against_site(verdicts.against_history(what, [record], past)[0])

    here = replace(what, tasks=tuple(task for task in what.tasks if task.scope == "node"))
    place = session.Place("", secret.encode(), shared)
    _judge(what, context, write, orders, place, resolve, memory.fresh(here), kept.append, amend)
    memory.keep(what, kept)


def _judge(
    what: Plan, context: Context, write: runner.Write, orders: int, place: session.Place, resolve: runner.Resolve,
    known: Mapping[str, Record] | None = None, keep: runner.Emit | None = None, amend: runner.Amend | None = None,
) -> None:  # fmt: skip
    if not place.token:
        runner.run_plan(what, plan.HOST, context, write, resolve, known, keep, amend)
        return
    place = replace(place, address=surroundings.own_address(context.node, context.nodes))
    count = len(context.nodes)
    until = time.monotonic() + plan.start_s(count) + what.budget_s + what.meetings_s(count)
    session.serve(what, plan.HOST, context, place, orders, write, resolve, known, keep, amend, until)
