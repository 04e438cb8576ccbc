"""Scripts in the container with the hook slurm: arrays, heterogeneous jobs, requeues, jobs from within."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.support import Cluster
from tests.support.waiting import wait_until

WHERE = "cat /marker"


@pytest.fixture
def room(cluster: Cluster, tiny: str) -> Path:
    """A directory of alice with a definition that has the script inside, and Slurm's commands."""
    path = cluster.room("alice")
    text = f'image = "{tiny}"\nscript = "inside"\nmounts = ["{path}"]\nworkdir = "{path}"\n'
    more = '[env]\nWORD = "inner"\nPATH = "/usr/bin:/bin"\n[annotations]\ncom.hooks.slurm.enabled = "true"\n'
    cluster.edf("alice", text + more, path, "inside.toml")
    return path


def submit(cluster: Cluster, room: Path, text: str, *options: str) -> str:
    """Submit a script with the environment; return the job's number."""
    script = cluster.write("alice", room / "job.sh", f"#!/bin/sh\n{text}", 0o755)
    words = ("sbatch", "--parsable", "--environment=inside.toml", *options)
    return cluster.run("alice", *words, script, cwd=room).good().strip()


def test_arrays(cluster: Cluster, room: Path) -> None:
    """Each task of an array has a container of its own, and its number, in the script and in its steps."""
    text = f"{WHERE}\necho script $SLURM_ARRAY_TASK_ID\nsrun -Q sh -c '{WHERE}; echo step $SLURM_ARRAY_TASK_ID $WORD'\n"
    cluster.wait_end(submit(cluster, room, text, "--array=1-3", "--output=%a.out"))
    for number in "123":
        expected = f"in the image\nscript {number}\nin the image\nstep {number} inner\n"
        assert (room / f"{number}.out").read_text() == expected


def test_parts_of_a_heterogeneous_job(cluster: Cluster, room: Path) -> None:
    """The script is on the first part's node; steps of either part, started inside, are in the same environment."""
    text = f"{WHERE}\nfor part in 0 1 0,1; do srun -Q --het-group=$part sh -c '{WHERE}; echo $SLURMD_NODENAME'; done\n"
    lines = "#SBATCH -N1 -w node1\n#SBATCH hetjob\n#SBATCH -N1 -w node2\n"
    cluster.wait_end(submit(cluster, room, lines + text, "--output=job.out").partition("+")[0])
    out = (room / "job.out").read_text()
    assert out.count("in the image\n") == 5, out
    assert out.count("node1\n") == out.count("node2\n") == 2, out


def test_a_requeue(cluster: Cluster, room: Path) -> None:
    """The second run is inside as the first was, whatever has become of the file."""
    text = f"{WHERE}\necho restarts ${{SLURM_RESTART_COUNT:-0}}\nsrun -Q {WHERE}\n"
    text += '[ -n "$SLURM_RESTART_COUNT" ] || { touch began; sleep 600; }\n'
    job = submit(cluster, room, text, "--requeue", "--open-mode=append", "--output=job.out")
    wait_until((room / "began").exists, what="the first run")
    (room / "inside.toml").unlink()
    cluster.requeue(job)
    cluster.wait_end(job)
    out = (room / "job.out").read_text()
    assert out.count("restarts 0\n") == out.count("restarts 1\n") == 1, out
    assert out.count("in the image\n") == 4, out


def test_slurm_s_commands_in_the_script(cluster: Cluster, room: Path) -> None:
    """The script asks for its own job, and ends it; a job that it submits is another, and runs on the host."""
    inner = cluster.write("alice", room / "inner.sh", "#!/bin/sh\n[ -e /marker ] || echo on the host\n", 0o755)
    other = f"sbatch --parsable --wait --environment=none -o inner.out {inner} >/dev/null"
    text = f"squeue -h -j $SLURM_JOB_ID -o %T\n{other}\n"
    text += "scancel $SLURM_JOB_ID\nsleep 600\necho not reached\n"
    cluster.wait_end(submit(cluster, room, text, "--output=job.out"))
    assert (room / "inner.out").read_text() == "on the host\n"
    out = (room / "job.out").read_text()
    assert out.startswith("RUNNING\n") and "not reached" not in out
