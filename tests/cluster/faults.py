"""What tests of faults do to a cluster: find its processes, kill them, start them again; nothing asserts here."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import crashes, leftovers
from tests.cluster.support import ROOT, Cluster, Result, busybox_layer
from tests.support import spools
from tests.support.waiting import PATIENCE, wait_until
from tools.cluster import controllers, lifecycle, processes, services
from tools.cluster.layout import node_names
from tools.cluster.state import Process, State, load

SIMULATORS = ROOT / "tests" / "simulators"


@dataclass(frozen=True)
class Hung:
    """A file system that does not answer: the process behind it, whose end ends all waiting."""

    process: subprocess.Popen[bytes]

    def wait_asked(self, limit_s: float = 30.0) -> None:
        """Wait until somebody has asked it, and so waits for it; once."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], limit_s * PATIENCE)
        assert ready and self.process.stdout.readline() == b"asked\n", f"nobody asked it in {limit_s * PATIENCE:.0f} s"

    def abort(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Faults:
    """A cluster to do harm to; `edf` names an image that is in its store."""

    def __init__(self, cluster: Cluster, edf: Path) -> None:
        self.cluster, self.edf = cluster, edf
        self._warm: list[int] = []

    @property
    def state(self) -> State:
        state = load(self.cluster.layout.state_file)
        assert state is not None
        return state

    @property
    def group(self) -> Path:
        return Path(self.state.cgroup)

    def daemon(self, name: str) -> Process:
        """Return the daemon on record: slurmd-NODE, pioletd-NODE (the monitor), piolet-imaged, slurmctld."""
        process = self.state.find(name)
        assert process is not None, name
        return process

    def server(self, node: str) -> int:
        """Return the pid of the unprivileged half of pioletd on a node."""
        monitor = self.daemon(f"pioletd-{node}").pid
        found = [pid for pid in self.children(monitor) if leftovers.status(pid, "Name") == "pioletd-server"]
        assert found, f"no server on {node}"
        return found[0]

    def members(self) -> list[int]:
        """Return the pids of the cluster, those of its steps included."""
        return controllers.members(self.state)

    def children(self, pid: int) -> list[int]:
        return [child for child in self.members() if leftovers.parent(child) == pid]

    def workers(self, node: str) -> list[int]:
        """Return the workers of pioletd on a node, the one that waits for the next step included."""
        monitor = self.daemon(f"pioletd-{node}").pid
        return [pid for pid in self.children(monitor) if leftovers.status(pid, "Name") == "pioletd-worker"]

    def root(self, node: str) -> Path:
        """Return the root directory of a node, as seen from here."""
        return Path(f"/proc/{self.daemon(f'slurmd-{node}').pid}/root")

    def on_node(self, node: str, *command: str | Path, user: str = "root") -> list[str]:
        """Return the command line that runs a command on a node."""
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        target = f"--target={self.daemon(f'slurmd-{node}').pid}"
        return ["nsenter", target, "--mount", "--uts", "--cgroup", "--", *become, *map(str, command)]

    # -- what runs

    def tasks(self, marker: str) -> list[int]:
        """Return the processes of the cluster's steps whose command line contains `marker`."""
        found = []
        for pid in self.members():
            command = leftovers.command_of(pid)
            if marker in command and not command.startswith(("srun", "slurm", "/usr/bin/srun")):
                found.append(pid)
        return found

    def wait_tasks(self, marker: str, count: int, limit_s: float = 20.0) -> list[int]:
        wait_until(lambda: len(self.tasks(marker)) == count, limit_s, f"{count} tasks with {marker}")
        return self.tasks(marker)

    def stepds(self, node: str | None = None) -> list[int]:
        """Return the slurmstepds of steps (not those of batch scripts), on one node or all."""
        found = []
        for pid in self.members():
            if re.match(r"slurmstepd: \[\d+\.\d+\]", leftovers.command_of(pid)):
                with contextlib.suppress(OSError):
                    here = os.stat(f"/proc/{pid}/ns/mnt").st_ino
                    if node is None or here == os.stat(f"/proc/{self.daemon(f'slurmd-{node}').pid}/ns/mnt").st_ino:
                        found.append(pid)
        return found

    def spooled(self, node: str, uid: int | None = None) -> list[dict[str, Any]]:
        """Return what a node's spool has of one user, or of all: what says who and where, and what was said."""
        return self.events(node, "vet.verdict", uid=uid)

    def events(self, node: str, *kinds: str, uid: int | None = None) -> list[dict[str, Any]]:
        """Return the events in a node's spool, the body's keys beside the envelope's."""
        place = self.root(node) / "run/piolet/events"
        return spools.events(place, *kinds, uid=uid) if place.exists() else []

    # -- pioletd

    def stop_pioletd(self, node: str, *, kill: bool = False) -> None:
        self.cluster.tool("stop-pioletd", node, *(["--kill"] if kill else []))
        self.wait_no_pioletd(node)

    def wait_no_pioletd(self, node: str) -> None:
        """Wait until nothing is left of pioletd on a node: its halves end one after the other."""
        monitor = self.daemon(f"pioletd-{node}")

        def gone() -> bool:
            alike = [p for p in self.members() if "pioletd" in leftovers.command_of(p)]
            here = [p for p in alike if _node_of(p) == node]
            return not processes.alive(monitor) and not here

        wait_until(gone, 10, f"the end of pioletd on {node}")

    def start_pioletd(self, node: str, *before: str) -> None:
        """Start pioletd on a node; `before` are words in front of its command line."""
        if not before:
            self.cluster.tool("start-pioletd", node)
            return
        layout = self.cluster.layout
        argv = [*self.on_node(node), *before, str(layout.venv_bin / "pioletd"), "--config", str(layout.piolet_toml)]
        process = processes.spawn(f"pioletd-{node}", argv, layout.log / f"pioletd-{node}.log", self.group)
        self._keep(process)
        wait_until(lambda: self._answers(node), 10, f"pioletd on {node}")

    def restart_pioletd(self, node: str, *before: str) -> None:
        if processes.alive(self.daemon(f"pioletd-{node}")):
            self.stop_pioletd(node)
        self.start_pioletd(node, *before)

    def _answers(self, node: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(self.root(node) / "run/piolet/node.sock")) == 0

    def repair(self) -> None:
        """Start every pioletd and image service that has ended."""
        for node in node_names(self.state.nodes):
            if not processes.alive(self.daemon(f"pioletd-{node}")):
                self.wait_no_pioletd(node)
                self.start_pioletd(node)
        if not processes.alive(self.daemon("piolet-imaged")):
            self.start_imaged()

    # -- others

    def start_imaged(self) -> None:
        services.start_imaged(self.cluster.layout, self.group, self._keep)

    def restart_slurmd(self, node: str) -> None:
        """End slurmd as a service manager does at a restart, and start it again on the same node."""
        before = self.daemon(f"slurmd-{node}")
        held = crashes.hold(before)
        try:
            processes.terminate(before)
            processes.wait_end([before], 10)
            crashes.start(self.cluster.layout, self.state, node, held)
        finally:
            crashes.let_go(held)

    def _keep(self, process: Process) -> None:
        lifecycle.Record(self.cluster.layout.state_file, self.state).keep(process)

    @contextlib.contextmanager
    def plugin_arguments(self, **changed: str | Path) -> Iterator[None]:
        """Change arguments of the plugin in plugstack.conf; they hold for steps that begin inside."""
        path = self.cluster.layout.etc / "plugstack.conf.d" / "piolet.conf"
        before = path.read_text("utf-8")
        words = [word for word in before.split() if word.partition("=")[0] not in changed]
        path.write_text(" ".join([*words, *(f"{name}={value}" for name, value in changed.items())]) + "\n", "utf-8")
        try:
            yield
        finally:
            path.write_text(before, "utf-8")

    @contextlib.contextmanager
    def hung(self, node: str, place: Path) -> Iterator[Hung]:
        """Mount a file system that never answers at `place` on a node, and have pioletd there see it."""
        argv = self.on_node(node, "/usr/bin/python3", "-I", SIMULATORS / "hung_fs.py", place)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, bufsize=0)
        hung = Hung(process)
        try:
            assert process.stdout is not None and process.stdout.readline() == b"mounted\n"
            self.restart_pioletd(node)
            yield hung
        finally:
            hung.abort()
            assert process.stdout is not None
            process.stdout.close()
            subprocess.run(self.on_node(node, "umount", "-l", place), check=False, capture_output=True)
            # Its own mount namespace had a copy of the mount.
            self.restart_pioletd(node)

    # -- judging

    def warm(self) -> None:
        """Have every node know both users and the image, so that what is kept for them is no leftover."""
        monitors = [self.daemon(f"pioletd-{node}").pid for node in node_names(self.state.nodes)]
        if monitors == self._warm:
            return
        for user in ("alice", "bob"):
            self.srun(user, "-N", str(self.state.nodes), "true").good()
        self._warm = monitors

    def srun(self, user: str, *words: str | Path, edf: str | Path | None = None, timeout: float = 30) -> Result:
        """Run srun in a container of `edf`, or of the image that is there."""
        option = f"--environment={edf or self.edf}"
        return self.cluster.run(user, "srun", option, *words, timeout=timeout)

    @contextlib.contextmanager
    def nothing_left(self, limit_s: float = 15.0) -> Iterator[leftovers.Census]:
        """Count before and after: AssertionError when something is there at the end that was not before."""
        self.repair()
        self.warm()
        wait_until(lambda: not self.cluster.jobs(), 10, "the end of earlier jobs")
        for node in node_names(self.state.nodes):  # it is forked a moment after a step's start
            with contextlib.suppress(AssertionError, StopIteration, KeyError):  # a daemon may be down
                wait_until(lambda node=node: len(self.workers(node)) == 1, 3, "the waiting worker")  # type: ignore[misc]
        before = leftovers.take(self.cluster.layout)
        try:
            yield before
            wait_until(lambda: not self.cluster.jobs(), limit_s, "the end of the jobs")
        except BaseException:
            self.cancel_all()  # the tests to come are not to fail for this one
            raise
        leftovers.wait_settled(self.cluster.layout, before, limit_s)

    def nodes_are_well(self) -> bool:
        """Return whether no node is drained, draining or down."""
        states = self.cluster.run("alice", "sinfo", "-h", "-N", "-o", "%T").good().split()
        return len(states) == self.state.nodes and set(states) <= {"idle", "mixed", "allocated", "completing"}

    def cancel_all(self) -> None:
        for user in ("alice", "bob"):
            self.cluster.run(user, "scancel", "--full", f"--user={user}")
            self.cluster.run(user, "scancel", f"--user={user}")


