"""`--score` on a real cluster with scripted GPUs: what is measured, what the step notices of it, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import leftovers
from tests.cluster.faults import Faults, end, kill
from tests.cluster.support import SCORE_HERE, Cluster, Result
from tests.support.registry import free_port
from tests.support.waiting import wait_until
from tools.cluster import gpus
from tools.cluster.layout import node_names

MATMUL, SPIN, COPY = "gpu\nload matmul 600\n", "gpu\nload spin 600\n", "gpu\nload copy 600\n"


@pytest.fixture(autouse=True)
def scripts(cluster: Cluster, faults: Faults) -> Iterator[None]:
    """Every node has one GPU that multiplies matrices and one in which one thread spins; afterwards too."""
    for node in node_names(4):
        gpus.script(cluster.layout.gpus, node).write_text(MATMUL + SPIN, "ascii")
    yield
    faults.repair()


def script(cluster: Cluster, node: str, text: str) -> None:
    gpus.script(cluster.layout.gpus, node).write_text(text, "ascii")


def scored(cluster: Cluster, room: Path, *words: str | Path, option: str = SCORE_HERE, **more: Any) -> Result:
    return cluster.run("alice", "srun", option, *words, cwd=room, **more)


def summary(cluster: Cluster, room: Path) -> dict[str, Any]:
    """Return the summary of the one data set in a directory."""
    (data,) = room.glob("piolet-score-*")
    value: dict[str, Any] = json.loads(cluster.run("alice", "piolet", "score", "export", data).good())
    return value


def samplers(faults: Faults, name: str, node: str = "") -> list[int]:
    """Return the processes of pioletd that have a name, on one node or all."""
    found = []
    for pid in faults.members():
        try:
            comm = Path(f"/proc/{pid}/comm").read_text("ascii").strip()
            here = os.readlink(f"/proc/{pid}/ns/uts")
        except OSError:
            continue
        if comm == name and (not node or here == os.readlink(f"{faults.root(node).parent}/ns/uts")):
            found.append(pid)
    return found


def test_two_nodes_are_scored(cluster: Cluster) -> None:
    """Each GPU by what it does, the screen on stderr, the files the user's own."""
    room = cluster.room("alice")
    done = scored(cluster, room, "-N2", "--gres=gpu:2", "sh", "-c", "echo out; echo err >&2; sleep 3; exit 7")
    assert done.status == 7 and done.out == "out\nout\n"
    assert "SIMULATED FIGURES" in done.err and "4 GPUs on 2 nodes" in done.err, done.err
    found = summary(cluster, room)
    assert found["simulated"] == "scripted GPUs" and found["score"]["coverage"] > 0.7
    # Two GPUs at 0.9, two at nothing: a spinning thread is no saturation, whatever utilisation says.
    assert found["score"]["value"] == pytest.approx(0.45, abs=0.05)
    (data,) = room.glob("piolet-score-*")
    files = sorted(path.name for path in data.iterdir())
    assert files == ["node1.host.parquet", "node1.parquet", "node2.host.parquet", "node2.parquet", "step.json"]
    owner = (room / "x").parent.stat().st_uid
    assert {path.stat().st_uid for path in data.iterdir()} == {owner}


@pytest.mark.kernels
def test_a_step_in_a_container_is_scored(cluster: Cluster, tiny_edf: Path) -> None:
    room = cluster.room("alice")
    words = (f"--environment={tiny_edf}", "-w", "node1", "--gres=gpu:2", "sh", "-c", "cat /marker; sleep 3")
    done = scored(cluster, room, *words, timeout=180)
    assert done.good() == "in the image\n"
    assert "SIMULATED FIGURES" in done.err and "2 GPUs on 1 node" in done.err, done.err
    assert {path.stat().st_uid for path in room.glob("piolet-score-*/*")} == {room.stat().st_uid}


def test_only_the_gpus_of_the_step(cluster: Cluster) -> None:
    """One of two: the first, which computes; the other is somebody else's."""
    room = cluster.room("alice")
    scored(cluster, room, "-w", "node1", "--gres=gpu:1", "sleep", "2").good()
    found = summary(cluster, room)
    assert found["score"]["value"] == pytest.approx(0.9, abs=0.05)
    host = cluster.room("alice")
    done = scored(cluster, host, "-w", "node1", "sleep", "2")
    assert done.status == 0 and "No GPUs: the host's figures only." in done.err and "%" in done.err


