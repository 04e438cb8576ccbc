"""A node whose steps have control groups of their own: what of the node's figures is the step's."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pwd
import re
import signal
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from piolet.events.envelope import Event, decode
from piolet.events.reader import Reader
from piolet.observe.journal import END, FRAME, STEP, rows_of
from piolet.samples.dataset import open_dataset

from tests.cluster import leftovers
from tests.cluster.faults import Faults, end
from tests.cluster.support import SCORE_HERE, Cluster, busybox_layer, no_controllers, running
from tests.support.prometheus import get
from tests.support.registry import free_port
from tests.support.waiting import wait_until

MIB = 50
BURN_S = 2.0
# It says itself what it used, for this machine may have no processor for it alone; and a child of it burns, too.
PROGRAM = f"""
import os, sys, time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
held = bytearray({MIB} << 20)
for place in range(0, len(held), 4096):
    held[place] = 1
burn({BURN_S})
child = os.fork()
if child == 0:
    burn({BURN_S / 4})
    os._exit(0)
os.waitpid(child, 0)
print(sum(os.times()[:4]), flush=True)
time.sleep(1.5)
"""


@pytest.fixture(scope="module")
def confined() -> Iterator[Cluster]:
    """A cluster of one node with control groups, of the version that this machine has."""
    why = no_controllers()
    if why:
        pytest.skip(f"make cluster CGROUPS=1 is not to be had: {why}")
    with running("test-confined", "--nodes", "1", "--cgroups", "--central") as made:
        yield made


FILLS = "import time; time.sleep(3); held = bytearray(1 << 29); held[::4096] = b'1' * (1 << 17)"


def limit(group: str) -> None:
    """Give the processes of a control group 100 MB, as root, whatever Slurm gave them."""
    for controllers, path in (line.split(":")[1:] for line in group.splitlines()):
        if "/step_" not in path or controllers not in ("memory", ""):
            continue
        place = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        Path(f"{place}{path}/{file}").write_text("100M")


def test_a_step_that_runs_out_of_memory_is_told_as_that(confined: Cluster) -> None:
    """The kernel's log names the control group of who was killed; accounting only counts."""
    faults = Faults(confined, confined.directory)
    process = confined.start("alice", "srun", "-n1", "python3", "-c", FILLS)
    (pid,) = faults.wait_tasks("held = bytearray", 1)
    limit(Path(f"/proc/{pid}/cgroup").read_text("ascii"))
    process.communicate(timeout=60)
    wait_until(lambda: bool(faults.events("node1", "step.outcome")), 20, "the outcome")
    (one,) = faults.events("node1", "step.outcome")
    assert (one["signal"], one["why"]) == (9, "out_of_memory"), one["body"]
    oom = faults.events("node1", "kernel.oom")[-1]
    assert (oom["job"], oom["step"], oom["scope"], oom["source"]) == (one["job"], "0", "cgroup", "kernel")


def host_figures(data: Path) -> dict[str, list[float]]:
    """Return the host's quantities of the one node in a data set, by sample, and `span` in seconds."""
    (node,) = open_dataset(data).nodes
    names = [str(name) for name in node.facts.header["host_columns"]]
    chunks = list(node.chunks(names, host=True))
    return {name: [float(value) for chunk in chunks for value in chunk[name]] for name in [*names, "span"]}


@pytest.mark.kernels
def test_the_steps_own_figures(confined: Cluster) -> None:
    """One processor and 50 MB are measured as that, while another job on the node burns as well."""
    room = confined.room("alice")
    program = confined.write("alice", room / "program.py", PROGRAM)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(confined.run, "bob", "srun", "-n1", "python3", program)
        done = confined.run("alice", "srun", SCORE_HERE, "-n1", "python3", program, cwd=room)
        others = float(other.result().good())
    used = float(done.good())
    assert used >= BURN_S * 1.2 and others >= BURN_S * 1.2
    (data,) = room.glob("piolet-score-*")
    found = host_figures(data)
    measured = sum(cpu * span for cpu, span in zip(found["cpu"], found["span"], strict=True) if not math.isnan(cpu))
    assert measured == pytest.approx(used, abs=0.4), (found, done.err)
    groups = confined.run("alice", "srun", "-n1", "cat", "/proc/self/cgroup").good()
    if re.search(r":(memory)?:.*/step_", groups):
        most = max(found["memory_anon"]) / 2**20
        assert MIB <= most < MIB + 40, found["memory_anon"]
    else:
        # Slurm 26.05 makes no group of memory for a job without a limit: then there is no figure, and that is said.
        assert all(map(math.isnan, found["memory_anon"])) and "the controller memory" in " ".join(done.err.split())
    assert "host (the step, by control groups of version " in " ".join(done.err.split()), done.err
    assert "the whole node" not in done.err
    # What version 1 does not tell is missing, and nobody is shown an empty figure for it.
    for command in (["show"], ["report", "--pdf"]):
        both = confined.run("alice", "piolet", "score", command[0], data, *command[1:]).both
        assert "nan" not in both.lower() and "Warning" not in both, both


