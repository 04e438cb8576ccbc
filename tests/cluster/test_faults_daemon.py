"""pioletd killed, stopped, not there, spoken to by users, and used a lot. Steps that do not need it never notice."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from piolet.container import labels

from tests.cluster import leftovers
from tests.cluster.faults import Faults, assert_sentence, elapsed, end, error_lines, kill, python
from tests.support.waiting import wait_until
from tools.cluster import processes
from tools.cluster.layout import node_names

STEPS, AT_ONCE = 100, 24
SOCKET = "/run/piolet/node.sock"


def kill_pioletd(faults: Faults, node: str, which: str) -> None:
    monitor = faults.daemon(f"pioletd-{node}").pid
    if which == "group":
        os.killpg(monitor, signal.SIGKILL)
    else:
        names = {"vetting": "pioletd-vet", "scoring": "pioletd-keeper", "watching": "pioletd-watcher"}
        alike = [pid for pid in faults.children(monitor) if leftovers.status(pid, "Name") == names.get(which)]
        victims = {"monitor": [monitor], "server": [faults.server(node)], **dict.fromkeys(names, alike)}
        for pid in victims.get(which, faults.workers(node)):
            kill(pid)


@pytest.mark.parametrize(
    "which", [pytest.param("group", marks=pytest.mark.kernels), "monitor", "server", "vetting", "scoring", "watching"]
)
def test_pioletd_is_killed_while_steps_run(faults: Faults, which: str) -> None:
    """The steps go on, pioletd ends as a whole, and the next one takes the steps over."""
    with faults.nothing_left():
        words = ["sh", "-c", "read line; cat /marker; exit $line # 7201"]
        runs = [faults.cluster.start("alice", "srun", "-w", "node1", f"--environment={faults.edf}", *words)]
        wait_until(lambda: len(faults.tasks("read line")) == 1, what="the first task")
        # This one leaves a daemon behind, which is for the new pioletd to end, and whose shell is two for a moment.
        left = f"setsid sleep 7202 </dev/null >/dev/null 2>&1 & {words[2]}"
        runs.append(faults.cluster.start("bob", "srun", "-w", "node1", f"--environment={faults.edf}", "sh", "-c", left))
        wait_until(lambda: len(faults.tasks("read line")) == 2, what="two tasks")
        kill_pioletd(faults, "node1", which)
        faults.wait_no_pioletd("node1")
        refused = faults.srun("alice", "-w", "node1", "true")
        assert_sentence(refused, "pioletd.service")
        faults.start_pioletd("node1")
        faults.srun("alice", "-w", "node1", "true").good()
        for status, run in enumerate(runs, 5):
            done = end(run, stdin=f"{status}\n")
            assert (done.status, done.out) == (status, "in the image\n"), done
        faults.wait_tasks("sleep 7202", 0, 5)


@pytest.mark.kernels
def test_the_waiting_worker_is_killed(faults: Faults) -> None:
    with faults.nothing_left():
        waiting = faults.workers("node1")
        assert len(waiting) == 1, "one worker waits"
        kill_pioletd(faults, "node1", "worker")
        wait_until(lambda: waiting[0] not in faults.workers("node1"), what="its end")
        faults.srun("alice", "-w", "node1", "true").good()


def test_slurmstepd_is_killed_while_pioletd_is_down(faults: Faults) -> None:
    """What it leaves behind is ended by the next pioletd; the step beside it goes on."""
    with faults.nothing_left():
        words = ["sh", "-c", "setsid sleep $0 & sleep 7204", "7203"]
        srun = faults.cluster.start("alice", "srun", "-w", "node2", f"--environment={faults.edf}", *words)
        faults.wait_tasks("sleep 7203", 1)
        stepds = faults.stepds("node2")
        beside = faults.cluster.start(
            "bob", "srun", "-w", "node2", f"--environment={faults.edf}", "sh", "-c", "read line; exit $line # 7205"
        )
        faults.wait_tasks("7205", 1)
        faults.stop_pioletd("node2", kill=True)
        for pid in stepds:
            kill(pid)
        kill(srun.pid)
        end(srun)
        assert faults.tasks("sleep 7203"), "nothing was left for pioletd to end"
        faults.start_pioletd("node2")
        faults.wait_tasks("sleep 7203", 0, 5)
        assert end(beside, stdin="9\n").status == 9
        faults.cancel_all()


@pytest.mark.parametrize(
    "label",
    ["{place}:../../victim", "node2.00000000:4711.0", "node2:4711.0"],
    ids=["a path for a step", "of another cluster on this machine", "no place"],
)
def test_a_label_that_is_no_steps_of_this_node_ends_nothing(faults: Faults, label: str) -> None:
    """A root mount that claims to be a container: a user's own, or that of a daemon of another cluster."""
    label = f"piolet:{label.format(place=labels.place('node2', str(faults.root('node2') / 'run/piolet')))}"
    victim = faults.root("node2") / "run/victim"
    room = faults.cluster.room("alice")
    script = faults.cluster.script(
        "alice",
        "cd $1; mkdir -p u w r\n"
        f'mount -t overlay "{label}" -o lowerdir=/usr,upperdir=u,workdir=w,userxattr r || exit 3\n'
        "exec chroot r /bin/sleep 7206\n",
    )
    with faults.nothing_left():
        victim.write_text("precious")
        forger = subprocess.Popen(
            faults.on_node("node2", "unshare", "-U", "-m", "-r", "bash", script, room, user="alice"),
            stdin=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: "sleep 7206" in leftovers.command_of(forger.pid), what="the forged container")
            assert label in Path(f"/proc/{forger.pid}/mountinfo").read_text()
            faults.restart_pioletd("node2")
            faults.srun("bob", "-w", "node2", "true").good()
            assert victim.read_text() == "precious"
            assert forger.poll() is None
        finally:
            kill(forger.pid)
            forger.wait()
            victim.unlink(missing_ok=True)


