"""Faults on nodes, one by one: the right node is named, no other is, and the application starts on the rest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import Faults, kill
from tests.cluster.support import Cluster
from tests.cluster.vetting import assert_left_out, eval_pids, everything_on, sleeping, vetted
from tests.simulators.timeserver import TimeServer
from tests.support.waiting import wait_until
from tools.cluster import gpus
from tools.cluster.layout import node_names

IDLE = "gpu\n" * 2
GPUS = "name: gpus\nevals:\n- {type: gpu, count: 2}\n- {type: gpu_health}\n"


@pytest.fixture
def healthy(cluster: Cluster) -> Iterator[None]:
    """Every node has two GPUs that are idle and well; the test makes one sick."""
    for node in node_names(4):
        gpus.script(cluster.layout.gpus, node).write_text(IDLE, "ascii")
    yield
    for node in node_names(4):
        gpus.script(cluster.layout.gpus, node).write_text(IDLE, "ascii")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("gpu\ngpu\necc_uncorrected_volatile 3\n", "uncorrected"),
        ("gpu\nthrottle 0x40\ngpu\n", "slow"),
        ("gpu\ngpu\nprocess 4242 1073741824\n", "process"),
        ("gpu\n", "NVML shows 1 of them"),
        ("gpu\npcie_width 8\ngpu\n", "PCIe"),
        ("fail nvmlInitWithFlags 999\ngpu\ngpu\n", "gpu"),
    ],
    ids=["ecc", "throttling", "foreign-process", "lost", "pcie", "driver"],
)
def test_a_sick_gpu(cluster: Cluster, room: Path, healthy: None, fault: str, text: str) -> None:
    """Simulated, through nvidia-ml-py's real calls."""
    gpus.script(cluster.layout.gpus, "node2").write_text(fault, "ascii")
    assert_left_out(vetted(cluster, room, GPUS, 3, "--gres=gpu:2"), "node2", text)


def test_well_gpus_pass(cluster: Cluster, room: Path, healthy: None) -> None:
    """All four, and the report has them."""
    out = vetted(cluster, room, GPUS, 4, "--gres=gpu:2")
    assert "4 of 4 nodes good" in out and "status 0" in out, out


def cpu_group() -> Path | None:
    """Return a new control group that can limit processors, of either version."""
    for base in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup")):
        path = base / f"piolet-slow-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        if (path / "cpu.cfs_quota_us").exists() or (path / "cpu.max").exists():
            return path
        path.rmdir()
    return None


