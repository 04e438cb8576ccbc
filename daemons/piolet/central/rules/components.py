"""Which job an event is of as a whole: the components of a heterogeneous job are jobs with numbers of their own.

Slurm numbers them one after the other and calls all of them by the first one's (slurm.schedmd.com/heterogeneous_jobs).
A node knows its component's number, and of the whole what srun said, which is the user's word: so it says it of the
same user's jobs alone, and of no others than can be components of one.
"""

from __future__ import annotations

import re

from piolet.events.envelope import Event
from piolet.steps import identity

COMPONENTS_MOST = 128
"""Slurm takes no heterogeneous job of more (MAX_HET_JOB_COMPS)."""
_COMPONENT = re.compile(r"([0-9]{1,10})\+[0-9]{1,3}")

StepKey = tuple[int | None, int, str, int]
"""Whose, job, step, and how often the job was requeued before."""


def whole(job: int, het_job: object) -> int:
    """Return the job that a job is a component of, where `het_job` can be that, else itself."""
    if type(het_job) is int and max(0, job - COMPONENTS_MOST) < het_job < job:
        return het_job
    return job


def job_of(event: Event) -> int | None:
    """Return the job as a whole that an event is of; None: of none."""
    if event.job is None:
        return None
    said = event.body.get("het_job")
    if event.kind == "slurm.job_end":
        match = _COMPONENT.fullmatch(str(event.body.get("array", "")))
        said = int(match[1]) if match else None
    return whole(event.job, said)


def step_of(event: Event) -> StepKey | None:
    """Return what the parts of one step have in common, on all nodes and of all components; None: it is of no job."""
    job = job_of(event)
    return None if job is None else (event.uid, job, identity.base(event.step), event.run or 0)
