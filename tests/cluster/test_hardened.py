"""A node as careful sites set it up: processes of others are hidden (hidepid=2), nothing below /run can be executed."""

from __future__ import annotations

import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import Faults, end, on
from tests.cluster.support import BUSYBOX, Cluster, no_controllers, running


@pytest.fixture(scope="module")
def faults() -> Iterator[Faults]:
    """A cluster of one such node, with control groups where the machine has controllers; and the image `tiny`."""
    more = [] if no_controllers() else ["--cgroups"]
    with running("test-hardened", "--nodes", "1", *more) as cluster:
        made = on(cluster, "alice", Entrypoint=["/bin/env", "FROM=entrypoint"])
        mount(made, "-t", "proc", "-o", "nosuid,nodev,noexec,hidepid=2", "proc", "/proc")
        mount(made, "-o", "remount,bind,nosuid,nodev,noexec", "/run")
        made.restart_pioletd("node1")
        yield made


def mount(faults: Faults, *words: str) -> None:
    # A new /proc each time: what is said of one that is there would hold for this whole machine.
    subprocess.run(faults.on_node("node1", "mount", *words), check=True)


@pytest.fixture(scope="module")
def cluster(faults: Faults) -> Cluster:
    return faults.cluster


def test_the_node_is_as_it_says(faults: Faults) -> None:
    """Neither a step on the host nor one in a container sees process 1; and a program in /run is refused."""
    for edf in (None, faults.edf):
        out = faults.cluster.srun(
            "alice", edf, "sh", "-c", "cat /proc/self/comm; test -e /proc/1 || echo hidden"
        ).good()
        assert out == "cat\nhidden\n"
    program = faults.root("node1") / "run/program"
    program.write_bytes(BUSYBOX.read_bytes())
    program.chmod(0o755)
    assert "Permission denied" in faults.cluster.srun("alice", None, "sh", "-c", "/run/program").err


def test_an_entrypoint(faults: Faults) -> None:
    """Our own program in front of the command comes from elsewhere than /run."""
    edf = faults.cluster.edf("alice", faults.edf.read_text() + "entrypoint = true\n")
    assert faults.cluster.srun("alice", edf, "sh", "-c", "echo $FROM").good() == "entrypoint\n"


def test_entering_a_container_after_a_restart(faults: Faults) -> None:
    """What proves that it is that container is found, with processes hidden."""
    words = ["sh", "-c", "echo x >/only-here; echo $SLURM_JOB_ID; read line"]
    srun = faults.cluster.start("alice", "srun", f"--environment={faults.edf}", *words)
    assert srun.stdout is not None
    job = srun.stdout.readline().strip()
    for _ in range(2):
        assert faults.cluster.run("alice", "piolet", "attach", job, "cat", "/only-here").good() == "x\n"
        faults.restart_pioletd("node1")
    assert end(srun, stdin="\n").status == 0


def test_an_image_of_the_users_own(faults: Faults, tmp_path: Path) -> None:
    """Squashfuse finds what it needs."""
    cluster = faults.cluster
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/bin/cat").write_bytes(BUSYBOX.read_bytes())
    (tmp_path / "tree/bin/cat").chmod(0o755)
    (tmp_path / "tree/marker").write_text("own\n")
    image = cluster.room("alice") / "own.sqsh"
    subprocess.run(["mksquashfs", str(tmp_path / "tree"), str(image), "-quiet", "-no-progress"], check=True)
    cluster.give("alice", image)
    edf = cluster.edf("alice", f'image = "{image}"\n')
    with faults.nothing_left():
        assert cluster.srun("alice", edf, "cat", "/marker").good() == "own\n"


def test_a_vetting(cluster: Cluster) -> None:
    """Root's processes look at the task that asks."""
    room = cluster.room("alice")
    cluster.write("alice", room / "ml.yaml", "name: n\nevals:\n- name: limits\n  type: limits\n")
    done = cluster.run("alice", "srun", "--vet=ml.yaml", "-N1", "echo", "vetted", cwd=room)
    assert done.good() == "vetted\n" and "left out" not in done.err


def test_a_score_says_whose_figures_it_has(faults: Faults) -> None:
    """The sampler is no root: of a step that it cannot see it says so, and where the site lets it, it sees it."""
    if not faults.state.cgroups:
        pytest.skip("this machine has no control group controllers: make cluster CGROUPS=1 is not to be had")
    cluster = faults.cluster

    def source() -> str:
        done = cluster.run("alice", "srun", "--score", "-n1", "sleep", "1.5", cwd=cluster.room("alice"))
        assert done.status == 0, done.err
        return " ".join(done.err.split())

    assert "host (the whole node)" in source()
    group = pwd.getpwnam("piolet").pw_gid
    mount(faults, "-t", "proc", "-o", f"nosuid,nodev,noexec,hidepid=2,gid={group}", "proc", "/proc")
    assert "host (the step, by control groups" in source()
