"""The srun that calls `piolet env submit`: where it was told to start the tasks, and what it has from its job."""

from __future__ import annotations

import os
from collections.abc import Mapping

from piolet.base.errors import SlurmError
from piolet.environment.definition import Definition, from_json
from piolet.slurm import srunwords
from piolet.submission.dependencies import Host

_WORKING_DIRECTORY = "SLURM_WORKING_DIR"  # what srun takes for --chdir, where that is not given
# As in environment.c.
_DEFINITION, _REQUEST = "SLURM_PIOLET_ENVIRONMENT", "SLURM_PIOLET_REQUEST"
_OPTION = "SLURM_SPANK__SLURM_SPANK_OPTION_piolet_environment_environment"


def words_of(pid: int) -> srunwords.Words | None:
    """Return the words of the process `pid`, None: it is no srun, or its options cannot be told apart."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
        if not words or os.path.basename(words[0]) != "srun":
            return None
        return srunwords.parse(words)
    except (OSError, SlurmError):
        return None


def chdir(words: srunwords.Words | None, host: Host) -> str | None:
    """Return the directory that srun was told, absolute; None: it was told none."""
    variable = host.variable(_WORKING_DIRECTORY)
    said = words.value("chdir") or variable if words else None
    return host.absolute(said) if said else None


def inherited(request: str, words: srunwords.Words | None, variables: Mapping[str, str]) -> Definition | None:
    """Return the definition that an srun has from its job, made at submit time; None: it has none, or names its own."""
    if words is None or words.value("environment") is not None or variables.get(_REQUEST) != request:
        return None
    text = variables.get(_DEFINITION)
    if not text or _OPTION not in variables:
        return None
    return from_json(os.fsencode(text))