def test_pioletd_is_down(faults: Faults) -> None:
    with faults.nothing_left():
        faults.stop_pioletd("node2")
        for user in ("alice", "bob"):
            assert faults.cluster.run(user, "srun", "-N4", "hostname").good().count("node") == 4
        refused = faults.srun("alice", "-w", "node2", "true")
        assert_sentence(refused, f"node node2: pioletd.service does not run on this node ({SOCKET}")
        assert len([line for line in error_lines(refused) if line.startswith("piolet")]) == 1
        several = faults.srun("alice", "-N4", "-n8", "true")
        assert_sentence(several, "node node2: pioletd.service")
        assert len([line for line in error_lines(several) if line.startswith("piolet")]) == 1, several.err
        assert not any(f"node{n}: pioletd" in several.err for n in (1, 3, 4))
        script = f"srun --environment={faults.edf} true; echo status $?; srun --environment=none hostname\n"
        said = faults.cluster.sbatch("alice", script, "-w", "node2", f"--environment={faults.edf}")
        assert "node node2: pioletd.service" in said and "status 1" in said and "\nnode2" in said, said
        assert faults.nodes_are_well()
        faults.start_pioletd("node2")
        faults.srun("alice", "-N4", "-n8", "true").good()


@pytest.mark.parametrize("half", ["server", "monitor"])
def test_pioletd_is_stopped(faults: Faults, half: str) -> None:
    with faults.nothing_left(), faults.plugin_arguments(timeout="2"):
        victim = faults.server("node3") if half == "server" else faults.daemon("pioletd-node3").pid
        kill(victim, signal.SIGSTOP)
        try:
            began = time.monotonic()
            refused = faults.srun("alice", "-w", "node3", "-n2", "true")
            assert_sentence(refused, "node node3: pioletd did not make the environment ready in time")
            assert elapsed(began) < 6
            faults.cluster.run("alice", "srun", "-w", "node3", "true").good()
        finally:
            kill(victim, signal.SIGCONT)
        faults.srun("alice", "-w", "node3", "true").good()
    assert faults.nodes_are_well()


