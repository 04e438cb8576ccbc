"""Simulated GPUs for the nodes: devices for Slurm that nobody opens, and a fake libnvidia-ml that pioletd loads.

What a node's GPUs are and do is a script (tests/simulators/nvml/script.h), one file a node, read when a step begins to
be sampled: edit it, and the next step sees it. Every figure that comes from them says that it is simulated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tools.cluster.errors import ClusterError

_NVIDIA = 195
DEFAULT_LOAD = "load matmul 60 75 2"
EMPTY = "memory_by_load 0"
"""They compute whether or not a step runs; with full memory no vetting would find them fit for one."""


def provide(directory: Path, nodes: Sequence[str], count: int) -> str:
    """Build the library and write what each node has; scripts that are there stay. Return what to tell the user."""
    from tests.simulators.nvml import build

    directory.mkdir(mode=0o755, exist_ok=True)
    try:
        build.build(directory)
    except (RuntimeError, OSError) as error:
        raise ClusterError(f"cannot build the simulated GPUs: {error}") from None
    for index in range(count):
        # Nobody opens them; Slurm wants to see devices, with the numbers that NVIDIA's have.
        os.mknod(directory / f"nvidia{index}", stat.S_IFCHR | 0o666, os.makedev(_NVIDIA, index))
    for node in nodes:
        script(directory, node).write_text(usual(count), "ascii")
    return f"{count} simulated ones on each node, by {directory}/NODE.script"


def usual(count: int) -> str:
    """Return the script of a node as a new cluster has it."""
    return f"gpu\n{DEFAULT_LOAD}\n{EMPTY}\n" * count


def script(directory: Path, node: str) -> Path:
    """Return where a node's script is."""
    return directory / f"{node}.script"


def variables(directory: Path, node: str) -> dict[str, str]:
    """Return what a daemon on the node has in its environment: nothing where there are no GPUs."""
    path = script(directory, node)
    return {"LD_LIBRARY_PATH": str(directory), **script_variable(directory)} if path.exists() else {}


def script_variable(directory: Path) -> dict[str, str]:
    """Return what a process has in its environment to see the GPUs of the node that it runs on."""
    return {"PIOLET_FAKE_NVML": str(directory / "%h.script")}


def gres_conf(directory: Path, count: int) -> str:
    """Return gres.conf."""
    return f"Name=gpu File={directory}/nvidia[0-{count - 1}]\n" if count > 1 else f"Name=gpu File={directory}/nvidia0\n"
