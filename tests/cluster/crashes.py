"""Slurm's own slurmd crashes once in some thousand steps (decision 151): another takes its place, and the run says so.

Nothing is hidden: a test in which slurmd crashed counts only as run again, the summary of the run has a warning with
its name, and after `MOST` crashes no test is run again.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.cluster.support import Cluster
from tests.support.waiting import wait_until
from tools.cluster import lifecycle, packages, processes
from tools.cluster.layout import Layout, node_names
from tools.cluster.state import Process, State, load

MOST = 3
KINDS = ("mnt", "uts", "cgroup")


def ended(layout: Layout) -> list[str]:
    """Return the nodes whose slurmd is not running, though nobody took the cluster down."""
    state = load(layout.state_file)
    if state is None:
        return []
    slurmds = ((name, state.find(f"slurmd-{name}")) for name in node_names(state.nodes))
    return [name for name, slurmd in slurmds if slurmd is not None and not processes.alive(slurmd)]


class Machines:
    """The nodes of a cluster: their namespaces, held for when slurmd, whose they are, is gone."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        state = _state(cluster.layout)
        self._held = {}
        for node in node_names(state.nodes):
            slurmd = state.find(f"slurmd-{node}")
            assert slurmd is not None, node
            self._held[node] = hold(slurmd)

    def restart(self, node: str) -> None:
        """Start slurmd on the node where it crashed, end what jobs there are, and return the node to service."""
        start(self._cluster.layout, _state(self._cluster.layout), node, self._held[node])
        wait_until(lambda: put_right(self._cluster), 90, f"the return of {node}")

    def close(self) -> None:
        for held in self._held.values():
            let_go(held)


def put_right(cluster: Cluster) -> bool:
    """End what jobs a failed test left, return nodes to service, and say whether all are idle."""
    environment = {"SLURM_CONF": str(cluster.layout.slurm_conf), "PATH": "/usr/bin:/bin"}
    nodes = ",".join(node_names(_state(cluster.layout).nodes))
    for command in (["scancel", "--user=alice,bob"], ["scontrol", "update", f"NodeName={nodes}", "State=RESUME"]):
        subprocess.run(command, env=environment, capture_output=True, check=False, timeout=30)
    states = cluster.run("alice", "sinfo", "-h", "-N", "-o", "%T").out.split()
    return set(states) == {"idle"} and not cluster.jobs()


def start(layout: Layout, state: State, node: str, held: dict[str, int]) -> None:
    """Start slurmd in the namespaces of a node, and put it on record."""
    enter = ["nsenter"]
    for option, kind in zip(("--mount", "--uts", "--cgroup"), KINDS, strict=True):
        enter.append(f"{option}=/proc/self/fd/{held[kind]}")
    argv = [*enter, "--", packages.find("slurmd"), "-D", "-N", node, "-f", str(layout.slurm_conf)]
    log = layout.log / "startup" / f"slurmd-{node}.log"
    made = processes.spawn(f"slurmd-{node}", argv, log, Path(state.cgroup), pass_fds=list(held.values()))
    lifecycle.Record(layout.state_file, state).keep(made)


def hold(process: Process) -> dict[str, int]:
    """Return descriptors of the namespaces of the node that a process is on."""
    return {kind: os.open(f"/proc/{process.pid}/ns/{kind}", os.O_RDONLY) for kind in KINDS}


def let_go(held: dict[str, int]) -> None:
    """Close what `hold` returned."""
    for descriptor in held.values():
        os.close(descriptor)


def _state(layout: Layout) -> State:
    state = load(layout.state_file)
    assert state is not None, layout.root
    return state
