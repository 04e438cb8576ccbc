"""Faults of what runs on a node: killed, stopped, daemonised, storming, hung. Nothing of ours is left afterwards."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster import leftovers
from tests.cluster.faults import Faults, assert_sentence, elapsed, end, error_lines, kill
from tests.cluster.support import BUSYBOX, Cluster, busybox_layer
from tests.support import oci
from tests.support.waiting import wait_until


def test_slurmstepd_is_killed_while_two_tasks_run(faults: Faults) -> None:
    with faults.nothing_left():
        srun = faults.cluster.start(
            "alice", "srun", "-n2", "-w", "node1", f"--environment={faults.edf}", "sleep", "7101"
        )
        faults.wait_tasks("sleep 7101", 2)
        for pid in faults.stepds("node1"):
            kill(pid)
        faults.wait_tasks("sleep 7101", 0, 5)
        # Slurm's own srun waits for a slurmstepd that is no more.
        kill(srun.pid)
        end(srun)
        faults.cancel_all()


@pytest.mark.parametrize("how", [["-f"], ["--full"], ["--full", "--signal=KILL"]])
def test_scancel_of_a_batch_job(faults: Faults, how: list[str]) -> None:
    with faults.nothing_left():
        script = faults.cluster.script("alice", f"srun -n2 --environment={faults.edf} sleep 7102\n")
        job = (
            faults.cluster.run("alice", "sbatch", "--parsable", "-N1", "-n2", "-o", "/dev/null", script).good().strip()
        )
        faults.wait_tasks("sleep 7102", 2)
        faults.cluster.run("alice", "scancel", *how, job).good()
        faults.wait_tasks("sleep 7102", 0)
    assert faults.nodes_are_well()


# A daemon that has left its session, its parent, and once its mount namespace, too.
@pytest.mark.parametrize("before", ["", "unshare -U -m "])
def test_a_daemon_of_a_task_ends_with_the_step(faults: Faults, before: str) -> None:
    with faults.nothing_left():
        faults.srun(
            "alice", "-w", "node1", "sh", "-c", f"({before}setsid sleep 7103 </dev/null >/dev/null 2>&1 &)"
        ).good()
        faults.wait_tasks("sleep 7103", 0, 5)


def test_a_storm_of_forks_that_ignores_sigterm(faults: Faults) -> None:
    """Twenty processes, each of which starts its successor and ends at once: no list of pids is ever right."""
    room = faults.cluster.room("alice")
    stop = room / "stop"
    hare = faults.cluster.write(
        "alice", room / "hare", f"#!/bin/sh\n[ -e {stop} ] && exit\ntrap '' TERM\n{room}/hare 7104 &\n", 0o755
    )
    edf = faults.cluster.edf("alice", f'{faults.edf.read_text()}mounts = ["{room}"]\n', room)
    try:
        with faults.nothing_left():
            started = f"for i in $(seq 20); do setsid {hare} 7104 & done </dev/null >/dev/null 2>&1"
            faults.srun("alice", "-w", "node2", "sh", "-c", f"{started}; sleep 0.3", edf=edf)
            wait_until(lambda: all(not faults.tasks("hare 7104") for _ in range(5)), 5, "the end of the storm")
    finally:
        stop.touch()


def test_srun_is_killed(faults: Faults) -> None:
    with faults.nothing_left():
        srun = faults.cluster.start("alice", "srun", "-N2", "-n4", f"--environment={faults.edf}", "sleep", "7105")
        faults.wait_tasks("sleep 7105", 4)
        kill(srun.pid)
        srun.communicate(timeout=10)
        faults.cancel_all()
        faults.wait_tasks("sleep 7105", 0)


def test_slurmd_is_restarted_while_a_step_runs(faults: Faults) -> None:
    with faults.nothing_left():
        words = ["sh", "-c", "read line; exit $line # 7106"]
        srun = faults.cluster.start("alice", "srun", "-w", "node4", f"--environment={faults.edf}", *words)
        faults.wait_tasks("7106", 1)
        faults.restart_slurmd("node4")
        assert faults.tasks("7106"), "the step did not survive the restart"
        assert end(srun, stdin="7\n").status == 7
        wait_until(faults.nodes_are_well, 20, "the return of node4")
        faults.srun("bob", "-w", "node4", "true").good()


def test_a_stopped_squashfuse_is_ended_with_the_step(faults: Faults) -> None:
    """The user's own squashfuse, stopped by the user: the task hangs, the cancelled step leaves nothing."""
    with faults.nothing_left():
        edf = faults.cluster.edf("alice", f'image = "{own_image(faults)}"\n')
        srun = faults.cluster.start(
            "alice", "srun", "-w", "node3", f"--environment={edf}", "sh", "-c", "sleep 7107; cat /blob | md5sum"
        )
        faults.wait_tasks("sleep 7107", 2)
        fuse = [pid for pid in faults.tasks("squashfuse") if leftovers.status(pid, "Uid").split()[0] != "0"]
        assert fuse, "no squashfuse"
        for pid in fuse:
            kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        faults.srun("bob", "-w", "node3", "true").good()
        assert elapsed(began) < 5
        faults.cancel_all()
        end(srun)


