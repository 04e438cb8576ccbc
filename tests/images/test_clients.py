"""Clients that attack, or hold up others: broken requests, silence, and far too many connections."""

from __future__ import annotations

import array
import contextlib
import json
import os
import random
import socket
import subprocess
from pathlib import Path

import pytest
from piolet.images import protocol

from tests.images.conftest import ALICE, BOB, PYTHON, Site, become, finish, needs_root
from tests.support.registry import Registry
from tests.support.waiting import wait_until

HOLD = """
import socket, sys
held = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(60)]
for connection in held:
    connection.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def connect(site: Site) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    connection.connect(str(site.room / "var/s.sock"))
    return connection


def said(connection: socket.socket) -> str:
    while True:
        data, _ = protocol.receive(connection)
        message = protocol.unpack(data) if data else {"error": {"message": "closed"}}
        if "progress" not in message:
            return str(message.get("error", {}).get("message", message))


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"x", "not JSON"),
        (b"[" * 60000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{" + b" " * (64 * 1024) + b"}", "longer than the limit"),
        (b"{}", "not of version 1"),
        (b'{"version": 2, "op": "ping"}', "not of version 1"),
        (b'{"version": 1, "op": "format"}', "unknown operation"),
        (b'{"version": 1, "op": ["x"]}', "unknown operation"),
        (b'{"version": 1, "op": "resolve"}', "lacks 'reference'"),
        (b'{"version": 1, "op": "resolve", "reference": "a", "mode": "steal"}', "unknown mode"),
        (b'{"version": 1, "op": "resolve", "reference": 7, "mode": "pull"}', "lacks 'reference'"),
        (b'{"version": 1, "op": "resolve", "reference": "A b", "mode": "pull"}', "white space"),
        (b'{"version": 1, "op": "rm", "target": "sha256:zz"}', "not a digest"),
        (b'{"version": 1, "op": "import", "kind": "oci-archive", "name": "x"}', "without an archive"),
        (b'{"version": 1, "op": "prune", "older_than_s": "x", "dry_run": true}', "malformed"),
        (b'{"version": 1, "op": "ping"}', "pong"),
    ],
)
def test_requests(site: Site, request_: bytes, answer: str) -> None:
    with connect(site) as connection:
        connection.send(request_)
        assert answer in said(connection)
    assert site.alive() and "Traceback" not in site.log


def test_descriptors_that_are_no_credentials(site: Site) -> None:
    request = json.dumps({"version": 1, "op": "resolve", "reference": "ubuntu", "mode": "pull"}).encode()
    reading, writing = os.pipe()
    for fds, answer in (([reading], "memory file"), ([reading] * 2, "more than one"), ([reading] * 30, "too many")):
        with connect(site) as connection:
            connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            assert answer in said(connection)
    os.close(reading)
    os.close(writing)
    wait_until(lambda: not any("pipe:" in target for target in targets(site)), what="the closing of what came")
    wrong = os.memfd_create("x")
    os.write(wrong, b'{"auths": {"evil.example": {"auth": "x"}, "docker.io": {"auth": "y"}}}')
    with connect(site) as connection:
        connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [wrong]))])
        assert "docker.io alone" in said(connection)


def targets(site: Site) -> list[str]:
    assert site.process is not None
    found = []
    for entry in Path(f"/proc/{site.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return found


def test_clients_that_say_nothing_hold_up_nobody(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    silent = [connect(site) for _ in range(40)]
    assert "error" not in site.ask(ALICE, reference)
    busy = [connect(site) for _ in range(20)]
    answers = [said(connection) for connection in busy[10:]]
    assert all("busy" in answer for answer in answers)
    assert "error" not in site.ask(ALICE, reference), "another user is still served"
    assert "no request came" in said(silent[0])
    for connection in silent + busy:
        connection.close()
    wait_until(lambda: sum("socket:" in target for target in targets(site)) < 8, what="the end of the connections")


@needs_root()
def test_a_hundred_steps_of_one_user_at_once(site: Site, registry: Registry, image: Path) -> None:
    """More than the service takes from one user: who is told that it is busy asks again."""
    reference = registry.push(image, "app:1")
    held = subprocess.Popen(
        [*become(ALICE), PYTHON, "-c", HOLD, str(site.room / "var/s.sock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    assert held.stdout is not None and held.stdout.readline() == b"held\n"
    client = site.begin(ALICE, reference)
    assert "error" not in site.ask(BOB, reference), "another user is served meanwhile"
    answer = finish(client)
    assert "error" not in answer and "the image service is busy" in answer["said"]
    held.communicate()


def test_a_client_that_does_not_read(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    request = {"version": 1, "op": "resolve", "reference": reference, "mode": "pull"}
    deaf = [connect(site) for _ in range(5)]
    for connection in deaf:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        protocol.send(connection, request)
    assert "error" not in site.ask(BOB, reference)
    for connection in deaf:
        connection.close()
    assert "error" not in site.ask(BOB, reference) and site.alive()


def test_fuzz(site: Site) -> None:
    """Two thousand broken requests; the service lives and answers."""
    chance = random.Random(1)
    seed = b'{"version": 1, "op": "resolve", "reference": "localhost/a:1", "mode": "look", "target": "x"}'
    for _ in range(2000):
        data = bytearray(seed)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with connect(site) as connection:
            connection.send(bytes(data[: chance.randint(1, len(data))]))
            assert said(connection)
    assert site.alive() and "a fault in the service" not in site.log
