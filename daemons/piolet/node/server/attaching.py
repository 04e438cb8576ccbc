"""A step that enters another's container: which one that is, and what is told to its tasks.

The server says what it knows; whether the user may enter is the monitor's to decide (node/root/attachments.py). Steps
of other jobs are not looked at, so that nobody learns of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from piolet.base.errors import PioletError
from piolet.container.plan import ENTRY_ATTACHED, ENTRY_PROGRAM
from piolet.container.planner import entry_program
from piolet.environment import attach
from piolet.environment.definition import Definition
from piolet.node.server.connection import Connection
from piolet.steps import identity


def prepare(connection: Connection, connections: Iterable[Connection]) -> str:
    """Return the step, JOB.STEP, whose container a step enters; its definition becomes what holds there.

    Raises PioletError: there is none that it may enter, as far as it is known here.
    """
    start, asked = connection.start, connection.definition
    assert start is not None and asked is not None
    name = asked.attach
    if attach.job_of(name) != str(start.job):
        job = attach.job_of(name)
        raise PioletError(
            f"a step of job {start.job} cannot enter a container of job {job}",
            f"start it in that job: srun --jobid={job} --overlap",
        )
    own: dict[str, Connection] = {}
    for one in connections:
        if one is not connection and one.start is not None and one.start.job == start.job:
            own[identity.name(one.start.job, one.start.step)] = one
    if "." not in name:
        name = _only(name, own)
    target = own.get(name)
    if target is None:
        # It may be a step of before the daemon's restart: that the monitor knows.
        if asked.chdir is not None:
            connection.definition = replace(asked, workdir=asked.chdir, workdir_given=True)
        return name
    if not target.answered:
        raise PioletError(f"the container of step {name} is not ready yet", "try again in a moment")
    assert target.definition is not None
    if not target.container:
        if target.definition.image is None and not target.definition.attach:
            raise PioletError(
                f"step {name} runs on the host: its environment names no image", "leave out --environment"
            )
        raise PioletError(f"step {name} has no container: it could not be started", "see what its srun says")
    connection.definition = attach.effective(target.definition, asked, target.workdir)
    connection.variables, connection.tasks = target.variables, target.tasks
    return target.container


def _only(job: str, own: dict[str, Connection]) -> str:
    found = sorted({one.container for one in own.values() if one.container})
    if len(found) == 1:
        return found[0]
    if not found:
        raise PioletError(
            f"no step of job {job} is known to have a container on this node",
            "name the step, as in job:1234.0; it is over, on other nodes, or was started without --environment",
        )
    raise PioletError(
        f"the steps {', '.join(found[:10])} of job {job} have containers on this node", f"name one: job:{found[0]}"
    )


def check(definition: Definition, inside: bool) -> None:
    """Raise PioletError where a step has entered a container of which nothing is known but that it is there."""
    if inside and definition.attach and definition.image is None:
        raise PioletError(
            f"the variables of step {definition.attach} are not known: pioletd was restarted since it began",
            "start this one from where that one was started, with the same home directory",
        )


def program(definition: Definition, tasks: bool) -> str:
    """Return the entry program that stands before the command, or ''."""
    if not tasks and not entry_program(definition):
        return ""
    return ENTRY_ATTACHED if definition.attach else ENTRY_PROGRAM
