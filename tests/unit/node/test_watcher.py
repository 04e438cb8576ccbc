"""Root's watcher: from the kernel's log, ports, GPUs and processes to messages, and what the server takes of them.

Nobody can write a line of the kernel's own to /dev/kmsg, root neither: entries come through a pipe here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.events.envelope import ROOT
from piolet.node import watching
from piolet.node.root import watcher
from piolet.node.root.watcher import Watcher
from piolet.node.server.eventdesk import EventDesk
from piolet.node.watching import Seen
from piolet.transport import packets

from tests.support import spools
from tests.unit.node.test_kernelevents import entry

XID = "NVRM: Xid (PCI:0000:41:00): 48, pid=77, name=python, DBE"


class Hand:
    """A watcher over a pipe and a tree, with a clock that stands still until it is moved."""

    def __init__(self, room: Path, position: int = -1, untaken: int = -1, hardware: bool = True) -> None:
        self.now = 100.0
        self.room, self.untaken = room, untaken
        self.read, self.write = os.pipe2(os.O_NONBLOCK)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        (room / "proc").mkdir(exist_ok=True)
        self.watcher = Watcher(self.theirs, (self.read, position, untaken), 60.0, hardware, str(room), lambda: self.now)
        self.watcher._gpus = self.watcher._find_gpus()

    def close(self) -> None:
        for one in (self.ours, self.theirs):
            one.close()
        for descriptor in (self.read, self.write, *[self.untaken] * (self.untaken >= 0)):
            os.close(descriptor)

    def said(self) -> list[Seen]:
        found = []
        while True:
            try:
                found.append(packets.decode(Seen, self.ours.recv(watching.MESSAGE_MAX)))
            except BlockingIOError:
                assert all(one.kind in watching.KINDS for one in found)
                return found

    def kinds(self) -> list[tuple[str, dict[str, Any]]]:
        return [(one.kind, json.loads(one.body)) for one in self.said() if one.kind != "node.heartbeat"]

    def log(self, *entries: bytes) -> None:
        # Each read of /dev/kmsg is one entry, and each of a pipe what there is.
        for one in entries:
            os.write(self.write, one)
            self.watcher.read_log()

    def look(self, after: float = 60.0) -> list[tuple[str, dict[str, Any]]]:
        self.now += after
        self.watcher.look()
        return self.kinds()

    def put(self, path: str, text: str = "") -> None:
        place = self.room / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


Make = Callable[..., Hand]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Hands over the test's directory, closed when it ends."""
    with contextlib.ExitStack() as held:
        yield lambda *arguments, **more: held.enter_context(contextlib.closing(Hand(tmp_path, *arguments, **more)))


@pytest.fixture
def hand(make: Make) -> Hand:
    return make()


def test_a_gpus_error_is_said_with_its_uuid(tmp_path: Path, make: Make) -> None:
    (tmp_path / "proc/driver/nvidia/gpus/0000:41:00.0").mkdir(parents=True)
    about = "Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-0f0e0f0e-1111\nBus Type: \t PCIe\n"
    (tmp_path / "proc/driver/nvidia/gpus/0000:41:00.0/information").write_text(about)
    hand = make()
    hand.log(entry(XID))
    (seen,) = hand.said()
    assert (seen.kind, seen.source, seen.severity, seen.subject) == (
        "gpu.xid",
        "kernel",
        "fatal",
        "gpu:GPU-0f0e0f0e-1111",
    )


def test_a_burst_is_said_once_and_then_how_long_it_was(hand: Hand) -> None:
    hand.log(*(entry(XID, number=number) for number in range(50)))
    assert [body.get("more") for kind, body in hand.kinds()] == [None]
    assert hand.look(30) == []
    hand.log(entry(XID.replace("41", "42"), number=50))
    assert len(hand.kinds()) == 1, "another GPU is another burst"
    assert [(kind, body["more"]) for kind, body in hand.look(31)] == [("gpu.xid", 49)]
    hand.log(entry(XID, number=51))
    assert len(hand.kinds()) == 1


def test_what_is_left_of_a_burst_is_said_when_the_next_begins(hand: Hand) -> None:
    """A burst may be over, and the next line be there, before it looks at what is over."""
    hand.log(*(entry(XID, number=number) for number in range(5)))
    hand.now += 61
    hand.log(entry(XID, number=5))
    assert [body.get("more") for _, body in hand.kinds()] == [None, 4, None]


def test_a_burst_that_has_no_place_is_said(hand: Hand) -> None:
    hand.log(entry(XID, number=0), entry(XID, number=1))
    found = hand.kinds()
    for number in range(2, watcher._KEYS_MAX + 2):
        hand.log(entry(f"nfs: server nas{number} not responding, still trying", number=number))
        found += hand.kinds()
    assert [(kind, body["more"]) for kind, body in found if "more" in body] == [("gpu.xid", 1)]
    assert len(hand.watcher._bursts) == watcher._KEYS_MAX


