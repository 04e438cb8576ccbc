"""`--environment=job:JOB.STEP` in srun: the record for it, and what can be told of it before the node is asked."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace

from piolet.base import hostlist
from piolet.base.errors import SlurmError, UsageError
from piolet.cli.main import printable
from piolet.environment import attach, pinned, secrets
from piolet.slurm import runningsteps, srunwords
from piolet.submission import cache, record
from piolet.submission.dependencies import Host

_ALLOCATORS = ("sbatch", "salloc", "scrontab")


def submit(args: argparse.Namespace, host: Host, words: srunwords.Words | None, chdir: str | None) -> int:
    """Write the record for `srun --environment=job:…`. Raises UsageError: that srun cannot enter the container."""
    step = attach.step_in(args.request)
    if words is None:
        _refuse_allocation(step)
    else:
        check(step, words, host)
    started = time.time_ns()
    packed = make(host, args.request, args.config or "", chdir, started)
    record.write(args.record_fd, packed)
    return 0


def make(host: Host, request: str, config: str, chdir: str | None, started: int) -> bytes:
    """Return the record, which is kept for the next srun and for `env show` as well. Raises EnvironmentFileError."""
    definition = replace(attach.definition(request, host.variables), chdir=chdir)
    whole = record.pack(definition.to_json(), request, host.cwd, host.dependencies)
    pinned.keep(host.variables, b"", definition)
    path = cache.path_of(host.variables, host.cwd, request, config, os.getuid())
    if whole and path and chdir is None and cache.is_settled(host.dependencies, started):
        cache.store(path, whole)
    return record.packed(definition.to_json(), request, host.cwd)


def _refuse_allocation(step: str) -> None:
    try:
        program = os.path.basename(os.readlink(f"/proc/{os.getppid()}/exe"))
    except OSError:
        return
    if program.startswith(_ALLOCATORS):
        job = attach.job_of(step)
        raise UsageError(
            f"{program} makes a new job, which cannot be in a container of job {job}",
            f"srun --jobid={job} --overlap enters it: see piolet attach",
        )


def check(step: str, words: srunwords.Words, host: Host) -> None:
    """Warn of an srun that would wait. Raises UsageError: it is of another job, or would be."""
    job = attach.job_of(step)
    into = words.value("jobid") or host.variables.get("SLURM_JOB_ID") or host.variables.get("SLURM_JOBID")
    if into is None:
        raise UsageError(
            f"this srun would ask for a job of its own, which cannot be in a container of job {job}",
            f"add --jobid={job} --overlap, or use piolet attach {step}",
        )
    if into.isdecimal() and into != job:
        raise UsageError(
            f"this srun is of job {into}, which cannot be in a container of job {job}",
            f"add --jobid={job} --overlap, or use piolet attach {step}",
        )
    if words.value("overlap") is None and "SLURM_OVERLAP" not in host.variables:
        text = f"without --overlap this step may wait for the end of step {step}"
        print(f"piolet: warning: {printable(text)}", file=sys.stderr)


def look(args: argparse.Namespace) -> int:
    """Do `env check`, `render` or `explain` with `job:JOB.STEP`. Raises PioletError."""
    step = attach.step_in(args.file)
    if args.action == "render":
        shown = attach.definition(args.file, os.environ)
        sys.stdout.buffer.write(replace(shown, set_env=secrets.shown(shown.set_env)).to_json() + b"\n")
        sys.stdout.buffer.flush()
    elif args.action == "explain":
        sys.stdout.write(f"# the container of step {step}, as it is: nothing of it can be changed\n")
        texts = [pinned.text(one) for one in pinned.find(os.environ, step) if not one.definition.attach]
        sys.stdout.write(printable("\n".join(texts)))
    elif args.action == "check":
        print(f"{args.file} is valid: the container of step {step}{'' if args.offline else _where(step)}")
    else:
        raise UsageError(f"{args.file} is a container that runs, and no file", f"piolet env show {step} prints one")
    return 0


def _where(step: str) -> str:
    """Return what Slurm says of a step, or of a job's steps. Raises SlurmError: none runs."""
    job = attach.job_of(step)
    found = [one for one in runningsteps.of_job(job) if step in (one.name, job)]
    if not found:
        raise SlurmError(f"step {step} does not run", f"scontrol show step {job} lists those that do")
    places = ", ".join(f"{one.name} on {hostlist.compress(one.nodes)}" for one in found)
    return f", which runs: {places}; the node says whether you may enter"
