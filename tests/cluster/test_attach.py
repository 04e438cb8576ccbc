"""A step in the container of another: `srun --overlap --environment=job:JOB.STEP` and `piolet attach`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import leftovers
from tests.cluster.faults import Faults, assert_sentence, end
from tests.cluster.nodes import Node
from tests.cluster.support import Cluster, Result, busybox_layer
from tests.support.waiting import wait_until

SAYS = "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt"


@dataclass(frozen=True)
class Held:
    """A step that runs until it is told to end: its job, and the srun of it."""

    cluster: Cluster
    job: str
    srun: subprocess.Popen[str]

    def srun_in(self, *words: str | Path, step: str = "0", user: str = "alice", **more: str) -> Result:
        """Enter its container with srun."""
        asked = (f"--jobid={self.job}", "--overlap", f"--environment=job:{self.job}.{step}")
        return self.cluster.run(user, "srun", *asked, *words, env=more)

    def attach(self, *words: str, user: str = "alice") -> Result:
        return self.cluster.run(user, "piolet", "attach", *words)

    def end(self) -> Result:
        return end(self.srun, stdin="\n")


@contextlib.contextmanager
def held(cluster: Cluster, edf: str | Path | None, *options: str, first: str = ":") -> Iterator[Held]:
    """Run a step whose first task does `first` and waits."""
    script = f'{first}; test "$SLURM_PROCID" != 0 || {{ echo $SLURM_JOB_ID; {SAYS}; }}; read line'
    environment = [] if edf is None else [f"--environment={edf}"]
    srun = cluster.start("alice", "srun", *environment, *options, "--input=all", "sh", "-c", script)
    assert srun.stdout is not None
    job = srun.stdout.readline().strip()
    assert job.isdigit(), end(srun)
    try:
        yield Held(cluster, job, srun)
    finally:
        if srun.poll() is None:
            cluster.run("alice", "scancel", job)
        with contextlib.suppress(ValueError):  # it was told to end already
            end(srun)


def namespaces(step: Held) -> list[str]:
    assert step.srun.stdout is not None
    return [step.srun.stdout.readline(), step.srun.stdout.readline()]


def test_it_is_the_same_container(cluster: Cluster, tiny: str) -> None:
    """Its namespaces, what is written in it, its variables with secrets, where its tasks start; SLURM_* are its own."""
    text = f'image = "{tiny}"\nworkdir = "/bin"\n[env]\nWORD = "a b"\nHF_TOKEN = "verysecret"\nUNWANTED = ""\n'
    with held(cluster, cluster.edf("alice", text), first="echo x >/bin/only-here") as step:
        before = namespaces(step)
        said = (
            f'{SAYS}; cat only-here; echo "$PWD $WORD $HF_TOKEN [$UNWANTED] $FROM_IMAGE $SLURM_STEP_ID $SLURM_NTASKS"'
        )
        for more in ({}, {"UNWANTED": "x"}):  # the second time from the cache
            found = step.srun_in("sh", "-c", said, **more).good().splitlines()
            number = found[-1].split()[-2]
            assert [f"{one}\n" for one in found[:2]] == before
            assert found[2:] == ["x", f"/bin a b verysecret [] yes {number} 1"] and number != "0"
        assert step.attach(f"{step.job}.0", "cat", "only-here").good() == "x\n"
        assert step.attach(step.job, "cat", "only-here").good() == "x\n", "the job's only step with a container"
        assert step.srun_in("--chdir=/etc", "sh", "-c", "echo $PWD; ls passwd").good() == "/etc\npasswd\n"
        assert "cannot enter the working directory /not/there" in step.srun_in("--chdir=/not/there", "true").err
        shown = cluster.run("alice", "piolet", "env", "show", f"{step.job}.{number}").good()
        assert f"# in the container of step {step.job}.0" in shown and "image = " not in shown
        again = cluster.srun("alice", f"@{step.job}.0", "sh", "-c", "echo $WORD; ls only-here")
        assert again.out == "a b\n" and again.status == 1, "that is a container of its own"
        assert step.end().status == 0


def test_processes_of_the_step_are_seen_and_ended(cluster: Cluster, tiny_edf: Path) -> None:
    with held(cluster, tiny_edf, first="sleep 7301 & echo $! >/sleeper") as step:
        assert step.attach(f"{step.job}.0", "sh", "-c", "grep -a 7301 /proc/$(cat /sleeper)/cmdline").status == 0
        assert step.attach(f"{step.job}.0", "sh", "-c", "kill $(cat /sleeper)").status == 0


def test_a_terminal(cluster: Cluster, tiny_edf: Path) -> None:
    """A shell at a terminal of its own, whose exit status comes back; the image has no bash, so it is /bin/sh."""
    with held(cluster, tiny_edf, first="echo x >/only-here") as step:
        words = shlex.join([str(cluster.layout.as_script), "alice", "piolet", "attach", step.job])
        done = subprocess.run(
            ["script", "--quiet", "--return", "--command", words, "/dev/null"],
            input="stty size >/dev/null && tty; cat /only-here; exit 7\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "/dev/pts/" in done.stdout and "\nx\n" in done.stdout, done
        assert done.returncode == 7, done


def test_it_ends_with_either(faults: Faults) -> None:
    """What is attached ends with the container's step, also what left its session; and not the other way round."""
    with faults.nothing_left(), held(faults.cluster, faults.edf) as step:
        words = "setsid sleep 7302 & echo in; sleep 7303"
        attached = faults.cluster.start("alice", "piolet", "attach", step.job, "sh", "-c", words)
        assert attached.stdout is not None and attached.stdout.readline() == "in\n"
        faults.wait_tasks("sleep 7302", 1)
        assert step.end().status == 0
        assert end(attached).status != 0
        faults.wait_tasks("sleep 7302", 0, 5)
        faults.wait_tasks("sleep 7303", 0, 5)


