"""Attacks by entering containers: those of others, those that are over, and what is only said to be a container."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.attack import Broken, attack, by_kernel
from tests.attacks.test_processes import groups_of, sleepers
from tests.cluster.faults import Faults, end
from tests.cluster.support import Cluster, Result
from tests.support.waiting import wait_until

_SAYS = "readlink /proc/self/ns/mnt"


@contextlib.contextmanager
def a_step(
    cluster: Cluster, edf: Path, *options: str, script: str = "echo up; read line"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A job of alice, which outlives its step, and a step in a container that is up; yields the job and the srun."""
    job = cluster.run("alice", "sbatch", "--parsable", *options, "--output=/dev/null", "--wrap", "sleep 300").good()
    job = job.strip()
    try:
        wait_until(lambda: f"{job} R" in cluster.jobs(), 20, "the job")
        words = [f"--jobid={job}", "--overlap", "-n1", "-N1", f"--environment={edf}", "sh", "-c", script]
        srun = cluster.start("alice", "srun", *words)
        try:
            assert srun.stdout is not None and srun.stdout.readline() == "up\n", end(srun)
            yield job, srun
        finally:
            with contextlib.suppress(ValueError):
                end(srun, stdin="\n")
    finally:
        cluster.run("alice", "scancel", job)
        cluster.wait_end(job)


def forged(cluster: Cluster, user: str, job: str, step: str, *words: str) -> Result:
    """Ask for a step's container past what the command at the prompt would say."""
    definition: dict[str, Any] = {
        "annotations": {}, "attach": step, "chdir": None, "devices": [], "dropped": [], "entrypoint": [], "files": [],
        "home": None, "image": None, "mounts": [], "request": f"job:{step}", "set_env": {}, "unset_env": [],
        "version": 1, "workdir": None, "workdir_given": False, "writable": True,
    }  # fmt: skip
    variables = {
        "SLURM_PIOLET_ENVIRONMENT": json.dumps(definition),
        "SLURM_PIOLET_REQUEST": f"job:{step}",
        "SLURM_SPANK__SLURM_SPANK_OPTION_piolet_environment_environment": f"job:{step}",
    }
    return cluster.run(user, "srun", f"--jobid={job}", "--overlap", *words, env=variables)


@attack("steps of other jobs are looked at")
def test_answers_tell_of_steps_of_others(cluster: Cluster, faults: Faults) -> None:
    """Promise: nobody enters a container of another user's, nor learns from the answers whether there is one."""
    with a_step(cluster, faults.edf, "-w", "node1") as (victim, _):
        own = cluster.start("bob", "salloc", "-Q", "-w", "node1", "-n1", "sh", "-c", "echo $SLURM_JOB_ID; read line")
        assert own.stdout is not None
        job = own.stdout.readline().strip()
        try:
            said = [forged(cluster, "bob", job, step, "cat", "/marker") for step in (f"{victim}.0", f"{victim}.7")]
        finally:
            end(own, stdin="\n")
    entered = [one for one in said if one.status == 0]
    told = [re.sub(rf"\b{victim}\.[07]\b", "STEP", _sentence(one)) for one in said]
    if entered or told[0] != told[1]:
        raise Broken(f"bob is told of alice's step: {told}")


def _sentence(result: Result) -> str:
    return next((line for line in result.err.splitlines() if line.startswith("piolet: error:")), result.both)


