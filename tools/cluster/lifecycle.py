"""Up, down, status, purge: what the commands do, in order."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tools.cluster import (
    accounting,
    accounts,
    central,
    cgroup,
    config,
    controllers,
    gpus,
    image,
    installed,
    network,
    oci,
    packages,
    processes,
    registry,
    services,
)
from tools.cluster.errors import ClusterError
from tools.cluster.layout import RUN, RUN_PREFIX, Layout, node_names
from tools.cluster.report import Report
from tools.cluster.state import Process, State, boot_id, load, locked, save, write_atomically

MAX_NODES = 256
GRACE_S = 2.0


@dataclass(frozen=True)
class Request:
    """What `up` was asked for."""

    nodes: int
    piolet: bool
    gpus: int = 0
    cgroups: bool = False
    private_tmp: bool = False
    accounting: bool = False
    central: bool = False
    first_job: int = 1


class Record:
    """The state on disk, kept up with every process that starts."""

    def __init__(self, path: Path, state: State) -> None:
        self._path = path
        self.state = state

    def keep(self, process: Process) -> None:
        self.update(self.state.with_process(process))

    def update(self, state: State) -> None:
        self.state = state
        save(self._path, state)


def running(layout: Layout) -> State | None:
    """Return the cluster if it is up and whole, else None."""
    state = load(layout.state_file)
    if state is None or not state.ready or state.boot != boot_id():
        return None
    return state if all(processes.alive(p) for p in state.processes) else None


def up(layout: Layout, request: Request, report: Report, hints: bool = True) -> None:
    """Bring a cluster up. What fails is taken down again; what an earlier run left behind goes first."""
    packages.require_root()
    if not 1 <= request.nodes <= MAX_NODES:
        raise ClusterError(f"a cluster has 1 to {MAX_NODES} nodes, not {request.nodes}")
    layout.root.mkdir(parents=True, exist_ok=True)
    with locked(layout.lock, f"the cluster in {layout.root}"):
        state = running(layout)
        if state is not None:
            flags = (request.cgroups, request.private_tmp, request.accounting, request.central)
            if state.asked == (request.nodes, request.piolet, layout.installed and str(layout.installed), *flags):
                report.line(f"The cluster in {layout.root} is running, with {_count(state.nodes)}.")
                return
            raise ClusterError(
                f"a cluster of {_count(state.nodes)} {state.described} is running in {layout.root}",
                "end it first: make cluster-down",
            )
        try:
            _start(layout, request, report, hints)
        except BaseException:
            # A second Ctrl-C must not leave half of it behind.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                _stop(layout, report)
            finally:
                signal.signal(signal.SIGINT, before)
            raise


def _start(layout: Layout, request: Request, report: Report, hints: bool) -> None:
    began = time.monotonic()
    report.line(f"A private Slurm cluster of {_count(request.nodes)} in {layout.root}")
    if is_left_behind(layout):
        _stop(layout, report)
    with report.step("packages") as said:
        said.append(packages.ensure(report.note, request.accounting))
    packages.require_reachable(layout.root)
    if request.piolet:
        _require_piolet(layout)
    with report.step("accounts") as said:
        said.append(accounts.ensure())
    found = controllers.find(_read(cgroup.MOUNTINFO)) if request.cgroups else None
    settings = replace(_settle(layout, request), cgroups=found.version if found else 0)
    group = cgroup.create(layout.tag, layout.root / "cgroup")
    state = State(boot_id(), request.nodes, request.piolet, str(group), dict(settings.ports), time.time())
    state = replace(state, cgroups=settings.cgroups, private_tmp=request.private_tmp)
    state = replace(state, accounting=request.accounting, central=request.central)
    if layout.installed:
        state = replace(state, installed=str(layout.installed))
        write_atomically(layout.installed_file, f"{layout.installed}\n")
    record = Record(layout.state_file, state)
    record.update(state)
    if found:
        controllers.prepare(found, layout.tag, node_names(request.nodes))
    _make_run(layout)
    shutil.rmtree(layout.log, ignore_errors=True)  # what the logs say is of this run
    config.write(settings, socket.gethostname(), _read(Path("/etc/hosts")))
    shutil.rmtree(layout.gpus, ignore_errors=True)
    if request.gpus:
        with report.step("gpus") as said:
            said.append(gpus.provide(layout.gpus, node_names(request.nodes), request.gpus))
    with report.step("munge") as said:
        services.start_munged(layout, group, record.keep, settings.address if request.central else "")
        said.append(str(layout.munge_socket))
    with report.step("registry") as said:
        services.start_registry(settings, group, record.keep)
        said.append(settings.registry)
    with report.step("image") as said:
        said.append(_provide_image(settings, report.note))
    if request.accounting:
        with report.step("accounting") as said:
            accounting.start(settings, group, record.keep)
            said.append(f"slurmdbd, port {settings.ports['slurmdbd']}")
    with report.step("slurmctld") as said:
        services.start_slurmctld(settings, group, record.keep)
        said.append(f"port {settings.ports['slurmctld']}")
    with report.step("nodes") as said:
        nodes = services.start_nodes(settings, group, record.keep)
        services.wait_idle(settings, nodes, 30 + request.nodes)
        said.append(f"{_span(request.nodes)} idle, {config.CPUS_PER_NODE} CPUs claimed on each")
    if request.piolet:
        with report.step("piolet") as said:
            services.start_imaged(layout, group, record.keep)
            services.start_pioletd(layout, list(zip(node_names(request.nodes), nodes, strict=True)), group, record.keep)
            said.append("pioletd on each node; the image service")
    if request.piolet and request.central:
        with report.step("central") as said:
            central.start(settings, list(zip(node_names(request.nodes), nodes, strict=True)), group, record.keep)
            said.append(f"port {settings.ports['central']}; a forwarder on each node")
    record.update(replace(record.state, ready=True))
    report.line(f"Ready in {time.monotonic() - began:.1f} s. Logs: {layout.log}")
    if hints:
        _say_next(settings, report)


def _settle(layout: Layout, request: Request) -> config.Settings:
    """Choose address and ports, and put them on record for the next run."""
    name_address = network.own_name_address()
    address = name_address or network.LOOPBACK
    names = ["registry", "slurmctld", *["slurmdbd"] * request.accounting, *["central"] * request.central]
    names += [*node_names(request.nodes)]
    ports = network.choose_ports(names, _read_ports(layout.ports_file), random.Random())
    write_atomically(layout.ports_file, "".join(f"{name} {port}\n" for name, port in ports.items()))
    return config.Settings(
        layout=layout,
        nodes=request.nodes,
        piolet=request.piolet,
        address=address,
        clients_stay=name_address is not None,
        ports=ports,
        slurm=packages.slurm_version(),
        gpus=request.gpus,
        private_tmp=request.private_tmp,
        accounting=request.accounting,
        central=request.central,
        first_job=request.first_job,
    )


def _read_ports(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _make_run(layout: Layout) -> None:
    """Make the short directory for sockets. Its parent is root's alone, so nobody can have put it there."""
    layout.run.mkdir(mode=0o755)
    layout.run.chmod(0o755)
    (layout.run / "cluster").write_text(f"{layout.root}\n", "utf-8")


