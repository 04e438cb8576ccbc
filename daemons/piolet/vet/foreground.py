"""Vetting of this node by this process, without a daemon and without Slurm."""

from __future__ import annotations

import os
import time

from piolet.api import Context
from piolet.vet import cache, requirements, runner, store, verdicts
from piolet.vet.plan import Plan, Task
from piolet.vet.settings import VetConfig


def vet(plan: Plan, node: str, settings: VetConfig, use_cache: bool = True) -> verdicts.Decision:
    """Judge this node by `plan` and return what it comes to."""
    base = store.cache_directory(os.environ)
    memory = cache.Cache(os.path.join(base, f"node-{node}.json"), cache.stamp(), time.time)
    known = memory.fresh(plan) if use_cache else {}
    found = [runner.again(task, known[task.digest()], node) for task in plan.tasks if task.digest() in known]
    todo = [task for task in plan.tasks if task.digest() not in known]
    if todo:
        runner.run(
            todo, _context(plan, node), found.append, _resolver(plan, base, settings), settings.requirements_timeout_s
        )
    past = {(node, digest): values for digest, values in memory.past(plan).items()}
    decision = verdicts.decide(plan, [node], found, history=past)
    memory.keep(plan, decision.records)
    return decision


def _context(plan: Plan, node: str) -> Context:
    gpus = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES")
    return Context(
        node=node,
        deadline=time.monotonic() + plan.budget_s,
        nodes=(node,),
        uid=os.getuid(),
        gpus=tuple(gpus.split(",")) if gpus else None,
        environ=dict(os.environ),
        scratch=os.environ.get("TMPDIR", "/tmp"),  # noqa: S108 - the runner makes a directory of its own in it
    )


def _resolver(plan: Plan, base: str, settings: VetConfig) -> runner.Resolve:
    def resolve(task: Task) -> list[str]:
        directory = os.path.join(base, "requirements")
        return requirements.resolve(directory, task.requirements, plan.index_url, settings.requirements_timeout_s)

    return resolve
