"""What a vet step does on a node: `prepare` once as root, and what it returns in a child of each vetting.

The child is the user already, in the step's cgroup, with the environment of the vet step's task. It takes the plan,
which is the user's word, judges what the plan has for each node by itself, and writes lines. It raises nothing:
whatever goes wrong is a line with the reason. Where nodes have to meet, the orders for that come over the connection
that the lines go to. Evals inside an image are not its work.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from piolet.api import Context
from piolet.errors import PioletError
from piolet.vet import cache, foreground, parts, plan, records, runner, session, store, surroundings, verdicts
from piolet.vet.meeting import MEETING_VARIABLE, START_S
from piolet.vet.plan import Plan
from piolet.vet.records import Record

Facts = dict[str, list[str]]
Work = Callable[[bytes, int, Facts, int], None]


def prepare() -> Work:
    """Import what most evals need, and return what a child does. Call it before threads are started."""
    runner.preload()
    return work


def work(data: bytes, descriptor: int, facts: Facts, spool: int = -1) -> None:
    """Judge this node by the plan in `data` and write the lines to `descriptor`; every write is one message.

    Verdicts go to the descriptor `spool`, too, as whole lines; one that it does not take at once is lost.
    """

    def write(line: bytes) -> None:
        runner.write_all(descriptor, parts.split(line))
        decoded = records.decode(line) if spool >= 0 else None
        if decoded is not None and decoded[0] in ("verdict", "met"):
            entry = {
                "job": os.environ.get("SLURM_JOB_ID", ""),
                "node": surroundings.node_name(os.environ),
                **decoded[1],
            }
            text = json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"
            # A pipe takes so much whole or not at all.
            with contextlib.suppress(OSError):
                if len(text) <= select.PIPE_BUF:
                    os.write(spool, text)

    try:
        _work(plan.from_json(data), facts, write, descriptor)
    except BrokenPipeError:
        return  # the task is gone, and with it everybody who wants to know
    except Exception as error:  # noqa: BLE001 - the parent's loop must not see a user's mistake
        what = error.message if isinstance(error, PioletError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            write(json.dumps({"error": f"cannot vet on this node: {what[:500]}"}).encode("ascii") + b"\n")


def _work(what: Plan, facts: Facts, write: runner.Write, orders: int) -> None:
    node = surroundings.node_name(os.environ)
    # No eval is to see the secret of the meetings.
    secret, _, shared = os.environ.pop(MEETING_VARIABLE, "").partition(":")
    context = surroundings.context_of(what, node, surroundings.nodes(os.environ), facts)
    base = store.cache_directory(os.environ)
    resolve = foreground.resolver(what, base)
    # Without need the user's home is not touched: it may be a file system that hangs.
    if not any(task.cache_s > 0 or task.baseline == "history" for task in what.tasks):
        _judge(what, context, write, orders, session.Place("", secret.encode(), shared), resolve)
        return
    path = os.path.join(base, f"node-{node}.json")
    memory = cache.Cache(path, cache.stamp("", facts.get("kernel_log", ())), time.time)
    past = {(node, digest): values for digest, values in memory.past(what).items()}
    kept: list[Record] = []

    def amend(record: Record) -> Record:
        return verdicts.against_history(what, [record], past)[0]

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
    until = time.monotonic() + START_S + what.budget_s + what.meetings_s
    session.serve(what, plan.HOST, context, place, orders, write, resolve, known, keep, amend, until)
