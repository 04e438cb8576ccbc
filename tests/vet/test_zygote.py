"""Root's process for vetting: what a vetting leaves is ended wherever it hid, and what it is not handed."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.node.root import descendants, kernellog, zygote
from piolet.node.root.zygote import Facts, Work, Zygote
from piolet.node.shares import Bound
from piolet.steps import hierarchies
from piolet.steps.hierarchies import Group
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
        (b"3,1,2,-;{1}[Hardware Error]: event severity: fatal\n", "{1}[Hardware Error]: event severity: fatal"),
        (
            b"3,1,2,-;nvme nvme0: Removing after probe failure\n SUBSYSTEM=nvme\n DEVICE=c240:0\n",
            "nvme nvme0: Removing after probe failure",
        ),
        (
            b"3,1,2,-;Memory failure: 0x12: recovery action for dirty LRU page: Failed\n",
            "Memory failure: 0x12: recovery action for dirty LRU page: Failed",
        ),
        (b"3,1,2,-;Memory failure: 0x12: Sending SIGBUS to train:4242 due to hardware memory corruption\n", None),
        (b"3,1,2,-;MCE 0x12: Killing train:4242 due to hardware memory corruption\n", None),
        (b"6,1,2,-;oom-kill: task=AER: NVRM: Xid ,pid=7,uid=1000\n", None),
        (b"12,1,2,-;NVRM: Xid (PCI:0000:01:00): 79, a program wrote it\n", None),
        (b"x;NVRM: Xid (PCI:0000:01:00): 79\n", None),
        (b"", None),
    ],
)
def test_lines_of_devices_name_no_process(entry: bytes, line: str | None) -> None:
    assert kernellog.of_device(entry) == line


def test_lines_tell_when_they_were_written() -> None:
    assert kernellog.stamp_of(b"4,1234,5678000,-;NVRM: Xid") == "[    5.678000] "
    assert kernellog.stamp_of(b"x;NVRM: Xid") == kernellog.stamp_of(b"") == ""


def test_one_driver_that_talks_pushes_out_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrected errors of PCIe come by the thousand."""
    aer = [b"4,1,2,-;pcieport 0000:00:%02x.0: AER: Corrected error" % (number % 32) for number in range(5000)]
    entries = [
        b"2,1,1,-;NVRM: Xid (PCI:0000:01:00): 79, off",
        *aer,
        b"4,1,3,-;EDAC MC0: 1 UE read error on x (channel:0 page:0x1 offset:0x0 grain:32)",
    ]
    given = iter(entries)

    def read(_descriptor: int, _size: int) -> bytes:
        entry = next(given, None)
        if entry is None:
            raise BlockingIOError
        return entry

    monkeypatch.setattr(os, "open", lambda *_: os.dup(0))
    monkeypatch.setattr(os, "read", read)
    lines = kernellog.read() or []
    assert "NVRM: Xid" in lines[0] and "EDAC" in lines[-1]
    assert 100 < len(lines) < 500
    assert kernellog.read() is None  # nothing at all is not clean


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