def test_a_slow_node(cluster: Cluster, faults: Faults, room: Path) -> None:
    """All that runs on it, the daemons too, has a tenth of a processor."""
    group = cpu_group()
    if group is None:
        pytest.skip("no control group of this machine limits processors")
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("10000 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("10000")
        for pid in everything_on(faults, "node2"):
            (group / "cgroup.procs").write_text(str(pid))
        protocol = "name: cpu\nevals:\n- {type: cpu_gemm, size: 1024, baseline: peers, timeout: 30s, max_spread: 0}\n"
        out = vetted(cluster, room, protocol)
    finally:
        for line in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(line)
        group.rmdir()
    assert_left_out(out, "node2", "cpu_gemm")


def test_a_clock_that_is_off(cluster: Cluster, faults: Faults, room: Path) -> None:
    """Nodes of one machine share its clock: node2 asks a time server that is three seconds ahead, simulated."""
    with TimeServer(0.0) as right, TimeServer(3.0, address="127.0.0.2", port=right.port):
        out = asked(cluster, faults, room, f"timeserver:{right.port}")
    assert_left_out(out, "node2", "clock offset")


def asked(cluster: Cluster, faults: Faults, room: Path, server: str) -> str:
    """Vet with the time server of this name, which is 127.0.0.2 on node2; return what was said."""
    names = Path("/etc/hosts").read_text("utf-8")
    for node in node_names(4):
        address = "127.0.0.2" if node == "node2" else "127.0.0.1"
        own = faults.root(node).joinpath("etc/hosts").read_text("utf-8") or names
        cover = cluster.write("alice", room / f"hosts.{node}", f"{own}\n{address} {server.partition(':')[0]}\n")
        subprocess.run(faults.on_node(node, "mount", "--bind", str(cover), "/etc/hosts"), check=True)
    try:
        return vetted(
            cluster, room, f"name: clock\nevals:\n- {{type: clock_skew, max_offset: 0.5, server: {server}}}\n"
        )
    finally:
        for node in node_names(4):
            subprocess.run(faults.on_node(node, "umount", "-l", "/etc/hosts"), check=True)


def test_a_worker_is_killed(cluster: Cluster, room: Path) -> None:
    """Its verdict is inconclusive, with the signal; the others wait for nothing."""
    cluster.write("alice", room / "p.yaml", sleeping(cluster, room))
    script = "srun -N3 -n3 --vet=p.yaml hostname\necho status $?\n"
    path = cluster.script("alice", script)
    job = cluster.run("alice", "sbatch", "--parsable", "-N4", "-o", "out", path, cwd=room).good().strip()
    wait_until(lambda: len(eval_pids(room)) == 4, what="four evals")
    kill(eval_pids(room)["node3"])
    (room / "go").touch()
    cluster.wait_end(job, 60)
    assert_left_out((room / "out").read_text("utf-8"), "node3", "SIGKILL")


def test_a_node_dies_during_its_vetting(cluster: Cluster, faults: Faults, room: Path) -> None:
    """The whole node: slurmd, slurmstepd and pioletd."""
    cluster.write("alice", room / "p.yaml", sleeping(cluster, room))
    script = "srun -N3 -n3 --vet=p.yaml hostname\necho status $?\n"
    path = cluster.script("alice", script)
    # The batch script runs on the first node, which stays.
    job = cluster.run("alice", "sbatch", "--parsable", "-N4", "-o", "out", "--no-kill", path, cwd=room).good().strip()
    try:
        wait_until(lambda: len(eval_pids(room)) == 4, what="four evals")
        faults.stop_pioletd("node4", kill=True)
        for pid in faults.stepds("node4"):
            os.kill(pid, signal.SIGKILL)
        (room / "go").touch()
        cluster.wait_end(job, 90)
    finally:
        faults.repair()
    assert_left_out((room / "out").read_text("utf-8"), "node4", "sleeper")


def test_a_class_that_one_node_cannot_import(cluster: Cluster, faults: Faults, room: Path) -> None:
    """The file is there, but not on node2."""
    protocol = sleeping(cluster, room)
    (room / "go").touch()
    place = room / "sleeper.py"
    cover = cluster.write("alice", room / "empty", "")
    subprocess.run(faults.on_node("node2", "mount", "--bind", str(cover), str(place)), check=True)
    try:
        out = vetted(cluster, room, protocol)
    finally:
        subprocess.run(faults.on_node("node2", "umount", "-l", str(place)), check=True)
    assert_left_out(out, "node2", "Sleeper")


def test_all_nodes_are_bad(cluster: Cluster, room: Path) -> None:
    """Status 3, and nothing is started."""
    out = vetted(cluster, room, "name: n\nevals:\n- {type: memory_available, min_available: 900000}\n")
    assert "0 of 4 nodes good" in out and "status 3" in out and "the application was not started" in out, out
    assert not [line for line in out.splitlines() if line in node_names(4)]


def test_exactly_as_many_as_there_must_be(cluster: Cluster, room: Path, healthy: None) -> None:
    """Three of four are good: enough with min_nodes=3 where four were asked for, too few with min_nodes=4."""
    gpus.script(cluster.layout.gpus, "node1").write_text("gpu\n", "ascii")
    out = vetted(cluster, room, GPUS, 4, "--gres=gpu:2", option=",min_nodes=3 --ntasks-per-node=1")
    assert_left_out(out, "node1", "NVML shows 1 of them")
    out = vetted(cluster, room, GPUS, 4, "--gres=gpu:2", option=",min_nodes=4 --ntasks-per-node=1")
    assert "status 3" in out and "the application was not started" in out, out


def test_nodes_meet_in_a_vet_step(cluster: Cluster, room: Path) -> None:
    """Pairs in rounds, over the vet step's own streams; and torch, which is not there, is no hang.

    All nodes are one small machine here, so a node may be judged slow by what else runs on it: what counts is that
    each was judged. Whether rightly is for the tests of links (tests/vet/test_links.py).
    """
    out = vetted(cluster, room, "name: net\nevals:\n- {type: network_pair, size: 1 MB, pings: 5}\n", 4)
    row = re.search(r"^network_pair +(\d) +(\d) +0 ", out, re.MULTILINE)
    assert row is not None and int(row[1]) + int(row[2]) == 4, out
    (report,) = room.glob("vet-*.json")
    records = json.loads(report.read_text("utf-8"))
    assert "GB/s" in json.dumps(records)
    torch = "name: t\nevals:\n- {type: nccl_bandwidth, backend: gloo, ranks: 1, payload: 1 MB, on_inconclusive: warn}\n"
    other = cluster.room("alice")
    out = vetted(cluster, other, torch, 4)
    assert "status 0" in out and "torch" in out, out
    assert not list(other.glob(".piolet-vet-*"))


LEFTOVERS = "name: left\nevals:\n- {type: leftovers, max_zombies: 100000, max_hanging: 100, max_shm: 1000}\n"


def test_another_users_running_job_is_no_leftover(cluster: Cluster, room: Path) -> None:
    """On a node that is shared. What runs outside any job is one, until its user has a job there."""
    cluster.write("alice", room / "left.yaml", LEFTOVERS)
    vet = ("srun", "-N1", "-wnode1", "--vet=left.yaml,retries=0", "true")
    outside = cluster.start("bob", "sleep", "300")
    try:
        done = cluster.run("alice", *vet, cwd=room)
        assert done.status == 3 and "processes of other users (" in done.err, done.both
    finally:
        outside.kill()
        outside.communicate()
    job = cluster.start("bob", "srun", "-N1", "-wnode1", "sh", "-c", "echo there; exec sleep 300")
    try:
        assert job.stdout is not None and job.stdout.readline() == "there\n"
        cluster.run("alice", *vet, cwd=room).good()
    finally:
        job.terminate()
        job.communicate()
