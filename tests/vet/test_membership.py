"""Whose task a vetting is, is root's word: its job and step by its control groups, or by the slurmstepd above it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.node.root import vettask
from piolet.steps import hierarchies
from piolet.steps.hierarchies import Group, Hierarchy

from tests.wire.test_trust import NOBODY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the processes have that are tested")


def hierarchy(version: int) -> str | None:
    """Return where a hierarchy of that version is mounted, in which groups can be made."""
    for group in hierarchies.parse(Path("/proc/self/cgroup").read_text()):
        root = hierarchies.directory(Group(group.controllers, "/"), hierarchies.own_mounts())
        # cpuset takes no process before it is set up.
        usable = root is not None and os.access(root, os.W_OK) and "cpuset" not in group.controllers
        if usable and version == (1 if group.controllers else 2):
            return root
    return None


@pytest.fixture(params=[1, 2])
def step(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A control group of a step, as Slurm makes them."""
    found = hierarchy(request.param)
    if found is None:
        pytest.skip(f"no control groups of version {request.param} can be made here")
    group = Path(found) / f"piolet-test-{os.getpid()}" / "uid_1" / "job_77" / "step_3" / "task_0"
    group.mkdir(parents=True)
    yield group
    for path in [group, *list(group.parents)[:4]]:
        path.rmdir()


