"""What the recording of every step costs: a step's start, a program that computes, and the node.

The cluster has control groups, as recording needs them. "Off" is a sampler that is stopped (SIGSTOP): it takes nothing
of the machine, and can be told from "on" within a pair. The steps have no option of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.cluster import ROOT, Cluster, call_tool
from tests.benchmarks.paired import measure, sampled
from tests.benchmarks.steps import Row
from tests.support.waiting import wait_until

_T = TypeVar("_T")
_NAMES = ("pioletd-observe", "pioletd-io", "pioletd-records")
# A fixed number of turns, about half a second of a core; it says itself how long they took.
_PROGRAM = "import time; s = time.perf_counter(); sum(i * i for i in range(6_000_000)); print(time.perf_counter() - s)"


@dataclass(frozen=True)
class Cost:
    """What the processes of the sampling took: cores, and MiB of their own with their share of what they share."""

    cores: float
    memory: float
    own: float
    processes: int


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster of one node with control groups, that records every 10 s."""
    directory = ROOT / "build" / "bench-recording"
    call_tool("down", "--dir", str(directory))
    call_tool("up", "--nodes", "1", "--cgroups", "--dir", str(directory))
    try:
        made = Cluster(Path(os.path.realpath(directory)))
        made.set_node_option("observe", "interval_s", "10")
        wait_until(lambda: bool(_found(made)), 30, "the sampler")  # pioletd answers before it has one
        yield made
    finally:
        call_tool("down", "--dir", str(directory))


def processes(made: Cluster) -> list[int]:
    """Return the processes of the node's sampling: those below its pioletd."""
    found = _found(made)
    assert found, f"nothing records in {made.directory}"
    return found


def _found(made: Cluster) -> list[int]:
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            comm = Path(f"/proc/{name}/comm").read_text().strip()
            if comm in _NAMES and str(made.directory) in Path(f"/proc/{name}/cmdline").read_text():
                found.append(int(name))
    return found


def starts(made: Cluster, rounds: int) -> Row:
    """A step that does nothing: recorded against not."""
    pairs = measure(
        _with(made, signal.SIGSTOP, lambda: made.run("srun", "-n1", "true")),
        _with(made, signal.SIGCONT, lambda: made.run("srun", "-n1", "true")),
        rounds,
    )
    return Row("srun -n1 true: recorded / not", pairs, "ratio within noise of 1")


def computes(made: Cluster, rounds: int) -> Row:
    """A program that computes, by its own clock: recorded against not."""

    def seconds() -> float:
        return float(made.run("srun", "-n1", "python3", "-c", _PROGRAM))

    pairs = sampled(_with(made, signal.SIGSTOP, seconds), _with(made, signal.SIGCONT, seconds), rounds)
    return Row("a program of one core: recorded / not", pairs, "ratio within noise of 1")


def _with(made: Cluster, number: signal.Signals, run: Callable[[], _T]) -> Callable[[], _T]:
    def do() -> _T:
        for pid in processes(made):
            os.kill(pid, number)
        return run()

    return do


def cost(made: Cluster, seconds: float) -> Cost:
    """What recording takes while a step of four processes runs."""
    for pid in processes(made):
        os.kill(pid, signal.SIGCONT)
    script = "for i in 1 2 3; do sleep 1000 & done; sleep 1000"
    step = subprocess.Popen([str(made.directory / "as"), "alice", "srun", "-n1", "sh", "-c", script])
    try:
        time.sleep(5)
        pids = processes(made)
        before, began = _used(pids), time.monotonic()
        time.sleep(seconds)
        cores = (_used(pids) - before) / (time.monotonic() - began)
        memory = [_rollup(pid) for pid in pids]
    finally:
        step.terminate()
        step.wait(30)
    return Cost(cores, sum(pss for pss, _ in memory), sum(own for _, own in memory), len(pids))


def _used(pids: list[int]) -> float:
    """Return the seconds of processor time of processes, to a nanosecond: a clock tick is more than a sample takes."""
    return sum(int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
               for pid in pids for task in os.listdir(f"/proc/{pid}/task")) / 1e9  # fmt: skip


def _rollup(pid: int) -> tuple[float, float]:
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    said = {words[0]: int(words[1]) / 1024 for words in lines}
    return said["Pss:"], said["Private_Dirty:"] + said["Private_Clean:"]