@pytest.mark.parametrize("option", [("--gpus-per-task=1",), ("--gpus=2", "--gpu-bind=single:1")])
def test_the_gpus_of_all_tasks(cluster: Cluster, option: tuple[str, ...]) -> None:
    """Each task sees its own GPU only; the step has both."""
    room = cluster.room("alice")
    done = scored(cluster, room, "-w", "node1", "-n2", *option, "sh", "-c", "sleep 2; echo $CUDA_VISIBLE_DEVICES")
    assert sorted(done.out.split()) == ["0", "1"] and "2 GPUs on 1 node" in done.err, done
    assert summary(cluster, room)["score"]["value"] == pytest.approx(0.45, abs=0.05)


def test_parts_of_gpus_are_named_by_uuid_only(cluster: Cluster, faults: Faults) -> None:
    """Slurm's number 1 would be NVML's GPU 1, which is somebody else's whole."""
    script(cluster, "node1", MATMUL + "instance\nload matmul 600\n" + SPIN)
    room = cluster.room("alice")
    done = scored(cluster, room, "-w", "node1", "--gres=gpu:2", "sleep", "1")
    # The step has them, and what they did is not known.
    assert done.status == 0 and "GPU saturation unknown" in done.err and "2 GPUs on 1 node" in done.err, done
    assert "node1 GPU 0 (/dev/nvidia0) was not measured" in " ".join(done.err.split()), done.err
    assert "their numbers do not say which are meant" in " ".join(done.err.split()), done.err