def _require_piolet(layout: Layout) -> None:
    programs = layout.installed / "usr" / "bin" if layout.installed else layout.venv_bin
    wanted = [layout.plugin, *(programs / name for name in installed.PROGRAMS)]
    absent = [str(path) for path in wanted if not path.exists()]
    if absent and layout.installed:
        raise ClusterError(
            f"Piolet is not installed in {layout.installed}: {', '.join(absent)} is not there",
            "install piolet-node and what it requires, see docs/packaging.md",
        )
    if absent:
        raise ClusterError(f"Piolet is not built: {', '.join(absent)} is not there", "run: make plugins")
    if layout.installed:
        packages.require_reachable(layout.installed / "usr")


def _provide_image(settings: config.Settings, note: Callable[[str], None]) -> str:
    directory, made = image.ensure(settings.layout.cache, note)
    digest = oci.read_digest(directory, image.TAG)
    had = registry.manifest_digest(settings.registry, config.DEMO_REPOSITORY, config.DEMO_TAG)
    name = f"{config.DEMO_REPOSITORY}:{config.DEMO_TAG}"
    if digest is not None and had == digest:
        return f"{name}, in the registry"
    note("pushing it to the registry")
    registry.push(directory, image.TAG, settings.demo_image)
    return f"{name}, {'made and ' if made else ''}pushed"


