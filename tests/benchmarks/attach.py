"""What it costs to enter the container of a step that runs."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks.cluster import USER, Cluster
from tests.benchmarks.paired import measure
from tests.benchmarks.steps import Row


def rows(cluster: Cluster, rounds: int) -> list[Row]:
    """An overlap step of a job without a container, against one in a container that runs, and by `piolet attach`."""
    with _held(cluster) as job:
        words = ("srun", f"--jobid={job}", "--overlap", "-n1")
        inside = f"--environment=job:{job}.0"

        def bare() -> None:
            cluster.run(*words, "true")

        entered = measure(bare, lambda: cluster.run(*words, inside, "true"), 2 * rounds)
        whole = measure(bare, lambda: cluster.run("piolet", "attach", f"{job}.0", "true"), rounds)
        own = measure(
            lambda: cluster.run(*words, "--environment=demo", "true"),
            lambda: cluster.run(*words, inside, "true"),
            rounds,
        )
    return [
        Row("srun --overlap: in the container of a step / bare", entered, "added <= 5 ms"),
        Row("piolet attach JOB.STEP true / a bare overlap step", whole, "a start of Python, and scontrol"),
        Row("srun --overlap: in the container of a step / in one of its own", own),
    ]


@contextmanager
def _held(cluster: Cluster) -> Iterator[str]:
    """A step in a container that runs as long as this; yields its job."""
    command = [str(cluster.directory / "as"), USER, "srun", "-w", "node1", "--environment=demo"]
    srun = subprocess.Popen(
        [*command, "sh", "-c", "echo $SLURM_JOB_ID; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pwd.getpwnam(USER).pw_dir,
        env={"PATH": os.environ["PATH"]},
    )
    assert srun.stdout is not None
    try:
        yield srun.stdout.readline().strip()
    finally:
        srun.communicate("\n", timeout=30)
