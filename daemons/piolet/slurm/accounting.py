"""What Slurm's accounting says of a job that may have ended long ago: whose it was, its nodes, GPUs and time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from piolet.base.errors import SlurmError
from piolet.slurm.asking import ask

_FIELDS = ("JobIDRaw", "User", "Account", "State", "ElapsedRaw", "NNodes", "AllocTRES", "Start", "End")
_GPUS = re.compile(r"(?:^|,)gres/gpu=(\d+)")


@dataclass(frozen=True)
class Accounted:
    """A job; `seconds` is how long it ran, and `gpus` how many it had."""

    user: str
    account: str
    state: str
    seconds: int
    nodes: int
    gpus: int
    start: str
    end: str

    @property
    def gpu_hours(self) -> float:
        """What it was charged for."""
        return self.gpus * self.seconds / 3600


def of(job: str, sacct: str = "sacct") -> Accounted:
    """Return what is known of a job. Raises SlurmError: there is no accounting, or it does not know the job."""
    command = [sacct, "-X", "-n", "-P", "--duplicates", "-j", job, f"--format={','.join(_FIELDS)}"]
    well, out, said = ask(command, f"of job {job}", "%Y-%m-%dT%H:%M:%S%z")
    rows = [words for line in out.splitlines() if len(words := line.split("|")) == len(_FIELDS) and words[0] == job]
    if not well or not rows:
        why = said.strip().splitlines()[-1:] or ["it does not know the job"]
        raise SlurmError(f"{sacct} does not tell of job {job}: {why[0][:200]}")
    row = dict(zip(_FIELDS, rows[-1], strict=True))  # of a requeued job, the last run
    gpus = _GPUS.search(row["AllocTRES"])
    try:
        numbers = int(row["ElapsedRaw"]), int(row["NNodes"]), int(gpus[1]) if gpus else 0
    except ValueError:
        raise SlurmError(f"{sacct} tells of job {job} what is no number") from None
    return Accounted(row["User"], row["Account"], row["State"], *numbers, row["Start"], row["End"])
