"""What a vetting adds to a step, on few nodes and on many, and beside the step's own growth."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.benchmarks.cluster import ROOT, Cluster
from tests.benchmarks.paired import measure, sampled
from tests.benchmarks.steps import Row

VETNODE = "vetnode==0.1.5"
# An eval that both have, in the words of the older program; its protocol is ours.
ENV = """\
name: env
scheduler: slurm
evals:
- {name: path, type: vetnode.evaluations.env_var_eval.EnvVarEval, expected: {PATH: null}}
"""

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


def protocol(cluster: Cluster, text: str = SIX, name: str = "bench-vet.yaml") -> str:
    """Write the protocol where every node sees it; return its path."""
    path = cluster.directory / name
    path.write_text(text, "utf-8")
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


def cached(cluster: Cluster, rounds: int) -> Row:
    """A later step of a job whose nodes were found good: with --vet against without."""
    path = protocol(cluster)
    job = cluster.run("sbatch", "--parsable", "-N4", "--gres=gpu:1", "--wrap=sleep 600").strip()
    try:
        end = time.monotonic() + 30
        while not (nodes := cluster.run("squeue", "-h", "-t", "running", "-j", job, "-o", "%N").strip()):
            assert time.monotonic() < end, "the job does not start"
            time.sleep(0.1)
        step = ("env", f"SLURM_JOB_ID={job}", f"SLURM_JOB_NODELIST={nodes}", "srun", "--overlap", "-N4", "-n4")
        pairs = measure(lambda: cluster.run(*step, "true"), lambda: cluster.run(*step, f"--vet={path}", "true"), rounds)
    finally:
        cluster.run("scancel", job)
    return Row("srun -N4 true in a vetted job: --vet again / bare", pairs, "added < 50 ms")


def beside_vetnode(cluster: Cluster, rounds: int) -> Row:
    """One equal eval on 4 nodes and then `true`, against the diagnosis by vetnode alone."""
    program = _vetnode()
    path = protocol(cluster, ENV, "bench-env.yaml")
    theirs = protocol(cluster, ENV, "bench-vetnode.yaml")
    pairs = measure(
        lambda: cluster.run("srun", "-N4", str(program), "diagnose", "--skip-install", theirs),
        lambda: cluster.run("srun", "-N4", f"--vet={path}", "true"),
        rounds,
    )
    return Row(f"an eval of the environment on 4 nodes: --vet and the step / {VETNODE}", pairs, "ratio <= 0.1")


def pair_rounds(cluster: Cluster, rounds: int) -> Row:
    """All 31 rounds of pairs on 32 nodes against 31 times one round; the vet step without any is taken off both."""
    one = "name: p{n}\nevals:\n- {{type: limits}}\n"
    pair = "- {{type: network_pair, size: 1 MB, pings: 5, rounds: {n}}}\n"
    empty = protocol(cluster, one.format(n=0), "bench-none.yaml")
    single = protocol(cluster, (one + pair).format(n=1), "bench-one.yaml")
    every = protocol(cluster, (one + pair).format(n=31), "bench-all.yaml")

    def seconds(path: str) -> float:
        began = time.monotonic()
        cluster.run("srun", "-N32", f"--vet={path},budget=120s", "true")
        return time.monotonic() - began

    pairs = sampled(lambda: 31 * (seconds(single) - seconds(empty)), lambda: seconds(every) - seconds(empty), rounds)
    return Row("31 rounds of pairs on 32 nodes / 31 times one round", pairs, "ratio <= 1.5")


def _vetnode() -> Path:
    """Install vetnode, which nothing else needs, into an environment of its own; return its command."""
    place = ROOT / "build" / "vetnode"
    if not (place / "bin" / "vetnode").exists():
        subprocess.run(["/usr/bin/python3", "-m", "venv", str(place)], check=True)
        command = [str(place / "bin" / "pip"), "install", "--quiet", VETNODE, "tabulate==0.9.0"]
        subprocess.run(command, check=True, timeout=300)
    return place / "bin" / "vetnode"