def held_open(pid: int) -> int:
    """Return how many descriptors of user namespaces a process has."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/{pid}/fd/{name}").startswith("user:[")
    return found


@attack("a container that is over is emptied once")
def test_a_task_enters_after_the_end(cluster: Cluster, faults: Faults) -> None:
    """Promise: nothing runs in a container after its step. What attaches has been told the way in, and its tasks are
    held up by its user: slurmstepd opens their output before it makes them, and that is a pipe which nobody reads."""
    room, mark = cluster.room("alice"), f"88{os.getpid() % 1000}"
    pipe = room / "pipe-0"
    os.mkfifo(pipe, 0o666)
    pipe.chmod(0o666)
    cluster.give("alice", pipe)
    with a_step(cluster, faults.edf, "-w", "node1") as (job, srun):
        monitor = faults.daemon("pioletd-node1").pid
        before = held_open(monitor)
        words = [f"--jobid={job}", "--overlap", f"--environment=job:{job}.0", f"--output={room}/pipe-%t"]
        late = cluster.start("alice", "srun", "-n1", "-N1", *words, "sh", "-c", f"sleep {mark}")
        wait_until(lambda: held_open(monitor) > before, 10, "an answer to the step")
        end(srun, stdin="\n")
        wait_until(lambda: held_open(monitor) < before, 10, "the end of what ran in the container")
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            late.wait(8)
        except subprocess.TimeoutExpired:
            if sleepers(faults, mark):
                raise Broken("a task entered the container of a step that was over, and runs there") from None
            raise
        finally:
            os.close(reader)
            late.kill()
            late.communicate()


@attack("a container of before is believed without a proof")
def test_a_namespace_of_the_users_own_passes_for_the_container(cluster: Cluster, faults: Faults) -> None:
    """Promise: after a restart of pioletd a step enters the container that root built for that step, or none. Here the
    step's only task has left it for namespaces that it made itself."""
    script = "echo up; exec unshare -U -r -m sleep 300"
    with a_step(cluster, faults.edf, "-w", "node1", script=script) as (job, srun):
        wait_until(lambda: bool(faults.tasks("sleep 300")), 10, "the task")
        faults.restart_pioletd("node1")
        found = cluster.run(
            "alice", "srun", f"--jobid={job}", "--overlap", f"--environment=job:{job}.0", "sh", "-c", _SAYS
        )
        cluster.run("alice", "scancel", f"{job}.0")
        end(srun)
    if found.status == 0:
        raise Broken(f"a step has entered {found.out.strip()}, which a user made, as the container of {job}.0")
    assert "is not proved to be its own" in found.err, found


@by_kernel("Slurm puts a step's tasks into its control group, and ends all that is in there")
def test_what_is_attached_is_in_the_other_steps_limits(confined: Faults) -> None:
    """Promise: what enters a container stays in the limits of its own step, and ends with that, too."""
    cluster, mark = confined.cluster, f"89{os.getpid() % 1000}"
    with a_step(cluster, confined.edf, "-w", "node1") as (job, _):
        words = [f"--jobid={job}", "--overlap", f"--environment=job:{job}.0", "sh", "-c"]
        script = f"setsid sleep {mark} <&- >&- 2>&- & echo $SLURM_STEP_ID; read line"
        attached = cluster.start("alice", "srun", "-n1", *words, script)
        assert attached.stdout is not None
        step = attached.stdout.readline().strip()
        wait_until(lambda: len(sleepers(confined, mark)) == 1, what="the sleeper")
        (pid,) = sleepers(confined, mark)
        where = {name: path for name, path in groups_of(pid).items() if name in ("cpuset", "devices", "memory")}
        end(attached, stdin="\n")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not sleepers(confined, mark), 5)
    if not where or not all(f"/step_{step}" in path for path in where.values()):
        raise Broken(f"it is not in its own step: {where}")
    if sleepers(confined, mark):
        raise Broken("it outlived the step that it is of")


@attack("steps of other jobs are looked at")
@pytest.mark.parametrize("step", ["4294967290.0", "4294967290.4294967291", "0.0"])
def test_numbers_that_are_guessed(cluster: Cluster, faults: Faults, step: str) -> None:
    """Promise: a number of a step is no key. All are refused alike, as of another job."""
    with a_step(cluster, faults.edf, "-w", "node1") as (job, _):
        said = forged(cluster, "alice", job, step, "true")
    if said.status == 0 or "cannot enter a container of job" not in _sentence(said):
        raise Broken(f"a guessed number is looked up: {_sentence(said)}")
