"""What a step is called: "JOB.STEP", "JOB.batch"; after N requeues a run of it "JOB.STEP-rN". Made and read here only.

Slurm's own names, such as a SLUID instead of a job's number, stand in titles and control groups: those who
read them there take them as they are (`slurmstepd.title`, `hierarchies.step_of`).
"""

from __future__ import annotations

import re

# The step in which a batch script runs: SLURM_BATCH_SCRIPT of slurm.h. In titles and control groups it is called so.
_BATCH = 0xFFFFFFFB
_WORDS = {_BATCH: "batch", 0xFFFFFFFC: "extern", 0xFFFFFFFA: "interactive"}
_NAME = re.compile(r"([0-9]{1,10})\.([0-9]{1,10}|batch)")


def name(job: int | str, step: int | str) -> str:
    """Return "JOB.STEP", of the step in which a batch script runs "JOB.batch"."""
    return f"{job}.{'batch' if str(step) == str(_BATCH) else step}"


def word(step: int) -> str:
    """Return the step's number as a text; of those that are no real steps their word (slurm.h)."""
    return _WORDS.get(step, str(step))


def run_name(job: int | str, step: int | str, restarts: int) -> str:
    """Return "JOB.STEP", and behind it what tells the runs of a job that was requeued apart."""
    return name(job, step) + run_suffix(restarts)


def run_suffix(restarts: int) -> str:
    """Return "-rN" after N requeues, nothing for the first run."""
    return f"-r{restarts}" if restarts else ""


def base(step: str) -> str:
    """Return a step without its component: titles and control groups of a step `srun A : B` in one job say 0+0 and 0+1,
    and what Slurm tells plugins is 0. Components of one such step share no node.
    """
    return step.partition("+")[0]


def is_of(said: str, step: str) -> bool:
    """Return whether what a node says of step `said` is of `step`, on the nodes of which it is said."""
    return said in (step, base(step))


def is_name(text: str) -> bool:
    """Return whether `text` is "JOB.STEP". Whatever comes from outside is asked this before it names a file."""
    return _NAME.fullmatch(text) is not None


def parts(text: str) -> tuple[str, str]:
    """Return the job and the step in "JOB.STEP". Raises ValueError: it is no such name."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not JOB.STEP")
    return match[1], match[2]
