"""On a shared node, what belongs to a running job of another user is no leftover. Trees of /proc are simulated."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from piolet.api import Context
from piolet.vet.evals import leftovers


def context(root: str = "") -> Context:
    return Context("n1", time.monotonic() + 10, ("n1",), os.getuid(), root=root)


def process(
    root: Path, pid: int, name: str, state: str, uid: int, parent: int = 1, group: str = "/system.slice/x.service"
) -> None:
    (root / f"proc/{pid}").mkdir(parents=True)
    (root / f"proc/{pid}/stat").write_text(f"{pid} ({name}) {state} {parent} 1 1")
    (root / f"proc/{pid}/status").write_text(f"Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    (root / f"proc/{pid}/cgroup").write_text(f"0::{group}\n")


def look_for_leftovers(root: Path) -> str:
    (root / "dev/shm").mkdir(parents=True, exist_ok=True)
    return leftovers.Leftovers(max_shm=0.0001).check(context(str(root))).reason


def test_a_running_job_of_another_user_is_no_leftover(tmp_path: Path) -> None:
    """Of two jobs on a shared node, one has ended without one of its processes."""
    scope = "/system.slice/slurmstepd.scope"
    process(tmp_path, 1, "init", "S", 0)
    process(tmp_path, 50, "slurmstepd", "S", 0, group=f"{scope}/job_12/step_0/slurm")
    process(tmp_path, 51, "train", "R", 54321, 50, f"{scope}/job_12/step_0/user/task_0")
    process(tmp_path, 52, "daemonised", "S", 54321, 1, f"{scope}/job_12/step_0/user/task_0")
    assert look_for_leftovers(tmp_path) == ""
    process(tmp_path, 60, "left", "S", 54322, 1, f"{scope}/job_11/step_0/user/task_0")
    assert look_for_leftovers(tmp_path) == "1 processes of other users (left 60 of 54322)"
    process(tmp_path, 61, "escaped", "S", 54321)  # of the running job's user, in no job's group: left by an older one
    assert "left 60 of 54322, escaped 61 of 54321" in look_for_leftovers(tmp_path)


def test_a_running_job_without_control_groups(tmp_path: Path) -> None:
    process(tmp_path, 1, "init", "S", 0)
    process(tmp_path, 50, "slurmstepd", "S", 0)
    process(tmp_path, 51, "train", "R", 54321, 50)
    process(tmp_path, 52, "worker", "R", 54321, 51)
    process(tmp_path, 53, "daemonised", "S", 54321)
    assert look_for_leftovers(tmp_path) == ""
    process(tmp_path, 60, "slurmstepd", "S", 54322)  # anybody can call a process so
    process(tmp_path, 61, "left", "S", 54322, 60)
    assert look_for_leftovers(tmp_path).startswith("2 processes of other users")


def test_what_a_running_job_has_in_memory_is_its_own(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: a file of another user")
    process(tmp_path, 1, "init", "S", 0)
    (tmp_path / "dev/shm").mkdir(parents=True)
    big = tmp_path / "dev/shm/big"
    big.write_bytes(b"x" * 1_000_000)
    os.chown(big, 54321, 54321)
    assert "GB in /dev/shm" in look_for_leftovers(tmp_path)
    process(tmp_path, 50, "slurmstepd", "S", 0, group="/slurm/uid_54321/job_12/step_0")
    process(tmp_path, 51, "train", "R", 54321, 50, "/slurm/uid_54321/job_12/step_0")
    assert look_for_leftovers(tmp_path) == ""
