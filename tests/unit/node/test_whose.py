"""Whose a process is that the kernel's log names: real processes, and what a process chooses about itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from piolet.node.root.whose import NOBODY, Whose, whose
from piolet.system import linux

USER = 65534
Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process of a user's that waits; it is there, with its name, when the call returns."""
    pids = []

    def begin(uid: int, name: str = "python3") -> int:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                if uid != os.getuid():
                    linux.become(uid, uid, [])
                linux.set_name(name)
                os.write(write, b"x")
                signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
        os.close(write)
        assert os.read(read, 1) == b"x"
        os.close(read)
        return pid

    yield begin
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("name", ["python3", "a) S 1 1", "x\nUid:\t0\t0\t", "\n(\\n", "Uid:\t0\t"])
def test_a_process_is_its_users_whatever_it_is_called(start: Start, name: str) -> None:
    assert whose(start(USER, name), 0.0).uid == USER


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("alice:100000:65536\nbob:165536:65536\n", True), ("bob:1002:1\n", False), ("", False),
        ("x\n::\na:b:c\n", False),
        ("x:0:1001\n", False), ("x:1001:1", True), ("x:1001:0\n", False), ("\xff:1:\xb2\n1001:1001:1:1\n", False),
    ],
)  # fmt: skip
def test_a_subordinate_uid_is_no_user(tmp_path: Path, text: str, is_one: bool) -> None:
    (tmp_path / "subuid").write_text(text)
    uid = 101001 if "100000" in text else 1001
    status = f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
    found = whose(9, 0.0, put(tmp_path, "0::/x\n", status), str(tmp_path / "subuid"))
    assert found == (NOBODY if is_one else Whose(uid))


def test_one_that_is_gone_is_nobodys() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert whose(pid, 0.0) == NOBODY


def test_one_that_began_after_the_line_has_another_ones_number(start: Start) -> None:
    pid = start(os.getuid())
    assert whose(pid, 0.0).uid == os.getuid()
    assert whose(pid, 60.0) == NOBODY


def put(room: Path, cgroup: str, status: str = "Uid:\t1001\t1001\t1001\t1001\n", stat: str = "") -> str:
    (room / "9").mkdir()
    (room / "9/stat").write_text(stat or "9 (a) S " + " ".join(["1"] * 18) + " 7 1 1")
    (room / "9/status").write_text(f"Name:\ta\n{status}")
    (room / "9/cgroup").write_text(cgroup)
    return str(room)


@pytest.mark.parametrize(
    ("named", "job", "step"),
    [
        (("12", "0"), 12, "0"), (("12", "batch"), 12, "batch"), (("12", None), 12, ""), (("12", "a_b-c"), 12, ""),
        (("s1ABCDEF", "0"), None, ""), (("0", "0"), None, ""), (("4294967296", "0"), None, ""), (None, None, ""),
    ],
)  # fmt: skip
def test_job_and_step_are_those_of_a_group_of_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: object, job: int | None, step: str
) -> None:
    monkeypatch.setattr("piolet.steps.hierarchies.step_of", lambda groups, mounts: named)
    assert whose(9, time.clock_gettime(time.CLOCK_BOOTTIME) - 1, put(tmp_path, "0::/x\n")) == Whose(1001, job, step)


def test_a_group_that_is_not_there_is_no_job(tmp_path: Path) -> None:
    """The group of another machine's, or one that a user only says that it is in."""
    proc = put(tmp_path, "0::/system.slice/slurmstepd.scope/job_12/step_0/user/task_0\n")
    assert whose(9, 0.0, proc) == Whose(1001)


@pytest.mark.parametrize(
    "odd",
    [{"cgroup": "x"}, {"cgroup": "x", "status": "Uid: 7\n"}, {"cgroup": "0::/x\n", "stat": "9 (a"}, {"cgroup": ""}],
)
def test_what_cannot_be_read_is_nobodys_or_of_no_job(tmp_path: Path, odd: dict[str, str]) -> None:
    found = whose(9, 0.0, put(tmp_path, **odd))
    assert found in (NOBODY, Whose(1001))
