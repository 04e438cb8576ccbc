"""The steps of a job that run now, as Slurm says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from piolet.base import hostlist
from piolet.base.errors import SlurmError
from piolet.slurm.asking import ask

_STEP = re.compile(r"(?<!\S)StepId=([0-9]+\.([0-9]+|batch))(?!\S)")
_UID = re.compile(r"(?:.*\()?([0-9]+)\)?")


@dataclass(frozen=True)
class RunningStep:
    """A step: JOB.STEP, whose it is (-1: Slurm does not say), and its nodes in Slurm's order."""

    name: str
    uid: int
    nodes: tuple[str, ...]


def of_job(job: str, scontrol: str = "scontrol") -> list[RunningStep]:
    """Return the steps of a job that run, its batch script among them. Raises SlurmError: there is no such job now."""
    command = [scontrol, "show", "step", "--oneliner", job]
    well, out, err = ask(command, f"the steps of job {job}")
    said = err + out
    if not well and "nvalid job id" in said:
        raise SlurmError(
            f"job {job} is over, or there never was one of that number", "squeue --me lists those that run"
        )
    found = parse(out)
    if not well and not found and "not found" not in said:
        why = said.strip().splitlines()[-1:] or ["it did not say why"]
        raise SlurmError(f"{scontrol} cannot tell the steps of job {job}: {why[0][:300]}")
    return found


def parse(text: str) -> list[RunningStep]:
    """Return the steps in what `scontrol show step --oneliner` prints."""
    found = []
    for line in text.splitlines():
        match = _STEP.search(line)
        fields = dict(word.partition("=")[::2] for word in line.split())
        if match is None or fields.get("State", "RUNNING") != "RUNNING":
            continue
        uid = _UID.fullmatch(fields.get("UserId", ""))
        nodes = fields.get("NodeList", "")
        listed = () if nodes in ("", "(null)") else tuple(hostlist.expand(nodes))
        found.append(RunningStep(match[1], int(uid[1]) if uid else -1, listed))
    return sorted(found, key=_place)


def _place(step: RunningStep) -> tuple[bool, int]:
    """Say where a step comes in a list: by number, and a batch script last."""
    number = step.name.partition(".")[2]
    return (False, int(number)) if number.isdecimal() else (True, 0)


def own(step: RunningStep) -> bool:
    """Return whether the step is this user's, as far as Slurm says."""
    return step.uid in (-1, os.getuid())
