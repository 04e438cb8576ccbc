"""The daemons of a cluster: how each is started, and when it counts as ready."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tools.cluster import cgroup, controllers, gpus, network, processes, registry
from tools.cluster.accounts import numbers
from tools.cluster.config import CONTROLLER, Settings, daemon_path
from tools.cluster.errors import ClusterError
from tools.cluster.layout import Layout, node_names
from tools.cluster.packages import find
from tools.cluster.state import Process

NODEINIT = Path(__file__).with_name("nodeinit.py")
NODE_RUN_SIZE = "128m"
MUNGE_KEY_BYTES = 128

Keep = Callable[[Process], None]
"""Is told of every process as soon as it exists, before it is ready."""


def start_munged(layout: Layout, group: Path, keep: Keep, address: str = "") -> None:
    """Start munged with a key of its own; its directory belongs to its account, as it insists.

    address   what it says that this host has; '': what it finds out
    """
    uid, gid = numbers("munge")
    layout.munge.mkdir(mode=0o755)
    key = layout.munge / "munge.key"
    key.touch(mode=0o400)
    with key.open("wb") as file:
        file.write(os.urandom(MUNGE_KEY_BYTES))
    for path in (layout.munge, key):
        os.chown(path, uid, gid)
    argv = [find("setpriv"), f"--reuid={uid}", f"--regid={gid}", "--clear-groups", find("munged"), "--foreground"]
    argv += [f"--socket={layout.munge_socket}", f"--key-file={key}", "--num-threads=8"]
    argv += [f"--{name}-file={layout.munge}/munged.{name}" for name in ("pid", "seed")]
    argv += [f"--origin={address}"] if address else []
    # Its own check of the log's directory refuses most build directories; its standard error is as good.
    argv.append(f"--log-file={layout.munge}/munged.log")
    log = layout.log / "munged.log"
    process = processes.spawn("munged", argv, log, group)
    keep(process)
    processes.wait_ready(process, log, 10, lambda: network.socket_accepts(str(layout.munge_socket)))


def start_registry(s: Settings, group: Path, keep: Keep) -> None:
    layout = s.layout
    layout.registry.mkdir(exist_ok=True)
    log = layout.log / "registry.log"
    argv = [find("docker-registry"), "serve", str(layout.etc / "registry.yml")]
    process = processes.spawn("registry", argv, log, group, {"OTEL_TRACES_EXPORTER": "none"})
    keep(process)
    processes.wait_ready(process, log, 15, lambda: registry.answers(s.registry))


def start_imaged(layout: Layout, group: Path, keep: Keep) -> None:
    """Start the image service under its own account, for which it needs a store and a socket's directory."""
    uid, gid = numbers("piolet-images")
    # As the packages make it: who may use an image can open it by name, and nobody can list what there is.
    for directory, mode in ((layout.images, 0o711), (layout.images_socket.parent, 0o755)):
        directory.mkdir(exist_ok=True)
        directory.chmod(mode)
        os.chown(directory, uid, gid)
    log = layout.log / "piolet-imaged.log"
    argv = [find("setpriv"), f"--reuid={uid}", f"--regid={gid}", "--init-groups", "--no-new-privs"]
    argv += [str(layout.venv_bin / "piolet-imaged"), "--config", str(layout.piolet_toml)]
    process = processes.spawn("piolet-imaged", argv, log, group, {"PATH": daemon_path(layout)})
    keep(process)
    processes.wait_ready(process, log, 15, lambda: network.socket_accepts(str(layout.images_socket)))


def start_slurmctld(s: Settings, group: Path, keep: Keep) -> None:
    """Start the controller on a machine of its own, with no memory of jobs of an earlier run."""
    layout = s.layout
    uid, gid = numbers("slurm")
    shutil.rmtree(layout.slurm_state, ignore_errors=True)
    log = layout.log / "slurmctld.log"
    for directory in (layout.slurm_state, layout.run / "slurmctld"):
        directory.mkdir(mode=0o755)
        os.chown(directory, uid, gid)
    log.touch()
    os.chown(log, uid, gid)
    argv = [find("slurmctld"), "-D", "-c", "-f", str(layout.slurm_conf)]
    process = start_machines(layout, [(CONTROLLER, "slurmctld", argv)], group, keep)[0]
    processes.wait_ready(process, log, 20, lambda: network.accepts(s.address, s.ports["slurmctld"]))


def start_nodes(s: Settings, group: Path, keep: Keep) -> list[Process]:
    """Start every slurmd; return as soon as each is inside its own namespaces."""
    layout = s.layout
    layout.spool.mkdir(mode=0o755)
    shutil.rmtree(layout.tmp, ignore_errors=True)  # of a cluster that was there before the machine went down
    layout.tmp.mkdir(mode=0o755)
    for name in node_names(s.nodes):
        (layout.tmp / name).mkdir()
        (layout.tmp / name).chmod(0o1777)
    machines = []
    for name in node_names(s.nodes):
        argv = [find("slurmd"), "-D", "-N", name, "-f", str(layout.slurm_conf)]
        machines.append((name, f"slurmd-{name}", argv))
    groups: dict[str, str] = {}
    if s.cgroups == 1:
        found = controllers.find(cgroup.MOUNTINFO.read_text("utf-8"))
        groups = {name: str(mount / controllers.PARENT.format(tag=layout.tag)) for name, mount in found.mounts.items()}
    return start_machines(layout, machines, group, keep, groups, s.private_tmp)


