"""The vetting that a job has had already.

A job is vetted once and not once a step. The vetting is good for a later srun of the same job with the same
protocol, the same nodes and, where evals run inside it, the same environment: for ten minutes, or as long as the
shortest `cache:` of the protocol's evals says. A longer one is the node's to hold, which sees what happens to it. Only
a vetting after which the application could start is kept: whoever repairs something after a refusal wants to be
vetted anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from piolet.base import locks
from piolet.base.errors import SlurmError, VetError
from piolet.base.files import Stamp
from piolet.vet import store
from piolet.vet.runner import records
from piolet.vet.runner.plan import HOST, Plan
from piolet.vet.verdicts import BAD, GOOD, WARNED, Decision

FRESH_S = 600.0
_KEPT_S = 7 * 86400.0
_DEFINITION = "SLURM_PIOLET_ENVIRONMENT"


@dataclasses.dataclass(frozen=True)
class Kept:
    """A job's vetting and its age in seconds."""

    decision: Decision
    age_s: float


@dataclasses.dataclass(frozen=True)
class KeptFile:
    """Where a job's vetting is kept, what it rests on, and for how long it is good."""

    file: str
    rests: str
    good_for_s: float


def place(job: int, plan: Plan, request: str, environ: Mapping[str, str]) -> KeptFile | None:
    """Return where a job's vetting by `plan` is kept, or None: what it rests on cannot be told.

    `request` is the application's environment, '' for none; its definition is where the plugin of --environment has it.
    """
    rests = plan.digest() if all(task.where == HOST for task in plan.tasks) else _inside(plan, request, environ)
    if rests is None:
        return None
    cluster = re.sub(r"[^\w.-]", "_", environ.get("SLURM_CLUSTER_NAME", "")) or "cluster"
    file = os.path.join(store.cache_directory(environ), f"job-{cluster}-{job}-{rests[-12:]}.json")
    return KeptFile(file, rests, good_for_s(plan))


def _inside(plan: Plan, request: str, environ: Mapping[str, str]) -> str | None:
    found: list[Any] = [plan.digest(), request]
    if request:
        try:
            definition = json.loads(environ.get(_DEFINITION, ""))
            if definition["request"] != request:
                return None
            files = [*definition["files"], (definition["image"] or {}).get("path")]
            stamps = [Stamp.of(os.stat(file)) for file in files if file is not None]
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return None
        found += [definition, *(stamp._asdict() for stamp in stamps)]
    return f"sha256:{hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()}"


def keep(where: KeptFile, decision: Decision, now: float) -> None:
    """Keep a vetting, and remove those of long ago. Raises nothing: without it the next srun vets again."""
    value = {
        "digest": where.rests,
        "at": now,
        "state": dict(decision.state),
        "nodes": list(decision.state),
        "reasons": {node: list(reasons) for node, reasons in decision.reasons.items()},
        "records": [record._asdict() for record in decision.records],
        "notes": list(decision.notes),
    }
    with contextlib.suppress(VetError, OSError, ValueError):
        store.write(where.file, value)
        for entry in os.scandir(os.path.dirname(where.file)):
            if entry.name.startswith("job-") and entry.stat().st_mtime < now - _KEPT_S:
                os.unlink(entry.path)


def good_for_s(plan: Plan) -> float:
    """Return how long a job's vetting by `plan` is good, in seconds."""
    return min((min(task.cache_s or FRESH_S, FRESH_S) for task in plan.tasks), default=0.0)


@contextlib.contextmanager
def alone(file: str, seconds: float) -> Iterator[None]:
    """Hold the job's vetting in `file` for this srun: another one waits for it, but no longer than `seconds`.

    Where no lock can be had, several sruns that start at once each vet, which is slow and harms nobody.
    """
    descriptor = -1
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
        descriptor = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with contextlib.suppress(OSError):
            if descriptor >= 0:
                locks.take(descriptor, time.monotonic() + seconds)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def kept(where: KeptFile, nodes: Sequence[str], now: float, began: Callable[[], float]) -> Kept | None:
    """Return the vetting of `nodes` that is still good, or None.

    `began` tells when the job began: one that was requeued, or that has the number of a job of long ago, is
    another job, and so is one of which that cannot be told. It is asked last, as that takes a call of Slurm.
    """
    value = store.read(where.file)
    if value is None or value.get("digest") != where.rests or value.get("nodes") != list(nodes):
        return None
    at = value.get("at")
    # A clock that was put back must not make a vetting good for ever.
    if not isinstance(at, (int, float)) or not 0 <= now - at < where.good_for_s:
        return None
    decision = _decision(value, nodes)
    try:
        return Kept(decision, now - at) if decision is not None and began() <= at else None
    except SlurmError:
        return None


def _decision(value: Mapping[str, Any], nodes: Sequence[str]) -> Decision | None:
    try:
        state = {node: value["state"][node] for node in nodes}
        reasons = {node: [str(reason) for reason in value["reasons"][node]] for node in nodes}
        found = [record for row in value["records"] if (record := records.to_record(row)) is not None]
        notes = tuple(str(note) for note in value["notes"])
    except (KeyError, TypeError):
        return None
    return Decision(state, reasons, found, "", notes) if set(state.values()) <= {GOOD, WARNED, BAD} else None