def test_two_users_programs_are_two_bursts(hand: Hand) -> None:
    for pid, uid in ((77, 1001), (78, 1002), (79, 1001)):
        hand.put(f"proc/{pid}/stat", f"{pid} (a) R " + " ".join(["1"] * 18) + " 7 1 1")
        hand.put(f"proc/{pid}/status", f"Name:\ta\nUid:\t{uid}\t0\t0\t0\n")
        hand.put(f"proc/{pid}/cgroup", "0::/\n")
    text = "NVRM: Xid (PCI:0000:41:00): 31, pid={}, name=a, Ch 00000008"
    hand.log(*(entry(text.format(pid), number=pid) for pid in (77, 78, 79)), entry(text.format(77), number=80))
    assert [one.uid for one in hand.said()] == [1001, 1002]


def test_a_restarted_watcher_says_nothing_twice(tmp_path: Path, make: Make) -> None:
    position = os.open(tmp_path / "kmsg", os.O_RDWR | os.O_CREAT)
    first = make(position)
    first.log(entry(XID, number=5), entry("eth0: up", number=6))
    assert len(first.kinds()) == 1
    again = make(position)
    again.log(entry(XID, number=5), entry("eth0: up", number=6))
    assert again.kinds() == []
    again.log(entry(XID, number=7))
    assert len(again.kinds()) == 1
    # 8 to 19 were overwritten before it came to read them.
    again.log(entry("eth0: up", number=20))
    assert again.kinds() == [
        ("spool.dropped", {"records": 12, "why": "the kernel's log was overwritten before it was read"})
    ]
    os.close(position)


def test_ports_that_went_down(hand: Hand) -> None:
    def ports(down: int, link_downed: int, rate: str = "400 Gb/sec (4X NDR)", speed: str = "100000") -> None:
        hand.put("sys/class/net/hsn0/device", "")
        hand.put("sys/class/net/hsn0/carrier_down_count", f"{down}\n")
        hand.put("sys/class/net/hsn0/operstate", "up\n")
        hand.put("sys/class/net/hsn0/speed", f"{speed}\n")
        hand.put("sys/class/net/veth1/carrier_down_count", f"{down}\n")
        hand.put("sys/class/infiniband/mlx5_0/ports/1/counters/link_downed", f"{link_downed}\n")
        hand.put("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n")
        hand.put("sys/class/infiniband/mlx5_0/ports/1/rate", f"{rate}\n")

    ports(3, 1)
    assert hand.look() == [], "what was before nobody knows the time of"
    ports(3, 1, speed="-1")
    assert hand.look() == []
    ports(5, 1)
    assert hand.look() == [("link.flap", {"state": "up", "flaps": 2, "rate": "100000"})]
    ports(5, 2, "200 Gb/sec (4X HDR)")
    hand.now += 60
    hand.watcher.look()
    (seen, _) = hand.said()
    assert seen.subject == "port:mlx5_0/1" and json.loads(seen.body) == {"state": "active", "flaps": 1, "rate": "200"}
    ports(5, 0)
    assert [body["flaps"] for _, body in hand.look()] == [0], "the counter was cleared, and the rate is another"


def test_a_gpu_that_vanishes_is_lost_once(tmp_path: Path, make: Make) -> None:
    place = tmp_path / "proc/driver/nvidia/gpus/0000:41:00.0"
    place.mkdir(parents=True)
    (place / "information").write_text("GPU UUID: \t GPU-0f0e0f0e-1111\n")
    device = tmp_path / "sys/bus/pci/devices/0000:41:00.0"
    device.mkdir(parents=True)
    hand = make()
    assert hand.look() == []
    device.rmdir()
    assert hand.look() == [("gpu.lost", {"pci": "0000:41:00"})]
    assert hand.look() == []
    device.mkdir()
    assert hand.look() == []
    device.rmdir()
    assert len(hand.look()) == 1


def test_processes_that_wait_in_state_d(hand: Hand) -> None:
    def process(pid: int, state: str, flags: int = 0, began: int = 7) -> None:
        rest = " ".join(["1"] * 12)
        hand.put(f"proc/{pid}/stat", f"{pid} (a ) D b) {state} 1 1 1 0 -1 {flags} {rest} {began} 1 1")

    process(10, "D")
    process(11, "S")
    process(12, "D", flags=0x00208040)  # a kernel's thread
    assert hand.look() == [], "it may be reading a file"
    process(13, "D")
    hand.put("proc/13/status", "Name:\ta\nUid:\t0\t0\t0\t0\n")
    assert hand.look() == [("fs.blocked", {"processes": 1, "seconds": 60})], "whose it is is not told"
    assert hand.look() == [], "the same once"
    process(10, "S")
    process(13, "S")
    assert hand.look() == []
    process(10, "D")
    assert hand.look() == []
    process(10, "D", began=8)
    assert hand.look() == [], "another process of the same number"


