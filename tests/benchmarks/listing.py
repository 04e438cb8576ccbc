"""Listing 10,000 jobs and 5,000 nodes: pyslurm_ext against Slurm's commands and a parser of what they print."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.cluster import USER, Cluster
from tests.benchmarks.paired import Pairs
from tests.benchmarks.steps import Row
from tests.support.registry import free_port

JOBS, NODES = 10_000, 5_000
_FIELD = re.compile(r"(?:^|\s)([A-Za-z:]+)=(.*?)(?=\s[A-Za-z:]+=|$)")
_LISTINGS = 5
_OURS = f"""\
import sys, time, pyslurm_ext
slurm = pyslurm_ext.connect()
slurm.partitions()
for changed in [True] * (1 + {_LISTINGS}) + [False]:
    if changed:
        slurm._answers.clear()
    began = time.perf_counter()
    found = slurm.snapshot()
    seconds = time.perf_counter() - began
    print(seconds, len(found.jobs), len(found.nodes), len({{job.id for job in found.jobs}}))
"""


@contextlib.contextmanager
def large(cluster: Cluster) -> Iterator[Path]:
    """Run a slurmctld of its own that knows many nodes, without slurmds, and many held jobs; yield its slurm.conf."""
    place = cluster.directory / "large"
    (place / "state").mkdir(parents=True, exist_ok=True)
    text = (cluster.directory / "etc" / "slurm.conf").read_text("utf-8")
    drop = (
        "NodeName",
        "SlurmctldPort",
        "StateSave",
        "SlurmctldPid",
        "SlurmctldLog",
        "ClusterName",
        "PlugStack",
        "SlurmctldHost",
    )
    lines = [line for line in text.splitlines() if not line.startswith(drop)]
    more = [
        "ClusterName=large", f"SlurmctldHost={socket.gethostname()}(127.0.0.1)", f"SlurmctldPort={free_port()}",
        f"StateSaveLocation={place}/state", "SlurmctldSyslogDebug=quiet",
        f"SlurmctldPidFile={place}/pid", f"SlurmctldLogFile={place}/log", "MaxArraySize=20001", "MaxJobCount=30000",
        f"NodeName=n[1-{NODES}] NodeAddr=127.0.0.1 CPUs=64 RealMemory=500000 State=UNKNOWN",
    ]  # fmt: skip
    conf = place / "slurm.conf"
    conf.write_text("\n".join([*more, *lines]) + "\n", "utf-8")
    for path in (place, place / "state"):
        os.chown(path, *pwd.getpwnam("slurm")[2:4])
    environ = {**os.environ, "SLURM_CONF": str(conf)}
    with subprocess.Popen(["slurmctld", "-D", "-c", "-f", str(conf)], env=environ, stderr=subprocess.DEVNULL) as daemon:
        try:
            _fill(environ)
            yield conf
        finally:
            daemon.terminate()
            daemon.wait(60)


def _fill(environ: dict[str, str]) -> None:
    """Submit one job array, and hold its tasks, so that each is a job of its own."""
    end = time.monotonic() + 60
    words = ["sbatch", "--parsable", "--hold", f"--array=1-{JOBS}", "--chdir=/tmp", "--wrap=true"]
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
    while True:
        done = subprocess.run([*become, *words], env=environ, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert time.monotonic() < end, done.stderr
        time.sleep(0.5)
    number = done.stdout.strip()
    # What is changed of one task makes a job of it.
    orders = "".join(f"update JobId={number}_{task} Comment=task{task}\n" for task in range(1, JOBS + 1))
    command = ["scontrol"]
    subprocess.run(command, env=environ, input=orders, text=True, check=True, timeout=300, stdout=subprocess.DEVNULL)


def by_commands(environ: dict[str, str], details: bool) -> tuple[int, int]:
    """List with Slurm's commands, parse all that they print; return how many jobs and nodes there are."""

    def run(*words: str) -> list[str]:
        done = subprocess.run(list(words), env=environ, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    nodes = [dict(_FIELD.findall(line)) for line in run("scontrol", "-o", "show", "node")]
    names, *rows = [line.split("|") for line in run("squeue", "-o", "%all")]
    jobs = [dict(zip(names, row, strict=False)) for row in rows]
    if details:
        assert len([dict(_FIELD.findall(line)) for line in run("scontrol", "-o", "show", "job")]) == len(jobs)
    return len(jobs), len(nodes)


def listings(cluster: Cluster, rounds: int) -> list[Row]:
    """Slurm's commands, parsed, against snapshot(): `squeue` for jobs, and `scontrol -o show job`, too."""
    commands: dict[bool, list[float]] = {False: [], True: []}
    first, later, unchanged = [], [], []
    with large(cluster) as conf:
        environ = {**os.environ, "SLURM_CONF": str(conf)}
        for _ in range(rounds):
            for details, seconds in commands.items():
                began = time.perf_counter()
                found = by_commands(environ, details)
                seconds.append(time.perf_counter() - began)
            done = subprocess.run(
                [sys.executable, "-c", _OURS], env=environ, capture_output=True, text=True, check=True, cwd="/"
            )
            lines = [line.split() for line in done.stdout.splitlines()]
            assert all((int(jobs), int(nodes)) == found == (JOBS, NODES) for _, jobs, nodes, _ in lines), done.stdout
            assert all(int(each) == JOBS for *_, each in lines)
            first.append(float(lines[0][0]))
            later.append(statistics.median(float(line[0]) for line in lines[1:-1]))
            unchanged.append(float(lines[-1][0]))
    ours = f"{JOBS} jobs and {NODES} nodes: pyslurm_ext"
    squeue, both = "squeue, scontrol -o show node, and parsing", "the same and scontrol -o show job"
    return [
        Row(f"{ours} / {squeue}", Pairs(commands[False], later)),
        Row(f"{ours} / {both}", Pairs(commands[True], later), "ratio <= 0.05"),
        Row(f"{ours}, the first listing of a process / {both}", Pairs(commands[True], first)),
        Row(f"{ours}, nothing changed / {squeue}", Pairs(commands[False], unchanged), "ratio <= 0.05"),
    ]
