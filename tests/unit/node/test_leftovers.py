"""What is left of a step is killed by its control group, and no other's is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from piolet.node.root import leftovers
from piolet.steps import hierarchies

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="control groups are made by root")
_V2 = next(
    (place for place in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if Path(place, "cgroup.procs").exists()), ""
)


def _group(pid: int) -> hierarchies.Group:
    """Return the group of version 2 that a process is in."""
    return next(group for group in hierarchies.of(pid) if not group.controllers)


@needs_root
@pytest.mark.skipif(not _V2, reason="no control groups of version 2 are mounted here")
@pytest.mark.parametrize("called", ["step_0", "step_0+1"])
def test_a_steps_group_is_found_and_killed(called: str) -> None:
    """Also where it is a component's."""
    own = _group(os.getpid()).path.rstrip("/")
    name = f"{own}/piolet-test-{os.getpid()}/job_7/{called}"
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