def test_a_hung_mount_fails_its_step_and_delays_no_other(faults: Faults) -> None:
    """Another user's steps come and go while it waits; on a machine so busy that they do not, it waits for longer."""
    place = faults.cluster.room("alice")
    edf = faults.cluster.edf("alice", f'{faults.edf.read_text()}mounts = ["{place}:/mnt"]\n')
    with faults.nothing_left(), faults.hung("node1", place) as hung:
        faults.srun("bob", "-w", "node1", "true").good()
        for seconds in (4, 20):
            with faults.plugin_arguments(timeout=str(seconds)):
                wait_until(lambda: not faults.stepds("node1"), what="the end of earlier steps")
                before = len(faults.workers("node1"))
                stuck = faults.cluster.start("alice", "srun", "-w", "node1", f"--environment={edf}", "true")
                wait_until(lambda before=before: len(faults.workers("node1")) > before, what="the step's worker")  # type: ignore[misc]
                for _ in range(3):
                    faults.srun("bob", "-w", "node1", "true").good()
                waits = stuck.poll() is None
                refused = end(stuck, seconds + 20)
            assert_sentence(refused, f"node node1: the container was not ready after {seconds - 1} s", "hung")
            if waits:
                break
        else:
            pytest.fail("steps of another user were over only when the one that hung was, twice")
        faults.srun("alice", "-w", "node1", "true").good()
        hung.abort()
    assert faults.nodes_are_well()


def test_a_hung_store(faults: Faults) -> None:
    """A step with an image of the store fails in time; one with the user's own file, and a bare one, run."""
    own = faults.cluster.edf("bob", f'image = "{own_image(faults, "bob")}"\n')
    with faults.nothing_left(), faults.plugin_arguments(timeout="4"):
        with faults.hung("node2", faults.cluster.layout.images):
            began = time.monotonic()
            words = ["srun", "-w", "node2", f"--environment={faults.edf}", "true"]
            # More than the server has threads for the store.
            stuck = [faults.cluster.start("alice", *words) for _ in range(10)]
            time.sleep(0.5)
            at = time.monotonic()
            faults.srun("bob", "-w", "node2", "true", edf=own).good()
            assert elapsed(at) < 3, "a step that does not need the store was delayed"
            faults.cluster.run("bob", "srun", "-w", "node2", "true").good()
            for srun in stuck:
                assert_sentence(end(srun), "node node2: the image store does not answer on this node", "hung?")
            assert elapsed(began) < 10
        faults.srun("alice", "-w", "node2", "true").good()


def test_the_nodes_run_is_full(faults: Faults) -> None:
    filler = faults.root("node3") / "run/filler"
    with faults.nothing_left():
        try:
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(1 << 20))
            faults.cluster.run("alice", "srun", "-w", "node3", "true").good()
            for _ in range(2):
                faults.srun("alice", "-w", "node3", "cat", "/marker").good()
            # A daemon that starts with nothing but inodes left works; the step that runs meanwhile goes on.
            srun = faults.cluster.start("bob", "srun", "-w", "node3", f"--environment={faults.edf}", "sleep", "1.5")
            faults.wait_tasks("sleep 1.5", 1)
            faults.restart_pioletd("node3")
            faults.srun("alice", "-w", "node3", "true").good()
            assert end(srun).status == 0
        finally:
            filler.unlink()


def test_the_nodes_run_has_no_inode_left(faults: Faults) -> None:
    """The daemon cannot make its socket: it says so in a sentence, and steps without it run."""
    with faults.nothing_left():
        faults.stop_pioletd("node3")
        run = faults.root("node3") / "run"
        before, free = os.statvfs(run).f_files, os.statvfs(run).f_ffree
        few = before - free + 16
        subprocess.run(faults.on_node("node3", "mount", "-o", f"remount,nr_inodes={few}", "/run"), check=True)
        full = run / "full"
        try:
            full.mkdir()
            with pytest.raises(OSError, match="No space left"):
                for number in range(100):
                    (full / str(number)).touch()
            layout = faults.cluster.layout
            argv = faults.on_node("node3", layout.venv_bin / "pioletd", "--config", layout.piolet_toml)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
            assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr and "/run/piolet" in done.stderr, done.stderr
            faults.cluster.run("alice", "srun", "-w", "node3", "true").good()
        finally:
            shutil.rmtree(full)
            subprocess.run(faults.on_node("node3", "mount", "-o", f"remount,nr_inodes={before}", "/run"), check=True)
        faults.start_pioletd("node3")
        faults.srun("alice", "-w", "node3", "true").good()


