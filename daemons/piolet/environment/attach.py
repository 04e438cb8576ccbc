"""`--environment=job:JOB.STEP`: the tasks enter the container that a step of theirs has, instead of one of their own.

Which container that is, and whether they may, the node decides: what travels is the step's name. Beside it goes what is
known here of that step's definition (pinned.py), for a node whose daemon was restarted since and has forgotten it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from piolet.base.errors import EnvironmentFileError
from piolet.environment import pinned
from piolet.environment.definition import Definition

MARK = "job:"
_FORM = re.compile(r"([0-9]{1,10})(?:\.(?:[0-9]{1,10}|batch))?")


def is_asked(request: str) -> bool:
    """Return whether `request` means a step's container."""
    return request.startswith(MARK)


def step_in(request: str) -> str:
    """Return the step, or the job, that `request` means. Raises EnvironmentFileError."""
    name = request.removeprefix(MARK)
    if _FORM.fullmatch(name):
        return name
    hint = "write job:1234.0, or job:1234 where the job has one step with a container"
    if "," in name:
        hint = "the container runs already: nothing of it can be changed"
    elif "_" in name or "+" in name:
        hint = "name the job by its own number: squeue -o %A"
    raise EnvironmentFileError(f"'{name[:60]}' is no step", hint)


def job_of(step: str) -> str:
    """Return the number of the job that a step, or a job, is of."""
    return step.partition(".")[0]


def definition(request: str, variables: Mapping[str, str]) -> Definition:
    """Return the definition that travels. Raises EnvironmentFileError."""
    step = step_in(request)
    known = _known(variables, step)
    if known is None:
        return Definition(request=request, attach=step)
    kept = known.definition
    return Definition(
        request=request,
        image=kept.image,
        workdir=kept.workdir,
        workdir_given=kept.workdir_given,
        set_env=kept.set_env,
        unset_env=kept.unset_env,
        remap_root=kept.remap_root,
        attach=step,
    )


def _known(variables: Mapping[str, str], step: str) -> pinned.Pinned | None:
    """Return what is known of the step, or of the job's only one with a container."""
    try:
        found = [one for one in pinned.find(variables, step) if one.definition.image and not one.definition.attach]
    except EnvironmentFileError:
        return None
    return found[0] if len(found) == 1 else None


def effective(of: Definition, asked: Definition, workdir: str) -> Definition:
    """Return what holds for a step that enters a container of the definition `of`, whose tasks start in `workdir`.

    Its own --chdir goes before. What is done around tasks (entrypoint, startup, save) is not done for this one.
    """
    return replace(
        of,
        request=asked.request,
        workdir=asked.chdir or workdir,
        workdir_given=True,
        entrypoint=(),
        startup=None,
        save=None,
        attach=asked.attach,
    )
