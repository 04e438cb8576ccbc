"""Sources of a step: its control groups and its processes, from recorded trees and from processes that run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.api import Place, Target, Unavailable
from piolet.observe.sources.files import Files, Moved, gained
from piolet.observe.sources.groups import Groups
from piolet.samples.collectors.host import HostCollector

from .trees import SECOND, only, opened, plant

TWO = "/sys/fs/cgroup/slurm/job_1/step_0"
STAT = "{} ({}) {} {} 1 1 0 -1 0 0 0 0 0 5 5 0 0 20 0 1 0 {} 1 1\n"


def process(pid: int, state: str = "R", name: str = "python", parent: int = 1, began: int = 5) -> dict[str, str]:
    return {f"/proc/{pid}/stat": STAT.format(pid, name, state, parent, began)}


def two(kills: int) -> dict[str, str]:
    return {
        f"{TWO}/memory.stat": "anon 700\nfile 300\n", f"{TWO}/memory.max": "max\n",
        f"{TWO}/memory.events": f"low 0\nhigh 0\nmax 3\noom 1\noom_kill {kills}\n",
        "/sys/fs/cgroup/slurm/job_1/memory.max": "5000\n", f"{TWO}/cgroup.procs": "",
        f"{TWO}/task_0/cgroup.procs": "11\n12\n",
    }  # fmt: skip


def test_version_2(tmp_path: Path) -> None:
    """The limit is the job's; kills are of the span; a process in state D is told."""
    plant(tmp_path, {**two(1), **process(11), **process(12, "D", ") D (")})
    source = opened(Groups, tmp_path, ("", TWO))
    source.read(SECOND)
    plant(tmp_path, two(3))
    assert only(source.read(11 * SECOND)) == {
        "memory_file": 300.0, "memory_limit": 5000.0, "out_of_memory": 2.0, "processes": 2.0, "blocked": 1.0,
    }  # fmt: skip
    assert source.blanks == {}


def test_version_1_counts_kills_in_each_group(tmp_path: Path) -> None:
    memory, freezer = "/sys/fs/cgroup/memory/uid_1/job_1/step_0", "/sys/fs/cgroup/freezer/uid_1/job_1/step_0"
    control = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
    plant(tmp_path, {
        f"{memory}/memory.stat": "cache 1\ntotal_cache 40\n", f"{memory}/memory.limit_in_bytes": "900\n",
        f"{memory}/memory.oom_control": control.format(1), f"{memory}/task_0/memory.oom_control": control.format(2),
        f"{freezer}/cgroup.procs": "11\n", **process(11),
    })  # fmt: skip
    source = opened(Groups, tmp_path, ("memory", memory), ("freezer", freezer))
    source.read(SECOND)
    plant(tmp_path, {f"{memory}/task_0/memory.oom_control": control.format(5)})
    assert only(source.read(11 * SECOND)) == {
        "memory_file": 40.0, "memory_limit": 900.0, "out_of_memory": 3.0, "processes": 1.0, "blocked": 0.0,
    }  # fmt: skip


def test_groups_that_are_gone_are_those_of_a_step_that_ended(tmp_path: Path) -> None:
    """They go before the next look: that is no fault of a source, and no path is in the reason."""
    plant(
        tmp_path, {**two(0), f"{TWO}/cpu.stat": "usage_usec 5\n", "/proc/stat": "cpu 1\n", **process(11), **process(12)}
    )
    source, host = opened(Groups, tmp_path, ("", TWO)), HostCollector()
    host.open(Target(groups=(("", TWO),), root=str(tmp_path)))
    source.read(SECOND)
    host.read(SECOND)
    host.blanks.clear()
    shutil.rmtree(f"{tmp_path}{TWO}")
    source.read(11 * SECOND)
    host.read(11 * SECOND)
    reasons = {reason for _, reason in {**source.blanks, **host.blanks} if "control group is" in reason}
    assert reasons == {"the control group is gone: the step has ended"}
    assert not [why for _, why in {**source.blanks, **host.blanks} if "Errno" in why or str(tmp_path) in why]


def test_without_a_limit_there_is_none_and_no_number(tmp_path: Path) -> None:
    plant(tmp_path, {**two(0), "/sys/fs/cgroup/slurm/job_1/memory.max": "max\n", **process(11), **process(12)})
    source = opened(Groups, tmp_path, ("", TWO))
    assert source.never == {"memory_limit": "the step has no limit"}
    assert "memory_limit" not in only(source.read(SECOND))


def test_processes_that_cannot_be_seen_are_not_counted_as_none(tmp_path: Path) -> None:
    plant(tmp_path, two(0))
    source = opened(Groups, tmp_path, ("", TWO))
    assert "blocked" not in only(source.read(SECOND))
    assert source.blanks == {("", "/proc does not show the step's processes"): 1}


@pytest.mark.parametrize("kind", [Groups, Files])
def test_a_step_without_control_groups_has_a_reason(tmp_path: Path, kind: type[Groups] | type[Files]) -> None:
    with pytest.raises(Unavailable, match="no control group"):
        opened(kind, tmp_path)


def test_what_a_child_moved_is_in_its_parent_once_it_was_waited_for() -> None:
    """It was counted while it ran, and is not counted again."""
    last = {(1, 0): Moved(0, 100.0, 10.0), (2, 0): Moved(1, 50.0, 5.0)}
    now = {(1, 0): Moved(0, 100.0 + 80.0 + 7.0, 10.0 + 9.0)}
    assert gained(last, now) == (80.0 + 7.0 - 50.0, 9.0 - 5.0)


def test_a_child_that_nobody_of_the_step_waited_for_takes_nothing_away() -> None:
    last = {(1, 0): Moved(0, 100.0, 10.0), (2, 0): Moved(1, 50.0, 5.0)}
    assert gained(last, {(1, 0): Moved(0, 130.0, 10.0)}) == (0.0, 0.0)
    assert gained(last, {(1, 0): Moved(0, 100.0, 10.0), (2, 9): Moved(1, 4.0, 3.0)}) == (4.0, 3.0)


def test_a_process_of_our_own_moves_what_it_says(tmp_path: Path) -> None:
    """Second witness: the process writes so many bytes, and a child of its own, which it waits for, as many again."""
    script = (
        "import os,sys\nsys.stdin.readline()\nopen(sys.argv[1],'wb').write(b'x'*1000000)\n"
        "p=os.fork()\nif p==0:\n f=open(sys.argv[1],'wb'); f.write(b'y'*1000000); f.flush(); os._exit(0)\n"
        "os.waitpid(p,0)\nos.write(1,b'done')\nsys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        group = tmp_path / "group"
        plant(tmp_path, {"group/cgroup.procs": f"{child.pid}\n"})
        source = Files()
        source.open(Place(groups=(("", str(group)),)))
        source.read(SECOND)
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert os.read(child.stdout.fileno(), 4) == b"done"
        values = only(source.read(2 * SECOND))
        assert values["file_write"] == pytest.approx(2_000_000, abs=100)
        child.stdin.write(b"\n")
        child.stdin.flush()


@pytest.mark.parametrize("kind", [Groups, Files])
def test_groups_without_end_are_not_walked(tmp_path: Path, kind: type[Groups] | type[Files]) -> None:
    """A user may make groups below the step's own, and as many as the kernel lets."""
    plant(tmp_path, {**two(0), **{f"{TWO}/more/{number}/cgroup.procs": "" for number in range(1100)}})
    source = opened(kind, tmp_path, ("", TWO))
    for row in source.read(SECOND):
        assert "processes" not in row.values
    assert ("", "the step has more than 1024 control groups") in source.blanks