def test_a_gpu_is_found_by_its_device_file(cluster: Cluster) -> None:
    """Slurm gives /dev/nvidia0 first, which is the second GPU for NVML."""
    script(cluster, "node1", SPIN.replace("gpu", "gpu\nminor 1") + MATMUL.replace("gpu", "gpu\nminor 0"))
    room = cluster.room("alice")
    scored(cluster, room, "-w", "node1", "--gres=gpu:1", "sleep", "2").good()
    assert summary(cluster, room)["score"]["value"] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("name", ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES"])
def test_a_user_cannot_name_another_steps_gpu(cluster: Cluster, name: str) -> None:
    """A step without GPUs has none, whatever its environment said."""
    room = cluster.room("alice")
    done = cluster.run("alice", "srun", SCORE_HERE, "-w", "node1", "sleep", "1", cwd=room, env={name: "0"})
    assert done.status == 0 and "No GPUs: the host's figures only." in done.err, done


def test_the_application_cannot_tell(cluster: Cluster) -> None:
    """Standard input, output, exit status, signals and environment are as without; and a failed step stays failed."""
    probe = "cat; env | sort | grep -v -e SLURM_ -e SRUN_ ; ls -l /proc/self/fd | wc -l"
    with_score, without = (
        cluster.run("alice", "srun", *option, "-w", "node1", "sh", "-c", probe, stdin="text\n", cwd=room)
        for option, room in (([SCORE_HERE], cluster.room("alice")), ([], cluster.room("alice")))
    )
    assert with_score.status == without.status == 0
    clean = [
        [line for line in done.out.splitlines() if not line.startswith(("PWD=", "OLDPWD="))]
        for done in (with_score, without)
    ]
    assert clean[0] == clean[1]
    killed = scored(cluster, cluster.room("alice"), "-w", "node1", "sh", "-c", "kill -9 $$")
    assert killed.status == 137
    absent = scored(cluster, cluster.room("alice"), "-w", "node1", "/no/such/program")
    assert absent.status == 2


@pytest.mark.parametrize(
    ("option", "text", "hint"),
    [
        ("interval=1ms", "'1ms' is no interval from 100ms to 1h", "interval=100ms"),
        ("colector=gpm", "--score has no option 'colector=gpm'", "did you mean 'collector'?"),
        ("collector=magic", "there is no collector 'magic'", "auto, gpm"),
        ("out=", "out= of --score is empty", ""),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(cluster: Cluster, option: str, text: str, hint: str) -> None:
    """By srun and by sbatch alike."""
    room = cluster.room("alice")
    done = scored(cluster, room, "-w", "node1", "touch", "ran", option=f"--score={option}")
    assert done.status == 1 and text in done.err and hint in done.err and not (room / "ran").exists()
    path = cluster.script("alice", "true\n")
    batch = cluster.run("alice", "sbatch", f"--score={option}", path, cwd=room)
    assert batch.status == 1 and text in batch.err


def test_a_batch_script_and_an_exception(cluster: Cluster) -> None:
    """sbatch's option is that of its sruns; 'none' takes a step out; the vet step and the script are not scored."""
    room = cluster.room("alice")
    text = (
        f"srun --gres=gpu:1 sleep 1\nsrun --score=none sleep 0\nsrun {SCORE_HERE},label=two,html --gres=gpu:1 sleep 1\n"
    )
    out = cluster.sbatch("alice", text, "-N1", "--gres=gpu:2", SCORE_HERE, cwd=room)
    names = sorted(path.name.rpartition(".")[2] for path in room.glob("piolet-score-*"))
    assert names == ["0", "2"], out
    assert out.count("piolet score: ") == 2 and "the report: " in out
    assert len(list(room.glob("piolet-score-*/report.html"))) == 1


def test_a_requeued_job_has_two_data_sets(cluster: Cluster) -> None:
    """The same numbers of job and step, and neither the files nor the screen are those of the earlier run."""
    room = cluster.room("alice")
    text = f"srun {SCORE_HERE} --gres=gpu:1 sleep 1\ntouch ran\n[ $SLURM_RESTART_COUNT ] || sleep 60\n"
    path = cluster.script("alice", text)
    words = ["--parsable", "--requeue", "--open-mode=append", "--output=job.out", "-N1", "--gres=gpu:1", str(path)]
    job = cluster.run("alice", "sbatch", *words, cwd=room).good().strip()
    wait_until((room / "ran").exists, what="the first run")
    cluster.requeue(job)
    cluster.wait_end(job)
    names = sorted(path.name for path in room.glob("piolet-score-*"))
    assert names == [f"piolet-score-{job}.0", f"piolet-score-{job}.0-r1"]
    out = (room / "job.out").read_text()
    assert out.count(f"step {job}.0 ") == out.count(f"step {job}.0-r1 ") == 1 and "no score" not in out, out


def test_the_option_does_nothing_where_it_is_not_given(cluster: Cluster) -> None:
    """No file, no line."""
    room = cluster.room("alice")
    done = cluster.run("alice", "srun", "-w", "node1", "true", cwd=room)
    assert done.status == 0 and done.out == done.said == "" and not list(room.iterdir())


def test_with_a_container_and_a_vetting(cluster: Cluster, tiny_edf: Path) -> None:
    """All three together, as on the first page."""
    room = cluster.room("alice")
    cluster.write("alice", room / "ml.yaml", "name: n\nevals:\n- name: limits\n  type: limits\n")
    words = [f"--environment={tiny_edf}", "--vet=ml.yaml", "-N2", "--gres=gpu:2", "sh", "-c", "cat /marker; sleep 2"]
    done = scored(cluster, room, *words)
    assert done.status == 0 and done.out == "in the image\nin the image\n"
    assert "4 GPUs on 2 nodes" in done.err and "left out" not in done.err
    assert len(list(room.glob("piolet-score-*"))) == 1


def test_without_a_sampler_the_step_runs(cluster: Cluster, faults: Faults) -> None:
    """One warning of that node; the other node's figures are there."""
    faults.stop_pioletd("node2")
    room = cluster.room("alice")
    done = scored(cluster, room, "-w", "node1,node2", "--gres=gpu:2", "sh", "-c", "hostname; sleep 2")
    assert done.status == 0 and sorted(done.out.split()) == ["node1", "node2"]
    assert done.err.count("warning: node node2: the step runs, but is not scored: pioletd.service does not run") == 1
    assert "\nhint: an administrator starts it with: systemctl start pioletd.service\n" in done.err
    assert "2 GPUs on 1 of 2 nodes" in done.err and "1 of 2 nodes have no samples" in done.err


def test_a_directory_that_cannot_be_written_costs_the_score_only(cluster: Cluster) -> None:
    """The step's status stays; the warning says where."""
    config = cluster.layout.piolet_toml
    before = config.read_text("utf-8")
    config.write_text(before + "\n[score]\nend_wait_s = 1\n", "utf-8")
    try:
        done = scored(cluster, cluster.room("alice"), "-w", "node1", "true", option="--score=out=/proc/no/%j.%s")
    finally:
        config.write_text(before, "utf-8")
    assert done.status == 0 and done.err.startswith("piolet: warning: no score: no node wrote samples to /proc/no/")


def test_another_steps_data_are_not_mixed_in(cluster: Cluster) -> None:
    """A directory is one step's; the second step runs, and is not scored."""
    room = cluster.room("alice")
    first, second = (
        scored(cluster, room, "-w", "node1", "--gres=gpu:1", "sleep", "1.5", option="--score=out=piolet-score-here")
        for _ in range(2)
    )
    assert "GPU saturation" in first.err and second.status == 0
    assert "holds the data set of another step" in second.err, second.err


@pytest.mark.parametrize("which", ["sampler", "keeper", "pioletd"])
def test_what_samples_is_killed(cluster: Cluster, faults: Faults, which: str) -> None:
    """The step does not notice; a new sampler goes on with the same files; the gap is in the data."""
    room = cluster.room("alice")
    run = cluster.start(
        "alice", "srun", SCORE_HERE, "-w", "node1", "--gres=gpu:1", "sh", "-c", "read x; exit 5", cwd=room
    )
    wait_until(lambda: list(room.glob("piolet-score-*/node1.journal")), what="the first samples")
    (journal,) = room.glob("piolet-score-*/node1.journal")
    wait_until(lambda: journal.stat().st_size > 2000, what="samples on disk")
    if which == "pioletd":
        faults.stop_pioletd("node1", kill=True)
        faults.start_pioletd("node1")
    else:
        for pid in samplers(faults, f"pioletd-{which}", "node1"):
            kill(pid)
    if which == "keeper":
        # pioletd ends as a whole, so that it is started again as a whole.
        faults.wait_no_pioletd("node1")
        faults.start_pioletd("node1")
    size = journal.stat().st_size
    wait_until(lambda: journal.stat().st_size > size + 2000, what="samples of the next sampler")
    done = end(run, stdin="x\n")
    assert done.status == 5 and "GPU saturation" in done.err, done
    found = summary(cluster, room)
    assert found["score"]["value"] == pytest.approx(0.9, abs=0.1)
    assert found["score"]["coverage"] < 0.999


def test_slurmstepd_is_killed(cluster: Cluster, faults: Faults) -> None:
    """The samples up to then are a whole data set, and nothing is left."""
    room = cluster.room("alice")
    with faults.nothing_left():
        run = cluster.start("alice", "srun", SCORE_HERE, "-w", "node1", "--gres=gpu:1", "sleep", "7301", cwd=room)
        wait_until(lambda: list(room.glob("piolet-score-*/node1.journal")), what="the first samples")
        (journal,) = room.glob("piolet-score-*/node1.journal")
        wait_until(lambda: journal.stat().st_size > 2000, what="samples on disk")
        for pid in faults.stepds("node1"):
            kill(pid)
        for pid in faults.tasks("sleep 7301"):
            os.kill(pid, signal.SIGKILL)
        run.abort() if hasattr(run, "abort") else run.kill()
        faults.cancel_all()
        wait_until(lambda: list(room.glob("piolet-score-*/node1.parquet")), what="the finished data set")
    assert summary(cluster, room)["score"]["value"] == pytest.approx(0.9, abs=0.1)


def test_two_steps_at_once_on_one_node(cluster: Cluster, faults: Faults) -> None:
    """Each has its own GPU and its own figures; afterwards no writer, no state, no socket is left."""
    rooms = [cluster.room("alice"), cluster.room("alice")]
    runs = [
        cluster.start("alice", "srun", SCORE_HERE, "-w", "node1", "--gres=gpu:1", "sh", "-c", "read x", cwd=room)
        for room in rooms
    ]
    for room in rooms:
        wait_until(lambda r=room: [p for p in r.glob("*/node1.journal") if p.stat().st_size > 3000], what="samples")  # type: ignore[misc]
    assert len(list((faults.root("node1") / "run/piolet/scored").iterdir())) == 2
    for run in runs:
        assert end(run, stdin="x\n").status == 0
    values = sorted(summary(cluster, room)["score"]["value"] for room in rooms)
    assert values[0] < 0.05 and values[1] == pytest.approx(0.9, abs=0.05)
    wait_until(lambda: not samplers(faults, "pioletd-writer"), what="the end of the writers")
    assert not list((faults.root("node1") / "run/piolet/scored").iterdir())


def test_nobody_but_slurm_announces_a_step(cluster: Cluster, faults: Faults) -> None:
    """A user does not even connect."""
    code = (
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.settimeout(5); s.connect('/run/piolet/score.sock'); print(s.recv(10))"
    )
    argv = faults.on_node("node1", "/usr/bin/python3", "-I", "-c", code, user="alice")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "" and "PermissionError" in done.stderr, done


def test_many_scored_steps_leave_nothing(faults: Faults) -> None:
    """Twenty steps: the same processes, descriptors and files as before, and the sampler has not grown much."""
    cluster = faults.cluster
    room = cluster.room("alice")
    scored(cluster, room, "-w", "node1", "--gres=gpu:2", "true").good()
    wait_until(lambda: samplers(faults, "pioletd-sampler", "node1"), what="the sampler, if a test before ended it")
    (sampler,) = samplers(faults, "pioletd-sampler", "node1")
    before = leftovers.resident_kib(sampler), len(os.listdir(f"/proc/{sampler}/fd"))
    for _ in range(20):
        scored(cluster, room, "-w", "node1", "--gres=gpu:2", "true").good()
    wait_until(lambda: len(os.listdir(f"/proc/{sampler}/fd")) <= before[1], what="closed descriptors")
    assert leftovers.resident_kib(sampler) < before[0] + 4096


def test_pioletd_serves_metrics_where_the_site_says_so(cluster: Cluster, faults: Faults) -> None:
    """While a step runs, with its labels; afterwards there is no step. By default nothing listens."""
    config = cluster.layout.piolet_toml
    before = config.read_text("utf-8")
    where = f"127.0.0.1:{free_port()}"
    room = cluster.room("alice")
    try:
        config.write_text(f'{before}\n[score]\nprometheus = "{where}"\n', "utf-8")
        faults.restart_pioletd("node1")
        run = cluster.start("alice", "srun", SCORE_HERE, "-w", "node1", "--gres=gpu:1", "sh", "-c", "read x", cwd=room)
        labels = f'node="node1",simulated="scripted GPUs",step="0",uid="{room.stat().st_uid}"'
        wait_until(
            lambda: labels in metrics(where) and "piolet_gpu_tensor_seconds_total{" in metrics(where), what="them"
        )
        assert end(run, stdin="x\n").status == 0
        wait_until(lambda: "piolet_score_steps 0.0" in metrics(where), what="the end of the step")
    finally:
        config.write_text(before, "utf-8")
        faults.restart_pioletd("node1")
    assert metrics(where) == ""


def metrics(where: str) -> str:
    """Return what a Prometheus would read, '' while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.URLError:
        return ""


def test_a_library_that_hangs_costs_one_step_its_counters(cluster: Cluster, faults: Faults) -> None:
    """The sampler is started again, that step has its host's figures, and the next one all of them."""
    room = cluster.room("alice")
    script(cluster, "node1", "hang nvmlGpmMetricsGet\n" + MATMUL * 2)
    wait_until(lambda: samplers(faults, "pioletd-sampler", "node1"), what="the sampler, if a test before ended it")
    (before,) = samplers(faults, "pioletd-sampler", "node1")
    run = cluster.start(
        "alice", "srun", SCORE_HERE, "-w", "node1", "--gres=gpu:1", "sh", "-c", "read x; exit 4", cwd=room
    )
    wait_until(lambda: samplers(faults, "pioletd-sampler", "node1") not in ([], [before]), 30, "another sampler")
    wait_until(lambda: (faults.root("node1") / "run/piolet/scored").exists(), what="its directory")
    script(cluster, "node1", MATMUL * 2)
    other = cluster.room("alice")
    scored(cluster, other, "-w", "node1", "--gres=gpu:1", "sleep", "2").good()
    assert summary(cluster, other)["score"]["value"] == pytest.approx(0.9, abs=0.1)
    done = end(run, stdin="x\n")
    assert done.status == 4 and "piolet score: step" in done.err, done