def test_who_waits_often_does_not_hang(hand: Hand) -> None:
    """A process that reads much is in state D at most looks, each time in another wait."""
    told = []
    for waits in (5, 9, 12, 12):
        hand.put("proc/10/stat", "10 (reader) D 1 1 1 0 -1 0 " + " ".join(["1"] * 12) + " 7 1 1")
        rest = f"voluntary_ctxt_switches:\t{waits}\nnonvoluntary_ctxt_switches:\t{waits + 1}\n"
        hand.put("proc/10/status", f"Name:\treader\n{rest}")
        told.append(hand.look())
    assert told == [[], [], [], [("fs.blocked", {"processes": 1, "seconds": 60})]]


def test_what_cannot_be_looked_at_silences_no_node(hand: Hand, caplog: pytest.LogCaptureFixture) -> None:
    hand.put("proc/10/stat", "10 (a) D 1 1 1 0 -1 x " + " ".join(["1"] * 20))
    hand.watcher.look()
    hand.watcher.look()
    assert [one.kind for one in hand.said()] == ["node.heartbeat"] * 2
    assert len(caplog.records) == 1 and "cannot be looked at" in caplog.text


def test_it_says_that_it_is_there(tmp_path: Path, make: Make) -> None:
    hand = make(hardware=False)
    hand.watcher.look()
    (seen,) = hand.said()
    assert (seen.kind, seen.source) == ("node.heartbeat", ROOT) and json.loads(seen.body)["uptime_s"] > 0


def test_it_ends_with_the_server_and_outlives_a_log_that_ends(hand: Hand) -> None:
    os.close(hand.write)
    hand.ours.close()
    hand.watcher.run()
    hand.write = os.open(os.devnull, os.O_WRONLY)
    hand.ours = socket.socket()


def test_a_log_that_was_overwritten_has_not_ended() -> None:
    """The kernel says POLLERR until the next read (devkmsg_poll of kernel/printk/printk.c)."""
    assert not watcher.has_ended(select.POLLIN | select.POLLERR | select.POLLPRI)
    assert not watcher.has_ended(select.POLLIN)
    assert watcher.has_ended(select.POLLHUP) and watcher.has_ended(select.POLLNVAL)


def test_a_server_that_hangs_holds_it_not_up(hand: Hand) -> None:
    hand.watcher._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for _ in range(2000):
        hand.watcher.look()
    said = len(hand.said())
    assert 0 < said < 2000
    hand.watcher.look()
    first, _ = hand.said()
    assert first.kind == "spool.dropped" and json.loads(first.body)["records"] == 2000 - said


def test_the_server_puts_it_into_the_nodes_stream(tmp_path: Path) -> None:
    spool, _ = spools.spool(tmp_path)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        selectors.DefaultSelector() as selector,
        ours,
        theirs,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        desk = EventDesk(selector, ours, other, spool)
        good = Seen("gpu.xid", "kernel", 1.5e9, "fatal", "gpu:GPU-1", '{"xid":48}')
        for data in (
            packets.encode(good), b"[]", b"{}", b"\xff",
            packets.encode(Seen("vet.verdict", "kernel", 1.0)), packets.encode(Seen("gpu.xid", "user", 1.0)),
            packets.encode(Seen("gpu.xid", "kernel", 1.0, body="[]")),
            packets.encode(Seen("gpu.xid", "kernel", 1.0, body="[" * 5000)),
            packets.encode(Seen("gpu.xid", "kernel", 1.0, subject="node:x y")),
            packets.encode(Seen("gpu.xid", "kernel", 1.0, severity="bad")),
        ):  # fmt: skip
            theirs.send(data)
        desk._on_watcher()
        theirs.close()
        desk._on_watcher()
        assert len(selector.get_map()) == 1
    spool.close()
    (one,) = spools.events(tmp_path, "gpu.xid")
    assert (one["time"], one["source"], one["severity"], one["subject"], one["body"]) == (
        1.5e9, "kernel", "fatal", "gpu:GPU-1", {"xid": 48},
    )  # fmt: skip
    assert one["uid"] is None and len(list(tmp_path.glob("node-*"))) == 1 and not list(tmp_path.glob("uid-*"))


def test_outcomes_that_nobody_took_are_counted_once(tmp_path: Path, make: Make) -> None:
    """slurmstepd appends a byte for each, by a descriptor of its own."""
    path = tmp_path / "events.sock.lost"
    path.write_bytes(b"\0\0\0")
    hand = make(untaken=os.open(path, os.O_RDWR))
    assert hand.look() == [("spool.dropped", {"records": 3, "why": "pioletd took no outcome"})]
    assert hand.look() == []
    with path.open("ab") as file:
        file.write(b"\0")
    assert hand.look() == [("spool.dropped", {"records": 1, "why": "pioletd took no outcome"})]


def test_what_root_cannot_open_it_does_without(tmp_path: Path, make: Make) -> None:
    hand = make()
    hand.watcher._kmsg = -1
    hand.watcher.look()
    assert [one.kind for one in hand.said()] == ["node.heartbeat"]
    assert watcher._number_of(b"x") == -1
