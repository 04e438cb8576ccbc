"""Vettings that are cut off, that lie or that leave something: what is written of them on a node, and what is left."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from piolet.vet.runner.plan import Plan, Task

from tests.cluster.faults import Faults, kill
from tests.cluster.leftovers import parent
from tests.cluster.support import Cluster
from tests.cluster.vetting import assert_left_out, eval_pids, everything_on, sleeping, vetted
from tests.support.waiting import wait_until


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
    pid = eval_pids(room)["node3"]
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the eval on node3")
    (room / "go").touch()
    cluster.wait_end(job, 60)
    assert_left_out((room / "out").read_text("utf-8"), "node3", "sleeper")
    wait_until(lambda: zygotes(faults, "node3") not in ([], [before]), what="another one")
    out = vetted(cluster, cluster.room("alice"), "name: n\nevals:\n- type: limits\n", 4)
    assert "4 of 4 nodes good" in out and "status 0" in out, out


def test_verdicts_are_spooled_on_the_node(cluster: Cluster, faults: Faults, room: Path) -> None:
    """Whose vetting it was says the kernel, and of which job and step root; a user may read nothing there."""
    spool = faults.root("node2") / "run/piolet/events"
    uid = room.stat().st_uid
    before = len(faults.spooled("node2", uid))
    out = vetted(cluster, room, "name: n\nevals:\n- {type: limits}\n", 4)
    assert "4 of 4" in out
    wait_until(lambda: len(faults.spooled("node2", uid)) > before, what="the spool")
    last = faults.spooled("node2", uid)[-1]
    (report,) = room.glob("vet-*.json")
    job = report.name.removeprefix("vet-").removesuffix(".json")
    mine = ("node2", uid, int(job), "0", "user")
    assert (last["node"], last["uid"], last["job"], last["step"], last["source"]) == mine
    # proctrack/linuxproc makes no control groups.
    assert last["found"] in ("slurmstepd", "cgroup")
    assert (last["origin"], last["code"], last["state"]) == ("built-in", "limits", "pass")
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
    envelope = [last.get(name) for name in ("node", "uid", "job", "step", "source", "origin", "code")]
    assert envelope == ["node1", uid, int(job), "0", "user", "user", None]
    assert last["reason"] == "Xid 79" and last["said"]["node"] == "node2"


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
    """The verdict is lost, and a record says so when the disk takes one again."""
    place = "/run/piolet/events"
    before = len(faults.events("node2", "spool.dropped"))
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
    wait_until(lambda: len(faults.events("node2", "spool.dropped")) > before, what="the count")
    last = faults.events("node2", "spool.dropped")[-1]
    assert (last["uid"], last["why"], last["records"]) == (room.stat().st_uid, "the disk", 1)


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


def test_srun_where_no_pioletd_is_has_a_node_told_what_it_decided(
    cluster: Cluster, faults: Faults, room: Path
) -> None:  # fmt: skip
    """As on a login node: a step of the job tells it, and the record says that it is the user's word."""
    uid = room.stat().st_uid
    assert not Path("/run/piolet/vet.sock").exists()
    nodes = ("node1", "node2")
    before = {node: len(faults.events(node, "vet.decision", uid=uid)) for node in nodes}
    cluster.write("alice", room / "ml.yaml", "name: told\nevals:\n- {type: limits}\n")
    said = cluster.run("alice", "srun", "-N2", f"--nodelist={','.join(nodes)}", "--vet=ml.yaml", "true", cwd=room)
    assert "2 of 2 nodes good" in said.both, said.both

    def new() -> list[dict[str, Any]]:
        return [one for node in nodes for one in faults.events(node, "vet.decision", uid=uid)[before[node] :]]

    wait_until(new, what="the decision")
    (one,) = new()
    assert (one["source"], one["uid"]) == ("user", uid)
    # proctrack/linuxproc makes no control groups.
    assert one["claimed"] > 0 and one.get("job") in (None, one["claimed"]) and one["found"] in ("unknown", "cgroup")
    assert one["chosen"] == "node[1-2]" and one["protocol"] == "told"
