"""Vetting of this node by this process, without a daemon and without Slurm."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace

from piolet.api import USER, Context
from piolet.slurm import gres
from piolet.vet import cache, requirements, store, verdicts
from piolet.vet.coordinator import Coordinator
from piolet.vet.runner import runner, surroundings
from piolet.vet.runner.plan import ENVIRONMENT, HOST, Plan, Task
from piolet.vet.runner.records import Record


def vet(plan: Plan, node: str, use_cache: bool = True) -> verdicts.Decision:
    """Judge this node by `plan` and return what it comes to.

    There is no other node here, and no environment: what needs one is inconclusive.
    """
    base = store.cache_directory(os.environ)
    memory = cache.Cache(os.path.join(base, f"node-{node}.json"), cache.stamp(), time.time)
    known = memory.fresh(plan) if use_cache else {}
    past = {(node, digest): values for digest, values in memory.past(plan).items()}
    inside = [task for task in plan.tasks if task.where == ENVIRONMENT]
    here = replace(plan, tasks=tuple(task for task in plan.tasks if task.where == HOST))
    leader = Coordinator(here, [node], time.monotonic)
    kept: list[Record] = []

    def write(line: bytes) -> None:
        leader.feed(node, line)

    def amend(record: Record) -> Record:
        return verdicts.against_history(plan, [record], past)[0]

    context = by_file(surroundings.context_of(plan, node), os.environ)
    runner.run_plan(here, HOST, context, write, resolver(plan, base), known, kept.append, amend)
    leader.advance()
    memory.keep(plan, kept)
    nowhere = verdicts.unjudged(inside, {node: "there is an environment in steps only (srun --environment)"}, USER)
    found = leader.found
    return replace(found, records=[*found.records, *nowhere]).decision(plan, [node])


def by_file(context: Context, variables: Mapping[str, str]) -> Context:
    """Return the context with the GPUs that Slurm gave by number as their device files, where gres.conf names them.

    `variables` may say where gres.conf is (SLURM_CONF).
    """
    if context.gpus is None or not context.environ.get("SLURM_STEP_GPUS"):
        return context
    return replace(context, gpus=tuple(gres.by_file(context.gpus, context.node, variables)))


def resolver(plan: Plan, base: str) -> runner.Resolve:
    """Return what installs a task's requirements into the user's cache `base`, or raises Inconclusive."""
    bound = plan.requirements_s

    def resolve(task: Task) -> list[str]:
        if not task.requirements:
            return []
        return requirements.resolve(os.path.join(base, "requirements"), task.requirements, plan.index_url, bound)

    return resolve
