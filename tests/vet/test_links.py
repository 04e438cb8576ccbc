"""Real links with faults: every node in a network namespace of its own, joined by a bridge; one link slow, one lossy.

Slow by a token bucket (tbf), lossy by netfilter's random drop: not every kernel has netem.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest
from piolet.api import Context
from piolet.system import linux
from piolet.vet.runner import runner, session
from piolet.vet.runner.plan import HOST, Plan

from tests.support.protocols import plan_of
from tests.vet import nodes
from tests.vet.nodes import TOKEN, Work

COUNT = 5
CLONE_NEWNET = 0x40000000
PREFIX = f"pl{os.getpid()}"
PROTOCOL = "budget: 60s\nevals:\n- {type: network_pair, size: 200 kB, pings: 20, timeout: 20s}\n"
# Of every node: how fast a virtual link without a limit is hangs on what else the machine does.
RATE = "40mbit"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


def inside(node: int, *words: str) -> None:
    ip("netns", "exec", f"{PREFIX}n{node}", *words)


def limit(node: int, rate: str) -> None:
    """Have a node send no faster."""
    shape = ("tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
    inside(node, "tc", "qdisc", "replace", "dev", "eth0", "root", *shape)


@pytest.fixture
def fabric() -> Iterator[None]:
    """Some namespaces on one bridge; all links are good. The bridge is in a namespace too: the host sees nothing."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    absent = [name for name in ("ip", "tc", "iptables") if shutil.which(name) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    hub = f"{PREFIX}hub"
    names = [hub, *(f"{PREFIX}n{number}" for number in range(COUNT))]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", hub, "link", "add", "br0", "type", "bridge")
        ip("-n", hub, "link", "set", "br0", "up")
        for number in range(COUNT):
            own = f"{PREFIX}n{number}"
            ip("-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", hub)
            ip("-n", hub, "link", "set", f"port{number}", "master", "br0", "up")
            ip("-n", own, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", own, "link", "set", device, "up")
            limit(number, RATE)
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def plan() -> Plan:
    return plan_of(PROTOCOL)


def member(one: Plan, number: int) -> Work:
    """Return the work of a node in its namespace."""

    def work(name: str, in_fd: int, out_fd: int) -> None:
        space = os.open(f"/run/netns/{PREFIX}n{number}", os.O_RDONLY)
        linux.setns(space, CLONE_NEWNET)
        os.close(space)
        context = Context(name, time.monotonic() + 60, uid=os.getuid(), environ=dict(os.environ), scratch="/tmp")
        place = session.Place(f"10.77.0.{number + 1}", TOKEN)
        session.serve(one, HOST, context, place, in_fd, functools.partial(runner.write_all, out_fd))

    return work


def named() -> tuple[list[str], Mapping[str, Sequence[str]]]:
    """Vet, and return the bad nodes with all reasons."""
    one = plan()
    members = [nodes.start(f"n{number}", member(one, number)) for number in range(COUNT)]
    decision = nodes.vet(one, members, 60)
    return decision.bad, decision.reasons


def test_good_links(fabric: None) -> None:
    """Nobody is named."""
    assert named()[0] == []


def test_a_slow_link(fabric: None) -> None:
    """A tenth of what the others have."""
    limit(3, "4mbit")
    bad, reasons = named()
    assert bad == ["n3"], reasons
    assert "bad with" in reasons["n3"][0]


def test_a_lossy_link(fabric: None) -> None:
    """Each third packet is lost on its way to the node."""
    drop = ["-m", "statistic", "--mode", "nth", "--every", "3", "--packet", "0", "-j", "DROP"]
    inside(1, "iptables", "-A", "INPUT", "-i", "eth0", *drop)
    bad, reasons = named()
    assert bad == ["n1"], reasons


def test_a_link_that_is_down(fabric: None) -> None:
    """Nobody reaches it; the others are good."""
    inside(2, "ip", "link", "set", "eth0", "down")
    bad, reasons = named()
    assert bad == ["n2"], reasons