def test_user_namespaces_are_switched_off(faults: Faults) -> None:
    simulator = Path(__file__).parents[1] / "simulators" / "deny_userns.py"
    with faults.nothing_left():
        faults.restart_pioletd("node4", "/usr/bin/python3", "-I", str(simulator))
        try:
            refused = faults.srun("alice", "-w", "node4", "true")
            assert_sentence(refused, "node node4: ", "user.max_user_namespaces")
            assert len(error_lines(refused)) == 2
            faults.cluster.run("alice", "srun", "-w", "node4", "true").good()
        finally:
            faults.restart_pioletd("node4")
        faults.srun("alice", "-w", "node4", "true").good()
    assert faults.nodes_are_well()


def own_image(faults: Faults, user: str = "alice") -> Path:
    """Make a SquashFS file of the user's own, with a busybox and a blob of random bytes."""
    room = faults.cluster.room(user)
    tree = room / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for name in ("sh", "sleep", "cat", "md5sum", "true"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "blob").write_bytes(os.urandom(4 << 20))
    image = room / "own.sqsh"
    command = ["mksquashfs", str(tree), str(image), "-comp", "gzip", "-no-progress", "-quiet", "-all-root"]
    subprocess.run(command, check=True, capture_output=True)
    image.chmod(0o644)
    faults.cluster.give(user, image)
    return image


def test_processes_of_others_are_hidden_on_the_node(faults: Faults) -> None:
    """hidepid=2, as many sites mount /proc: of no process of another user can be seen that it is there."""
    with faults.nothing_left():
        subprocess.run(faults.on_node("node3", "mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"), check=True)
        try:
            faults.restart_pioletd("node3")
            script = "cat /marker; ls -d /proc/1 2>/dev/null | wc -l; exit 5"
            done = faults.srun("alice", "-w", "node3", "sh", "-c", script)
            assert (done.status, done.out) == (5, "in the image\n0\n"), done
            assert faults.srun("bob", "-w", "node3", "-n2", "cat", "/marker").good() == "in the image\n" * 2
        finally:
            subprocess.run(faults.on_node("node3", "umount", "-l", "/proc"), check=True)
            faults.restart_pioletd("node3")


def test_nothing_may_be_run_from_the_nodes_run(faults: Faults) -> None:
    """/run with noexec, as hardened machines have it; images are mounted below it."""
    with faults.nothing_left():
        subprocess.run(faults.on_node("node3", "mount", "-o", "remount,noexec", "/run"), check=True)
        try:
            faults.restart_pioletd("node3")
            done = faults.srun("alice", "-w", "node3", "sh", "-c", "cat /marker; /bin/busybox true; exit 6")
            assert (done.status, done.out) == (6, "in the image\n"), done
        finally:
            subprocess.run(faults.on_node("node3", "mount", "-o", "remount,exec", "/run"), check=True)
            faults.restart_pioletd("node3")


def test_a_step_that_fails_leaves_a_line_in_the_node_s_logs(cluster: Cluster) -> None:
    """Of slurmd's and of pioletd's, whoever of the two refused. Words of the user make no line of their own."""
    layer = busybox_layer(oci.symlink("data", "/mnt"), oci.folder("mnt"))
    image = cluster.push("data-elsewhere", [layer], Env=["PATH=/bin"])
    room = cluster.room("alice")
    uid = room.stat().st_uid
    logs = [cluster.layout.log / f"{name}-node1.log" for name in ("slurmd", "pioletd")]
    begin = [log.stat().st_size for log in logs]
    for name, text in (
        ("mount", f'image = "{image}"\nmounts = ["{room}:/mnt", "/etc/hosts:/data/sub"]\n'),
        ("workdir", f'image = "{image}"\nworkdir = "/none\\npiolet: forged"\n'),
    ):
        edf = cluster.edf("alice", text, room, f"{name}.toml")
        assert cluster.srun("alice", edf, "-w", "node1", "-n2", "true").status != 0
    found = []
    for log, start in zip(logs, begin, strict=True):
        lines = log.read_text("utf-8", "replace")[start:].splitlines()
        found.append([line for line in lines if re.search(r"step \d+\.0 of uid \d+ failed: ", line)])
        assert not [line for line in lines if line.startswith("piolet: forged")]
    of_slurmd, of_pioletd = found
    assert len(of_slurmd) == 2, of_slurmd
    assert f"of uid {uid} failed: cannot mount /etc/hosts at /data/sub in the container" in of_slurmd[0]
    assert f"of uid {uid} failed: cannot enter the working directory /none?piolet: forged of the cont" in of_slurmd[1]
    assert len(of_pioletd) == 2, of_pioletd
    assert f"of uid {uid} failed: cannot enter the working directory /none?piolet: forged of the cont" in of_pioletd[1]
    assert f"of uid {uid} failed: cannot mount /etc/hosts at /data/sub in the container" in of_pioletd[0]
