"""Vetting of this node by this process, without a daemon and without Slurm."""

from __future__ import annotations

import os
import time

from piolet.vet import cache, requirements, runner, store, surroundings, verdicts
from piolet.vet.plan import Plan, Task


def vet(plan: Plan, node: str, use_cache: bool = True) -> verdicts.Decision:
    """Judge this node by `plan` and return what it comes to."""
    base = store.cache_directory(os.environ)
    memory = cache.Cache(os.path.join(base, f"node-{node}.json"), cache.stamp(), time.time)
    known = memory.fresh(plan) if use_cache else {}
    found = [runner.again(task, known[task.digest()], node) for task in plan.tasks if task.digest() in known]
    todo = [task for task in plan.tasks if task.digest() not in known]
    if todo:
        resolve = resolver(plan, base)
        runner.run(todo, surroundings.context_of(plan, node), found.append, resolve, plan.requirements_s)
    past = {(node, digest): values for digest, values in memory.past(plan).items()}
    decision = verdicts.decide(plan, [node], found, history=past)
    memory.keep(plan, decision.records)
    return decision


def resolver(plan: Plan, base: str) -> runner.Resolve:
    """Return what installs a task's requirements into the user's cache `base`, or raises Inconclusive."""

    bound = plan.requirements_s

    def resolve(task: Task) -> list[str]:
        return requirements.resolve(os.path.join(base, "requirements"), task.requirements, plan.index_url, bound)

    return resolve