def test_many_leave_nothing(faults: Faults) -> None:
    """Neither descriptors nor memory, in either half of pioletd."""
    with faults.nothing_left(), held(faults.cluster, faults.edf, "-w", "node1") as step:
        step.srun_in("true").good()
        pids = (faults.daemon("pioletd-node1").pid, faults.server("node1"))
        before = [leftovers.resident_kib(pid) for pid in pids]
        open_before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
        script = f"for i in $(seq 40); do srun --overlap --jobid={step.job} --environment=job:{step.job}.0 true; done"
        faults.cluster.run("alice", "sh", "-c", script, timeout=60).good()
        wait_until(
            lambda: [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids] == open_before, 5, "the same descriptors"
        )
        grown = [leftovers.resident_kib(pid) - kib for pid, kib in zip(pids, before, strict=True)]
        assert max(grown) < 400, grown
        assert step.end().status == 0


def test_several_nodes(cluster: Cluster, tiny_edf: Path) -> None:
    """Each node has its own; by default the step's first is entered, which is said."""
    with held(cluster, tiny_edf, "-N2", "-n4", "-w", "node[2-3]", first="hostname >/name") as step:
        first = step.attach(step.job, "cat", "/name")
        assert first.good() == "node2\n" and "on node2, one of node[2-3]; -w NODE chooses another" in first.err
        assert step.attach("-w", "node3", f"{step.job}.0", "cat", "/name").good() == "node3\n"
        assert sorted(step.srun_in("-N2", "-n2", "cat", "/name").good().split()) == ["node2", "node3"]
        assert_sentence(step.attach("-w", "node4", step.job, "true"), f"step {step.job}.0 is not on node4")


def test_as_root_without_the_entrypoint(cluster: Cluster) -> None:
    """What the entry program does for each task is done; the entrypoint, which the step's tasks have run, is not."""
    layer = [busybox_layer()]
    image = cluster.push("entry", layer, Env=["PATH=/bin"], Entrypoint=["/bin/env", "VIA=the entrypoint"])
    text = f'image = "{image}"\nentrypoint = true\nremap_root = true\n'
    edf = cluster.edf("alice", f'{text}[annotations]\ncom.pyxis.pytorch_remap_vars = "true"\n')
    says = "id -u; echo [$VIA] $RANK; touch /x; chown 5:6 /x; echo $?"
    with held(cluster, edf, first='test -n "$VIA" || exit 3') as step:
        assert step.srun_in("sh", "-c", says).good().split() == ["0", "[]", "0", "0"]
        assert step.attach(step.job, "sh", "-c", says).good().split() == ["0", "[]", "0", "0"]


def test_with_each_builder(node: Node, tiny: str) -> None:
    """Our own, and crun."""
    cluster = node.cluster
    with held(cluster, cluster.edf("alice", f'image = "{tiny}"\n'), "-w", node.name, first="true") as step:
        before = namespaces(step)
        assert step.srun_in("sh", "-c", SAYS).good().splitlines() == [one.strip() for one in before]
        assert step.attach(step.job, "cat", "/marker").good() == "in the image\n"