WRITES = 30_000_000
WRITER = f"""
import os, sys, time
{PROGRAM.split("held")[0].split("import os, sys, time")[1]}
sys.stdin.readline()
burn(1.0)
child = os.fork()
if child == 0:
    with open(sys.argv[1], "wb") as out:
        out.write(b"x" * {WRITES})
    burn(1.0)
    os._exit(0)
os.waitpid(child, 0)
with open(sys.argv[1], "ab") as out:
    out.write(b"y" * {WRITES})
print(sum(os.times()[:4]), flush=True)
sys.stdin.readline()
"""


def recorded(faults: Faults, uid: int) -> list[Event]:
    """Return what node1's journal has of the user's last job, in order."""
    reader = Reader(str(faults.root("node1") / "run/piolet/observe"))
    lines = [line for epoch in reader.streams() for line in reader.read(epoch, 0, 10_000, 1 << 30)]
    found = [event for event in map(decode, lines) if event.uid == uid]
    last = max((event.job or 0 for event in found), default=0)
    return sorted((event for event in found if event.job == last), key=lambda event: event.seq)


def new(found: list[Event], earlier: set[int | None]) -> list[Event]:
    """Return the records that are not of earlier jobs."""
    return [event for event in found if event.job not in earlier]


def total(frames: list[Event], quantity: str) -> float:
    """Return a quantity's integral over a step's frames."""
    rows = [(frame.body["span"], row) for frame in frames for row in rows_of(frame, "host")]
    return math.fsum(float(row[quantity]) * span for span, row in rows if row.get(quantity) is not None)


def test_a_step_that_asks_for_nothing_is_recorded(confined: Cluster) -> None:
    """What it used and wrote is in the node's journal, by its own word and that of the file's size."""
    faults = Faults(confined, confined.directory)
    room = confined.room("alice")
    program = confined.write("alice", room / "writer.py", WRITER)
    uid = pwd.getpwnam("alice").pw_uid
    earlier = {event.job for event in recorded(faults, uid)}
    step = confined.start("alice", "srun", "-n1", "python3", program, room / "out")
    assert step.stdin is not None and step.stdout is not None
    # What a step did before it was found is in no difference.
    wait_until(lambda: FRAME in [event.kind for event in new(recorded(faults, uid), earlier)], 40, "a first sample")
    step.stdin.write("go\n")
    step.stdin.flush()
    used, done = float(step.stdout.readline()), time.time()
    assert (room / "out").stat().st_size == 2 * WRITES
    # What happens after a step's last sample nobody records: so one is waited for.
    wait_until(lambda: any(one.kind == FRAME and one.time > done + 1 for one in recorded(faults, uid)), 40, "a sample")
    assert end(step, stdin="\n").status == 0
    wait_until(lambda: any(event.kind == END for event in recorded(faults, uid)), 40, "the step's end in the journal")
    found = recorded(faults, uid)
    assert [event.kind for event in found if event.kind != FRAME] == [STEP, END]
    frames = [event for event in found if event.kind == FRAME]
    assert {(frame.step, frame.source) for frame in frames} == {("0", "root")}
    assert total(frames, "cpu") == pytest.approx(used, abs=0.5), found
    assert total(frames, "file_write") == pytest.approx(2 * WRITES, rel=0.02), found
    # What version 1 does not tell is missing, with a reason.
    columns = {name for frame in frames for row in rows_of(frame, "host") for name in row}
    missing = {row["reason"] for event in found for row in rows_of(event, "quality")}
    assert ("cpu_pressure" in columns) != any("version 2" in reason for reason in missing), (columns, missing)


