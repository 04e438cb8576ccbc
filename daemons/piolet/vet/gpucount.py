"""Are all GPUs of a node there? What it tells is held against what Slurm has of it, or else against the other nodes.

A GPU that is gone makes no sound: an eval that looks at one node cannot miss it. Pure functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from piolet.api import EITHER, FAIL, INCONCLUSIVE, NODE, USER
from piolet.base import texts
from piolet.vet.runner.plan import HOST, Plan
from piolet.vet.runner.records import Record

KINDS = ("gpu", "gpu_health")
_PEERS_MIN = 3


def wanted(plan: Plan) -> str:
    """Return the name of the eval that tells how many GPUs are there, or ''."""
    found = {task.kind: task.name for task in reversed(plan.tasks) if task.where == HOST and task.kind in KINDS}
    return found.get("gpu") or found.get("gpu_health") or ""


def against(plan: Plan, found: Sequence[Record], slurm: Mapping[str, int]) -> list[Record]:
    """Return the records with those made 'fail' of nodes that lack a GPU.

    slurm   how many GPUs Slurm has of each node; nodes that are not in it are held against most others
    """
    name = wanted(plan)
    usual = _usual([record for record in found if record.eval == name])
    return [_judged(record, slurm.get(record.node), usual) if record.eval == name else record for record in found]


def _usual(own: Sequence[Record]) -> int | None:
    counts = Counter(there for record in own if (there := _there(record)) is not None)
    most = counts.most_common(1)
    return most[0][0] if most and len(own) >= _PEERS_MIN and most[0][1] * 2 > len(own) else None


def _there(record: Record) -> int | None:
    count = record.details.get("gpus_there")
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _judged(record: Record, slurm: int | None, usual: int | None) -> Record:
    there = _there(record)
    if there is None:
        divided = record.details.get("divided")
        if slurm is None or divided or record.outcome != INCONCLUSIVE or record.whose != EITHER:
            return record
        # No driver, no library: of a node that has no GPU nobody can ask for them.
        what = texts.counted(slurm, "GPU") if slurm else "no GPU"
        reason = f"{record.reason}; Slurm has {what} of this node"
        return record._replace(reason=reason, whose=NODE if slurm else USER)
    expected, who = (slurm, "Slurm has") if slurm is not None else (usual, "most nodes have")
    if expected is None or there >= expected:
        return record
    reason = f"{there} of {expected} GPUs are there ({who} {expected})"
    reason += f"; {record.reason}" if record.outcome == FAIL else ""
    return record._replace(
        outcome=FAIL, reason=reason, measure="GPUs", value=there, limit=expected, unit="", whose=NODE
    )