def start_machines(
    layout: Layout,
    machines: Sequence[tuple[str, str, list[str]]],
    group: Path,
    keep: Keep,
    cgroups: Mapping[str, str] = MappingProxyType({}),
    one_cpu: bool = False,
) -> list[Process]:
    """Start programs on machines of their own: (host name, process name, argv). All at once, then wait.

    `cgroups` are the groups of version 1, by controller, each with one of a node's name that is all that it sees.
    `one_cpu`: what runs there shares one processor (see nodeinit.py).
    """
    waiting: list[tuple[Process, int, Path]] = []
    # The machines stand for installed ones, so the interpreter is the system's, bare, and starts fast.
    python = [find("python3"), "-I", "-S", str(NODEINIT)]
    for host, name, argv in machines:
        read_end, write_end = os.pipe()
        spec = {
            "hostname": host,
            "hosts": str(layout.hosts),
            "binds": [str(layout.run)],
            "run_size": NODE_RUN_SIZE,
            "cgroups": {name: f"{group}/{host}" for name, group in cgroups.items()} if host != CONTROLLER else {},
            "one_cpu": one_cpu,
            "ready_fd": write_end,
        }
        # With -D Slurm's daemons say everything twice, once to their log file; this keeps the other copy apart.
        log = layout.log / "startup" / f"{name}.log"
        process = processes.spawn(name, [*python, json.dumps(spec), *argv], log, group, pass_fds=[write_end])
        os.close(write_end)
        keep(process)
        waiting.append((process, read_end, log))
    for process, read_end, log in waiting:
        with os.fdopen(read_end, "rb") as pipe:
            complaint = pipe.read().decode("utf-8", "replace")
        if complaint or not processes.alive(process):
            raise ClusterError(f"cannot set up {process.name}: {complaint or 'it ended at once'}", log=log)
    return [process for process, _, _ in waiting]


def wait_idle(s: Settings, nodes: Sequence[Process], timeout_s: float) -> None:
    """Wait until the controller counts every node as idle."""
    timeout_s *= processes.PATIENCE
    deadline = time.monotonic() + timeout_s
    answer = ""
    while True:
        result = subprocess.run(
            [find("sinfo"), "--noheader", "--format=%T %D"],
            capture_output=True,
            text=True,
            check=False,
            env=processes.daemon_environment({"SLURM_CONF": str(s.layout.slurm_conf)}),
        )
        answer = (result.stdout + result.stderr).strip()
        if answer == f"idle {s.nodes}":
            return
        for process in nodes:
            if not processes.alive(process):
                log = s.layout.log / f"{process.name}.log"
                startup = s.layout.log / "startup" / log.name
                raise ClusterError(f"{process.name} ended", log=log if log.exists() else startup)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the nodes were not idle after {timeout_s:.0f} s; sinfo said: {answer}",
                log=s.layout.log / "slurmctld.log",
            )
        time.sleep(0.03)


def pioletd_name(node: str) -> str:
    return f"pioletd-{node}"


def start_pioletd(layout: Layout, nodes: Sequence[tuple[str, Process]], group: Path, keep: Keep) -> None:
    """Start pioletd inside the namespaces of each node's slurmd: (node, slurmd). Wait for their sockets."""
    started: list[tuple[Process, Process, Path]] = []
    for node, slurmd in nodes:
        if not processes.alive(slurmd):
            raise ClusterError(f"{slurmd.name} is not running, so there is no machine to start pioletd on")
        log = layout.log / f"{pioletd_name(node)}.log"
        # A socket that a killed daemon left behind would look as if the new one were ready.
        socket_in_node(slurmd).unlink(missing_ok=True)
        argv = [find("nsenter"), f"--target={slurmd.pid}", "--mount", "--uts", "--cgroup", "--"]
        argv += [str(layout.venv_bin / "pioletd"), "--config", str(layout.piolet_toml)]
        environment = {"PATH": daemon_path(layout), "SLURM_CONF": str(layout.slurm_conf)}
        environment |= gpus.variables(layout.gpus, node)
        process = processes.spawn(pioletd_name(node), argv, log, group, environment)
        keep(process)
        started.append((process, slurmd, log))
    for process, slurmd, log in started:
        path = str(socket_in_node(slurmd))
        processes.wait_ready(process, log, 20 + len(started), partial(network.socket_accepts, path))


def socket_in_node(slurmd: Process) -> Path:
    """Return the path at which this side sees the socket on a node: through the root of its slurmd."""
    return Path(f"/proc/{slurmd.pid}/root/run/piolet/node.sock")
