"""`piolet attach`: a shell or a command in the container of a step that runs.

It finds out the step and a node of it, leaves the record that srun's plugin takes, so that no second Python starts, and
becomes srun.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence

from piolet import __file__ as package_file
from piolet.base import hostlist
from piolet.base.errors import PioletError, SlurmError, UsageError
from piolet.cli import attached
from piolet.environment import attach, pinned
from piolet.site import config
from piolet.slurm import runningsteps
from piolet.slurm.runningsteps import RunningStep
from piolet.submission.dependencies import Host

_SHELL = 'test -x "${SHELL:-}" && exec "$SHELL"; exec /bin/sh'
# Of the job that this command is in, if it is in one, nothing is the other step's but where Slurm is.
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")
_STEP_HELP = "the step, as in 1234.0; a job alone where one step of it has a container"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `attach`."""
    parser = subparsers.add_parser(
        "attach",
        help="run a shell or a command in the container of a step that runs",
        description="Run a shell, or a command, in the container of a step of yours that runs. It is a step of its own "
        "(srun --overlap), ends with either, and starts where the step's tasks started.",
        allow_abbrev=False,
    )
    add_common(parser)
    text = "what to run there; without it your shell"
    parser.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help=text)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what `attach` and `ssh` have in common."""
    parser.add_argument("-w", "--node", metavar="NODE", help="the node; without it the step's first")
    parser.add_argument("step", metavar="JOB[.STEP]", help=_STEP_HELP)


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Become srun."""
    step, node = choose(args.step, args.node)
    keep_record(step, args.config or "")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    command = [*srun_words(step, node), "--pty" if terminal else "-u", *(words or ["/bin/sh", "-c", _SHELL])]
    return become(command)


def srun_words(step: RunningStep, node: str) -> list[str]:
    """Return the srun that enters the container of a step on a node, up to the command."""
    job = attach.job_of(step.name)
    request = f"{attach.MARK}{step.name}"
    return ["srun", "--overlap", f"--jobid={job}", "-N1", "-n1", "-w", node, f"--environment={request}"]


def choose(asked: str, node: str | None) -> tuple[RunningStep, str]:
    """Return the step that is meant, and one of its nodes. Raises PioletError."""
    name = attach.step_in(asked.removeprefix(attach.MARK))
    job = attach.job_of(name)
    steps = runningsteps.of_job(job)
    if any(not runningsteps.own(one) for one in steps):
        raise SlurmError(f"job {job} is another user's", "a container is its own user's to enter")
    listed = ", ".join(one.name for one in steps[:20])
    found = [one for one in steps if name in (one.name, job)]
    if not found:
        hint = f"those that do: {listed}" if steps else "a job's steps begin with srun"
        raise SlurmError(f"no step {name} of job {job} runs now" if name != job else f"no step of job {job} runs", hint)
    if len(found) > 1:
        with_container = [one for one in found if _has_container(one.name)]
        if len(with_container) != 1:
            raise UsageError(f"job {job} has several steps: {listed}", f"name one: {found[0].name}")
        found = with_container
    step = found[0]
    if node is not None and node not in step.nodes:
        raise UsageError(f"step {step.name} is not on {node}", f"it is on {hostlist.compress(step.nodes)}")
    if not step.nodes:
        raise SlurmError(f"Slurm does not say on which nodes step {step.name} is", "name one: -w NODE")
    if node is None and len(step.nodes) > 1:
        others = hostlist.compress(step.nodes)
        print(f"piolet: on {step.nodes[0]}, one of {others}; -w NODE chooses another", file=sys.stderr)
    return step, node or step.nodes[0]


def _has_container(name: str) -> bool:
    try:
        return any(one.definition.image and not one.definition.attach for one in pinned.find(os.environ, name))
    except PioletError:
        return False


def keep_record(step: RunningStep, configured: str) -> None:
    """Leave the record where srun's plugin looks; where that cannot be, it makes one."""
    host = Host(os.environ, os.getcwd())
    host.watch(configured or str(config.DEFAULT_PATH))
    host.watch(package_file)
    attached.make(host, f"{attach.MARK}{step.name}", configured, None, time.time_ns())


def outside(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those of the job that this command is in."""
    return {name: text for name, text in environ.items() if not name.startswith("SLURM_") or name in _KEPT}


def become(command: Sequence[str]) -> int:
    """Become that program. Raises SlurmError."""
    sys.stdout.flush()
    try:
        os.execvpe(command[0], list(command), outside(os.environ))
    except OSError as error:
        raise SlurmError(f"cannot start {command[0]}: {error.strerror}") from None