def test_nobody_reads_what_a_node_recorded(confined: Cluster) -> None:
    """Neither the step's own user, nor another: figures come by the central service, which asks who it is."""
    faults = Faults(confined, confined.directory)
    for user in ("alice", "bob"):
        done = subprocess.run(
            faults.on_node("node1", "ls", "/run/piolet/observe", user=user), capture_output=True, text=True, check=False
        )
        assert done.returncode != 0 and "Permission denied" in done.stderr, done


def test_recording_goes_on_after_a_kill(confined: Cluster) -> None:
    """The sampler is killed while a step runs: the next one goes on in the same stream, with no number twice."""
    faults = Faults(confined, confined.directory)
    uid = pwd.getpwnam("bob").pw_uid
    earlier = {event.job for event in recorded(faults, uid)}  # bob's last step before
    process = confined.start("bob", "srun", "-n1", "sleep", "100")
    try:
        wait_until(lambda: len(new(recorded(faults, uid), earlier)) >= 3, 30, "frames of the step")
        before = recorded(faults, uid)
        (sampler,) = [pid for pid in faults.members() if leftovers.status(pid, "Name") == "pioletd-observe"]
        os.kill(sampler, signal.SIGKILL)
        again = len(before) + 4
        wait_until(lambda: len(recorded(faults, uid)) >= again, 30, "frames of the next sampler")
    finally:
        process.terminate()
        process.wait(30)
    found = recorded(faults, uid)
    numbers = [event.seq for event in found]
    first = numbers[0]  # bob had steps before
    assert {event.epoch for event in found} == {before[0].epoch}
    assert numbers == list(range(first, first + len(found)))
    assert [event.kind for event in found].count(STEP) == 2


LOSSES = "".join(f"step {at} loss: {2.0 - at / 100 if at < 18 else 9.0}\n" for at in range(30))


def test_a_step_from_its_node_to_its_users_page(confined: Cluster) -> None:
    """Without any option; pioletd is killed while it runs, which costs a gap that is told, and no exit status."""
    faults = Faults(confined, confined.directory)
    room = confined.room("alice")
    program = f"printf '{LOSSES}' | tee {room}/out; read go; exit 7"
    step = confined.start("alice", "srun", "-n1", "sh", "-c", program)
    wait_until(lambda: bool(confined.jobs()), 20, "the job")
    job = confined.jobs().split()[0]

    def top(user: str = "alice") -> str:
        return confined.run(user, "piolet", "top", "--once", job).both

    def told(table: str, user: str = "alice") -> list[dict[str, Any]]:
        done = confined.run(user, "piolet", "observe", "export", f"{job}.0", "--table", table, "--format", "json")
        return [json.loads(line) for line in done.out.splitlines()] if done.status == 0 else []

    wait_until(lambda: " node1 " in top(), 40, "the node's figures")
    assert "s ago; with srun --score" in top() and "not yours" in top("bob")
    faults.stop_pioletd("node1", kill=True)
    killed = time.time()
    time.sleep(3.0)  # longer than a sample
    faults.start_pioletd("node1")
    uid, again = pwd.getpwnam("alice").pw_uid, time.time()
    wait_until(lambda: any(e.kind == FRAME and e.time > again for e in recorded(faults, uid)), 40, "a sample after it")
    assert end(step, stdin="go\n").status == 7
    marked = confined.run("alice", "piolet", "mark", "--job", job, "--from", room / "out").good()
    assert f"joined with the data of {job}.0" in marked
    wait_until(lambda: any(row["detector"] == "loss_spike" for row in told("findings")), 60, "what detectors find")
    assert {row["detector"]: row["state"] for row in told("judged")}["loss_spike"] == "found"
    assert len(told("marks")) == 60 and told("marks", "bob") == []  # 30 steps, and their losses
    gaps = [row for row in told("quality") if row["source"] == "samples" and "restarted" in row["reason"]]
    (gap,) = gaps
    start, until = (datetime.fromisoformat(gap[name]).timestamp() for name in ("start", "end"))
    assert killed - 5 < start < killed + 1 and again - 1 < until < again + 10, (gap, killed, again)
    outcome = [row for row in told("events") if row["kind"] == "step.outcome"]
    assert [(row["source"], "status 7" in row["text"]) for row in outcome] == [("user", True)]
    page = confined.run("alice", "piolet", "observe", "page", f"{job}.0", "--out", room / "page.html", cwd=room)
    assert page.status == 0 and "loss rose from" in (room / "page.html").read_text("utf-8")