def test_a_stopped_server_does_not_keep_pioletd_from_ending(faults: Faults) -> None:
    with faults.nothing_left():
        server = faults.server("node3")
        kill(server, signal.SIGSTOP)
        began = time.monotonic()
        faults.stop_pioletd("node3")
        assert elapsed(began) < 9
        faults.start_pioletd("node3")


CONNECT = """
import socket, sys
def connect(name):
    c = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); c.settimeout(10); c.connect("/run/piolet/" + name)
    return c
"""


@pytest.mark.parametrize("name", ["node.sock", "score.sock"])
def test_a_user_does_not_reach_the_sockets_that_are_slurms(faults: Faults, name: str) -> None:
    sent = f"c = connect({name!r}); c.send(b'PILT' + bytes(108)); print(c.recv(9000))"
    with faults.nothing_left():
        command = faults.on_node("node1", *python("-c", CONNECT + sent), user="alice")
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.stdout == "" and "PermissionError" in done.stderr, done
        status = os.stat(faults.root("node1") / "run" / "piolet" / name)
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)


def test_idle_connections_of_a_user_keep_nobody_out(faults: Faults) -> None:
    held = "all = [connect('vet.sock') for _ in range(200)]; print('there', flush=True); sys.stdin.read()"
    with faults.nothing_left():
        command = faults.on_node("node1", *python("-c", CONNECT + held), user="alice")
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None and holder.stdout.readline() == "there\n"
        for user in ("bob", "alice"):
            began = time.monotonic()
            faults.srun(user, "-w", "node1", "true").good()
            assert elapsed(began) < 3
        assert leftovers.sockets_of(faults.server("node1")) < 150
        end(holder)


def test_many_steps_leave_nothing_and_cost_no_memory(faults: Faults) -> None:
    monitors = [faults.daemon(f"pioletd-{node}").pid for node in node_names(faults.state.nodes)]
    loop = "for i in $(seq {count}); do srun {where} --environment={edf} true || exit 1; done"

    def steps(user: str, where: str, count: int) -> int:
        script = loop.format(count=count, where=where, edf=faults.edf)
        return faults.cluster.run(user, "sh", "-c", script, timeout=120).status

    with faults.nothing_left():
        monitors = [faults.daemon(f"pioletd-{node}").pid for node in node_names(faults.state.nodes)]
        assert steps("alice", "-w node1", 30) == 0
        halves = {"monitor": monitors[0], "server": faults.server("node1")}
        grown = {}
        for _ in range(4):  # the heap grows once by what malloc takes at a time; a leak grows it each time
            before = {name: leftovers.resident_kib(pid) for name, pid in halves.items()}
            assert steps("alice", "-w node1", STEPS) == 0
            grown = {name: leftovers.resident_kib(pid) - before[name] for name, pid in halves.items()}
            if grown["monitor"] < STEPS / 2:
                break
        # A leak of half a KiB a step shows. The server's threads start one by one, each with a heap of its own.
        assert grown["monitor"] < STEPS / 2, f"grown in {STEPS} steps, in KiB: {grown}"
        assert grown["server"] < 600, f"grown in {STEPS} steps, in KiB: {grown}"
        with ThreadPoolExecutor(AT_ONCE) as pool:
            runs = [pool.submit(steps, user, "-N4 -O --mem=0", 1) for user in ("alice", "bob") * (AT_ONCE // 2)]
            assert [run.result() for run in runs] == [0] * AT_ONCE
        for node, monitor in zip(node_names(faults.state.nodes), monitors, strict=True):
            assert processes.alive(faults.daemon(f"pioletd-{node}")) and faults.daemon(f"pioletd-{node}").pid == monitor
