"""How steps end, in the records of the nodes that they ran on; what the accounting cannot tell apart."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.faults import Faults
from tests.cluster.support import Cluster
from tests.support.waiting import wait_until

SAYS = '#!/bin/sh\nshift 2\necho "told: $*" >&2\n'


@pytest.fixture(autouse=True)
def plugin(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugin as a site that turned it on has it; in the place of `piolet` a script that says how it was called."""
    room = cluster.room("alice")
    script = cluster.write("alice", room / "says.sh", SAYS, 0o755)
    line = cluster.layout.outcomes_off.read_text("utf-8")
    words = [f"command={script}" if word.startswith("command=") else word for word in line.split()]
    cluster.layout.outcomes_on.write_text(" ".join(words) + "\n", "utf-8")
    try:
        yield script
    finally:
        cluster.layout.outcomes_on.unlink()


def ends(faults: Faults, node: str, job: int, count: int = 1) -> list[dict[str, Any]]:
    """Wait until a node has told so many ways in which a job's steps ended."""

    def found() -> list[dict[str, Any]]:
        return [one for one in faults.events(node, "step.outcome") if one["job"] == job]

    wait_until(lambda: len(found()) >= count, 10, f"{count} outcomes of job {job} on {node}")
    return found()


def job_of(text: str) -> int:
    return int(text.partition("job ")[2].split()[0])


def test_which_node_a_step_failed_on(cluster: Cluster, faults: Faults) -> None:
    """Of a step on four nodes one has a task that crashes: the record of that node says so, and no other's."""
    crash = "test $SLURM_PROCID = 0 && echo job $SLURM_JOB_ID; test $SLURMD_NODENAME = node3 && kill -SEGV $$; exit 0"
    done = cluster.run("alice", "srun", "-N4", "-n4", "--kill-on-bad-exit=0", "sh", "-c", crash, timeout=60)
    job = job_of(done.out)
    for node in ("node1", "node2", "node3", "node4"):
        (one,) = ends(faults, node, job)
        assert (one["source"], one["step"], one["run"], one["tasks"]) == ("user", "0", 0, 1)
        assert one["uid"] == cluster.room("alice").stat().st_uid
        how = (one.get("status"), one.get("signal"), one["why"])
        assert how == ((None, signal.SIGSEGV, "signal") if node == "node3" else (0, None, "exit")), node
    assert f"told: central ended --job {job} --step 0 --status 139" in done.err


def test_exit_statuses_of_one_node_are_one_record_each(cluster: Cluster, faults: Faults) -> None:
    words = "echo job $SLURM_JOB_ID; exit $(($SLURM_PROCID % 2 * 5))"
    done = cluster.run("alice", "srun", "-wnode1", "-N1", "-n4", "-O", "--kill-on-bad-exit=0", "sh", "-c", words)
    found = ends(faults, "node1", job_of(done.out), 2)
    assert sorted((one["status"], one["tasks"], one["task"] % 2) for one in found) == [(0, 2, 0), (5, 2, 1)]
    assert sorted(one["order"] for one in found) == [0, 1]


def test_a_good_step_says_nothing_at_its_end(cluster: Cluster) -> None:
    assert "told:" not in cluster.run("alice", "srun", "-N2", "true").err
    assert "told:" not in cluster.run("alice", "srun", "-N1", "--no-such-option").err, "there was no step"


def test_an_interrupted_srun_says_nothing(cluster: Cluster) -> None:
    process = cluster.start("alice", "srun", "-N1", "sh", "-c", "echo began; sleep 60")
    assert process.stdout is not None and "began" in process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    _, err = process.communicate(timeout=20)
    assert process.returncode and "told:" not in err, err


def test_a_command_that_hangs_holds_srun_up_two_seconds(cluster: Cluster, plugin: Path) -> None:
    plugin.write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    done = cluster.run("alice", "srun", "-N1", "false", timeout=30)
    assert done.status == 1 and time.monotonic() - began < 10
    plugin.write_text("#!/bin/sh\nexit 7\n")
    assert cluster.run("alice", "srun", "-N1", "sh", "-c", "exit 3").status == 3, "srun's status is the step's"
    plugin.unlink()
    assert cluster.run("alice", "srun", "-N1", "sh", "-c", "exit 3").status == 3


def test_scancel_and_batch_scripts(cluster: Cluster, faults: Faults) -> None:
    """The script is a step of its own. Whose scancel a signal was, a node cannot know."""
    room = cluster.room("alice")
    cluster.write("alice", room / "job.sh", "#!/bin/sh\nsrun -n1 sh -c 'touch began; exec sleep 60'\n")
    said = cluster.run("alice", "sbatch", "--parsable", "-wnode2", "-N1", "job.sh", cwd=room).good()
    job = int(said.split(";")[0])
    wait_until((room / "began").exists, 30, "the step")
    cluster.run("alice", "scancel", str(job)).good()
    found = {one["step"]: one for one in ends(faults, "node2", job, 2)}
    assert found["0"]["signal"] == signal.SIGTERM and found["0"]["why"] == "signal"
    assert found["batch"]["signal"] == signal.SIGTERM


