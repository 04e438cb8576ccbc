"""Attacks on vetting as an ordinary user, on the parts: the desk, the zygote and the spool as pioletd joins them."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from piolet.node.root.zygote import Zygote
from piolet.node.server.vetdesk import VetDesk
from piolet.system import linux, peer
from piolet.vet import node
from piolet.vet.runner.plan import Plan, Task

from tests.support import spools
from tests.support.loops import turning
from tests.wire import messages

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the processes have that are tested")
ALICE = 65534
BOB = 65533


@dataclass
class Node:
    """The vet socket of a node1, and its spool."""

    path: str
    spool: Path

    def records(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many records."""
        end = time.monotonic() + 30
        while True:
            found = spools.events(self.spool, "vet.verdict")
            if len(found) >= count:
                return found
            assert time.monotonic() < end, found
            time.sleep(0.02)


@pytest.fixture
def node1(tmp_path: Path) -> Iterator[Node]:
    tmp_path.chmod(0o755)
    place = Path("/tmp") / f"piolet-attacks-{os.getpid()}.sock"
    place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(place))
    place.chmod(0o666)
    listener.listen(1024)
    ours, theirs = linux.message_pair(1 << 20)
    zygote = os.fork()
    if zygote == 0:
        try:
            ours.close()
            Zygote(theirs, lambda: node.prepare(), peer.file_of(place)).run()
        finally:
            os._exit(0)
    theirs.close()
    directory = tmp_path / "spool"
    directory.mkdir()
    selector = selectors.DefaultSelector()
    VetDesk(selector, listener, ours, spools.spool(directory)[1])
    with turning(selector):
        yield Node(str(place), directory)
    ours.close()
    os.waitpid(zygote, 0)
    listener.close()
    place.unlink()


@contextlib.contextmanager
def user(uid: int, do: Callable[[], object], environ: dict[str, str] | None = None) -> Iterator[int]:
    """A process of that user that does it."""
    pid = os.fork()
    if pid == 0:
        try:
            linux.become(uid, uid, [])
            if environ is None:
                do()
            else:
                code = f"import socket\nc = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n{do()}"
                os.execve("/usr/bin/python3", ["python3", "-c", code], environ)
        finally:
            os._exit(0)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_raw_message_says_nothing_of_node_job_or_kind(node1: Node) -> None:
    """Row 14: node1's spool recorded "node2, job 1, gpu_health, fail, Xid 79"."""
    task = Task("gpu_health", "gpu_health", "piolet.vet.evals.random:Random", parameters={"fail": 1.0})
    message = messages.vet(Plan("site", (task,)).to_json())
    code = f"c.connect({node1.path!r}); c.send({message!r})\nwhile c.recv(65536): pass"
    environ = {"SLURMD_NODENAME": "node2", "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "HOME": "/nonexistent"}
    with user(ALICE, lambda: code, environ) as pid:
        (one,) = node1.records()
    assert {name: one[name] for name in ("node", "uid", "pid", "job", "step", "found", "source")} == {
        "node": "node1", "uid": ALICE, "pid": pid, "job": None, "step": "", "found": "unknown", "source": "user",
    }  # fmt: skip
    # Where modules come from roots' directories alone, the code that ran has its name; else it has none.
    assert (one["origin"], one.get("code")) in (("built-in", "random"), ("user", None))
    assert one["said"]["kind"] == "gpu_health" and one["said"]["node"] == "node2"


def test_a_users_class_says_what_it_likes_below_said(node1: Node, tmp_path: Path) -> None:
    home = Path(f"/tmp/piolet-attacks-{os.getpid()}")
    home.mkdir()
    try:
        (home / "liar.py").write_text(
            "from piolet.api import Eval, Verdict\n"
            "class Liar(Eval):\n    name = 'gpu_health'\n"
            "    def check(self, context):\n"
            "        return Verdict('fail', 'Xid 79', details={'node': 'node2', 'origin': 'built-in'})\n"
        )
        task = Task("gpu_health", "gpu_health", "liar:Liar", search=(str(home),))
        message = messages.vet(Plan("site", (task,)).to_json())
        code = f"c.connect({node1.path!r}); c.send({message!r})\nwhile c.recv(65536): pass"
        with user(ALICE, lambda: code, {"SLURMD_NODENAME": "node2", "SLURM_JOB_ID": "1", "HOME": "/nonexistent"}):
            (one,) = node1.records()
    finally:
        for path in sorted(home.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        home.rmdir()
    assert (one["node"], one["job"], one["source"], one["origin"]) == ("node1", None, "user", "user")
    assert "code" not in one and one["reason"] == "Xid 79"


def connect_in_a_loop(path: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
            one.connect(path)


def test_connections_in_a_loop(node1: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Three processes of alice's: the log has a line or two, and bob's vetting is done meanwhile."""
    message = messages.vet(Plan("p", (Task("l", "limits", "piolet.vet.evals.limits:Limits"),)).to_json())
    told, tell = os.pipe()

    def vet() -> None:
        began = time.monotonic()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
            one.connect(node1.path)
            one.send(message)
            while b'"end"' not in one.recv(65536):
                pass
        os.write(tell, f"{time.monotonic() - began}".encode())

    with caplog.at_level(logging.ERROR), contextlib.ExitStack() as stack:
        with user(BOB, vet):  # the libraries are imported for the first one
            os.read(told, 100)
        for _ in range(3):
            stack.enter_context(user(ALICE, lambda: connect_in_a_loop(node1.path, 60)))
        end = time.monotonic() + 20
        while not caplog.records:
            assert time.monotonic() < end, "nobody is above the share"
            time.sleep(0.05)
        with user(BOB, vet):
            took = float(os.read(told, 100))
    assert took < 5
    assert len(caplog.records) <= 3, caplog.text
    assert f"uid {ALICE} connects too often for vetting" in caplog.text
    os.close(told)
    os.close(tell)


def test_refusals_of_one_user_take_none_of_anothers(tmp_path: Path) -> None:
    """The oldest of whoever has most goes first."""
    from piolet.transport import listener as sockets
    from piolet.transport import wire

    selector = selectors.DefaultSelector()
    desk = sockets.Refusals(selector)
    kept = {}
    place = Path("/tmp") / f"piolet-refused-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(place))
        try:
            place.chmod(0o666)
            listener.listen(8)
            for number, uid in enumerate([BOB, *[ALICE] * (sockets.WAITING_MAX + 20)]):
                with user(uid, lambda: connect_and_wait(str(place))):
                    kept[number], _ = listener.accept()
                    kept[number].setblocking(False)
                    desk.refuse(kept[number], wire.encode_error("no", None))
        finally:
            place.unlink()
    assert kept[0].fileno() >= 0 and kept[1].fileno() < 0
    for one in kept.values():
        one.close()


def connect_and_wait(path: str) -> None:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.connect(path)
    signal.pause()


@pytest.mark.parametrize(
    "data",
    [b"[]", b"{}", b"1", b"\xff", b"[" * 256, b'{"key":1}', b'{"key":"1","status":0}', b'{"key":1,"status":0,"x":0}',
     b'{"key":1,"found":"root"}', b'{"key":1,"found":"cgroup","job":"../1"}', b'{"key":1,"found":"cgroup","job":1}'],
)  # fmt: skip
def test_nothing_that_the_zygote_says_ends_the_server(tmp_path: Path, data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, listener, selectors.DefaultSelector() as selector:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        desk = VetDesk(selector, listener, ours, spools.spool(tmp_path)[1])
        theirs.send(data)
        desk._on_zygote()
        assert ours in [key.fileobj for key in selector.get_map().values()], "it takes the zygote for dead"
