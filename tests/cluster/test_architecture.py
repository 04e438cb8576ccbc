"""Images for this machine's architecture: chosen from a list of platforms, and run. Also in make test-arm64's guest."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

from tests.cluster.support import SCORE_HERE, Cluster, busybox_layer
from tests.support import oci
from tests.support.waiting import PATIENCE
from tools.cluster import registry

SLOW_S = 600.0
"""For what takes seconds here, and minutes in a guest that is emulated."""


def test_a_step_runs_the_image_that_is_made_for_its_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """An index lists an image for each architecture, another's first; ours is the one whose programs run."""
    entries = []
    platforms = [("arm64", "v8"), ("amd64", None), ("ppc64le", None)]
    platforms.sort(key=lambda pair: pair[0] == oci.ARCHITECTURE)
    for architecture, variant in platforms:
        mark = oci.file("architecture", f"{architecture}\n".encode())
        digest = oci.build(tmp_path / architecture, [busybox_layer(mark)], architecture=architecture)
        where = f"{cluster.registry}/test/platforms:{architecture}"
        registry.copy(f"dir:{tmp_path / architecture}", where, timeout_s=SLOW_S)
        platform = {"os": "linux", "architecture": architecture} | ({"variant": variant} if variant else {})
        size = (tmp_path / architecture / "manifest.json").stat().st_size
        kind = f"{oci.OCI}.manifest.v1+json"
        entries.append({"mediaType": kind, "digest": digest, "size": size, "platform": platform})
    index = {"schemaVersion": 2, "mediaType": f"{oci.OCI}.index.v1+json", "manifests": entries}
    request = urllib.request.Request(
        f"http://{cluster.registry}/v2/test/platforms/manifests/all",
        json.dumps(index).encode(),
        {"Content-Type": f"{oci.OCI}.index.v1+json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 201
    edf = cluster.edf("alice", f'image = "{cluster.registry}/test/platforms:all"\n')
    done = cluster.srun("alice", edf, "/bin/sh", "-c", "cat /architecture; uname -m", timeout=SLOW_S)
    assert done.good().split() == [oci.ARCHITECTURE, os.uname().machine]


def test_an_image_for_other_nodes_alone_is_refused_in_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    other = "s390x"
    oci.build(tmp_path / "image", [busybox_layer()], architecture=other)
    where = f"{cluster.registry}/test/other:{other}"
    registry.copy(f"dir:{tmp_path / 'image'}", where, timeout_s=SLOW_S)
    done = cluster.srun("alice", cluster.edf("alice", f'image = "{where}"\n'), "true", timeout=SLOW_S)
    assert done.status != 0 and f"linux/{other}" in done.both and f"linux/{oci.ARCHITECTURE}" in done.both
    assert "hint: " in done.both and "Traceback" not in done.both


def test_the_demo_image_computes(cluster: Cluster) -> None:
    """Python and NumPy of the distribution, for this architecture, with libraries that were compiled for it."""
    cluster.run("alice", "piolet", "image", "pull", cluster.demo_image, timeout=SLOW_S).good()
    edf = cluster.edf("alice", f'image = "{cluster.demo_image}"\n')
    program = "import numpy, platform; print(platform.machine(), int(numpy.eye(64).dot(numpy.eye(64)).trace()))"
    done = cluster.srun("alice", edf, "python3", "-c", program, timeout=SLOW_S)
    assert done.good().split() == [os.uname().machine, "64"]


def test_nodes_are_vetted(cluster: Cluster) -> None:
    """An eval of the processor's arithmetic and one of memory, with what the image does not bring."""
    room = cluster.room("alice")
    evals = "- {name: limits, type: limits}\n- {name: gemm, type: cpu_gemm, size: 64, repeats: 2}\n"
    cluster.write("alice", room / "p.yaml", f"name: here\nevals:\n{evals}")
    done = cluster.run("alice", "srun", "-N1", "--vet=p.yaml", "uname", "-m", cwd=room, timeout=120)
    assert done.good().split() == [os.uname().machine] and "1 of 1 node good" in done.err, done.err


def test_a_step_is_scored(cluster: Cluster) -> None:
    room = cluster.room("alice")
    words = ("srun", "-N1", "--gres=gpu:1", SCORE_HERE, "sleep", f"{5 * PATIENCE:.0f}")
    done = cluster.run("alice", *words, cwd=room, timeout=120)
    assert "piolet score: " in done.good() + done.err and list(room.glob("piolet-score-*")), done.err
