"""Jobs that run, as squeue tells of all of them at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from piolet.base import hostlist
from piolet.base.errors import SlurmError
from piolet.slurm.asking import ask

# Job, array's job and task, uid, user, account, partition, nodes, name; the last may have a separator in it.
_FORMAT = "%A|%F|%K|%U|%u|%a|%P|%N|%j"
_TASK = re.compile(r"\d{1,10}")


@dataclass(frozen=True)
class RunningJob:
    """A job that has nodes; `meta` is what piolet.observe.layout.META has of it."""

    uid: int | None
    nodes: tuple[str, ...]
    meta: dict[str, Any]


def running(squeue: str = "squeue") -> dict[str, RunningJob]:
    """Return the jobs that have nodes, by number. Raises SlurmError."""
    command = [squeue, "--noheader", "--states=RUNNING,COMPLETING,SUSPENDED", f"--format={_FORMAT}"]
    well, out, said = ask(command, "the jobs that run")
    if not well:
        why = said.strip().splitlines()[-1:] or ["it did not say why"]
        raise SlurmError(f"{squeue} cannot tell which jobs run: {why[0]}")
    found = {}
    for line in out.splitlines():
        words = line.split("|", 8)
        if len(words) == 9 and words[0].isdecimal() and (nodes := tuple(hostlist.expand(words[7]))):
            found[words[0]] = RunningJob(int(words[3]) if words[3].isdecimal() else None, nodes, _meta(words, nodes))
    return found


def _meta(words: list[str], nodes: tuple[str, ...]) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "user": words[4], "account": words[5], "partition": words[6], "nodes": list(nodes), "name": words[8],
    }  # fmt: skip
    if words[1] != words[0] or _TASK.fullmatch(words[2]):
        meta |= {"array_job": words[1], "array_task": words[2]} if _TASK.fullmatch(words[2]) else {}
    return {name: value for name, value in meta.items() if value not in ("", "(null)", [])}
