"""Children of the monitor, by what cannot become another process's; and the control groups that they are moved to."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from piolet.node import cgroups, children


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


def test_a_fork_that_fails_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            if children.fork(set()) is None:
                signal.pause()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_groups_that_are_not_of_a_step_are_left_out() -> None:
    found = [("memory", "/slurm_node1/uid_1/job_7/step_0"), ("", "/system.slice/slurmd.service"), ("cpu,cpuacct", "/")]
    assert cgroups.of_steps(found) == found[:1]
    assert ("", cgroups.of(os.getpid())[-1][1]) == cgroups.of(os.getpid())[-1]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="control groups are made by root")
_V2 = next(
    (place for place in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if Path(place, "cgroup.procs").exists()), ""
)


@needs_root
@pytest.mark.skipif(not _V2, reason="no control groups of version 2 are mounted here")
def test_a_steps_group_is_found_and_killed() -> None:
    own = cgroups.of(os.getpid())[-1][1].rstrip("/")
    name = f"{own}/piolet-test-{os.getpid()}/job_7/step_0"
    step = Path(f"{_V2}{name}")
    (step / "user").mkdir(parents=True)
    try:
        process = subprocess.Popen(["sleep", "100"])
        (step / "user" / "cgroup.procs").write_text(str(process.pid))
        groups = cgroups.of_steps(cgroups.of(process.pid))
        assert groups[-1] == ("", f"{name}/user")
        assert cgroups.open_step(groups, 8) is None, "another job's"
        held = cgroups.open_step(groups, 7)
        assert held is not None
        cgroups.kill(held)
        assert process.wait(20) == -signal.SIGKILL
        end = time.monotonic() + 20
        while (step / "user" / "cgroup.procs").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        (step / "user").rmdir()
        step.rmdir()
        step.mkdir()  # another step of that name: what is held is not that one
        with pytest.raises(OSError, match=r"No such (file|device)"):
            cgroups.kill(held)
        os.close(held)
    finally:
        for directory in (step / "user", step, step.parent, step.parent.parent):
            if directory.exists():
                directory.rmdir()
