"""Attacks on the sockets of the daemons, on what they write into their logs, and on what they believe."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.attacks.attack import Broken, attack, by_kernel
from tests.cluster.faults import Faults
from tests.cluster.support import Cluster

RAW = """\
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(5)
s.connect(sys.argv[1])
s.send(sys.stdin.buffer.read())
print(s.recv(65536))
"""
FLOOD = """\
import socket, sys, time
end, made, refused = time.monotonic() + 1.5, 0, 0
while time.monotonic() < end:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.setblocking(False)
    try:
        s.connect(sys.argv[1])
        made += 1
    except PermissionError:
        refused += 1
        time.sleep(0.01)
    except BlockingIOError:
        pass
    s.close()
print(made, refused)
"""


HOSTILE = [
    b"[]", b"[" * 100_000, b'"x', b"7", b"null", b'{"error": {}}', b'{"marks": 7}', b'{"marks": [["a", 1, 2]]}',
    b'{"marks": [["a", 1e999]]}', b'{"marks": [["a"]]}', b'{"other": 1}', b"\xff\xfe",
    b'{"error": 1' + b"0" * 5000 + b"}",
    b'{"marks": [[[], "x"]]}',
]  # fmt: skip


def as_user(faults: Faults, user: str, *words: str, node: str = "node1", data: str = "") -> str:
    """Run the system's Python on a node as a user; return what it wrote."""
    command = faults.on_node(node, "/usr/bin/python3", "-I", "-c", *words, user=user)
    return subprocess.run(command, input=data, capture_output=True, text=True, timeout=60, check=False).stdout


@attack("logs are not escaped")
def test_a_request_forges_lines_in_the_log(cluster: Cluster, faults: Faults) -> None:
    """Row 9. Promise: a line in a log is the daemon's; a user's words in it can neither begin another nor steer the
    terminal of who reads it."""
    log = cluster.layout.log / "piolet-imaged.log"
    before = log.stat().st_size
    evil = "x\npiolet-imaged: uid 0 (pid 1): forged\x1b[2J\x9b31m\u2028"
    for request in (
        {"version": 1, "op": evil},
        {"version": 1, "op": "resolve", "reference": evil, "mode": evil},
        {"version": 1, "op": "rm", "target": evil},
        {"version": evil, "op": "ping"},
    ):
        data = json.dumps(request, ensure_ascii=False)
        as_user(faults, "alice", RAW, str(cluster.layout.images_socket), data=data)
    text = log.read_bytes()[before:].decode("utf-8", "replace")
    assert "uid" in text
    forged = [line for line in text.split("\n") if line.startswith("piolet-imaged: uid 0 (pid 1): forged")]
    if forged or re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028]", text):
        raise Broken(f"a request wrote into the log what it liked: {text[:200]!r}")


@attack("sockets of root are everybody's", "log lines have no bound")
@pytest.mark.parametrize("name", ["score.sock", "node.sock"])
def test_connections_of_a_user_fill_the_log(cluster: Cluster, faults: Faults, name: str) -> None:
    """Row 9. Promise: where only root has business, nobody else can connect; and no user makes a daemon write or work
    without bound."""
    log = cluster.layout.log / "pioletd-node1.log"
    before = log.stat().st_size
    made, _ = map(int, as_user(faults, "alice", FLOOD, f"/run/piolet/{name}").split())
    written = log.stat().st_size - before
    if made:
        raise Broken(f"alice connected {made} times to {name}, and made the log {written >> 10} KiB longer")


@attack("log lines have no bound")
def test_requests_of_a_user_fill_the_log(cluster: Cluster, faults: Faults) -> None:
    """Row 9. Promise: of what users may connect to, each user gets a bounded number of lines a second."""
    log = cluster.layout.log / "piolet-imaged.log"
    before = log.stat().st_size
    made, _ = map(int, as_user(faults, "alice", FLOOD, str(cluster.layout.images_socket)).split())
    written = log.stat().st_size - before
    assert made > 1000
    if written > 30_000:
        raise Broken(f"alice made the log {written >> 10} KiB longer in 1.5 s")
    cluster.run("bob", "piolet", "image", "list").good()


