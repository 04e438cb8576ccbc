"""Jobs to which Slurm gives a /tmp and a /dev/shm of their own: their containers have the same ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import Faults, end, on
from tests.cluster.support import BUSYBOX, Cluster, running
from tests.support.waiting import wait_until

# A plugin of a site that does the same with every task, and leaves no namespace where anybody could find it.
SITE_PLUGIN = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <slurm/spank.h>
#include <sys/mount.h>

SPANK_PLUGIN(own_tmp, 1);

int slurm_spank_task_init_privileged(spank_t spank, int argc, char **argv)
{
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -1;
	return mount("own", "/tmp", "tmpfs", 0, "mode=1777");
}
"""


@pytest.fixture(scope="module")
def faults() -> Iterator[Faults]:
    """A cluster of one node whose jobs have directories of their own, with the image `tiny`."""
    with running("test-private-tmp", "--nodes", "1", "--private-tmp") as cluster:
        yield on(cluster, "alice", "bob")


@pytest.fixture(scope="module")
def cluster(faults: Faults) -> Cluster:
    return faults.cluster


@pytest.fixture
def of_the_node() -> Iterator[str]:
    """The name of a file in the node's own /tmp, which no job is to see."""
    path = Path(f"/tmp/piolet-of-the-node-{os.getpid()}")
    path.touch()
    yield path.name
    path.unlink()


def in_a_job(cluster: Cluster, user: str, script: str) -> str:
    """Return what a script in an allocation writes; its steps are one after the other."""
    # Its first words are said by salloc, on standard error.
    return cluster.run(user, "salloc", "-n1", "sh", "-ec", script).good()


def test_steps_with_and_without_an_environment_share_them(faults: Faults, of_the_node: str) -> None:
    """What one step of the job writes the next one reads, in a container or not; the node's /tmp is not there."""
    inside = f"srun --environment={faults.edf}"
    with faults.nothing_left():
        out = in_a_job(
            faults.cluster,
            "alice",
            "srun sh -c 'echo bare >/tmp/one; echo bare >/dev/shm/one'\n"
            f"{inside} sh -c 'cat /marker /tmp/one /dev/shm/one; ls /tmp'\n"
            f"{inside} sh -c 'echo inside >/tmp/two; echo inside >/dev/shm/two'\n"
            "srun sh -c 'cat /tmp/two /dev/shm/two'\n",
        )
    assert out.splitlines() == ["in the image", "bare", "bare", "one", "inside", "inside"]
    assert of_the_node not in out


def test_who_enters_a_container_has_them_too(faults: Faults) -> None:
    """Also after a restart of pioletd."""
    script = (
        f"srun --environment={faults.edf} --overlap sh -c 'echo own >/tmp/one; echo x >/only-here; sleep 60' &\n"
        'enter() { srun --overlap --environment=job:$SLURM_JOB_ID.0 "$@"; }\n'
        "until enter test -e /only-here 2>/dev/null; do sleep 0.2; done; enter cat /tmp/one /only-here; echo up\n"
        "read line; enter cat /tmp/one /only-here; scancel $SLURM_JOB_ID.0; wait\n"
    )
    with faults.nothing_left():
        job = faults.cluster.start("alice", "salloc", "-Q", "-n1", "sh", "-c", script)
        assert job.stdout is not None
        assert [job.stdout.readline() for _ in range(3)] == ["own\n", "x\n", "up\n"]
        faults.restart_pioletd("node1")
        assert end(job, 40, "\n").out == "own\nx\n"


def test_two_jobs_do_not_see_each_other(faults: Faults) -> None:
    """Nor does the file of one come back in the next job of the same user."""
    words = ["srun", "-n1", f"--environment={faults.edf}", "sh", "-c"]
    script = "echo $0 >/tmp/$0; echo $0 >/dev/shm/$0; echo ready; read x; ls /tmp /dev/shm"
    runs = []
    # One after the other: of jobs that begin at once Slurm 22.05 itself fails to make some a namespace.
    for user in ("alice", "bob"):
        runs.append(faults.cluster.start(user, *words, script, user))
        stdout = runs[-1].stdout
        assert stdout is not None and stdout.readline() == "ready\n"
    outs = [run.communicate("x\n", 30)[0].split() for run in runs]
    assert outs == [["/dev/shm:", user, "/tmp:", user] for user in ("alice", "bob")]
    assert faults.cluster.run("alice", *words, "ls /tmp /dev/shm").good().split() == ["/dev/shm:", "/tmp:"]


def test_an_image_of_the_users_own(faults: Faults, tmp_path: Path) -> None:
    """Squashfuse serves it among the job's mounts; a mount of /tmp is one of the job's."""
    cluster = faults.cluster
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "marker").write_text("own\n")
    for name in ("cat", "sh", "ls"):
        (tree / "bin" / name).write_bytes(BUSYBOX.read_bytes())
        (tree / "bin" / name).chmod(0o755)
    home = Path(cluster.run("alice", "pwd").good().strip())
    image = home / f"own-{os.getpid()}.sqsh"
    try:
        subprocess.run(["mksquashfs", str(tree), str(image), "-quiet", "-no-progress"], check=True)
        cluster.give("alice", image)
        edf = cluster.edf("alice", f'image = "{image}"\nmounts = ["/tmp:/of-the-job"]\nwritable = false\n')
        script = f"srun sh -c 'echo x >/tmp/one'\nsrun --environment={edf} sh -c 'cat /marker; ls /of-the-job'\n"
        assert in_a_job(cluster, "alice", script).split() == ["own", "one"]
    finally:
        image.unlink(missing_ok=True)


def test_mounts_that_are_not_found_are_refused(faults: Faults, tmp_path: Path) -> None:
    """A site's own plugin hides the node's /tmp from tasks: a container that had it would not be the job's."""
    cluster = faults.cluster
    source, built = tmp_path / "own_tmp.c", cluster.layout.etc / "own_tmp.so"
    source.write_text(SITE_PLUGIN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
    line = cluster.layout.etc / "plugstack.conf.d" / "own_tmp.conf"
    line.write_text(f"required {built}\n")
    try:
        assert cluster.run("alice", "srun", "-n1", "ls", "/tmp").good() == ""
        done = cluster.run("alice", "srun", "-n1", f"--environment={faults.edf}", "ls", "/tmp")
        assert done.status != 0 and not done.out
        assert "the job has mounts of its own that pioletd did not find" in done.err, done.err
        assert "hint: " in done.err and "docs/admin.md" in done.err
    finally:
        line.unlink()
        built.unlink()
    wait_until(lambda: not faults.stepds(), what="the end of the steps")
    assert cluster.run("alice", "srun", "-n1", f"--environment={faults.edf}", "cat", "/marker").good()


def test_a_deadly_job_leaves_nothing(faults: Faults) -> None:
    """Its namespace goes with it, although a container was made of its mounts."""
    kept = faults.root("node1") / "run/slurm-private"
    with faults.nothing_left():
        run = faults.cluster.start("alice", "srun", "-n1", f"--environment={faults.edf}", "sleep", "7411")
        faults.wait_tasks("sleep 7411", 1)
        assert list(kept.rglob(".ns"))
        faults.cancel_all()
        run.wait(30)
        wait_until(lambda: not list(kept.rglob(".ns")), what="the end of the job's directories")