def test_arrays_and_requeued_jobs_are_told_apart(cluster: Cluster, faults: Faults) -> None:
    room = cluster.room("alice")
    cluster.write("alice", room / "array.sh", "#!/bin/sh\nexit $SLURM_ARRAY_TASK_ID\n")
    said = cluster.run("alice", "sbatch", "--parsable", "--array=3-4", "-wnode1", "array.sh", cwd=room).good()
    array = int(said.split(";")[0])

    def of_array() -> list[dict[str, Any]]:
        return [one for one in faults.events("node1", "step.outcome") if one.get("array", [0])[0] == array]

    wait_until(lambda: len(of_array()) == 2, 60, "both jobs of the array")
    assert sorted((one["array"][1], one["status"]) for one in of_array()) == [(3, 3), (4, 4)]

    again = "#!/bin/sh\ntest $SLURM_RESTART_COUNT && exit 9\ntouch began\nsleep 60\n"
    cluster.write("alice", room / "again.sh", again)
    job = int(cluster.run("alice", "sbatch", "--parsable", "--requeue", "-wnode1", "again.sh", cwd=room).good())
    wait_until((room / "began").exists, 30, "the script")
    root = {"SLURM_CONF": str(cluster.layout.slurm_conf), "PATH": "/usr/bin:/bin"}
    subprocess.run(["scontrol", "requeue", str(job)], env=root, check=True)
    (first,) = ends(faults, "node1", job)
    # A shell says of what it waited for 128 more than the signal.
    assert first["run"] == 0 and first.get("signal", first.get("status", 0) - 128) > 0, first["body"]
    wait_until(lambda: f"{job} PD" in cluster.jobs(), what="the requeue")
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+2"], env=root, check=True)
    last = ends(faults, "node1", job, 2)[-1]
    assert (last["run"], last["status"], last["step"]) == (1, 9, "batch")


def test_parts_of_a_heterogeneous_step(cluster: Cluster, faults: Faults) -> None:
    words = (
        "-N1",
        "-wnode1",
        "-n1",
        "sh",
        "-c",
        "echo job $SLURM_JOB_ID; exit 4",
        ":",
        "-N1",
        "-wnode2",
        "-n1",
        "true",
    )
    done = cluster.run("alice", "srun", *words, timeout=60)
    job = job_of(done.out)
    assert [(one["status"], one.get("het_job")) for one in ends(faults, "node1", job)] == [(4, None)]
    # Each part is a job of its own, of the next number.
    assert [(one["status"], one.get("het_job")) for one in ends(faults, "node2", job + 1)] == [(0, job)]
    group = ("salloc", "-N1", "-wnode1", "-n1", ":", "-N1", "-wnode2", "-n1", "srun", "--het-group=1", "sh", "-c")
    again = cluster.run("alice", *group, "echo job $SLURM_JOB_ID; exit 5", timeout=60)
    job = job_of(again.out)
    assert [(one["status"], one.get("het_job")) for one in ends(faults, "node2", job + 1)] == [(5, job)]


def test_while_pioletd_is_away_outcomes_are_counted(cluster: Cluster, faults: Faults) -> None:
    lost = faults.root("node4") / "run/piolet/events.sock.lost"
    faults.stop_pioletd("node4")
    try:
        for _ in range(3):
            cluster.run("alice", "srun", "-N1", "-wnode4", "true").good()
        assert lost.stat().st_size == 3 and lost.stat().st_mode & 0o077 == 0
    finally:
        faults.start_pioletd("node4")

    def told() -> bool:
        said = faults.events("node4", "spool.dropped")
        return any((one["records"], one["why"]) == (3, "pioletd took no outcome") for one in said)

    wait_until(told, 20, "the count")
    assert lost.stat().st_size == 0


def test_a_pioletd_that_hangs_holds_up_no_step(cluster: Cluster, faults: Faults) -> None:
    server = faults.server("node4")
    lost = faults.root("node4") / "run/piolet/events.sock.lost"
    before = lost.stat().st_size
    os.kill(server, signal.SIGSTOP)
    try:
        # More than the kernel keeps for it (net.unix.max_dgram_qlen).
        most = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        script = f"for i in $(seq {most + 5}); do srun -n1 true; done"
        began = time.monotonic()
        if most <= 20:
            cluster.run("alice", "salloc", "-N1", "-wnode4", "sh", "-c", script, timeout=120).good()
            # slurmstepd says how its step ended after srun has.
            wait_until(lambda: lost.stat().st_size - before >= 4, what="the count of what was not taken")
        else:
            cluster.run("alice", "srun", "-N1", "-wnode4", "true").good()
        assert time.monotonic() - began < 60
    finally:
        os.kill(server, signal.SIGCONT)