def inside(group: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sleep", "1000"], user=NOBODY, group=NOBODY, extra_groups=[])
    (group / "cgroup.procs").write_text(str(process.pid))
    return process


def test_job_and_step_are_those_of_the_control_group(step: Path) -> None:
    process = inside(step)
    try:
        task = vettask.look_up(process.pid, NOBODY)
        assert vettask.place_of(task, hierarchies.own_mounts()) == vettask.Membership("77", "3", "cgroup")
        # One who is handed a part of the tree makes what names they like there.
        os.chown(step.parents[1], NOBODY, NOBODY)
        assert vettask.place_of(task, hierarchies.own_mounts()).found == "unknown"
    finally:
        process.kill()
        process.wait()


def test_a_vetting_enters_its_steps_group_or_fails(step: Path) -> None:
    process = inside(step)
    code = (
        "import sys; from piolet.node.root.vettask import adopt, look_up\n"
        "task = look_up(int(sys.argv[1]), int(sys.argv[2]))\n"
        "if len(sys.argv) > 3: task.cgroups[:] = [type(g)(g.controllers, '/job_1/step_9') for g in task.cgroups]\n"
        "adopt(task)\nprint(open('/proc/self/cgroup').read())\n"
    )
    command = [sys.executable, "-c", code, str(process.pid), str(NOBODY)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "/job_77/step_3/task_0" in done.stdout, done.stderr
        done = subprocess.run([*command, "x"], capture_output=True, text=True, check=False)
        assert "the step's control group /job_1/step_9" in done.stderr and "cannot be entered" in done.stderr
    finally:
        process.kill()
        process.wait()


def test_all_hierarchies_are_entered() -> None:
    """Memory, cpuset, devices, freezer and whatever else there is, of both versions at once."""
    process = subprocess.Popen(["sleep", "1000"], user=NOBODY, group=NOBODY, extra_groups=[])
    made: list[Path] = []
    try:
        for group in hierarchies.parse(Path(f"/proc/{process.pid}/cgroup").read_text()):
            root = hierarchies.directory(Group(group.controllers, "/"), hierarchies.own_mounts())
            if root is None or not os.access(root, os.W_OK):
                continue
            path = Path(root) / f"piolet-test-{os.getpid()}"
            for part in (path, path / "job_77", path / "job_77" / "step_3"):
                part.mkdir()
                made.append(part)
                for name in ("cpuset.cpus", "cpuset.mems") if "cpuset" in group.controllers else ():
                    (part / name).write_text((part.parent / name).read_text())
            (made[-1] / "cgroup.procs").write_text(str(process.pid))
        if not made:
            pytest.skip("no control groups can be made here")
        code = (
            "import sys; from piolet.node.root.vettask import adopt, look_up\n"
            "adopt(look_up(int(sys.argv[1]), int(sys.argv[2])))\nprint(open('/proc/self/cgroup').read(), end='')\n"
        )
        command = [sys.executable, "-c", code, str(process.pid), str(NOBODY)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout == Path(f"/proc/{process.pid}/cgroup").read_text(), done.stderr
        assert done.stdout.count("/job_77/step_3") == len(made) // 3
    finally:
        process.kill()
        process.wait()
        for part in reversed(made):
            part.rmdir()


MOUNTINFO = """\
30 20 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / {top}/systemd rw shared:10 - cgroup cgroup rw,xattr,name=systemd
32 30 0:28 / {top}/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / {top}/memory rw shared:12 - cgroup cgroup rw,memory
34 30 0:30 /part {top}/with\\040space rw shared:13 - cgroup2 cgroup2 rw,nsdelegate
"""


def test_hierarchies_are_found_by_their_controllers(tmp_path: Path) -> None:
    """Whatever the order of a combined one's name, and where only a part is mounted."""
    top = tmp_path / "cgroup"
    for path in ("systemd", "cpu,cpuacct/slurm/job_5/step_0", "memory/slurm/job_5/step_0", "with space/slurm/job_5"):
        (top / path).mkdir(parents=True)
    seen = hierarchies.mounts(MOUNTINFO.format(top=top))
    groups = hierarchies.parse(
        "4:name=systemd:/\n3:cpuacct,cpu:/slurm/job_5/step_0\n2:memory:/slurm/job_5/step_0\n0::/part/slurm/job_5\n"
    )
    found = [hierarchies.directory(group, seen) for group in groups]
    assert found == [
        str(top / path)
        for path in ("systemd", "cpu,cpuacct/slurm/job_5/step_0", "memory/slurm/job_5/step_0", "with space/slurm/job_5")
    ]
    assert hierarchies.directory(Group((), "/slurm/job_5"), seen) is None
    assert hierarchies.directory(Group((), "/part/../slurm"), seen) is None
    assert hierarchies.directory(Group(("pids",), "/"), seen) is None


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/slurm_node1/uid_7/job_5/step_0/task_1", ("5", "0")),
        ("/system.slice/slurmstepd.scope/job_5/step_batch/user/task_0", ("5", "batch")),
        ("/system.slice/node1_slurmstepd.scope/sG5ZQW0K3HB/step_0", ("sG5ZQW0K3HB", "0")),
        ("/slurm/uid_7/job_5", ("5", None)),
        ("/slurm/job_5/step_0/job_6/step_1", ("5", "0")),
        ("/user.slice/user-1000.slice", None),
        ("/step_0", None),
        ("/slurm/job_5/step_<", None),
    ],
)
def test_names_of_steps(tmp_path: Path, path: str, found: tuple[str, str | None] | None) -> None:
    (tmp_path / path[1:]).mkdir(parents=True)
    assert hierarchies.step_of([Group((), path)], [Hierarchy((), "/", str(tmp_path))]) == found


def test_groups_of_a_step_by_controller(tmp_path: Path) -> None:
    """The step's, not the task's; each controller of a combined hierarchy; whatever the job is called in the path."""
    for path in ("a/job_5/step_0/task_0", "b/s1KXQ/step_0/user/task_0", "c"):
        (tmp_path / path).mkdir(parents=True)
    seen = [Hierarchy(("cpuacct", "cpu"), "/", str(tmp_path / "a")), Hierarchy((), "/", str(tmp_path / "b"))]
    groups = [
        Group(("cpu", "cpuacct"), "/job_5/step_0/task_0"),
        Group((), "/s1KXQ/step_0/user/task_0"),
        Group(("pids",), "/"),
        Group(("memory",), "/job_5/step_0"),
    ]
    assert hierarchies.of_step(groups, seen) == [
        ("cpu", str(tmp_path / "a/job_5/step_0")),
        ("cpuacct", str(tmp_path / "a/job_5/step_0")),
        ("", str(tmp_path / "b/s1KXQ/step_0")),
    ]


def test_hierarchies_that_do_not_agree_are_none(tmp_path: Path) -> None:
    for path in ("a/job_5/step_0", "b/job_6/step_0"):
        (tmp_path / path).mkdir(parents=True)
    seen = [Hierarchy(("cpu",), "/", str(tmp_path / "a")), Hierarchy(("memory",), "/", str(tmp_path / "b"))]
    assert hierarchies.step_of([Group(("cpu",), "/job_5/step_0"), Group(("memory",), "/job_6/step_0")], seen) is None


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody can enter."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.parametrize(
    ("program", "owner", "uid", "found"),
    [
        ("slurmstepd-wlm", 0, 0, ("12345", "0")),
        ("bash", 0, 0, None),
        ("slurmstepd", NOBODY, 0, None),
        ("slurmstepd", 0, NOBODY, None),
    ],
    ids=["root's", "another program", "a user's program", "a user's process"],
)
def test_the_slurmstepd_above(public: Path, program: str, owner: int, uid: int, found: tuple[str, str] | None) -> None:
    """Where Slurm makes no control groups; whoever only calls themselves so is not believed."""
    path = public / program
    shutil.copy(shutil.which("bash") or "", path)
    path.chmod(0o755)
    os.chown(path, owner, owner)
    script = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups sh -c 'sleep 1000 & echo $!; wait' & wait"
    if uid:
        script = "sh -c 'sleep 1000 & echo $!; wait' & wait"
    stepd = subprocess.Popen(
        ["slurmstepd: [12345.0]", "-c", script], executable=path, stdout=subprocess.PIPE, user=uid, group=uid,
        extra_groups=[], start_new_session=True, cwd="/",
    )  # fmt: skip
    try:
        assert stepd.stdout is not None
        task = vettask.look_up(int(stepd.stdout.readline()), NOBODY)
        assert task.cgroups
        place = vettask.place_of(task, [])
        assert place == (
            vettask.Membership(*found, "slurmstepd") if found else vettask.Membership(None, None, "unknown")
        )
    finally:
        os.killpg(stepd.pid, signal.SIGKILL)
        stepd.communicate()
