"""Which control groups are steps, and whose."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.observe import found
from piolet.observe.found import Finder
from piolet.steps import hierarchies
from piolet.steps.hierarchies import Group, Hierarchy

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="control groups of steps are root's")
UID = 65534


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree in the stead of a hierarchy; processes are in what their number is written to."""
    tree = tmp_path / "cgroup"
    (tree / "slurm").mkdir(parents=True)

    def of(pid: int) -> list[Group]:
        for file in tree.rglob("cgroup.procs"):
            if str(pid) in file.read_text().split():
                return [Group((), "/" + str(file.parent.relative_to(tree)))]
        return []

    monkeypatch.setattr(hierarchies, "of", of)
    monkeypatch.setattr(hierarchies, "own_mounts", lambda: [Hierarchy((), "/", str(tree))])
    return tree


def put(directory: Path, *pids: int) -> Path:
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return directory


@pytest.fixture
def task() -> int:  # type: ignore[misc]
    process = subprocess.Popen(["sleep", "100"], user=UID, group=UID)
    yield process.pid
    process.kill()
    process.wait()


def test_a_step_is_found_where_slurm_usually_makes_it_and_is_its_users(top: Path, task: int) -> None:
    place = put(top / "slurm/uid_65534/job_7/step_0", task, os.getpid())
    finder = Finder()
    (step,) = finder.look().values()
    assert (step.job, step.step, step.uid, step.gid, step.place[0]) == ("7", "0", UID, UID, str(place))
    assert step.groups == (("", str(place)),)
    (again,) = finder.look().values()
    assert again is step
    (place / "cgroup.procs").unlink()
    place.rmdir()
    assert finder.look() == {}


def test_a_place_of_another_version_of_slurm_is_learnt_from_a_process(top: Path, task: int) -> None:
    put(top / "elsewhere/deep.scope/job_s1abc/step_batch", task)
    (step,) = Finder().look().values()
    assert (step.job, step.step) == ("s1abc", "batch")


@pytest.fixture
def stepd(tmp_path: Path) -> Iterator[int]:
    """A process of root's that is called as slurmstepd is, with the title of step 815.0."""
    program = tmp_path / "slurmstepd"
    shutil.copy(shutil.which("sleep") or "", program)
    process = subprocess.Popen(["slurmstepd: [815.0]", "100"], executable=program)
    time.sleep(0.02)  # what starts later is younger by a clock tick
    yield process.pid
    process.kill()
    process.wait()


def test_a_job_that_is_named_by_its_sluid_has_its_number_from_its_slurmstepd(top: Path, stepd: int, task: int) -> None:
    place = put(top / "system.slice/slurmstepd.scope/sG5ZQW0K3HB/step_0", stepd, task)
    put(top / "system.slice/slurmstepd.scope/system")
    (step,) = Finder().look().values()
    assert (step.job, step.step, step.uid) == ("815", "0", UID)
    assert step.groups == (("", str(place)),)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that every user may read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_process_that_a_user_calls_slurmstepd_gives_no_number(top: Path, open_to_all: Path) -> None:
    program = open_to_all / "slurmstepd"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen(["slurmstepd: [999.0]", "100"], executable=program, user=UID, group=UID) as process:
        put(top / "sG5ZQW0K3HB/step_0", process.pid)
        (step,) = Finder().look().values()
        assert (step.job, step.step, step.uid) == ("sG5ZQW0K3HB", "0", UID)
        process.kill()


def test_groups_that_a_user_made_are_no_steps(top: Path, task: int) -> None:
    """A user may make job_1/step_0 where a part of the tree is that user's: the job's group then is no root's."""
    place = put(top / "user.slice/mine/job_7/step_0", task)
    for part in (place.parent, place.parent.parent):
        os.chown(part, UID, UID)
    assert Finder().look() == {}


def test_version_1_gives_a_steps_group_to_its_user(top: Path, task: int) -> None:
    os.chown(put(top / "slurm_node1/uid_65534/job_7/step_3", task), UID, UID)
    (step,) = Finder().look().values()
    assert (step.job, step.step, step.uid) == ("7", "3", UID)


def test_a_step_of_slurmstepd_alone_is_none_yet(top: Path) -> None:
    put(top / "slurm/job_7/step_extern")
    assert Finder().look() == {}


def test_a_step_that_is_begun_again_is_another(top: Path, task: int) -> None:
    """A job that was requeued has the same numbers, and another group."""
    place = put(top / "slurm/job_7/step_0", task)
    finder = Finder()
    (before,) = finder.look()
    (place / "cgroup.procs").unlink()
    place.rename(place.with_name("gone"))
    put(place, task)
    (after,) = finder.look()
    assert before != after


@pytest.mark.parametrize("name", ["job_.hidden", "job_-rf", "job_" + "1" * 80])
def test_odd_names_are_no_jobs(top: Path, task: int, name: str) -> None:
    put(top / "slurm" / name / "step_0", task)
    assert found.Finder().look() == {}
