"""The protocols that are shipped pass on the cluster that is shipped; one GPU less of one node is found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.faults import Faults
from tests.cluster.support import ROOT, Cluster
from tests.cluster.vetting import left_out, wrong_with
from tests.support.waiting import wait_until
from tools import demo
from tools.cluster import gpus, processes
from tools.cluster.layout import node_names


def zombies() -> list[str]:
    """Return the processes of this machine that nobody has collected yet."""
    listed = subprocess.run(["ps", "-eo", "stat=,pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith("Z")]


@pytest.fixture
def fresh(cluster: Cluster) -> Iterator[None]:
    """The nodes' GPUs are as `make cluster` makes them, and are put back."""
    scripts = [gpus.script(cluster.layout.gpus, node) for node in node_names(4)]
    before = [script.read_text("ascii") for script in scripts]
    for script in scripts:
        script.write_text(gpus.usual(2), "ascii")
    # The nodes show this machine's processes: what other tests started and nobody waited for is none of the nodes'.
    processes.reap()
    wait_until(lambda: len(zombies()) <= 10, 60, "the end of this machine's zombies")
    yield
    for script, text in zip(scripts, before, strict=True):
        script.write_text(text, "ascii")


@pytest.mark.parametrize("name", ["vet/ml.yaml", "vet/node.yaml", "demo/ml.yaml"])
def test_shipped_protocols_pass_on_a_fresh_cluster(cluster: Cluster, room: Path, fresh: None, name: str) -> None:
    cluster.write("alice", room / "p.yaml", (ROOT / "examples" / name).read_text())
    cluster.run("alice", "mkdir", "-p", f"{demo.DIRECTORY}/disk").good()  # as the demo does, for its protocol
    for words in ((), ("--gres=gpu:2",)):
        done = cluster.run("alice", "srun", "-N4", *words, "--vet=p.yaml", "hostname", cwd=room, timeout=180)
        assert sorted(done.good().split()) == ["node1", "node2", "node3", "node4"]
        assert "4 of 4 nodes good" in done.err and "bad (" not in done.err, done.err
        simulated = "it says nothing of real hardware" in done.err
        assert simulated is (name == "vet/ml.yaml"), done.err


def test_a_node_with_one_of_two_gpus_is_left_out(cluster: Cluster, room: Path, fresh: None) -> None:
    """Without --gpus: the step does not know how many there should be."""
    gpus.script(cluster.layout.gpus, "node3").write_text(gpus.usual(1), "ascii")
    cluster.write("alice", room / "p.yaml", (ROOT / "examples/vet/ml.yaml").read_text())
    out = cluster.sbatch("alice", "srun -N3 -n3 --vet=p.yaml hostname\n", "-N4", cwd=room, timeout=120)
    assert left_out(out) == ["node3"], out
    assert "gpu: 1 of 2 GPUs are there (Slurm has 2)" in wrong_with(out, "node3")[0], out


def test_a_loss_against_the_nodes_first_values(cluster: Cluster, room: Path, faults: Faults) -> None:
    """The site keeps them, where no user writes; four are enough, and what is far below them fails."""
    # With parameters of its own: other tests' values are others.
    cluster.write("alice", room / "p.yaml", "evals:\n- {type: memory_available, min_available: 3 MB, baseline: site}\n")
    file = faults.root("node2") / "run/piolet/spool/past.json"
    words = ("srun", "-N1", "-wnode2", "--vet=p.yaml,retries=0", "hostname")

    def table() -> dict[str, list[Any]]:
        return json.loads(file.read_text("ascii")) if file.exists() else {}

    before = table()
    first = cluster.run("alice", *words, cwd=room, timeout=60)
    assert "no history yet" in first.err and first.good() == "node2\n"
    for _ in range(3):
        cluster.run("alice", *words, cwd=room, timeout=60).good()

    def gained() -> list[int]:
        return [len(own) - len(before.get(name, ())) for name, own in table().items()]

    wait_until(lambda: max(gained(), default=0) >= 4, 20, "the values to be kept")
    assert file.stat().st_uid != 0 and file.parent.stat().st_mode & 0o007 == 0
    text = file.read_text("ascii")
    higher = {name: [[uid, 10 * value] for uid, value in own] for name, own in json.loads(text).items()}
    file.write_text(json.dumps(higher), "ascii")
    try:
        lost = cluster.run("alice", *words, cwd=room, timeout=60)
    finally:
        file.write_text(text, "ascii")
    assert lost.status == 3 and "of this node's first" in lost.err, lost.err
    (reason,) = wrong_with(lost.err, "node2")
    assert reason.startswith("bad (node's): node2: memory_available: ") and " is its median of " in reason
