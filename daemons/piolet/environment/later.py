"""What of a definition is the node's to say: which job it is used in, and whether what only nodes have is there.

A definition is made once, often before the job has a number (sbatch, salloc, an srun with nodes of its own), and
serves every step. So `${SLURM_JOB_ID}` and `${SLURMD_NODENAME}` are never replaced at submit time, not even within a
job: what travels is a mark in their place. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from piolet.base.errors import PioletError
from piolet.environment.definition import Definition
from piolet.environment.mounts import NODE, OPTIONAL

NAMES = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURMD_NODENAME")
# A control character that is in no path that anybody writes; where it is, it only stands for what is the user's anyway.
MARKS: Mapping[str, str] = {name: f"\x01{{{name}}}" for name in NAMES}
_MARK = re.compile("\x01\\{(" + "|".join(NAMES) + ")\\}")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_open(text: str) -> bool:
    """Return whether something in `text` is only known on the node."""
    return _MARK.search(text) is not None


def is_the_nodes(source: str, flags: Collection[str], local: Iterable[str]) -> bool:
    """Return whether only a node can tell if a mount's source is there; `local` are directories that each node has."""
    below = any((source + "/").startswith(directory.rstrip("/") + "/") for directory in local)
    return below or NODE in flags or OPTIONAL in flags or is_open(source)


def written(text: str) -> str:
    """Return `text` as it stands in a definition file."""
    return _MARK.sub(r"${\1}", text)


def finish(definition: Definition, job: int, node: str) -> Definition:
    """Return the definition as it is in this job on this node: `node` is Slurm's name of it. Raises PioletError."""
    values = dict(zip(NAMES, (str(job), str(job), node), strict=True))

    def close(text: str) -> str:
        if not is_open(text):
            return text
        if not _NODE.fullmatch(node):
            raise PioletError("Slurm does not say which node this is")
        return _MARK.sub(lambda match: values[match[1]], text)

    return replace(
        definition,
        workdir=None if definition.workdir is None else close(definition.workdir),
        mounts=tuple(
            replace(mount, source=close(mount.source), destination=close(mount.destination))
            for mount in definition.mounts
        ),
        set_env={name: close(value) for name, value in definition.set_env.items()},
        save=None if definition.save is None else replace(definition.save, file=close(definition.save.file)),
    )
