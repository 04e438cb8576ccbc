"""Root's process for vetting: what a vetting leaves is ended wherever it hid, and whose task it was is root's word."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.node.root import descendants, kernellog, vettask, zygote
from piolet.node.root.zygote import Facts, Work, Zygote
from piolet.node.shares import Bound
from piolet.steps import hierarchies
from piolet.steps.hierarchies import Group, Hierarchy
from piolet.system import linux, peer

from tests.wire import messages
from tests.wire.test_trust import NOBODY, Listener, listener, running

__all__ = ["listener"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the processes have that are tested")


@contextlib.contextmanager
def vetting(listener: Listener, work: Work) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Begin a vetting; yield the server's end of the zygote's pair, what the task was sent, and the zygote's pid."""
    accepted, told = listener.connect_as(NOBODY, messages.vet(b"my plan"))
    with running(lambda channel: Zygote(channel, lambda: work, listener.file).run()) as channel:
        assert json.loads(channel.recv(256)) == {"began": True}
        read, write = os.pipe()
        socket.send_fds(channel, [b'{"key": 1}'], [accepted.fileno(), write])
        assert json.loads(channel.recv(256))["found"] == "unknown"
        yield channel, told, peer.of(channel).pid
        os.close(read)
        os.close(write)


def wait_ended(pidfd: int) -> bool:
    """Return whether the process ends soon; kill it and close its descriptor."""
    ended = bool(select.select([pidfd], [], [], 10)[0])
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    return ended


