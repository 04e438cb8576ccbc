"""Piolet's central service on a private cluster, and a forwarder on each node.

The service runs on this machine, by its own account; forwarders run in their nodes' namespaces. All share one munged,
which says the cluster's address for every node, as Slurm's NodeAddr does: so no node is told from another here. Another
munged with this key and another address is another machine (tests/cluster/test_central.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tools.cluster import network, processes
from tools.cluster.accounts import numbers
from tools.cluster.config import Settings, daemon_path
from tools.cluster.packages import find
from tools.cluster.services import Keep
from tools.cluster.state import Process

SERVICE, FORWARDER = "piolet-central", "piolet-forward"
STATE = "/run/piolet-forward"  # on each node
_WITHIN_S = 60


def forwarder_name(node: str) -> str:
    return f"{FORWARDER}-{node}"


def start(s: Settings, nodes: Sequence[tuple[str, Process]], group: Path, keep: Keep) -> None:
    """Start the service, with no memory of an earlier run, and a forwarder on each node: (node, slurmd)."""
    layout = s.layout
    uid, gid = numbers(SERVICE)
    if (layout.root / "central").is_dir():
        shutil.rmtree(layout.root / "central")
    for path, mode in ((layout.root / "central", 0o700), (layout.run / "central", 0o755)):
        path.mkdir(mode=mode, exist_ok=True)
        os.chown(path, uid, gid)
    environment = {"PATH": daemon_path(layout), "SLURM_CONF": str(layout.slurm_conf)}
    log = layout.log / f"{SERVICE}.log"
    process = processes.spawn(SERVICE, _as(SERVICE, s), log, group, environment)
    keep(process)
    processes.wait_ready(process, log, _WITHIN_S, lambda: network.accepts(s.address, s.ports["central"]))
    uid, gid = numbers(FORWARDER)
    for node, slurmd in nodes:
        place = Path(f"/proc/{slurmd.pid}/root{STATE}")
        place.mkdir(mode=0o755, exist_ok=True)
        os.chown(place, uid, gid)
        enter = [find("nsenter"), f"--target={slurmd.pid}", "--mount", "--uts", "--cgroup", "--"]
        name = forwarder_name(node)
        keep(processes.spawn(name, enter + _as(FORWARDER, s), layout.log / f"{name}.log", group, environment))


def _as(program: str, s: Settings) -> list[str]:
    uid, gid = numbers(program)
    become = [find("setpriv"), f"--reuid={uid}", f"--regid={gid}", "--init-groups", "--no-new-privs"]
    return [*become, str(s.layout.venv_bin / program), "--config", str(s.layout.piolet_toml)]