def on(cluster: Cluster, *users: str, **settings: Any) -> Faults:
    """Return a cluster to do harm to, with a small image, as `settings` say, which these users have pulled."""
    tiny = cluster.push("tiny", [busybox_layer()], Env=["PATH=/bin"], **settings)
    edf = cluster.edf("alice", f'image = "{tiny}"\n')
    for user in users:
        cluster.run(user, "piolet", "image", "pull", tiny).good()
    return Faults(cluster, edf)


def _node_of(pid: int) -> str:
    """Return the host name of the machine that a process is on."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nsenter", f"--target={pid}", "--uts", "hostname"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end(process: subprocess.Popen[str], limit_s: float = 20.0, stdin: str = "") -> Result:
    """Wait for a started command and return how it ended; it gets `stdin`, and no more."""
    try:
        out, err = process.communicate(stdin, timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {limit_s} s; out: {out}; err: {err}") from None
    return Result(process.returncode, out, err)


def error_lines(result: Result) -> list[str]:
    """Return what our own error messages said, hints included."""
    return [line for line in result.err.splitlines() if line.startswith(("piolet: error:", "hint:"))]


def assert_sentence(result: Result, *said: str) -> None:
    """A failure with one sentence of ours (for each node), at most a hint, and no traceback."""
    assert result.status != 0, f"it should have failed: {result.out}"
    lines = error_lines(result)
    assert lines and lines[0].startswith("piolet: error:"), result.err
    assert "Traceback" not in result.both, result.both
    for text in said:
        assert any(text in line for line in lines), f"'{text}' is not in: {result.err}"


def elapsed(began: float) -> float:
    return time.monotonic() - began


def python(*words: str) -> Sequence[str]:
    return [sys.executable, "-I", *words]
