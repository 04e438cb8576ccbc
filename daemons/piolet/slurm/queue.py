"""Jobs that run, as squeue tells of all of them at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from piolet.base import hostlist
from piolet.base.errors import SlurmError
from piolet.slurm.asking import ask

# Job, its name in an array or a heterogeneous job, uid, user, account, partition, nodes, name; the last may have a
# separator in it.
_FORMAT = "%A|%i|%U|%u|%a|%P|%N|%j"
_PART = re.compile(r"(\d{1,10})([_+])(\d{1,10})")
_KEYS = {"_": ("array_job", "array_task"), "+": ("het_job", "het_component")}


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
        words = line.split("|", 7)
        if len(words) == 8 and words[0].isdecimal() and (nodes := tuple(hostlist.expand(words[6]))):
            found[words[0]] = RunningJob(int(words[2]) if words[2].isdecimal() else None, nodes, _meta(words, nodes))
    return found


def _meta(words: list[str], nodes: tuple[str, ...]) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "user": words[3], "account": words[4], "partition": words[5], "nodes": list(nodes), "name": words[7],
    }  # fmt: skip
    part = _PART.fullmatch(words[1])
    if part is not None:
        meta |= zip(_KEYS[part[2]], (part[1], part[3]), strict=True)
    return {name: value for name, value in meta.items() if value not in ("", "(null)", [])}
