"""Control groups with controllers (`up --cgroups`): steps get memory, processors and devices of their own.

Version 1: each cluster has a group of its own below every controller that Slurm uses, and each node one in that, made
before the nodes start, which it sees as the whole hierarchy (a cgroup namespace, see nodeinit.py). So a step's groups
are its own node's alone, as on a machine, and they go with the cluster's group, however the cluster ends.

Version 2: slurmd makes /sys/fs/cgroup/system.slice/NODE_slurmstepd.scope by the node's name, outside of the cluster's
own group. A second cluster with nodes of the same names is refused. Where there is no systemd, system.slice and the
controllers of what is below it are made here, and stay.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cluster import cgroup
from tools.cluster.errors import ClusterError
from tools.cluster.layout import node_names
from tools.cluster.state import State

NEEDED = ("cpuset", "devices", "freezer", "memory")
"""The controllers that proctrack/cgroup and task/cgroup use, of version 1."""
NEEDED_2 = ("cpuset", "memory", "pids")
LIMITS = "cpu"
"""Of version 1: nodes have it where it is mounted by itself. Slurm makes no groups there; who limits a step does."""
PARENT = "piolet-cluster-{tag}"
_COPIED = ("cpuset.cpus", "cpuset.mems")
_END_S = 10.0


@dataclass(frozen=True)
class Controllers:
    """What this machine has: the version, and where each controller, or version 2 as a whole, is mounted."""

    version: int
    mounts: dict[str, Path]

    def groups(self, tag: str, nodes: Sequence[str]) -> list[Path]:
        """Return the groups of a cluster that `remove` takes away."""
        if self.version == 1:
            return [mount / PARENT.format(tag=tag) for mount in self.mounts.values()]
        return [self.mounts["unified"] / "system.slice" / f"{node}_slurmstepd.scope" for node in nodes]


def find(mountinfo: str) -> Controllers:
    """Return what the machine has. Raises ClusterError: not all that Slurm needs."""
    mounts: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, filesystem = before.split(), after.split()
        if len(fields) < 6 or len(filesystem) < 3 or fields[3] != "/":
            continue
        place = Path(cgroup.unescape(fields[4]))
        if filesystem[0] == "cgroup":
            names = filesystem[2].split(",")
            mounts.update({name: place for name in names if name in NEEDED})
            mounts |= {LIMITS: place} if set(names) - {"rw", "ro"} == {LIMITS} else {}
        elif filesystem[0] == "cgroup2":
            mounts.setdefault("unified", place)
    if all(name in mounts for name in NEEDED):
        return Controllers(1, {name: mounts[name] for name in (*NEEDED, LIMITS) if name in mounts})
    unified = mounts.get("unified")
    if unified is not None:
        with contextlib.suppress(OSError):
            there = (unified / "cgroup.controllers").read_text("ascii").split()
            if all(name in there for name in NEEDED_2):
                return Controllers(2, {"unified": unified})
    absent = ", ".join(name for name in NEEDED if name not in mounts)
    raise ClusterError(
        f"this machine has no control group controllers for {absent}: its nodes cannot confine steps",
        "start the cluster without CGROUPS=1, or on a machine where /sys/fs/cgroup has them",
    )


def prepare(found: Controllers, tag: str, nodes: Sequence[str]) -> None:
    """Make the groups that the nodes enter. Raises ClusterError: they cannot be made, or are another cluster's."""
    if found.version == 2:
        _make_slice(found.mounts["unified"])
    for group in found.groups(tag, nodes):
        if found.version == 2:
            if cgroup.members(group):
                raise ClusterError(
                    f"the control group {group} is in use by another node of that name",
                    "end that cluster first: the names of such groups are by node",
                )
            continue
        for made in (group, *(group / node for node in nodes)):
            try:
                made.mkdir(exist_ok=True)
                # A fresh cpuset is empty, and nothing may enter an empty one.
                for name in _COPIED:
                    if (made / name).exists():
                        (made / name).write_text((made.parent / name).read_text("ascii"), "ascii")
            except OSError as error:
                raise ClusterError(f"cannot make the control group {made}: {error.strerror}") from None


def _make_slice(unified: Path) -> None:
    """Make what systemd has made where it runs: the group in which Slurm makes its own, with controllers."""
    place = unified / "system.slice"
    try:
        for group in () if place.is_dir() else (unified, place):
            group.mkdir(exist_ok=True)
            there = (group / "cgroup.controllers").read_text("ascii").split()
            (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in there), "ascii")
    except OSError as error:
        raise ClusterError(f"cannot make the control group {place}: {error.strerror}") from None


def members(state: State) -> list[int]:
    """Return the pids of a cluster: with version 2, those of its steps are in no group of the cluster's own."""
    pids = cgroup.members(Path(state.cgroup))
    if state.cgroups == 2:
        for group in find(cgroup.MOUNTINFO.read_text("utf-8")).groups("", node_names(state.nodes)):
            pids += cgroup.members(group)
    return pids


def remove(mountinfo: str, tag: str, nodes: Sequence[str]) -> list[str]:
    """Kill what is left in the cluster's groups and remove them; return those that stay, with why."""
    try:
        found = find(mountinfo)
    except ClusterError:
        return []
    stay = []
    for group in found.groups(tag, nodes):
        deadline = time.monotonic() + _END_S
        while group.is_dir():
            for pid in cgroup.members(group):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            if not group.is_dir():
                break
            if time.monotonic() > deadline:
                stay.append(f"{group} stays: it has {len(cgroup.members(group))} processes")
                break
            time.sleep(0.02)
    return stay
