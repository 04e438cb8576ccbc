"""What a step is called: "JOB.STEP", and "JOB.STEP-rN" one run of it after N requeues. Made and read here only.

Slurm's own names, such as `batch` or a SLUID instead of a job's number, stand in titles and control groups: those who
read them there take them as they are (`slurmstepd.title`, `hierarchies.step_of`).
"""

from __future__ import annotations

import re

_NAME = re.compile(r"([0-9]{1,10})\.([0-9]{1,10})")


def name(job: int | str, step: int | str) -> str:
    """Return "JOB.STEP"."""
    return f"{job}.{step}"


def run_name(job: int | str, step: int | str, restarts: int) -> str:
    """Return "JOB.STEP", and behind it what tells the runs of a job that was requeued apart."""
    return name(job, step) + run_suffix(restarts)


def run_suffix(restarts: int) -> str:
    """Return "-rN" after N requeues, nothing for the first run."""
    return f"-r{restarts}" if restarts else ""


def is_name(text: str) -> bool:
    """Return whether `text` is "JOB.STEP". Whatever comes from outside is asked this before it names a file."""
    return _NAME.fullmatch(text) is not None


def parts(text: str) -> tuple[str, str]:
    """Return the job and the step in "JOB.STEP". Raises ValueError: it is no such name."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not JOB.STEP")
    return match[1], match[2]