def test_what_is_done_around_tasks_is_not_done_for_it(cluster: Cluster, tiny: str) -> None:
    """Startup commands and `save` are the container's own tasks' part."""
    room = cluster.room("alice")
    text = f'image = "{tiny}"\nsave = "{room}/kept.sqsh"\n[startup]\ncommands = ["echo once >>/started"]\n'
    with held(cluster, cluster.edf("alice", text)) as step:
        for _ in range(2):
            assert step.attach(step.job, "cat", "/started").good() == "once\n"
        assert not (room / "kept.sqsh").exists()
        assert step.end().status == 0
    assert (room / "kept.sqsh").exists()


def test_a_batch_script_inside(cluster: Cluster, tiny: str) -> None:
    room = cluster.room("alice")
    edf = cluster.edf("alice", f'image = "{tiny}"\nscript = "inside"\nmounts = ["{room}"]\n')
    script = cluster.script("alice", f"#!/bin/sh\necho x >/only-here\necho $$ >{room}/up\nsleep 7304\n")
    job = cluster.run("alice", "sbatch", "--parsable", f"--environment={edf}", "--output=/dev/null", script).good()
    job = job.strip()
    try:
        wait_until((room / "up").exists, 20, "the script")
        assert cluster.run("alice", "piolet", "attach", f"{job}.batch", "cat", "/only-here").good() == "x\n"
        asked = (f"--jobid={job}", "--overlap", f"--environment=job:{job}")
        assert cluster.run("alice", "srun", *asked, "cat", "/only-here").good() == "x\n"
    finally:
        cluster.run("alice", "scancel", job)


def test_of_two_steps_one_has_to_be_named(cluster: Cluster, tiny_edf: Path) -> None:
    with held(cluster, tiny_edf, first="echo a >/which") as step:
        inner = [f"--jobid={step.job}", "--overlap", "--input=all", "sh", "-c", "echo b >/which; echo up; read line"]
        second = cluster.start("alice", "srun", f"--environment={tiny_edf}", *inner)
        assert second.stdout is not None and second.stdout.readline() == "up\n"
        asked = ("srun", f"--jobid={step.job}", "--overlap", f"--environment=job:{step.job}", "cat", "/which")
        several = cluster.run("alice", *asked)
        assert_sentence(several, f"the steps {step.job}.0, {step.job}.1 of job {step.job} have containers on this node")
        assert_sentence(step.attach(step.job, "true"), f"job {step.job} has several steps: ")
        assert step.srun_in("cat", "/which", step="1").good() == "b\n"
        assert step.srun_in("cat", "/which", step="0").good() == "a\n"
        # One that is itself attached stands for the container that it is in.
        through = ["srun", f"--jobid={step.job}", "--overlap", f"--environment=job:{step.job}.0", "--input=all"]
        third = cluster.start("alice", *through, "sh", "-c", "echo $SLURM_STEP_ID; read line")
        assert third.stdout is not None
        assert step.srun_in("cat", "/which", step=third.stdout.readline().strip()).good() == "a\n"
        assert (end(third, stdin="\n").status, end(second, stdin="\n").status) == (0, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["srun", "--jobid=JOB", "--overlap", "--environment=job:JOB.7"], "step JOB.7 has no container on this node"),
        (
            ["srun", "--jobid=JOB", "--overlap", "--environment=job:77.0"],
            "this srun is of job JOB, which cannot be in a",
        ),
        (["srun", "--jobid=JOB", "--overlap", "--environment=job:JOB.x"], "'JOB.x' is no step"),
        (["srun", "--jobid=JOB", "--overlap", "--environment=job:JOB.0,image=x"], "'JOB.0,image=x' is no step"),
        (["srun", "-n1", "--environment=job:JOB.00"], "would ask for a job of its own"),
        (["sbatch", "--environment=job:JOB.0", "--wrap=true"], "sbatch makes a new job"),
        (["salloc", "--environment=job:JOB.0"], "salloc makes a new job"),
        (["piolet", "attach", "999999"], "job 999999 is over"),
        (["piolet", "attach", "JOB.7"], "no step JOB.7 of job JOB runs now"),
        (["piolet", "attach", "JOB_1.0"], "'JOB_1.0' is no step"),
        (["piolet", "ssh", "JOB"], "the environment of step JOB.0 has no SSH server"),
        (["piolet", "env", "export", "--to", "podman", "job:JOB.0"], "job:JOB.0 is a container that runs, and no file"),
        (["piolet", "env", "check", "job:JOB.7"], "step JOB.7 does not run"),
    ],
)
def test_what_cannot_be(cluster: Cluster, tiny_edf: Path, words: list[str], said: str) -> None:
    with held(cluster, tiny_edf) as step:
        asked = [word.replace("JOB", step.job) for word in words]
        command = [*asked, "true"] if asked[0] in ("srun", "salloc") else asked
        assert_sentence(cluster.run("alice", *command), said.replace("JOB", step.job))


