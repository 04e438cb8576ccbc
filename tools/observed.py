"""What is slow in the demo of observability, for real: a disk, and the processors of a node's tasks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from piolet.system import loop

from tools.cluster import cgroup, controllers, processes
from tools.cluster.errors import ClusterError
from tools.cluster.layout import REPOSITORY, Layout, node_names
from tools.cluster.packages import find
from tools.cluster.state import Process, load, write_atomically

SIMULATOR = REPOSITORY / "tests" / "simulators" / "slow_fs.py"
DATA_FILE = "moons.bin"
_ROWS, _SIZE = 1 << 20, "24M"
_READY_S, _EACH_S = 20.0, 0.005
_PERIOD_US = 100_000


class SlowDisk:
    """An ext4 on a loop device upon a file that is slow to read, mounted read-only on every node of a cluster.

    The process that makes the file slow is one of the cluster's: it ends when that does, and the mounts with the nodes.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._room = layout.root / "disk"
        self._room.mkdir(exist_ok=True)
        self._delay = self._room / "delay"

    def takes(self, seconds: float) -> None:
        """Let each read take so long from now on, one after the other."""
        write_atomically(self._delay, f"{seconds}\n")

    def mount(self, target: str, nodes: int) -> None:
        """Mount it at a directory that is there. Raises ClusterError."""
        state = load(self._layout.state_file)
        if state is None:
            raise ClusterError(f"no cluster is running in {self._layout.root}")
        backing, file = self._room / "ext4", self._room / "slow"
        _make(backing, self._room / "files")
        file.write_bytes(b"")
        self.takes(0)
        log = self._layout.log / "slow-disk.log"
        words = [sys.executable, "-I", str(SIMULATOR), str(file), str(backing), str(self._delay)]
        server = processes.spawn("slow-disk", words, log, Path(state.cgroup))
        processes.wait_ready(server, log, _READY_S, lambda: "mounted" in log.read_text("utf-8"))
        image = os.open(f"/proc/{server.pid}/root{file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            device, path = loop.attach(image)
        except OSError as error:
            raise ClusterError(f"no loop device could be had for a slow disk: {error.strerror}") from None
        finally:
            os.close(image)
        try:  # the device goes with its last mount
            for node in node_names(nodes):
                slurmd = state.find(f"slurmd-{node}")
                if slurmd is None:
                    raise ClusterError(f"{node} is not running")
                _in_node(slurmd, find("mount"), "-t", "ext4", "-o", "ro", path, target)
        finally:
            os.close(device)


def _make(backing: Path, files: Path) -> None:
    """Write a file system with the data of examples/demo in it, as records of 16 bytes, many times and with noise."""
    files.mkdir(exist_ok=True)
    table = np.loadtxt(REPOSITORY / "examples/demo/data/moons.csv", delimiter=",", skiprows=1)
    draw = np.random.default_rng(1)
    rows = np.zeros((_ROWS, 4), "<f4")
    rows[:, :3] = table[draw.integers(len(table), size=_ROWS)]
    rows[:, :2] += draw.normal(0, 0.02, (_ROWS, 2))
    (files / DATA_FILE).write_bytes(rows.tobytes())
    backing.unlink(missing_ok=True)
    words = [find("mkfs.ext4"), "-q", "-O", "^has_journal", "-d", str(files), str(backing), _SIZE]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise ClusterError(f"mkfs.ext4 failed: {done.stderr.strip()}")


def _in_node(slurmd: Process, *words: str) -> None:
    enter = [find("nsenter"), f"--target={slurmd.pid}", "--mount", "--", *words]
    done = subprocess.run(enter, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(words)} failed: {done.stderr.strip()}")


@dataclass(frozen=True)
class Held:
    """The group of a node's tasks of a step, which can be given less than a processor."""

    quota: Path
    period_us: int = _PERIOD_US

    def may_use(self, share: float) -> None:
        """Let them have so much of a processor, all together."""
        value = round(share * self.period_us)
        text = str(value) if self.quota.name == "cpu.cfs_quota_us" else f"{value} {self.period_us}"
        self.quota.write_text(text, "ascii")


def hold(layout: Layout, nodes: int, job: str, step: str, within_s: float) -> dict[str, Held]:
    """Wait until a step begins on all nodes, and return its group on each; before its tasks are there.

    Raises ClusterError.
    """
    found = controllers.find(cgroup.MOUNTINFO.read_text("utf-8"))
    held: dict[str, Held] = {}
    deadline = time.monotonic() + within_s
    while missing := [node for node in node_names(nodes) if node not in held]:
        for node in missing:
            top = found.groups(layout.tag, [node])[0]
            if found.version == 1:  # Slurm's freezer has all that it tracks
                top = found.mounts["freezer"] / controllers.PARENT.format(tag=layout.tag) / node
            group = next((one for one in top.glob(f"**/job_{job}/step_{step}") if cgroup.members(one)), None)
            if group is not None:
                held[node] = _held(found, group)
        if time.monotonic() > deadline:
            raise ClusterError(f"step {job}.{step} did not begin on {', '.join(missing)} within {within_s:.0f} s")
        time.sleep(_EACH_S)
    return held


def _held(found: controllers.Controllers, group: Path) -> Held:
    if found.version == 2:
        if not (group / "cpu.max").exists():
            raise ClusterError(f"{group} has no controller for processors, so no node can be made slow")
        return Held(group / "cpu.max")
    if controllers.LIMITS not in found.mounts:
        raise ClusterError("this machine has no control groups for processors (cpu), so no node can be made slow")
    own = found.mounts[controllers.LIMITS] / group.relative_to(found.mounts["freezer"])
    own.mkdir(parents=True, exist_ok=True)
    for pid in cgroup.members(group):  # those that these start are in it as well
        with contextlib.suppress(ProcessLookupError):
            (own / "cgroup.procs").write_text(str(pid), "ascii")
    return Held(own / "cpu.cfs_quota_us")
