"""`--environment` of sbatch and salloc: the script runs on the host, its sruns in the environment of submit time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.support import Cluster, Result, busybox_layer
from tests.support import oci
from tests.support.waiting import wait_until

WHERE = "[ -e /marker ] && cat /marker || echo on the host"


@pytest.fixture(scope="module")
def other(cluster: Cluster) -> str:
    """A second image, with another marker."""
    layer = [oci.file("marker", b"in the other image\n")]
    reference = cluster.push("other", [busybox_layer(), layer], Env=["PATH=/bin"])
    cluster.run("alice", "piolet", "image", "pull", reference).good()
    return reference


@pytest.fixture
def room(cluster: Cluster, tiny: str, other: str) -> Path:
    """A directory of alice with two definition files: tiny.toml and other.toml."""
    path = cluster.room("alice")
    cluster.edf("alice", f'image = "{tiny}"\n[env]\nWORD = "${{WORD:-none}}"\n', path, "tiny.toml")
    cluster.edf("alice", f'image = "{other}"\n', path, "other.toml")
    return path


STEPS = f"""
cd /
{WHERE}
srun --overlap -N1 -n1 /bin/sh -c '{WHERE}'
srun --overlap -N1 -n1 --environment={{room}}/other.toml /bin/sh -c '{WHERE}'
srun --overlap -N1 -n1 --environment=none /bin/sh -c '{WHERE}'
srun --overlap -N2 -n4 /bin/sh -c '{WHERE}'
"""
EXPECTED = "on the host\nin the image\nin the other image\non the host\n" + "in the image\n" * 4


@pytest.mark.parametrize("options", [(), ("--export=NONE",), ("--export=NIL",)], ids=" ".join)
def test_the_script_runs_on_the_host_and_its_sruns_inside(
    cluster: Cluster, room: Path, options: tuple[str, ...]
) -> None:
    script = "#!/bin/bash\n#SBATCH --environment=./tiny.toml -N2 --ntasks-per-node=2\n" + STEPS.format(room=room)
    assert cluster.sbatch("alice", script, *options, cwd=room) == EXPECTED


def test_salloc_is_the_same(cluster: Cluster, room: Path) -> None:
    script = cluster.script("alice", STEPS.format(room=room))
    done = cluster.run(
        "alice", "salloc", "-Q", "-N2", "--ntasks-per-node=2", "--environment=./tiny.toml", script, cwd=room
    )
    assert done.good() == EXPECTED


@pytest.mark.kernels
def test_the_command_line_wins_over_the_script(cluster: Cluster, room: Path) -> None:
    script = f"#!/bin/bash\n#SBATCH --environment=./tiny.toml\nsrun sh -c '{WHERE}'\n"
    assert cluster.sbatch("alice", script, "--environment=./other.toml", cwd=room) == "in the other image\n"
    assert cluster.sbatch("alice", script, "--environment=none", cwd=room) == "on the host\n"
    assert cluster.sbatch("alice", script, cwd=room) == "in the image\n"


def test_without_the_option_nothing_changes(cluster: Cluster, room: Path) -> None:
    script = (
        f"{WHERE}\nsrun sh -c '{WHERE}'\nsrun --environment={room}/tiny.toml sh -c '{WHERE}'\nenv | grep -c PIOLET_ENV"
    )
    assert cluster.sbatch("alice", script, cwd=room) == "on the host\non the host\nin the image\n0\n"


def test_the_environment_is_that_of_submit_time(cluster: Cluster, room: Path) -> None:
    script = cluster.script("alice", f"export WORD=changed\ncd /\nsrun sh -c '{WHERE}; echo $WORD'\n")
    words = ["sbatch", "--parsable", "--hold", "--output=job.out", "--environment=tiny.toml", str(script)]
    job = cluster.run("alice", *words, cwd=room, env={"WORD": "first"}).good().strip()
    (room / "tiny.toml").write_text('image = "no such image at all"\n')
    (room / "tiny.toml").unlink()
    cluster.run("alice", "scontrol", "release", job).good()
    cluster.wait_end(job)
    assert (room / "job.out").read_text() == "in the image\nfirst\n"


def test_job_arrays(cluster: Cluster, room: Path) -> None:
    script = f"srun sh -c 'echo $SLURM_ARRAY_TASK_ID; {WHERE}'"
    cluster.sbatch("alice", script, "--array=0-3", "--output=%a.out", "--environment=tiny.toml", cwd=room)
    for number in range(4):
        assert (room / f"{number}.out").read_text() == f"{number}\nin the image\n"


def test_a_requeued_job_runs_in_the_same_environment(cluster: Cluster, room: Path) -> None:
    script = cluster.script(
        "alice",
        f"srun sh -c '{WHERE}'\nif [ -z \"$SLURM_RESTART_COUNT\" ]; then touch first; sleep 300; fi\necho again\n",
    )
    words = ["sbatch", "--parsable", "--requeue", "--open-mode=append", "--output=job.out", "--environment=tiny.toml"]
    job = cluster.run("alice", *words, script, cwd=room).good().strip()
    wait_until((room / "first").exists, what="the first run")
    (room / "tiny.toml").unlink()
    cluster.requeue(job)
    cluster.wait_end(job)
    out = (room / "job.out").read_text()
    assert out.count("in the image\n") == 2, out
    assert out.endswith("again\n")


def test_sruns_with_different_files_at_once(cluster: Cluster, room: Path) -> None:
    script = f"""
srun --overlap -n2 --output=one.out --environment=tiny.toml sh -c '{WHERE}' &
srun --overlap -n2 --output=two.out --environment=other.toml sh -c '{WHERE}' &
srun --overlap -n2 --output=three.out --environment=none sh -c '{WHERE}' &
wait
"""
    assert cluster.sbatch("alice", script, "-n2", cwd=room) == ""
    assert (room / "one.out").read_text() == "in the image\n" * 2
    assert (room / "two.out").read_text() == "in the other image\n" * 2
    assert (room / "three.out").read_text() == "on the host\n" * 2


def test_a_step_started_from_a_step(cluster: Cluster, room: Path) -> None:
    cluster.edf("alice", '[env]\nOUTER = "yes"\n', room, "host.toml")
    inner = f'srun --overlap --environment=tiny.toml sh -c "echo $OUTER; {WHERE}"'
    script = f"srun -n1 --environment=host.toml sh -c '{inner}; {WHERE}'"
    assert cluster.sbatch("alice", script, cwd=room) == "yes\nin the image\non the host\n"


def test_the_parts_of_a_heterogeneous_step(cluster: Cluster, room: Path) -> None:
    # Slurm hands one value of the option to all parts: what differs is refused, and never run in the wrong place.
    def step(*parts: str) -> Result:
        words = [word for part in parts for word in (":", "-N1", part, "sh", "-c", WHERE)]
        return cluster.run("alice", "salloc", "-Q", "-N2", "srun", *words[1:], cwd=room)

    tiny, other, none = (f"--environment={name}" for name in ("./tiny.toml", "./other.toml", "none"))
    assert step(tiny, tiny).good() == "in the image\n" * 2
    for parts in ((tiny, other), (tiny, none), (none, tiny), ("-n1", tiny)):
        done = step(*parts)
        assert done.status != 0
        assert done.out == ""
        assert "the parts of a heterogeneous step cannot have different environments" in done.err
        assert "hint: " in done.err
