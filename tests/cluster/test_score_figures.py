"""Figures of `--score` where something fails during the step: a full disk, a GPU that hangs, a GPU with two steps."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import Faults, end, kill
from tests.cluster.support import SCORE_HERE, Cluster
from tests.cluster.test_score import MATMUL, SPIN, samplers, scored, script, summary
from tests.support.waiting import wait_until
from tools.cluster.layout import node_names


@pytest.fixture(autouse=True)
def scripts(cluster: Cluster, faults: Faults) -> Iterator[None]:
    """Every node has two GPUs that multiply matrices; afterwards as other tests know it."""
    for node in node_names(4):
        script(cluster, node, MATMUL * 2)
    yield
    for node in node_names(4):
        script(cluster, node, MATMUL + SPIN)
    faults.repair()


@pytest.fixture
def small_disk(cluster: Cluster, faults: Faults, tmp_path: Path) -> Iterator[Path]:
    """A directory of alice's that she and node1 see, on a file system of 1 MB."""
    for program in ("mkfs.ext2", "losetup"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    room = cluster.room("alice")
    image = tmp_path / "image"
    image.write_bytes(b"")
    with image.open("r+b") as file:
        file.truncate(1 << 20)
    subprocess.run(["mkfs.ext2", "-q", "-m", "0", image], check=True)
    loop = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    device = loop.stdout.strip()
    on_node = faults.on_node("node1", "mount", device, room)
    try:
        # One block device, and so one file system, for both.
        subprocess.run(["mount", device, room], check=True)
        subprocess.run(on_node, check=True)
        cluster.give("alice", room)
        faults.restart_pioletd("node1")
        yield room
    finally:
        subprocess.run(faults.on_node("node1", "umount", "-l", room), check=False, capture_output=True)
        faults.restart_pioletd("node1")
        subprocess.run(["umount", room], check=False, capture_output=True)
        subprocess.run(["losetup", "--detach", device], check=False)


def test_a_full_disk_is_said_and_the_length_is_slurms(cluster: Cluster, small_disk: Path) -> None:
    """The application fills it in second 2 of 5, in small pieces: what does not fit is lost from then on."""
    work = "sleep 2; dd if=/dev/zero of=fill bs=1k 2>/dev/null; sleep 3"
    done = scored(cluster, small_disk, "-w", "node1", "--gres=gpu:1", "sh", "-c", work)
    assert done.status == 0 and "disk full on node1" in flat(done.err), done.err
    assert "piolet score: step" in done.err and "GPU saturation" in done.err
    (small_disk / "fill").unlink()
    found = summary(cluster, small_disk)
    assert found["seconds"] == pytest.approx(5, abs=1.5)
    assert found["saturation"]["value"] is None and "disk full on node1" in found["saturation"]["reason"]
    assert (
        found["saturation"]["low"] < 0.6
        and found["coverage"]["high" if found["coverage"]["low"] is None else "low"] < 0.8
    )
    assert found["score"]["value"] == pytest.approx(0.9, abs=0.05)


def test_a_gpu_that_hangs_in_its_driver_is_counted_and_named(cluster: Cluster, faults: Faults) -> None:
    """Not even SIGKILL ends the sampler that asks it: the step goes on without that GPU, others as if nothing were."""
    room, later, place = (cluster.room("alice") for _ in range(3))
    words = (SCORE_HERE, "-w", "node1,node2", "--gres=gpu:2", "sh", "-c", "read x")
    with faults.hung("node1", place) as hung:
        run = cluster.start("alice", "srun", *words, cwd=room)
        wait_until(lambda: len(list(room.glob("piolet-score-*/*.journal"))) == 2, what="the first samples")
        (journal,) = room.glob("piolet-score-*/node1.journal")
        # One GPU's driver is lost while the step runs; the next sampler asks it first.
        script(cluster, "node1", f"hung {place}/x\n{MATMUL}{MATMUL}hang nvmlGpmSampleGet\n")
        for pid in samplers(faults, "pioletd-sampler", "node1"):
            kill(pid)
        wait_until(lambda: len(samplers(faults, "pioletd-sampler", "node1")) > 1, 40, "one beside that which is stuck")
        size = journal.stat().st_size
        wait_until(lambda: journal.stat().st_size > size + 4000, 40, "samples of the GPU that is left")
        done = end(run, stdin="x\n")
        # The next step does without that GPU, and at once.
        again = scored(cluster, later, "-w", "node1", "--gres=gpu:2", "sleep", "2", timeout=60)
        stuck = samplers(faults, "pioletd-sampler", "node1")
        hung.abort()
    assert done.status == 0 and "4 GPUs on 2 nodes" in done.err, done
    for step in (done, again):
        assert "node1 GPU 1" in step.err and "did not answer within 5 s" in flat(step.err), step.err
    assert len(stuck) == 2, "each step that finds it again would cost another process"
    found = summary(cluster, room)
    by_node = {node["name"]: node for node in found["nodes"]}
    assert by_node["node2"]["s"] == pytest.approx(0.9, abs=0.02) and by_node["node1"]["gpus"] == 2
    assert found["size"]["value"] == 4 and found["saturation"]["value"] is None
    assert summary(cluster, later)["nodes"][0]["s"] == pytest.approx(0.9, abs=0.05)


def flat(text: str) -> str:
    """Return a screen as one line."""
    return " ".join(text.replace("│", "").split())


def test_two_steps_on_one_gpu_are_said_to_share_it(cluster: Cluster) -> None:
    """Both screens say with whom, and no figure is called the step's own."""
    room = cluster.room("alice")
    text = "srun --overlap --gres=gpu:1 sleep 3 &\nsrun --overlap --gres=gpu:1 sleep 3 &\nwait\n"
    out = cluster.sbatch("alice", text, "-N1", "--gres=gpu:1", SCORE_HERE, cwd=room)
    sets = sorted(room.glob("piolet-score-*"))
    assert len(sets) == 2 and out.count("piolet score: ") == 2, out
    job = sets[0].name.removeprefix("piolet-score-").partition(".")[0]
    assert all(f"shared with step {job}.{step}" in flat(out) for step in (0, 1)), out
    assert out.count("GPU saturation at most 90 %") == 2, out


def test_a_data_set_is_found_by_the_jobs_number(cluster: Cluster) -> None:
    """Without out= it is among the user's results, and nothing is left where srun was called."""
    room = cluster.room("alice")
    done = cluster.run("alice", "srun", "--score", "-w", "node1", "--gres=gpu:1", "sleep", "1.5", cwd=room)
    found = re.search(r"the samples: (\S+/score/(\S+)); a report: piolet score report \2$", done.err, re.M)
    assert done.status == 0 and found is not None and not list(room.iterdir()), done.err
    shown = cluster.run("alice", "piolet", "score", "show", found[2], cwd=room)
    assert f"step {found[2]}" in shown.good()
    assert cluster.run("alice", "piolet", "top", found[2], "--once", cwd=room).good().startswith("job ")