@by_kernel("SO_PEERCRED")
def test_a_user_announces_a_step(cluster: Cluster, faults: Faults) -> None:
    """Promise: who speaks is what the kernel says. A START message of alice's for bob is refused, on each socket."""
    from piolet._wire import ffi

    start = ffi.new("struct piolet_start *")
    for field, name in (("magic", "MAGIC"), ("version", "VERSION"), ("kind", "START")):
        setattr(start.header, field, ffi.integer_const(f"PIOLET_{name}"))
    start.header.length = ffi.sizeof("struct piolet_start")
    start.uid = start.gid = 0
    start.timeout_ms = 1000
    code = RAW.replace("sys.stdin.buffer.read()", "bytes.fromhex(sys.stdin.read())")
    for name in ("node.sock", "score.sock", "vet.sock"):
        answer = as_user(faults, "alice", code, f"/run/piolet/{name}", data=bytes(ffi.buffer(start)).hex())
        if "READY" in answer or "\\x03\\x00" in answer[:12]:
            raise Broken(f"alice announced a step of root's at {name}: {answer[:100]}")
    faults.srun("bob", "-w", "node1", "true").good()


def _too_long(_number: int, _frame: object) -> None:
    raise Broken("a daemon that starts waits for one that is busy")


@attack("a full backlog is taken for a dead daemon")
def test_a_full_backlog_costs_the_daemon_its_socket(tmp_path: Path) -> None:
    """Row 16. Promise: the socket of a daemon that lives is not removed by another that starts, however busy it is."""
    from piolet.base.errors import PioletError
    from piolet.images import listening
    from piolet.node import places

    def start(place: str, path: Path) -> socket.socket:
        return places.listener_at(path, 0o600) if place == "node" else listening.listen(str(path))

    for place in ("node", "images"):
        path = tmp_path / f"{place}.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy, contextlib.ExitStack() as held:
            busy.bind(str(path))
            busy.listen(0)
            inode = path.stat().st_ino
            for _ in range(8):
                one = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect(str(path))
            held.callback(signal.alarm, 0)
            signal.signal(signal.SIGALRM, _too_long)
            signal.alarm(5)
            with contextlib.suppress(PioletError, OSError):
                held.enter_context(start(place, path))
            if not path.exists() or path.stat().st_ino != inode:
                raise Broken(f"the socket of a busy daemon ({place}) was taken for a dead one's")


@attack("packets are not checked", "the lengths of packets are not checked")
@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_a_workers_answer_ends_the_daemon(data: bytes) -> None:
    """Row 13. Promise: whatever a worker, which is its user, answers, the monitor goes on: what is no answer is refused
    by the one decoder, which raises nothing else."""
    from piolet.base.errors import WireError
    from piolet.container import worker
    from piolet.transport import packets

    try:
        built = packets.decode(worker.Built, data)
    except WireError:
        return
    except BaseException as error:  # noqa: BLE001 - that is what the attack is about
        raise Broken(f"the monitor ends with {type(error).__name__}: {error}"[:300]) from None
    good = isinstance(built.error, str) and isinstance(built.hint, str)
    if not good or not all(isinstance(name, str) and math.isfinite(at) for name, at in built.marks):
        raise Broken(f"the monitor believes {built}"[:300])


@by_kernel("a user is bound by what the service allows each")
def test_connections_of_one_user_lock_out_another(cluster: Cluster, faults: Faults) -> None:
    """Promise: a user who holds all the connections that they may have holds up nobody else."""
    held = []
    holder = (
        "import socket, sys, time\nheld = []\n"
        "for _ in range(400):\n s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(1)\n"
        " try:\n  s.connect(sys.argv[1]); held.append(s)\n except OSError:\n  break\n"
        "print(len(held), flush=True)\ntime.sleep(60)"
    )
    for path in (str(cluster.layout.images_socket), "/run/piolet/vet.sock"):
        words = faults.on_node("node1", "/usr/bin/python3", "-I", "-c", holder, path, user="alice")
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        held.append(process)
    try:
        began = time.monotonic()
        try:
            cluster.run("bob", "piolet", "image", "list", timeout=20).good()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise Broken(f"bob is locked out of the image service: {error}") from None
        if time.monotonic() - began > 10:
            raise Broken("bob waits for alice's connections")
    finally:
        for process in held:
            process.kill()
            process.communicate()
    assert os.path.exists(cluster.layout.images_socket)
