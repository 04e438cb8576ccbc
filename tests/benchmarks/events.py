"""What records of events cost: a step whose end is recorded, and the process that watches a node's hardware."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from tests.benchmarks.cluster import Cluster
from tests.benchmarks.paired import Pairs, measure

WATCHED_S = 60.0


def outcomes(cluster: Cluster, rounds: int, *arguments: str) -> Pairs:
    """A step without options: with the plugin piolet_outcomes against without."""
    on = cluster.directory / "etc" / "plugstack.conf.d" / "outcomes.conf"
    off = on.with_suffix(".conf.off")

    def step(here: Path, other: Path) -> None:
        if other.exists():
            other.rename(here)
        cluster.run("srun", *arguments)

    try:
        return measure(lambda: step(off, on), lambda: step(on, off), rounds)
    finally:
        if on.exists():
            on.rename(off)


def watchers(seconds: float = WATCHED_S) -> list[dict[str, float]]:
    """Return of each node's watcher how much of a core it takes, in percent, and its memory in MB."""
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and name(pid) == "pioletd-watcher"]
    before = {pid: seconds_of(pid) for pid in pids}
    time.sleep(seconds)
    return [
        {"core_percent": (seconds_of(pid) - before[pid]) / seconds * 100, **memory(pid)} for pid in pids
    ]  # fmt: skip


def name(pid: str) -> str:
    """Return a process's name."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("ascii", "replace").strip()
    except OSError:
        return ""


def seconds_of(pid: str) -> float:
    """Return the processor's time of a process; by its scheduler's count, which is in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0]) / 1e9


def memory(pid: str) -> dict[str, float]:
    """Return what a process has of memory, and of that what it shares with none, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    values = {name: int(kilo) / 1e3 for name, kilo in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return {"rss_mb": values["Rss"], "own_mb": values["Private_Clean"] + values["Private_Dirty"]}
