"""`where: environment`: evals that run in the step's container, with the Python and the files of its image."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cluster.faults import Faults
from tests.cluster.support import Cluster
from tests.cluster.vetting import left_out, wrong_with

EVAL = """\
import os
import sys
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict


@dataclass(frozen=True)
class Image(Eval):
    name = "image"
    text = "is in the demo image"

    def check(self, context: Context) -> Verdict:
        print("not a line of ours")
        if sys.stdin.read() or not os.path.exists("/etc/piolet-demo-image"):
            return Verdict("fail", "it is not in the image")
        import numpy
        return Verdict("pass", details={"python": sys.executable, "numpy": numpy.__file__, "nodes": len(context.nodes)})
"""
PROTOCOL = """\
name: inside
evals:
- {name: host, type: limits}
- {name: image, type: image_eval.Image, where: environment}
- {name: pairs, type: network_pair, size: 1 MB, pings: 5, where: environment}
"""


@pytest.fixture
def room(cluster: Cluster) -> Path:
    path = cluster.room("alice")
    cluster.write("alice", path / "image_eval.py", EVAL)
    cluster.write("alice", path / "p.yaml", PROTOCOL)
    text = f'image = "{cluster.demo_image}"\nmounts = ["{path}:{path}"]\nworkdir = "{path}"\n'
    cluster.write("alice", path / "e.toml", text)
    return path


def test_evals_run_with_the_python_of_the_image(cluster: Cluster, room: Path) -> None:
    """Those of one node and meetings of pairs; the application then runs there, too."""
    done = cluster.run(
        "alice", "srun", "-N4", "--environment=./e.toml", "--vet=p.yaml,report=vet-here.json", "hostname", cwd=room
    )
    assert sorted(done.good().split()) == ["node1", "node2", "node3", "node4"]
    assert "4 of 4 nodes good" in done.err
    (report,) = room.glob("vet-*.json")
    records = json.loads(report.read_text("utf-8"))["records"]
    assert sorted({row["eval"] for row in records}) == ["host", "image", "pairs"]
    found = {row["node"]: row for row in records if row["eval"] == "image"}
    assert len(found) == 4 and all(row["details"]["nodes"] == 4 for row in found.values())
    pairs = [row for row in records if row["eval"] == "pairs"]
    assert len(pairs) == 4 and all(row["outcome"] == "pass" and row["unit"] == "GB/s" for row in pairs)


def test_the_environment_of_sbatch_is_that_of_the_vetting(cluster: Cluster, room: Path, faults: Faults) -> None:
    """Its sruns say neither the environment nor the protocol; and one node, where a file is missing, is left out."""
    cover = cluster.write("alice", room / "empty", "")
    place = str(room / "image_eval.py")
    subprocess.run(faults.on_node("node2", "mount", "--bind", str(cover), place), check=True)
    try:
        options = ("-N4", "--environment=./e.toml", "--vet=p.yaml")
        out = cluster.sbatch("alice", "srun -N3 -n3 hostname\necho status $?\n", *options, cwd=room)
    finally:
        subprocess.run(faults.on_node("node2", "umount", "-l", place), check=True)
    assert "status 0" in out and left_out(out) == ["node2"] and "image: " in wrong_with(out, "node2")[0], out
    assert sorted(line for line in out.splitlines() if line.startswith("node")) == ["node1", "node3", "node4"]


@pytest.mark.kernels
def test_one_node_is_vetted_in_its_environment(cluster: Cluster, room: Path) -> None:
    cluster.write("alice", room / "one.yaml", PROTOCOL.rpartition("- {name: pairs")[0])
    words = ("srun", "-N1", "--environment=./e.toml", "--vet=one.yaml", "hostname")
    done = cluster.run("alice", *words, cwd=room, timeout=180)
    assert done.good().split() == ["node1"]
    assert "good" in done.err and "left out" not in done.err, done.err


def test_an_image_without_python(cluster: Cluster, room: Path, tiny_edf: Path) -> None:
    """It says so for every node, in bounded time, and starts nothing."""
    words = ["srun", "-N2", f"--environment={tiny_edf}", "--vet=p.yaml,retries=0", "touch", f"{room}/started"]
    done = cluster.run("alice", *words, cwd=room, timeout=60)
    assert done.status == 3 and "python3" in done.err and wrong_with(done.err, "node[1-2]"), done
    assert not (room / "started").exists() and not cluster.jobs()


def test_where_there_is_no_environment(cluster: Cluster, room: Path) -> None:
    done = cluster.run("alice", "srun", "-N1", "--vet=p.yaml,retries=0", "hostname", cwd=room)
    assert done.status == 3 and "image: the application has no environment (--environment)" in done.err


def test_a_jobs_vetting_is_that_of_its_environment(cluster: Cluster, room: Path) -> None:
    """It is used again for the same one, and not after the definition was changed."""
    text = "name: inside\nevals:\n- {name: image, type: image_eval.Image, where: environment}\n"
    cluster.write("alice", room / "p.yaml", text)
    step = "srun -N2 --environment=./e.toml --vet=p.yaml true; echo status $?\n"
    change = "echo '[env]' >> e.toml; echo 'X = \"1\"' >> e.toml\n"
    out = cluster.sbatch("alice", f"{step}{step}{change}{step}srun --vet=p.yaml true\n", "-N2", cwd=room)
    assert out.count("status 0") == 3 and out.count(" s ago") == 1, out
    assert out.count("2 of 2 nodes good, ") == 3 and "the application has no environment" in out, out
