"""Faults on nodes, one by one: the right node is named, no other is, and the application starts on the rest."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.vet.runner.plan import Plan, Task

from tests.cluster.faults import Faults, kill
from tests.cluster.leftovers import parent
from tests.cluster.support import Cluster
from tests.simulators.timeserver import TimeServer
from tests.support.waiting import wait_until
from tools.cluster import gpus
from tools.cluster.layout import node_names

IDLE = "gpu\n" * 2
GPUS = "name: gpus\nevals:\n- {type: gpu, count: 2}\n- {type: gpu_health}\n"
SLEEPER = """\
import os
import time
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict, parameter


@dataclass(frozen=True)
class Sleeper(Eval):
    name = "sleeper"
    text = "waits for a file"
    timeout_s = 30.0
    path: str = parameter("", text="the file")

    def check(self, context: Context) -> Verdict:
        open(self.path + "." + context.node, "w").write(str(os.getpid()))
        while not os.path.exists(self.path) and context.remaining() > 0.2:
            time.sleep(0.02)
        return Verdict("pass")
"""


@pytest.fixture
def room(cluster: Cluster) -> Path:
    return cluster.room("alice")


@pytest.fixture
def healthy(cluster: Cluster) -> Iterator[None]:
    """Every node has two GPUs that are idle and well; the test makes one sick."""
    for node in node_names(4):
        gpus.script(cluster.layout.gpus, node).write_text(IDLE, "ascii")
    yield
    for node in node_names(4):
        gpus.script(cluster.layout.gpus, node).write_text(IDLE, "ascii")


def vetted(cluster: Cluster, room: Path, protocol: str, count: int = 3, *more: str, option: str = "") -> str:
    """Run three of four nodes' worth of `hostname` after a vetting in a job of four; return all that was printed."""
    cluster.write("alice", room / "p.yaml", protocol)
    tasks = "" if "--ntasks" in option else f"-n{count}"
    script = f"srun -N{count} {tasks} --vet=p.yaml{option} hostname\necho status $?\n"
    return cluster.sbatch("alice", script, "-N4", *more, cwd=room, timeout=120)


def assert_left_out(out: str, node: str, text: str) -> None:
    """Assert that this node was named, with that reason, no other was, and that the application ran on the others."""
    lines = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 1 and lines[0].startswith(f"left out: {node}: ") and text in lines[0], out
    ran = sorted(line for line in out.splitlines() if line in node_names(4))
    assert ran == [name for name in node_names(4) if name != node] and "status 0" in out, out


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("gpu\ngpu\necc_uncorrected_volatile 3\n", "uncorrected"),
        ("gpu\nthrottle 0x40\ngpu\n", "slow"),
        ("gpu\ngpu\nprocess 4242 1073741824\n", "process"),
        ("gpu\n", "NVML shows 1 of them"),
        ("gpu\npcie_width 8\ngpu\n", "PCIe"),
        ("fail nvmlInitWithFlags 999\ngpu\ngpu\n", "gpu"),
    ],
    ids=["ecc", "throttling", "foreign-process", "lost", "pcie", "driver"],
)
def test_a_sick_gpu(cluster: Cluster, room: Path, healthy: None, fault: str, text: str) -> None:
    """Simulated, through nvidia-ml-py's real calls."""
    gpus.script(cluster.layout.gpus, "node2").write_text(fault, "ascii")
    assert_left_out(vetted(cluster, room, GPUS, 3, "--gres=gpu:2"), "node2", text)


def test_well_gpus_pass(cluster: Cluster, room: Path, healthy: None) -> None:
    """All four, and the report has them."""
    out = vetted(cluster, room, GPUS, 4, "--gres=gpu:2")
    assert "4 of 4 nodes good" in out and "status 0" in out, out


def cpu_group() -> Path | None:
    """Return a new control group that can limit processors, of either version."""
    for base in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup")):
        path = base / f"piolet-slow-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        if (path / "cpu.cfs_quota_us").exists() or (path / "cpu.max").exists():
            return path
        path.rmdir()
    return None


def everything_on(faults: Faults, node: str) -> list[int]:
    """Return the processes of a node: it is a UTS namespace of its own."""
    own = os.readlink(f"{faults.root(node).parent}/ns/uts")
    found = []
    for pid in faults.members():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/uts") == own:
                found.append(pid)
    return found


