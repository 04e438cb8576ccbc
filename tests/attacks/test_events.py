"""Attacks on the records of what happens on nodes: who says how a step ended, and whose stream it is in."""

from __future__ import annotations

import secrets
import subprocess
import time

from tests.attacks.attack import Broken, attack, by_kernel
from tests.cluster.faults import Faults
from tests.cluster.support import Cluster
from tests.wire import messages

RAW = """\
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
try:
    s.sendto(sys.stdin.buffer.read(), "/run/piolet/events.sock")
    print("sent")
except OSError as error:
    print(error)
"""
READS = """\
import os
for path in ("/run/piolet/events", "/run/piolet/events.sock.lost", "/run/piolet/kmsg"):
    try:
        print(os.listdir(path) if os.path.isdir(path) else open(path).read(1) or "opened")
    except OSError as error:
        print(error.strerror)
"""


def as_alice(faults: Faults, code: str, data: bytes = b"") -> str:
    command = faults.on_node("node1", "/usr/bin/python3", "-I", "-c", code, user="alice")
    return subprocess.run(command, input=data, capture_output=True, timeout=60, check=True).stdout.decode()


@attack("everybody says how a step ended")
def test_a_user_says_how_the_step_of_another_ended(cluster: Cluster, faults: Faults) -> None:
    """Promise: that a task crashed on a node says root's slurmstepd. Alice says it of a job of bob's."""
    job = secrets.randbelow(1 << 30) + (1 << 30)
    bob = cluster.room("bob").stat().st_uid
    for _ in range(20):
        as_alice(faults, RAW, messages.outcome([(11, 0, 4)], job=job, uid=bob))
    end = time.monotonic() + 3
    while time.monotonic() < end:
        found = [one for one in faults.events("node1", "step.outcome") if one["job"] == job]
        if found:
            raise Broken(f"node1 has recorded what alice says of bob: {found[0]}")
        time.sleep(0.1)


@by_kernel("the modes of directories and files")
def test_a_user_reads_what_nodes_recorded(cluster: Cluster, faults: Faults) -> None:
    """Promise: what was found for others, and by whom, no user reads on a node."""
    said = as_alice(faults, READS).splitlines()
    if said != ["Permission denied"] * 3:
        raise Broken(f"alice reads there: {said}")