def _count(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def _span(nodes: int) -> str:
    return "node1" if nodes == 1 else f"node[1-{nodes}]"


def _say_next(settings: config.Settings, report: Report) -> None:
    layout = settings.layout
    report.line("To end it: make cluster-down. Try:")
    report.line(f"  {layout.as_script} alice srun -N{min(settings.nodes, 4)} hostname")
    if settings.piolet:
        report.line(f"  {layout.as_script} alice srun --environment=demo cat /etc/os-release {image.MARKER}")
    else:
        report.line(f"  . {layout.env_sh} && sinfo")


def is_left_behind(layout: Layout) -> bool:
    """Tell whether anything of a cluster is there, running or not."""
    return layout.state_file.exists() or layout.run.exists() or (layout.root / "cgroup").exists()


def down(layout: Layout, report: Report) -> None:
    """End a cluster; when there is none, say so."""
    packages.require_root()
    if not layout.root.exists() or not is_left_behind(layout):
        report.line(f"No cluster is running in {layout.root}.")
        return
    with locked(layout.lock, f"the cluster in {layout.root}"):
        _stop(layout, report)


def _stop(layout: Layout, report: Report) -> None:
    """End every process, politely first, and remove what lives only as long as a cluster does."""
    with report.step("stop") as said:
        state = load(layout.state_file)
        group = Path(state.cgroup) if state is not None else _find_group(layout)
        count = len(
            controllers.members(state) if state is not None else cgroup.members(group) if group is not None else []
        )
        if state is not None and state.boot == boot_id():
            _cancel_jobs(layout, state)
            # Slurm's own daemons keep nothing that outlives the cluster; these may have to tidy up.
            polite = [p for p in state.processes if p.name.startswith(("piolet", "registry"))]
            processes.wait_end([p for p in polite if processes.terminate(p)], GRACE_S)
        if group is not None:
            cgroup.kill(group)
            processes.reap()
            cgroup.remove(group, layout.root / "cgroup")
        # Of version 1 they are known by the cluster's own name, also where its record is lost.
        nodes = node_names(state.nodes) if state is not None and state.cgroups else []
        said += controllers.remove(_read(cgroup.MOUNTINFO), layout.tag, nodes)
        for client in _clients(layout):
            processes.terminate(client, signal.SIGKILL)
        shutil.rmtree(layout.tmp, ignore_errors=True)
        shutil.rmtree(layout.run, ignore_errors=True)
        layout.state_file.unlink(missing_ok=True)
        layout.installed_file.unlink(missing_ok=True)
        said.append(f"{count} processes ended" if count else "nothing was running")


def _find_group(layout: Layout) -> Path | None:
    """Return the group of a cluster whose record is lost, if it is there."""
    hierarchy = cgroup.find_hierarchy(_read(cgroup.MOUNTINFO))
    group = hierarchy / f"piolet-cluster-{layout.tag}" if hierarchy else None
    return group if group is not None and group.is_dir() else None


def _clients(layout: Layout) -> list[Process]:
    return processes.slurm_clients([layout.slurm_conf, layout.client_conf])


def _cancel_jobs(layout: Layout, state: State) -> None:
    """Cancel the jobs, so that commands waiting for them end by themselves. A dead controller is no obstacle."""
    controller = state.find("slurmctld")
    if controller is None or not processes.alive(controller):
        return
    environment = processes.daemon_environment({"SLURM_CONF": str(layout.slurm_conf)})
    try:
        jobs = subprocess.run(
            ["squeue", "--noheader", "--format=%A"],
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
            env=environment,
        ).stdout.split()
        if jobs:
            subprocess.run(["scancel", *jobs], capture_output=True, check=False, timeout=5, env=environment)
            processes.wait_end(_clients(layout), GRACE_S)
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return


def restart_pioletd(layout: Layout, node: str) -> None:
    """Start pioletd on a node where it is not running."""
    packages.require_root()
    with locked(layout.lock, f"the cluster in {layout.root}"):
        state, slurmd = _node(layout, node)
        before = state.find(services.pioletd_name(node))
        if before is not None and processes.alive(before):
            raise ClusterError(f"pioletd is running on {node}, as process {before.pid}")
        record = Record(layout.state_file, state)
        services.start_pioletd(layout, [(node, slurmd)], Path(state.cgroup), record.keep)


def stop_pioletd(layout: Layout, node: str, number: int) -> None:
    """Send a signal to pioletd on a node and wait for its end."""
    packages.require_root()
    state, _ = _node(layout, node)
    process = state.find(services.pioletd_name(node))
    if process is None or not processes.terminate(process, number):
        raise ClusterError(f"pioletd is not running on {node}")
    if processes.wait_end([process], 10):
        raise ClusterError(f"pioletd on {node} has not ended 10 s after signal {number}")


def _node(layout: Layout, node: str) -> tuple[State, Process]:
    state = load(layout.state_file)
    slurmd = state.find(f"slurmd-{node}") if state is not None and state.boot == boot_id() else None
    if state is None or slurmd is None:
        raise ClusterError(f"there is no node '{node}' in the cluster in {layout.root}", "see: tools.cluster status")
    return state, slurmd


def status(layout: Layout, report: Report) -> bool:
    """Say what runs. Returns whether the cluster is up and whole."""
    state = load(layout.state_file)
    if state is None or state.boot != boot_id():
        report.line(f"No cluster is running in {layout.root}.")
        return False
    dead = [p.name for p in state.processes if not processes.alive(p)]
    minutes = (time.time() - state.started_at) / 60
    word = "up" if state.ready and not dead else "broken"
    report.line(f"The cluster in {layout.root} is {word}: {_count(state.nodes)}, for {minutes:.0f} min.")
    for name in dead:
        report.line(f"  {name:<22}has ended; see {layout.log / name}.log")
    for process in state.processes:
        if process.name not in dead:
            report.line(f"  {process.name:<22}pid {process.pid}")
    report.line(f"  {'processes':<22}{len(controllers.members(state))} in {state.cgroup}")
    report.line(f"  {'registry':<22}port {state.ports.get('registry')}")
    report.line(f"  {'logs':<22}{layout.log}")
    return word == "up"


def purge(layout: Layout, report: Report) -> None:
    """End the cluster, remove its directory, and the accounts too unless another cluster needs them."""
    packages.require_root()
    down(layout, report)
    others = [path for path in RUN.glob(f"{RUN_PREFIX}*") if path != layout.run]
    shutil.rmtree(layout.root, ignore_errors=True)
    if others:
        where = _read(others[0] / "cluster").strip() or str(others[0])
        report.line(f"Kept the accounts: the cluster in {where} uses them.")
        return
    report.line(f"Removed: {', '.join([str(layout.root), *accounts.remove()])}")
