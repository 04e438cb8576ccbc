"""What root's processes believe: not the server, but the connections that it hands over, and what is in them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from piolet.base.errors import WireError
from piolet.container.worker import Means
from piolet.node import requests
from piolet.node.requests import Announced, Build, End, encode, take_start
from piolet.node.root.devicemapper import DeviceMapper
from piolet.node.root.imagemounts import IDMAP, Choice
from piolet.node.root.monitor import Monitor
from piolet.node.root.mountedimages import Images
from piolet.node.root.state import StepFiles
from piolet.node.root.steps import Step
from piolet.node.root.zygote import Work, Zygote
from piolet.node.server.server import Server
from piolet.site.config import Config
from piolet.system import peer

from tests.wire import messages

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the processes have that are tested")
NOBODY = 65534


class Listener:
    """A listening socket that everybody can connect to; `file` is what root's processes know of it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(self.path)
        path.chmod(0o666)
        self.socket.listen(8)
        self.file = peer.file_of(path)
        self._children: list[int] = []

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Connect from this process, which is root's; return both ends, the accepted one last."""
        near = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.connect(self.path)
        near.settimeout(20)
        return near, self.socket.accept()[0]

    def told(self, uid: int, message: bytes) -> bytes:
        """Have a process of that user connect and send; return what whoever accepts says to it."""
        near, far = socket.socketpair()
        near.settimeout(20)
        self._fork(uid, message, far, {})
        far.close()
        return near.recv(65536)

    def connect_as(
        self, uid: int, message: bytes, limits: dict[int, tuple[int, int]] | None = None
    ) -> tuple[socket.socket, socket.socket]:
        """Have a process of that user, with those resource limits, connect, send and stay.

        Returns the accepted end, and one from which comes what the process was sent.
        """
        near, far = socket.socketpair()
        near.settimeout(20)
        self._fork(uid, message, far, limits or {})
        far.close()
        accepted = self.socket.accept()[0]
        assert select.select([accepted], [], [], 20)[0]
        return accepted, near

    def _fork(self, uid: int, message: bytes, far: socket.socket, limits: dict[int, tuple[int, int]]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                for limit, pair in limits.items():
                    resource.setrlimit(limit, pair)
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                task = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                task.connect(self.path)
                task.send(message)
                far.send(task.recv(65536))
                signal.pause()
            finally:
                os._exit(0)
        self._children.append(pid)

    def close(self) -> None:
        self.socket.close()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        made = Listener(Path(directory) / "a.sock")
        yield made
        made.close()


def test_whose_step_it_is_comes_from_root(listener: Listener) -> None:
    near, accepted = listener.connect()
    near.send(messages.start(b"{}" * 30000, uid=1234, gid=77, groups=(77, 5), job=42, step=3))
    assert take_start(accepted, listener.file) == Announced("42.3", os.getpid(), 1234, 77, [77, 5])
    with pytest.raises(BlockingIOError):
        accepted.recv(1, socket.MSG_DONTWAIT)


def test_the_layout_is_that_of_wire_h() -> None:
    ffi, lib = messages.ffi, messages.lib
    assert ffi.sizeof("struct piolet_start") == requests.START.size
    assert (lib.PIOLET_MAGIC, lib.PIOLET_VERSION, lib.PIOLET_START) == requests.START_IS
    assert lib.PIOLET_GROUPS_MAX == requests.GROUPS_MAX


def test_a_user_announces_no_step(listener: Listener) -> None:
    with pytest.raises(WireError, match="not announced by Slurm"):
        take_start(listener.connect_as(NOBODY, messages.start(b"{}"))[0], listener.file)


@pytest.mark.parametrize("message", [b"x", messages.start(b"{}")[:-30], messages.vet(b"{}" * 60), b"\0" * 200])
def test_what_is_no_start_announces_no_step(listener: Listener, message: bytes) -> None:
    near, accepted = listener.connect()
    near.send(message)
    with pytest.raises(WireError, match="not announced by Slurm"):
        take_start(accepted, listener.file)


def test_groups_that_did_not_come_are_none(listener: Listener) -> None:
    near, accepted = listener.connect()
    near.send(messages.start(b"", groups=(1, 2, 3))[:-4])
    with pytest.raises(WireError, match="not announced by Slurm"):
        take_start(accepted, listener.file)


def test_root_has_no_environment(listener: Listener) -> None:
    near, accepted = listener.connect()
    near.send(messages.start(b"{}", uid=0, gid=0))
    with pytest.raises(WireError, match="a step of root has no environment"):
        take_start(accepted, listener.file)


def forged(listener: Listener, directory: Path, message: bytes) -> list[socket.socket]:
    """What a server that is not to be believed could hand over: its own end of a connection, whose peer is root."""
    own_end, accepted = listener.connect()
    accepted.send(message)
    other = Listener(directory / "b.sock")
    elsewhere = other.connect()
    elsewhere[0].send(message)
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair[0].send(message)
    assert {peer.of(end).uid for end in (own_end, elsewhere[1], pair[1])} == {0}
    return [own_end, elsewhere[1], pair[1]]


def test_only_the_end_that_was_accepted_says_who_is_there(listener: Listener, tmp_path: Path) -> None:
    for end in forged(listener, tmp_path, messages.start(b"{}")):
        with pytest.raises(WireError, match="not one that was made to pioletd"):
            take_start(end, listener.file)


@contextlib.contextmanager
def running(run: Callable[[socket.socket], object]) -> Iterator[socket.socket]:
    """One of root's processes, with the server's end of its pair; at the end the server ends, and the process must."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            run(theirs)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    yield ours
    ours.close()
    assert os.waitpid(pid, 0)[1] == 0


@contextlib.contextmanager
def zygote(listener: Listener) -> Iterator[socket.socket]:
    """A zygote whose vetting is to say who it is, and what the plan was."""

    def work(plan: bytes, connection: int, _facts: dict[str, list[str]], _spool: int) -> None:
        os.write(connection, f"{os.getresuid()} {os.getgroups()} {plan.decode()}".encode())

    with running(lambda channel: Zygote(channel, lambda: work, listener.file).run()) as channel:
        assert json.loads(channel.recv(256)) == {"began": True}
        yield channel


def vet(channel: socket.socket, connection: socket.socket) -> None:
    """Ask for a vetting as the server does, and wait for its end."""
    read, write = os.pipe()
    socket.send_fds(channel, [b'{"key": 1}'], [connection.fileno(), write])
    while "status" not in (answer := json.loads(channel.recv(256))):
        assert answer["key"] == 1
    assert answer["key"] == 1
    os.close(read)
    os.close(write)


def test_a_vetting_is_of_whom_the_kernel_names(listener: Listener) -> None:
    """Whatever the server says besides: it is not even listened to."""
    accepted, told = listener.connect_as(NOBODY, messages.vet(b"my plan"))
    with zygote(listener) as channel:
        more = json.dumps({"key": 2, "uid": 0, "pid": 1, "plan": "another plan"}).encode()
        socket.send_fds(channel, [more], [accepted.fileno(), accepted.fileno()])
        vet(channel, accepted)
    assert told.recv(65536).decode() == f"{(NOBODY,) * 3} [] my plan"


@pytest.mark.parametrize("asked", [True, False], ids=["the task is gone", "the child is killed"])
def test_what_an_eval_started_ends_with_its_vetting(listener: Listener, asked: bool) -> None:
    """An eval has a process group of its own, for the time limit; what it started is in there, without its parent."""

    def work(_plan: bytes, connection: int, _facts: dict[str, list[str]], _spool: int) -> None:
        started = subprocess.Popen(["sleep", "1000"], process_group=0)
        os.write(connection, f"{os.getpid()} {started.pid}".encode())
        signal.pause()

    accepted, told = listener.connect_as(NOBODY, messages.vet(b"my plan"))
    with running(lambda channel: Zygote(channel, lambda: work, listener.file).run()) as channel:
        assert json.loads(channel.recv(256)) == {"began": True}
        read, write = os.pipe()
        socket.send_fds(channel, [b'{"key": 1}'], [accepted.fileno(), write])
        child, started = map(int, told.recv(65536).split())
        assert json.loads(channel.recv(256)) == {"key": 1, "job": None, "step": None, "found": "unknown"}
        end = os.pidfd_open(started)
        if asked:
            channel.send(b'{"end": 1}')
        else:
            os.kill(child, signal.SIGKILL)
        assert json.loads(channel.recv(256)) == {"key": 1, "status": -signal.SIGKILL}
        ended = select.select([end], [], [], 5)[0]
        for descriptor in (read, write, end):
            os.close(descriptor)
        if not ended:
            os.kill(started, signal.SIGKILL)
    assert ended


def test_a_vetting_for_a_connection_of_the_servers_own_is_none(listener: Listener) -> None:
    """It would be root's, and of the server's plan."""
    own_end, accepted = listener.connect()
    accepted.send(messages.vet(b"forged"))
    accepted.settimeout(20)
    with zygote(listener) as channel:
        vet(channel, own_end)
    assert "not one that was made to pioletd" in accepted.recv(65536).decode()


def test_a_vetting_has_the_limits_of_its_step(listener: Listener) -> None:
    """Without CAP_SYS_RESOURCE, which a unit may take away, those that may be set; the others are said."""
    code = (
        "import resource, sys; from piolet.node.root.vettask import adopt, look_up\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (7, 7)); adopt(look_up(int(sys.argv[1]), int(sys.argv[2])))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CPU))\n"
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = {resource.RLIMIT_NOFILE: (123, hard), resource.RLIMIT_CPU: (4000, 5000), resource.RLIMIT_CORE: (8, 8)}
    accepted, _ = listener.connect_as(NOBODY, b"x", limits)
    pid = peer.of(accepted).pid
    command = ["setpriv", "--bounding-set=-sys_resource", sys.executable, "-c", code, str(pid), str(NOBODY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"(123, {hard}) (4000, 5000)\n"
    assert done.stderr == "a vetting has not the step's limit 'max core file size': pioletd lacks CAP_SYS_RESOURCE\n"


def test_a_zygote_ends_quietly_when_its_server_does(listener: Listener) -> None:
    """With an answer unread, which the kernel calls a reset."""
    with running(lambda channel: Zygote(channel, _no_work, listener.file).run()) as channel:
        assert select.select([channel], [], [], 20)[0]


def _no_work() -> Work:
    raise AssertionError("nobody has asked")


def test_a_monitor_ends_quietly_when_its_server_does(listener: Listener, tmp_path: Path) -> None:
    def run(channel: socket.socket) -> None:
        images = Images(str(tmp_path), NOBODY, str(tmp_path), Choice(IDMAP), DeviceMapper("nowhere.0"), 8)
        means = Means(str(tmp_path), "/no/crun", "/no/squashfuse")
        monitor = Monitor(
            channel, images, StepFiles(str(tmp_path / "steps")), means, listener.file, 600.0, "nowhere.0", -1, 0
        )
        assert monitor.run(os.pipe()[0], {})

    own_end, accepted = listener.connect()
    accepted.send(messages.start(b"{}"))
    with running(run) as channel:
        build = encode(Build(key=1, digest=None, identity=[], timeout_s=5.0, plan="{}"))
        socket.send_fds(channel, [build], [own_end.fileno()])
        assert select.select([channel], [], [], 20)[0]
        assert b"pioletd cannot tell whose step this is" in channel.recv(65536, socket.MSG_PEEK)


def test_a_connection_of_a_users_is_refused_by_the_server(listener: Listener) -> None:
    """Whatever the socket's mode is."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            Server(listener.socket, theirs, Config(), "node").run()
        finally:
            os._exit(0)
    theirs.close()
    assert b"only Slurm, as root, may announce a step" in listener.told(NOBODY, messages.start(b"{}"))
    ours.shutdown(socket.SHUT_RDWR)  # a close would leave it to the processes that have it, too
    ours.close()
    os.waitpid(pid, 0)


def test_a_step_and_its_worker_end_at_once(listener: Listener, tmp_path: Path) -> None:
    """As where srun is killed while its container is built: both are told in one round of the monitor's loop."""
    (server, ours), (worker, theirs) = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    images = Images(str(tmp_path), NOBODY, str(tmp_path), Choice(IDMAP), DeviceMapper("nowhere.0"), 8)
    means = Means(str(tmp_path), "/no/crun", "/no/squashfuse")
    monitor = Monitor(ours, images, StepFiles(str(tmp_path / "steps")), means, listener.file, 600.0, "nowhere.0", -1, 0)
    order = Build(key=1, digest=None, identity=[], timeout_s=5.0, plan="{}")
    step = Step(order, Announced("1.0", 0, NOBODY, NOBODY, []), 1e9, channel=theirs)
    monitor._steps[1] = step
    monitor._selector.register(theirs, selectors.EVENT_READ, lambda: monitor._on_worker(step))
    server.send(encode(End(1)))
    worker.close()
    ready = monitor._selector.select(0)
    assert len(ready) == 2
    for key, _ in ready:
        key.data()
    assert not monitor._steps
    server.close()
    ours.close()
