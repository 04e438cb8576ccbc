"""What a vetting adds to a step, on few nodes and on many, and beside the step's own growth."""

from __future__ import annotations

from tests.benchmarks.cluster import Cluster
from tests.benchmarks.paired import measure
from tests.benchmarks.steps import Row

# The GPUs are simulated. All nodes share one machine, its zombies and its slurmctld included.
SIX = """\
name: six
evals:
- {type: env, expected: {PATH: null}}
- {type: gpu, max_used_memory: 1}
- {type: memory_available}
- {type: limits}
- {type: mounts, paths: [/tmp]}
- {type: leftovers, max_hanging: 100, allow_users: [slurm, munge], max_zombies: 100000}
"""


def protocol(cluster: Cluster) -> str:
    """Write the protocol where every node sees it; return its path."""
    path = cluster.directory / "bench-vet.yaml"
    path.write_text(SIX, "utf-8")
    return str(path)


def added(cluster: Cluster, rounds: int, nodes: int, aim: str) -> Row:
    """A step with a vetting against the same step without."""
    path, where = protocol(cluster), (f"-N{nodes}", "--gres=gpu:1")
    pairs = measure(
        lambda: cluster.run("srun", *where, "true"),
        lambda: cluster.run("srun", *where, f"--vet={path}", "true"),
        rounds,
    )
    return Row(f"srun -N{nodes} true: six evals before it / bare", pairs, aim)
