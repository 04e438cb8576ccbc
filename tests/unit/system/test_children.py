"""Children of the monitor, by what cannot become another process's; and the control group of a step."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from piolet.node.root import leftovers
from piolet.steps import hierarchies
from piolet.system import children


def ended(child: children.Child) -> int:
    assert select.select([child.pidfd], [], [], 20)[0]
    status = child.collect()
    assert status is not None
    return status


def test_how_a_child_ended() -> None:
    child = children.fork(set())
    if child is None:
        os._exit(7)
    assert ended(child) == 7
    child = children.fork(set())
    if child is None:
        signal.pause()
        os._exit(0)
    assert child.collect() is None
    child.kill()
    assert ended(child) == -signal.SIGKILL


def test_a_child_that_was_collected_is_nobody() -> None:
    """Its number may be another process's by now, which is not to be killed or opened in its place."""
    child = children.fork(set())
    if child is None:
        os._exit(0)
    ended(child)
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        child.pid = bystander.pid
        child.kill()
        with pytest.raises(ProcessLookupError):
            child.open("ns/user")
        with pytest.raises(ProcessLookupError):
            child.write_map("uid_map", [(0, 0)])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_child_has_no_descriptor_but_those_that_it_is_to_have(tmp_path: Path) -> None:
    secret = os.open(tmp_path, os.O_RDONLY)
    read, write = os.pipe()
    child = children.fork({write})
    if child is None:
        os.write(write, " ".join(os.listdir("/proc/self/fd")).encode())
        os._exit(0)
    assert ended(child) == 0
    numbers = set(map(int, os.read(read, 4096).split()))
    assert secret not in numbers and {number for number in numbers if number > 2} - {write} <= {3}, "3 is the listing"
    for descriptor in (secret, read, write):
        os.close(descriptor)


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_a_fork_that_fails_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    running = _children()
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            if children.fork(set()) is None:
                signal.pause()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) == set(before)
    assert _children() == running


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="control groups are made by root")
_V2 = next(
    (place for place in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if Path(place, "cgroup.procs").exists()), ""
)


def _group(pid: int) -> hierarchies.Group:
    """Return the group of version 2 that a process is in."""
    return next(group for group in hierarchies.of(pid) if not group.controllers)


@needs_root
@pytest.mark.skipif(not _V2, reason="no control groups of version 2 are mounted here")
def test_a_steps_group_is_found_and_killed() -> None:
    own = _group(os.getpid()).path.rstrip("/")
    name = f"{own}/piolet-test-{os.getpid()}/job_7/step_0"
    step = Path(f"{_V2}{name}")
    (step / "user" / "task_0").mkdir(parents=True)
    try:
        process = subprocess.Popen(["sleep", "100"])
        (step / "user" / "task_0" / "cgroup.procs").write_text(str(process.pid))
        groups = [_group(process.pid)]
        assert groups[0].path == f"{name}/user/task_0" and hierarchies.in_step(groups[0])
        assert hierarchies.step_group(groups, "8", "0") is None, "another job's"
        assert hierarchies.step_group(groups, "7", "1") is None, "another step's"
        step.chmod(0o777)
        assert hierarchies.step_group(groups, "7", "0") is None, "one that a user may have made"
        step.chmod(0o755)
        leftovers._kill_group(process.pid, "7.1")
        assert process.poll() is None
        leftovers._kill_group(process.pid, "7.0")
        assert process.wait(20) == -signal.SIGKILL
    finally:
        _remove(step / "user" / "task_0", 4)


def _remove(group: Path, levels: int) -> None:
    """Remove a group, once the kernel has forgotten who was in it, and those above it."""
    end = time.monotonic() + 20
    for _ in range(levels + 1):
        while True:
            try:
                group.rmdir()
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)
        group = group.parent


def test_the_groups_of_a_step_are_those_of_its_task() -> None:
    """Not before there is one."""
    code = "import os, sys, time; sys.stdin.readline(); os.fork() or time.sleep(100); time.sleep(100)"
    stepd = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True, process_group=0)
    try:
        assert hierarchies.children_of(stepd.pid) == []
        assert hierarchies.of_task(stepd.pid, 0.05) == [], "it is in no group of Slurm's, and has no task"
        assert stepd.stdin is not None
        stepd.stdin.write("go\n")
        stepd.stdin.flush()
        assert hierarchies.of_task(stepd.pid, 20) == hierarchies.of(stepd.pid)
        assert len(hierarchies.children_of(stepd.pid)) == 1
    finally:
        os.killpg(stepd.pid, signal.SIGKILL)
        stepd.communicate()