def test_another_users_is_told_nothing(cluster: Cluster, tiny_edf: Path) -> None:
    with held(cluster, tiny_edf) as step:
        assert_sentence(step.attach(step.job, "true", user="bob"), f"job {step.job} is another user's")
        assert "denied" in step.srun_in("true", user="bob").err
        with_own = cluster.run("bob", "salloc", "-Q", "srun", "--overlap", f"--environment=job:{step.job}.0", "true")
        assert_sentence(with_own, f"cannot enter a container of job {step.job}")


@pytest.mark.parametrize("kind", ["no image", "no environment"])
def test_a_step_that_has_no_container(cluster: Cluster, tiny: str, kind: str) -> None:
    edf = cluster.edf("alice", '[env]\nA = "b"\n') if kind == "no image" else None
    with held(cluster, edf) as step:
        said = "runs on the host: its environment names no image" if edf else "has no container on this node"
        assert_sentence(step.srun_in("true"), f"step {step.job}.0 {said}")


def test_with_a_score_and_a_vetting(cluster: Cluster, tiny_edf: Path) -> None:
    room = cluster.room("alice")
    cluster.write("alice", room / "p.yaml", "name: p\nevals:\n- name: limits\n  type: limits\n")
    with held(cluster, tiny_edf) as step:
        asked = ["srun", f"--jobid={step.job}", "--overlap", f"--environment=job:{step.job}.0"]
        scored = cluster.run("alice", *asked, "--score", "cat", "/marker", cwd=room)
        assert scored.out == "in the image\n" and "piolet score: step" in scored.err, scored
        vetted = cluster.run("alice", *asked, "--vet=p.yaml", "true", cwd=room)
        assert_sentence(vetted, "a step that enters the container of another is not vetted")
        assert cluster.run("alice", "piolet", "env", "check", f"job:{step.job}.0").good().startswith("job:")
        explained = cluster.run("alice", "piolet", "env", "explain", f"job:{step.job}.0").good()
        assert "as it is" in explained and "image = " in explained
        rendered = json.loads(cluster.run("alice", "piolet", "env", "render", f"job:{step.job}.0").good())
        assert rendered["attach"] == f"{step.job}.0"


def test_after_a_restart_of_pioletd(faults: Faults, tiny: str) -> None:
    """The container is proved to be its own by what root noted; variables are what srun has kept of them."""
    cluster = faults.cluster
    edf = cluster.edf("alice", f'image = "{tiny}"\nworkdir = "/bin"\n[env]\nWORD = "kept"\n')
    note = faults.root("node2") / "run/piolet/steps"
    with faults.nothing_left(), held(cluster, edf, "-w", "node2", first="echo x >/only-here") as step:
        before = namespaces(step)
        file = note / f"{step.job}.0"
        wait_until(file.exists, 5, "root's note")
        for stop in (False, True):
            faults.stop_pioletd("node2", kill=stop)
            faults.start_pioletd("node2")
            found = step.srun_in("sh", "-c", f"{SAYS}; cat /only-here; echo $PWD $WORD").good()
            assert found.splitlines() == [*(one.strip() for one in before), "x", "/bin kept"]
        unknown = step.srun_in("true", XDG_CACHE_HOME="/nowhere/at/all")
        assert_sentence(unknown, f"the variables of step {step.job}.0 are not known: pioletd was restarted")
        # A number that another namespace has: as if it had been used again, or were a user's own.
        text = file.read_text()
        file.write_text(re.sub(r'"mounts": \d+', f'"mounts": {os.stat("/proc/self/ns/mnt").st_ino}', text))
        faults.restart_pioletd("node2")
        assert_sentence(step.srun_in("true"), f"the container of step {step.job}.0 is not proved to be its own")
        file.write_text(re.sub(r'"started": \d+', '"started": 1', text))
        faults.restart_pioletd("node2")
        assert_sentence(step.srun_in("true"), "is not proved to be its own")
        file.write_text(text)
        faults.restart_pioletd("node2")
        attached = cluster.start("alice", "piolet", "attach", step.job, "sh", "-c", "echo in; sleep 7305")
        assert attached.stdout is not None and attached.stdout.readline() == "in\n"
        assert step.end().status == 0
        assert end(attached).status != 0
        faults.wait_tasks("sleep 7305", 0, 5)