HOOK = """
from piolet.api import Hook, Program


class Witness(Hook):
    name = "witness"
    text = "write down where its program runs"
    options = {"file": "where to"}

    def entries(self, asked, node, step):
        return [Program(("/bin/sh", "-c", "cat /proc/self/cgroup > " + asked.options["file"] + "; exec sleep 1000"))]
"""


def test_prometheus_sees_a_step_that_asks_for_nothing(confined: Cluster) -> None:
    """Whoever has the token, and nobody else; where it cannot be read nobody is answered."""
    faults = Faults(confined, Path("/dev/null"))
    config, token = confined.layout.piolet_toml, confined.layout.etc / "prometheus-token"
    before, where, alice = config.read_text("utf-8"), f"127.0.0.1:{free_port()}", pwd.getpwnam("alice").pw_uid

    def told(given: str = "of the site") -> str:
        with contextlib.suppress(urllib.error.URLError):
            return get(f"http://{where}/metrics", given)
        return ""

    token.unlink(missing_ok=True)  # that of an earlier run is piolet's
    token.write_text("of the site\n")
    token.chmod(0o400)
    lines = f'[observe]\nprometheus = "{where}"\nprometheus_token = "{token}"\n'
    try:
        config.write_text(before.replace("[observe]\n", lines), "utf-8")
        faults.restart_pioletd("node1")
        log = confined.layout.log / "pioletd-node1.log"
        wait_until(lambda: "no figures for Prometheus" in log.read_text(), what="a line in the log")
        assert told() == ""
        os.chown(token, pwd.getpwnam("piolet").pw_uid, -1)
        faults.restart_pioletd("node1")
        run = confined.start("alice", "srun", "sh", "-c", "read x", cwd=confined.room("alice"))
        name = re.compile(
            rf'^piolet_observe_host_sampled_seconds_total{{.*step="0",uid="{alice}"}} [1-9]', re.MULTILINE
        )
        wait_until(lambda: name.search(told()), what="the step among the metrics")
        assert told("") == told("another") == ""
        assert end(run, stdin="x\n").status == 0
        wait_until(lambda: "piolet_observe_steps 0.0" in told(), what="the end of the step")
    finally:
        config.write_text(before, "utf-8")
        faults.restart_pioletd("node1")


def test_a_hook_s_program_is_in_the_step_s_control_group(confined: Cluster) -> None:
    """Its memory, devices and processors are the job's: it is in the step's groups, as its tasks are."""
    (confined.layout.etc / "hooks.d").mkdir(exist_ok=True)
    (confined.layout.etc / "hooks.d" / "witness.py").write_text(HOOK)
    confined.tool("stop-pioletd", "node1")
    confined.tool("start-pioletd", "node1")
    image = confined.push("tiny", [busybox_layer()], Env=["PATH=/bin"])
    room = confined.room("alice")
    text = f'image = "{image}"\nmounts = ["{room}"]\n[annotations.com.hooks.witness]\nenabled = "true"\n'
    edf = confined.edf("alice", f'{text}file = "{room}/groups"\n', room)
    script = f"while ! [ -s {room}/groups ]; do sleep 0.1; done; sleep 0.2; cat /proc/self/cgroup"
    tasks = confined.srun("alice", edf, "sh", "-c", script).good()

    def steps(text: str) -> set[str]:
        """Return the step's groups, without the part that tells tasks from others."""
        found = re.findall(r"^\d+:([^:]*):(.*/step_\w+)", text, re.MULTILINE)
        return {f"{controllers} {path}" for controllers, path in found}

    assert steps(tasks)
    assert steps((room / "groups").read_text()) == steps(tasks)
