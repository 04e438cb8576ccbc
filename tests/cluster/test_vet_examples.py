"""The protocols that are shipped pass on the cluster that is shipped; one GPU less of one node is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support import ROOT, Cluster
from tests.cluster.vetting import left_out, wrong_with
from tools.cluster import gpus
from tools.cluster.layout import node_names


@pytest.fixture
def fresh(cluster: Cluster) -> Iterator[None]:
    """The nodes' GPUs are as `make cluster` makes them, and are put back."""
    scripts = [gpus.script(cluster.layout.gpus, node) for node in node_names(4)]
    before = [script.read_text("ascii") for script in scripts]
    for script in scripts:
        script.write_text(gpus.usual(2), "ascii")
    yield
    for script, text in zip(scripts, before, strict=True):
        script.write_text(text, "ascii")


@pytest.mark.parametrize("name", ["vet/ml.yaml", "vet/node.yaml", "demo/ml.yaml"])
def test_shipped_protocols_pass_on_a_fresh_cluster(cluster: Cluster, room: Path, fresh: None, name: str) -> None:
    cluster.write("alice", room / "p.yaml", (ROOT / "examples" / name).read_text())
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