def hide(_plan: bytes, connection: int, _facts: Facts, _spool: int) -> None:
    """Be an eval that leaves a process behind, in a session of its own and without a parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.write(connection, str(os.getpid()).encode())
            time.sleep(1000)
        os._exit(0)
    time.sleep(1000)


@pytest.mark.parametrize("how", ["the task is gone", "the watcher is killed", "the zygote is killed"])
def test_what_hid_in_a_session_of_its_own_is_ended(listener: Listener, how: str) -> None:
    accepted, told = listener.connect_as(NOBODY, messages.vet(b"my plan"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    zygote = os.fork()
    if zygote == 0:
        try:
            ours.close()
            Zygote(theirs, lambda: hide, listener.file).run()
        finally:
            os._exit(0)
    theirs.close()
    try:
        read, write = os.pipe()
        assert json.loads(ours.recv(256)) == {"began": True}
        socket.send_fds(ours, [b'{"key": 1}'], [accepted.fileno(), write])
        hidden = os.pidfd_open(int(told.recv(64)))
        assert json.loads(ours.recv(256))["key"] == 1
        if how == "the task is gone":
            ours.send(b'{"end": 1}')
            assert json.loads(ours.recv(256)) == {"key": 1, "status": -signal.SIGKILL}
        elif how == "the zygote is killed":
            os.kill(zygote, signal.SIGKILL)
        else:
            (watcher,) = map(int, Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split())
            os.kill(watcher, signal.SIGKILL)
            assert json.loads(ours.recv(256)) == {"key": 1, "status": 1}
        assert wait_ended(hidden)
    finally:
        ours.close()
        for end in (read, write):
            os.close(end)
        os.waitpid(zygote, 0)


def test_a_storm_of_forks_is_ended(listener: Listener) -> None:
    """Each process forks the next and ends, in three chains; what is seen of them is gone by then."""

    def storm(_plan: bytes, connection: int, _facts: Facts, _spool: int) -> None:
        for _ in range(3):
            if os.fork() == 0:
                while True:
                    os.setsid()
                    if os.fork():
                        os._exit(0)
        os.write(connection, b"go")
        time.sleep(1000)

    accepted, told = listener.connect_as(NOBODY, messages.vet(b"my plan"))
    with running(lambda channel: Zygote(channel, lambda: storm, listener.file).run()) as channel:
        channel.recv(256)
        read, write = os.pipe()
        socket.send_fds(channel, [b'{"key": 1}'], [accepted.fileno(), write])
        channel.recv(256)
        assert told.recv(64) == b"go"
        # What runs of it holds the pipe's end: when it is read as ended, nothing does.
        os.close(write)
        channel.send(b'{"end": 1}')
        assert json.loads(channel.recv(256)) == {"key": 1, "status": -signal.SIGKILL}
        assert select.select([read], [], [], 0)[0] and os.read(read, 1) == b""
        os.close(read)


@pytest.mark.parametrize(
    "request_",
    [b"[]", b"1", b"{}", b'{"key":true}', b'{"key":1e999}', b"[" * 250, b"\xff", b'{"end":"1"}', b'{"end":99}'],
)
def test_no_request_ends_it(listener: Listener, request_: bytes) -> None:
    with running(lambda channel: Zygote(channel, _nobody_asks, listener.file).run()) as channel:
        channel.recv(256)
        channel.send(request_)
        channel.send(b'{"end": 1}')
        channel.shutdown(socket.SHUT_WR)
        # At its end it has read both.
        assert channel.recv(256) == b""


def _nobody_asks() -> Work:
    raise AssertionError("nobody has asked")


def test_the_child_cannot_be_looked_into(listener: Listener) -> None:
    """By a process of the same user: it could write verdicts, else."""

    def work(_plan: bytes, connection: int, _facts: Facts, spool: int) -> None:
        found = []
        parent = os.getpid()
        if os.fork() == 0:
            for name in ("mem", "environ", f"fd/{spool}"):
                try:
                    open(f"/proc/{parent}/{name}", "rb").close()
                    found.append(name)
                except PermissionError:
                    pass
            os.write(connection, repr(found).encode())
            os._exit(0)
        os.wait()

    with vetting(listener, work) as (channel, told, _):
        assert told.recv(64) == b"[]"
        assert json.loads(channel.recv(256))["status"] == 0


# -- where a task belongs


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


def test_end_all_says_what_it_cannot_end() -> None:
    """A process in a frozen group is not killed before that is thawed, as one is not that hangs in the kernel."""
    root = hierarchies.directory(Group(("freezer",), "/"), hierarchies.own_mounts())
    if root is None or not os.access(root, os.W_OK):
        pytest.skip("no control groups can be frozen here")
    group = Path(root) / f"piolet-frozen-{os.getpid()}"
    group.mkdir()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            descendants.collect_orphans()
            nothing_yet = descendants.end_all(1.0)
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            (group / "cgroup.procs").write_text(str(child.pid))
            (group / "freezer.state").write_text("FROZEN")
            frozen = descendants.end_all(0.2)
            (group / "freezer.state").write_text("THAWED")
            status = 0 if nothing_yet and not frozen and descendants.end_all(10.0) else 1
        finally:
            os._exit(status)
    try:
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        (group / "freezer.state").write_text("THAWED")
        group.rmdir()


# -- the kernel's log


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (
            b"4,1234,5678,-;NVRM: Xid (PCI:0000:01:00): 13, pid=4242, name=train, NVRM: Xid (PCI:0000:02:00): 79\n",
            "NVRM: Xid (PCI:0000:01:00): 13 ...",
        ),
        (b"4,1,2,-;NVRM: Xid (PCI:0000:01:00): 48, DBE at 0x1f\n", "NVRM: Xid (PCI:0000:01:00): 48, DBE at 0x1f"),
        (
            b"3,1,2,-;amdgpu 0000:c3:00.0: amdgpu: page fault (src_id:0, for process train pid 7 thread x)",
            "amdgpu 0000:c3:00.0: amdgpu: page fault (src_id:0, for ...",
        ),
        (b"3,1,2,-;pcieport 0000:00:01.0: AER: Corrected error\n", "pcieport 0000:00:01.0: AER: Corrected error"),
        (b"4,1,2,-;mlx5_core 0000:81:00.0: temperature\n SUBSYSTEM=pci\n", "mlx5_core 0000:81:00.0: temperature"),
        (b"6,1,2,-;oom-kill: task=AER: NVRM: Xid ,pid=7,uid=1000\n", None),
        (b"12,1,2,-;NVRM: Xid (PCI:0000:01:00): 79, a program wrote it\n", None),
        (b"x;NVRM: Xid (PCI:0000:01:00): 79\n", None),
        (b"", None),
    ],
)
def test_lines_of_devices_name_no_process(entry: bytes, line: str | None) -> None:
    assert kernellog.of_device(entry) == line


def test_a_vetting_has_not_the_daemons_log(listener: Listener) -> None:
    """What a daemon holds, its children hold."""

    def work(_plan: bytes, connection: int, _facts: Facts, _spool: int) -> None:
        mine = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
        with open("/proc/self/oom_score_adj") as file:
            os.write(connection, f"{mine} {file.read().strip()}".encode())

    accepted, told = listener.connect_as(NOBODY, messages.vet(b"my plan"))
    Path(f"/proc/{peer.of(accepted).pid}/oom_score_adj").write_text("321")
    with running(lambda channel: Zygote(channel, lambda: work, listener.file).run()) as channel:
        channel.recv(256)
        read, write = os.pipe()
        socket.send_fds(channel, [b'{"key": 1}'], [accepted.fileno(), write])
        assert told.recv(256).decode() == f"{['/dev/null'] * 3} 321"
        for end in (read, write):
            os.close(end)


def test_a_user_who_holds_up_all_their_vettings_holds_up_no_more(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that reads what is theirs may hang for as long as they like."""
    monkeypatch.setattr(zygote, "VETTINGS", Bound(each=2, total=512))

    def work(_plan: bytes, _connection: int, _facts: Facts, _spool: int) -> None:
        time.sleep(1000)

    accepted = [listener.connect_as(NOBODY - (number == 3), messages.vet(b"my plan"))[0] for number in range(4)]
    with running(lambda channel: Zygote(channel, lambda: work, listener.file).run()) as channel:
        channel.recv(256)
        read, write = os.pipe()
        told: dict[int, bool] = {}
        for key, one in enumerate(accepted):
            socket.send_fds(channel, [b'{"key": %d}' % key], [one.fileno(), write])
        while len(told) < 4:
            answer = json.loads(channel.recv(256))
            told.setdefault(answer["key"], "status" in answer)
        assert told == {0: False, 1: False, 2: True, 3: False}
        for end in (read, write):
            os.close(end)


