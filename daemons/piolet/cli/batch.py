"""What an option says in sbatch about the script that it was given: warnings, and what cannot be."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from piolet.base.errors import UsageError
from piolet.environment.definition import Definition
from piolet.slurm import scripts

_CLIENT = "com.hooks.slurm"


@dataclass(frozen=True)
class Meaning:
    """What an option is: its name, what its values are in the plural, and what becomes of a script without steps."""

    option: str
    values: str
    without: str
    hint: str = "put srun in front of what it is meant for"


ENVIRONMENT = Meaning(
    "environment", "environments", "all of it runs on the host",
    'put srun in front of the program, or set script = "inside" in the definition file',
)  # fmt: skip
VET = Meaning("vet", "protocols", "no node is vetted")
SCORE = Meaning("score", "scores", "nothing is scored")


def warn_of_steps(called: scripts.Submission | None, definition: Definition) -> None:
    """Warn of a script inside the container that calls Slurm, where the hook that brings Slurm's client is not on."""
    if called is None or called.script is None or not called.script.starts_steps:
        return
    if definition.annotations.get(f"{_CLIENT}.enabled", "false") == "false":
        print(
            "piolet: warning: the batch script runs inside the container and calls srun, which is not there unless the "
            f'image brings it\nhint: {_CLIENT}.enabled = "true" in [annotations], where that hook is installed; or '
            'script = "outside"',
            file=sys.stderr,
        )


def script() -> scripts.Submission | None:
    """Return how the sbatch was called whose plugin has started this command; None: it is another command's."""
    return scripts.of_sbatch(os.getppid())


def check_parts(called: scripts.Submission | None, what: Meaning) -> None:
    """Raise UsageError where the script's parts ask for different things: the steps of all would get the first's.

    Slurm takes a plugin's option from the script's first part alone, once that has one, and tells nobody of the others.
    """
    if called is None or called.script is None or called.gives(what.option):
        return
    given = [value if value is not None else "none" for value in _inherited(called.script.parts(what.option))]
    other = next((value for value in given if value != given[0]), None)
    if other is not None:
        raise UsageError(
            f"the parts of a heterogeneous job cannot have different {what.values} ('{given[0]}' and '{other}')",
            f"give all parts the same one, and its steps theirs: srun --het-group=N --{what.option}=…",
        )


def _inherited(parts: list[str | None]) -> list[str | None]:
    """Return the parts' values; one that says nothing has the first's, as with Slurm's own options."""
    return [parts[0] if value is None else value for value in parts]


def is_bare(called: scripts.Submission | None, what: Meaning) -> bool:
    """Return whether the script starts no step, and warn of that: then the option does nothing."""
    if called is None or called.script is None or called.script.starts_steps:
        return False
    print(
        f"piolet: warning: the batch script starts nothing by srun, so --{what.option} does nothing: {what.without}\n"
        f"hint: {what.hint}",
        file=sys.stderr,
    )
    return True