def test_a_slow_node(cluster: Cluster, faults: Faults, room: Path) -> None:
    """All that runs on it, the daemons too, has a twentieth of a processor."""
    group = cpu_group()
    if group is None:
        pytest.skip("no control group of this machine limits processors")
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("5000 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("5000")
        for pid in everything_on(faults, "node2"):
            (group / "cgroup.procs").write_text(str(pid))
        protocol = "name: cpu\nevals:\n- {type: cpu_gemm, size: 1024, baseline: peers, timeout: 30s, max_spread: 0}\n"
        out = vetted(cluster, room, protocol)
    finally:
        for line in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(line)
        group.rmdir()
    assert_left_out(out, "node2", "cpu_gemm")


def eval_pids(room: Path) -> dict[str, int]:
    """Return the processes of the sleeping eval, by node."""
    found = {path.name.rpartition(".")[2]: path.read_text("ascii") for path in room.glob("go.node*")}
    return {node: int(text) for node, text in found.items() if text}


def sleeping(cluster: Cluster, room: Path) -> str:
    """Write the eval that waits, and a protocol with it; return the protocol."""
    cluster.write("alice", room / "sleeper.py", SLEEPER)
    return f"name: wait\nbudget: 20s\nevals:\n- {{type: sleeper.Sleeper, path: {room}/go}}\n"


def test_a_clock_that_is_off(cluster: Cluster, faults: Faults, room: Path) -> None:
    """Nodes of one machine share its clock: node2 asks a time server that is three seconds ahead, simulated."""
    right = TimeServer(0.0)
    wrong = TimeServer(3.0, address="127.0.0.2", port=right.port)
    right.start()
    wrong.start()
    names = Path("/etc/hosts").read_text("utf-8")
    for node in node_names(4):
        address = "127.0.0.2" if node == "node2" else "127.0.0.1"
        own = faults.root(node).joinpath("etc/hosts").read_text("utf-8") or names
        cover = cluster.write("alice", room / f"hosts.{node}", f"{own}\n{address} timeserver\n")
        subprocess.run(faults.on_node(node, "mount", "--bind", str(cover), "/etc/hosts"), check=True)
    try:
        server = f"timeserver:{right.port}"
        out = vetted(cluster, room, f"name: clock\nevals:\n- {{type: clock_skew, max_offset: 0.5, server: {server}}}\n")
    finally:
        for node in node_names(4):
            subprocess.run(faults.on_node(node, "umount", "-l", "/etc/hosts"), check=True)
    assert_left_out(out, "node2", "clock offset")


def test_a_worker_is_killed(cluster: Cluster, room: Path) -> None:
    """Its verdict is inconclusive, with the signal; the others wait for nothing."""
    cluster.write("alice", room / "p.yaml", sleeping(cluster, room))
    script = "srun -N3 -n3 --vet=p.yaml hostname\necho status $?\n"
    path = cluster.script("alice", script)
    job = cluster.run("alice", "sbatch", "--parsable", "-N4", "-o", "out", path, cwd=room).good().strip()
    wait_until(lambda: len(eval_pids(room)) == 4, what="four evals")
    kill(eval_pids(room)["node3"])
    (room / "go").touch()
    cluster.wait_end(job, 60)
    assert_left_out((room / "out").read_text("utf-8"), "node3", "SIGKILL")


def test_a_node_dies_during_its_vetting(cluster: Cluster, faults: Faults, room: Path) -> None:
    """The whole node: slurmd, slurmstepd and pioletd."""
    cluster.write("alice", room / "p.yaml", sleeping(cluster, room))
    script = "srun -N3 -n3 --vet=p.yaml hostname\necho status $?\n"
    path = cluster.script("alice", script)
    # The batch script runs on the first node, which stays.
    job = cluster.run("alice", "sbatch", "--parsable", "-N4", "-o", "out", "--no-kill", path, cwd=room).good().strip()
    try:
        wait_until(lambda: len(eval_pids(room)) == 4, what="four evals")
        faults.stop_pioletd("node4", kill=True)
        for pid in faults.stepds("node4"):
            os.kill(pid, signal.SIGKILL)
        (room / "go").touch()
        cluster.wait_end(job, 90)
    finally:
        faults.repair()
    assert_left_out((room / "out").read_text("utf-8"), "node4", "sleeper")


def test_a_class_that_one_node_cannot_import(cluster: Cluster, faults: Faults, room: Path) -> None:
    """The file is there, but not on node2."""
    protocol = sleeping(cluster, room)
    (room / "go").touch()
    place = room / "sleeper.py"
    cover = cluster.write("alice", room / "empty", "")
    subprocess.run(faults.on_node("node2", "mount", "--bind", str(cover), str(place)), check=True)
    try:
        out = vetted(cluster, room, protocol)
    finally:
        subprocess.run(faults.on_node("node2", "umount", "-l", str(place)), check=True)
    assert_left_out(out, "node2", "Sleeper")


def test_all_nodes_are_bad(cluster: Cluster, room: Path) -> None:
    """Status 3, and nothing is started."""
    out = vetted(cluster, room, "name: n\nevals:\n- {type: memory_available, min_available: 900000}\n")
    assert "0 of 4 nodes good" in out and "status 3" in out and "the application was not started" in out, out
    assert not [line for line in out.splitlines() if line in node_names(4)]


def test_exactly_as_many_as_there_must_be(cluster: Cluster, room: Path, healthy: None) -> None:
    """Three of four are good: enough with min_nodes=3 where four were asked for, too few with min_nodes=4."""
    gpus.script(cluster.layout.gpus, "node1").write_text("gpu\n", "ascii")
    out = vetted(cluster, room, GPUS, 4, "--gres=gpu:2", option=",min_nodes=3 --ntasks-per-node=1")
    assert_left_out(out, "node1", "NVML shows 1 of them")
    out = vetted(cluster, room, GPUS, 4, "--gres=gpu:2", option=",min_nodes=4 --ntasks-per-node=1")
    assert "status 3" in out and "the application was not started" in out, out


def test_nodes_meet_in_a_vet_step(cluster: Cluster, room: Path) -> None:
    """Pairs in rounds, over the vet step's own streams; and torch, which is not there, is no hang.

    All nodes are one small machine here, so a node may be judged slow by what else runs on it: what counts is that
    each was judged. Whether rightly is for the tests of links (tests/vet/test_links.py).
    """
    out = vetted(cluster, room, "name: net\nevals:\n- {type: network_pair, size: 1 MB, pings: 5}\n", 4)
    row = re.search(r"^network_pair +(\d) +(\d) +0 ", out, re.MULTILINE)
    assert row is not None and int(row[1]) + int(row[2]) == 4, out
    (report,) = room.glob("vet-*.json")
    records = json.loads(report.read_text("utf-8"))
    assert "GB/s" in json.dumps(records)
    torch = "name: t\nevals:\n- {type: nccl_bandwidth, backend: gloo, ranks: 1, payload: 1 MB, on_inconclusive: warn}\n"
    other = cluster.room("alice")
    out = vetted(cluster, other, torch, 4)
    assert "status 0" in out and "torch" in out, out
    assert not list(other.glob(".piolet-vet-*"))


def zygotes(faults: Faults, node: str) -> list[int]:
    """Return the process of a node from which vettings are forked; its children have its name."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text("ascii").strip() for pid in everything_on(faults, node)}
    return [pid for pid, name in names.items() if name == "pioletd-warm" and names.get(parent(pid)) == "pioletd-vet"]


def test_the_process_for_vetting_is_killed(cluster: Cluster, faults: Faults, room: Path) -> None:
    """During a vetting: that node is inconclusive. The next vetting is by another one."""
    cluster.write("alice", room / "p.yaml", sleeping(cluster, room))
    path = cluster.script("alice", "srun -N3 -n3 --vet=p.yaml hostname\necho status $?\n")
    job = cluster.run("alice", "sbatch", "--parsable", "-N4", "-o", "out", path, cwd=room).good().strip()
    wait_until(lambda: len(eval_pids(room)) == 4, what="four evals")
    (before,) = zygotes(faults, "node3")
    kill(before)
    (room / "go").touch()
    cluster.wait_end(job, 60)
    assert_left_out((room / "out").read_text("utf-8"), "node3", "sleeper")
    wait_until(lambda: zygotes(faults, "node3") not in ([], [before]), what="another one")
    out = vetted(cluster, cluster.room("alice"), "name: n\nevals:\n- type: limits\n", 4)
    assert "4 of 4 nodes good" in out and "status 0" in out, out


def test_verdicts_are_spooled_on_the_node(cluster: Cluster, faults: Faults, room: Path) -> None:
    """Whose vetting it was says the kernel, and of which job and step root; a user may read nothing there."""
    spool = faults.root("node2") / "run/piolet/spool"
    uid = room.stat().st_uid
    before = len(faults.spooled("node2", uid))
    out = vetted(cluster, room, "name: n\nevals:\n- {type: limits}\n", 4)
    assert "4 of 4" in out
    wait_until(lambda: len(faults.spooled("node2", uid)) > before, what="the spool")
    last = faults.spooled("node2", uid)[-1]
    (report,) = room.glob("vet-*.json")
    job = report.name.removeprefix("vet-").removesuffix(".json")
    assert (last["node"], last["uid"], last["job"], last["step"], last["word"]) == ("node2", uid, job, "0", "user")
    # proctrack/linuxproc makes no control groups.
    assert last["found"] in ("slurmstepd", "cgroup")
    assert (last["origin"], last["kind"], last["said"]["outcome"]) == ("built-in", "limits", "pass")
    assert spool.stat().st_mode & 0o007 == 0 and spool.stat().st_uid != 0


RAW = """\
import os, socket
from piolet import _wire
lib, ffi = _wire.ffi.dlopen(None), _wire.ffi
plan = open("plan.json", "rb").read()
vet = ffi.new("struct piolet_vet *")
size = ffi.sizeof("struct piolet_vet") + len(plan)
vet.header.magic, vet.header.version, vet.header.kind = lib.PIOLET_MAGIC, lib.PIOLET_VERSION, lib.PIOLET_VET
vet.header.length, vet.plan = size, len(plan)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
    one.connect("/run/piolet/vet.sock")
    one.send(bytes(ffi.buffer(vet)) + plan)
    while one.recv(65536):
        pass
"""


def test_a_raw_message_lies_in_vain(cluster: Cluster, faults: Faults, room: Path) -> None:
    """As alice in a step, with another node and job in the variables, and a class of her own for gpu_health."""
    liar = "from piolet.api import Eval, Verdict\nclass Liar(Eval):\n    name = 'gpu_health'\n"
    liar += "    def check(self, context):\n        return Verdict('fail', 'Xid 79')\n"
    cluster.write("alice", room / "liar.py", liar)
    task = Task("gpu_health", "gpu_health", "liar:Liar", search=(str(room),))
    cluster.write("alice", room / "plan.json", Plan("site", (task,)).to_json().decode())
    cluster.write("alice", room / "raw.py", RAW)
    uid = room.stat().st_uid
    before = len(faults.spooled("node1", uid))
    command = ("env", "SLURMD_NODENAME=node2", "SLURM_JOB_ID=1", "SLURM_STEP_ID=77", sys.executable, "raw.py")
    script = f"echo job $SLURM_JOB_ID\nsrun -N1 -n1 {' '.join(command)}\necho status $?\n"
    out = cluster.sbatch("alice", script, "-N1", "-wnode1", cwd=room, timeout=60)
    assert "status 0" in out, out
    wait_until(lambda: len(faults.spooled("node1", uid)) > before, what="the spool")
    last = faults.spooled("node1", uid)[-1]
    job = out.partition("job ")[2].split()[0]
    envelope = [last[name] for name in ("node", "uid", "job", "step", "word", "origin", "kind")]
    assert envelope == ["node1", uid, job, "0", "user", "user", None]
    assert last["said"]["reason"] == "Xid 79" and last["said"]["node"] == "node2"


HIDES = """\
import os, time
from piolet.api import Eval, Verdict
class Hides(Eval):
    name = "hides"
    def check(self, context):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                with open("PLACE/hidden." + context.node, "w") as file:
                    file.write(str(os.getpid()))
                os.closerange(0, 64)  # with the answer's end open, the eval would not have answered
                time.sleep(1000)
            os._exit(0)
        while not os.path.exists("PLACE/hidden." + context.node):
            time.sleep(0.01)
        return Verdict("pass")
"""


def test_an_eval_that_hides_ends_with_its_vetting(cluster: Cluster, room: Path) -> None:
    """Twice forked, with sessions of its own, where Slurm makes no control group that would hold it."""
    cluster.write("alice", room / "hides.py", HIDES.replace("PLACE", str(room)))
    out = vetted(cluster, room, "name: h\nevals:\n- {type: hides.Hides}\n", 4)
    assert "4 of 4 nodes good" in out and "status 0" in out, out
    hidden = [int(path.read_text("ascii")) for path in room.glob("hidden.*")]
    assert len(hidden) == 4
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in hidden), what="the end of what hid")


def test_a_full_spool_costs_no_vetting(cluster: Cluster, faults: Faults, room: Path) -> None:
    """The verdict is lost, and the next line says that one was."""
    place = "/run/piolet/spool"
    subprocess.run(faults.on_node("node2", "mount", "-t", "tmpfs", "-o", "size=4k,mode=0777", "t", place), check=True)
    try:
        subprocess.run(
            faults.on_node("node2", "sh", "-c", f"head -c 4096 /dev/zero >{place}/full; chmod 666 {place}/*"),
            check=True,
        )
        out = vetted(cluster, room, "name: n\nevals:\n- type: limits\n", 4)
    finally:
        subprocess.run(faults.on_node("node2", "umount", "-l", place), check=True)
    assert "4 of 4 nodes good" in out and "status 0" in out, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_srun_is_ended_while_it_vets(cluster: Cluster, room: Path, number: signal.Signals) -> None:
    """No allocation, no step and no directory is left, whether the allocation is srun's own or a job's."""
    meeting = "- {type: nccl_bandwidth, backend: gloo, ranks: 1}\n"
    cluster.write("alice", room / "p.yaml", sleeping(cluster, room) + meeting)
    process = cluster.start("alice", "srun", "-N4", "--vet=p.yaml", "touch", "started", cwd=room)
    wait_until(lambda: len(eval_pids(room)) == 4, what="four evals")
    assert list(room.glob(".piolet-vet-*"))
    process.send_signal(number)
    process.communicate(timeout=20)
    wait_until(lambda: not cluster.jobs(), what="the end of the allocation")
    wait_until(lambda: not list(room.glob(".piolet-vet-*")), what="the end of the directory")
    assert not (room / "started").exists()

    for path in room.glob("go.node*"):
        path.unlink()
    # What the batch script leaves behind is killed at its end: where srun is killed, the command is, too.
    script = (
        "env --default-signal=INT srun -N4 --vet=p.yaml touch started & echo $! > pid; wait\n"
        "for i in $(seq 100); do ls -d .piolet-vet-* || break; sleep 0.1; done\n"
        "echo then; squeue -h -s -j $SLURM_JOB_ID\n"
    )
    path = cluster.script("alice", script)
    job = cluster.run("alice", "sbatch", "--parsable", "-N4", "-o", "out", path, cwd=room).good().strip()
    wait_until(lambda: len(eval_pids(room)) == 4, what="four evals")
    os.kill(int((room / "pid").read_text("ascii")), number)
    cluster.wait_end(job, 30)
    after = (room / "out").read_text("utf-8").partition("then\n")[2]
    assert "piolet-vet" not in after and not (room / "started").exists(), after
    assert not list(room.glob(".piolet-vet-*"))


def vet_commands(parent_pid: int) -> list[int]:
    """Return the `piolet` commands that an srun below this process waits for."""
    found = []
    for child in Path(f"/proc/{parent_pid}/task/{parent_pid}/children").read_text("ascii").split():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            found += [int(child)] if b"gate" in words else vet_commands(int(child))
    return found


@pytest.mark.parametrize("late", [False, True], ids=["as-it-starts", "as-it-vets"])
def test_the_command_is_killed(cluster: Cluster, room: Path, late: bool) -> None:
    """The allocation that srun made ends, by a process that srun has for that; a job that it joined lives on."""
    cluster.write("alice", room / "p.yaml", sleeping(cluster, room))
    begin = ("srun", "-N2", "--vet=p.yaml")
    cluster.run("alice", "salloc", "-N2", "--no-shell", "-J", "joined", cwd=room).good()
    joined = cluster.run("alice", "squeue", "-h", "-n", "joined", "-o", "%i").good().strip()
    for words in (begin, (*begin, f"--jobid={joined}")):
        process = cluster.start("alice", *words, "touch", "started", cwd=room)
        wait_until(functools.partial(vet_commands, process.pid), what="the command")
        if late:
            wait_until(lambda: len(eval_pids(room)) == 2, what="two evals")
        os.kill(vet_commands(process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1 and "was ended by signal 9" in said, said
        wait_until(lambda: cluster.jobs().split()[::3] == [joined], what="the end of the allocation")
        for path in room.glob("go.node*"):
            path.unlink()
    cluster.run("alice", "scancel", joined)
    cluster.wait_end(joined)
    assert not (room / "started").exists()