def test_whoever_becomes_a_user_leaves_roots_keys_behind() -> None:
    """The keys of a session belong to whoever holds a process of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    keyctl = {"x86_64": 250, "aarch64": 219}.get(platform.machine(), -1)
    if libc.syscall(keyctl, 0, -3, 0) < 0:
        pytest.skip("no keys can be had here")
    pid = os.fork()
    if pid == 0:
        before = libc.syscall(keyctl, 1, None)
        linux.become(NOBODY, NOBODY, [])
        os._exit(0 if before > 0 and libc.syscall(keyctl, 0, -3, 0) != before else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_deep_tree_is_found_and_ended() -> None:
    """By a pass over all that is below, not one generation after the other."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            descendants.collect_orphans()
            read, write = os.pipe()
            generation = 0
            while generation < 30 and os.fork() == 0:
                generation += 1
                os.setsid()
                os.write(write, b"x")
            if generation:
                signal.pause()
            told = b""
            while len(told) < 30:
                told += os.read(read, 30)
            table = descendants._table()
            below = descendants._below(os.getpid(), table)
            for one in below:
                descendants._kill(one, table)
            # Those whose parent was killed first have another one by now: they are left for the next pass.
            status = 0 if len(below) == 30 and descendants.end_all(10.0) else 1
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
