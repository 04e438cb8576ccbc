"""The end of a container: all in its user namespace are killed, whatever its user does to those who come to do it."""

from __future__ import annotations

import ctypes
import os
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from piolet.node.root import leftovers
from piolet.node.root.endings import Endings, Remains
from piolet.node.root.state import Known, StepFiles
from piolet.system import linux, processes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a container is ended by root")
USER = 61234
KNOWN = Known("7.0", 0, None)


class Container:
    """A process of a user in a user namespace of its own, and what it starts there."""

    def __init__(self, act: Callable[[], None], user: int = USER) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
                ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, so that root of a machine may write the maps
                linux.unshare(linux.CLONE_NEWUSER)
                theirs.send(b"1")
                theirs.recv(1)
                act()
            finally:
                os._exit(1)
        theirs.close()
        assert ours.recv(1) == b"1"
        self.pidfd = os.pidfd_open(self.pid)
        self.user_ns = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY)
        for name in ("uid_map", "gid_map"):
            if name == "gid_map":
                Path(f"/proc/{self.pid}/setgroups").write_text("deny")
            Path(f"/proc/{self.pid}/{name}").write_text(f"{user} {user} 1\n")
        self.number = os.fstat(self.user_ns).st_ino
        ours.send(b"1")
        ours.close()

    def members(self) -> list[int]:
        found = []
        for pid in processes.pids():
            try:
                if os.stat(f"/proc/{pid}/ns/user").st_ino == self.number and _state(pid) != "Z":
                    found.append(pid)
            except OSError:
                continue
        return found


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _strangers() -> Iterator[int]:
    """Yield those who are nobody's: the killers."""
    for pid in processes.pids():
        try:
            if os.stat(f"/proc/{pid}").st_uid >= 0x80000000:
                yield pid
        except OSError:
            continue


def hunt(number: signal.Signals) -> None:
    """Send a signal to every killer that can be reached, from several processes."""
    for _ in range(3):
        if os.fork() == 0:
            break
    while True:
        for pid in _strangers():
            try:
                os.kill(pid, number)
            except OSError:
                continue


def shoot_at_all() -> None:
    """Kill everybody else who can be reached, all the time."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except OSError:
            continue


def spawn() -> None:
    """Be somebody else all the time."""
    while True:
        if os.fork():
            os._exit(0)


class Loop:
    """The monitor's loop, as far as endings need it."""

    def __init__(self, directory: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self.files = StepFiles(str(directory / "steps"))
        self.endings = Endings(self.files, self.selector, time.monotonic)

    def run(self, within_s: float = 60.0) -> None:
        """Run until nothing is left to do."""
        end = time.monotonic() + within_s
        while (due := self.endings.next_due()) is not None:
            assert time.monotonic() < end, "the container does not end"
            for key, _ in self.selector.select(max(0.0, due - time.monotonic())):
                key.data()
            self.endings.tick()


@pytest.mark.parametrize(
    "act",
    [signal.pause, lambda: hunt(signal.SIGKILL), lambda: hunt(signal.SIGSTOP), shoot_at_all, spawn],
    ids=["quiet", "kills what ends it", "stops what ends it", "kills all", "chain of forks"],
)
def test_a_container_ends(tmp_path: Path, act: Callable[[], None]) -> None:
    loop = Loop(tmp_path)
    loop.files.write(KNOWN)
    bystander = Container(signal.pause, USER + 1)
    container = Container(act)
    before = set(os.listdir("/proc/self/fd"))
    loop.endings.empty(Remains(KNOWN, os.dup(container.user_ns)))
    loop.run()
    end = time.monotonic() + 20
    while members := container.members():
        assert time.monotonic() < end, members
    os.waitpid(container.pid, 0)
    assert bystander.members() == [bystander.pid], "another's container is left alone"
    assert loop.files.read() == []
    assert not list(_strangers())
    assert set(os.listdir("/proc/self/fd")) == before
    loop.endings.empty(Remains(Known("8.0", 0, None), os.dup(bystander.user_ns)))
    loop.run()
    os.waitpid(bystander.pid, 0)
    for one in (container, bystander):
        os.close(one.pidfd)
        os.close(one.user_ns)


def test_a_killer_that_was_stopped_is_followed_by_another(tmp_path: Path) -> None:
    """Here by root, who needs less luck for it than a user."""
    loop = Loop(tmp_path)
    for _ in range(100):
        container = Container(signal.pause)
        loop.endings.empty(Remains(KNOWN, os.dup(container.user_ns)))
        ending = loop.endings._endings[0]
        assert ending.killer is not None
        os.kill(ending.killer.pid, signal.SIGSTOP)
        while (state := _state(ending.killer.pid)) not in "TZ":
            pass
        ending.due = 0.0  # its time is over
        loop.run()
        assert select.select([container.pidfd], [], [], 20)[0]
        os.waitpid(container.pid, 0)
        os.close(container.pidfd)
        os.close(container.user_ns)
        if state == "T":
            break
    assert state == "T", "each was faster"
    assert ending.tries == 2


def test_force_reaches_namespaces_below_and_never_the_nodes_own() -> None:
    def below() -> None:
        if os.fork() == 0:
            linux.unshare(linux.CLONE_NEWUSER)
        signal.pause()

    container = Container(below)
    end = time.monotonic() + 20
    while not (children := Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()):
        assert time.monotonic() < end
    (child,) = map(int, children)
    while os.stat(f"/proc/{child}/ns/user").st_ino == container.number:
        assert time.monotonic() < end
    held = os.pidfd_open(child)
    with open("/proc/self/ns/user") as own, pytest.raises(PermissionError):
        leftovers._kill_seen(own.fileno())
    leftovers._kill_seen(container.user_ns)
    assert select.select([held], [], [], 20)[0] and select.select([container.pidfd], [], [], 20)[0]
    os.waitpid(container.pid, 0)
    for descriptor in (held, container.pidfd, container.user_ns):
        os.close(descriptor)
