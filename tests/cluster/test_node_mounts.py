"""Mounts of what only compute nodes have, and of directories that are named after the job."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import Faults
from tests.cluster.nodes import refused
from tests.cluster.support import Cluster

LOCAL = Path("/run/nvme")  # a node's /run is its own


@pytest.fixture
def disk(faults: Faults, room: Path) -> Iterator[Path]:
    """A directory of alice's that node1 has and no other machine, this one included."""
    place = faults.root("node1") / "run/nvme"
    place.mkdir()
    os.chown(place, room.stat().st_uid, room.stat().st_gid)
    (place / "here").write_text("on node1\n")
    assert not LOCAL.exists()
    yield place
    subprocess.run(faults.on_node("node1", "rm", "-r", LOCAL), check=True)


def edf(cluster: Cluster, tiny: str, mount: str, more: str = "") -> Path:
    return cluster.edf("alice", f'image = "{tiny}"\nmounts = ["{mount}"]\n{more}')


@pytest.mark.parametrize("flag", ["node", "optional"])
def test_a_node_s_own_directory(cluster: Cluster, tiny: str, disk: Path, flag: str) -> None:
    file = edf(cluster, tiny, f"{LOCAL}:/fast:{flag}")
    assert cluster.run("alice", "piolet", "env", "check", file).good()
    assert cluster.srun("alice", file, "-w", "node1", "cat", "/fast/here").good() == "on node1\n"
    other = cluster.srun("alice", file, "-w", "node2", "sh", "-c", "ls /fast 2>/dev/null; echo runs")
    if flag == "optional":
        assert other.good() == "runs\n"
    else:
        refused(other, "node node2: cannot mount /run/nvme at /fast: No such file or directory")


def test_without_a_flag_it_is_refused_before(cluster: Cluster, tiny: str, disk: Path) -> None:
    refused(cluster.srun("alice", edf(cluster, tiny, f"{LOCAL}:/fast"), "-w", "node1", "true"), "does not exist")


def test_what_is_there_and_closed_is_said(cluster: Cluster, tiny: str, disk: Path) -> None:
    disk.joinpath("closed").mkdir(mode=0o700)
    file = edf(cluster, tiny, f"{LOCAL}/closed:/fast:optional")
    refused(
        cluster.srun("alice", file, "-w", "node1", "true"), "cannot mount /run/nvme/closed at /fast: Permission denied"
    )


def test_a_site_s_list(cluster: Cluster, tiny: str, disk: Path) -> None:
    file = edf(cluster, tiny, f"{LOCAL}:/fast")
    toml = cluster.layout.piolet_toml
    before = toml.read_text()
    toml.write_text(before.replace("[environment]\n", f'[environment]\nnode_local = ["{LOCAL}"]\n'))
    try:
        assert cluster.srun("alice", file, "-w", "node1", "cat", "/fast/here").good() == "on node1\n"
    finally:
        toml.write_text(before)


def test_a_directory_of_the_job(cluster: Cluster, tiny: str, disk: Path, room: Path) -> None:
    """The number is that of the job that runs: not that of the job in which it is asked for."""
    more = 'workdir = "/job/${SLURM_JOB_ID}"\n[env]\nPLACE = "${SLURM_JOB_ID} on ${SLURMD_NODENAME}"\n'
    file = edf(cluster, tiny, f"{LOCAL}/${{SLURM_JOB_ID}}:/job/${{SLURM_JOB_ID}}", more)
    script = (
        f"#!/bin/bash\n#SBATCH --environment={file} -w node1\nmkdir {LOCAL}/$SLURM_JOB_ID\n"
        f"echo mine >{LOCAL}/$SLURM_JOB_ID/whose\nsrun sh -c 'pwd; cat whose; echo $PLACE'\necho $SLURM_JOB_ID\n"
    )
    for option in ("--comment=outside", "--comment=again"):
        out = cluster.sbatch("alice", script, option, cwd=room).splitlines()
        job = out[-1]
        assert out == [f"/job/{job}", "mine", f"{job} on node1", job]
    done = cluster.run("alice", "env", "SLURM_JOB_ID=1", "piolet", "env", "explain", file).good()
    assert f"{LOCAL}/${{SLURM_JOB_ID}}:/job/${{SLURM_JOB_ID}}" in done
