"""Every rule of the catalogue is fired by what nodes and the service really record, with the values that they record.

What a driver writes comes through the watcher, the server's desk and the spool; what Slurm prints, through its readers;
what people say, as the service keeps it. Only times are moved apart afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import selectors
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from piolet.central import hands
from piolet.central.accounted import events_of_jobs, events_of_states
from piolet.central.rules.engine import Engine
from piolet.central.rules.language import parse
from piolet.events.envelope import Event, decode
from piolet.events.kinds import KINDS
from piolet.events.reader import Reader
from piolet.events.room import Loss
from piolet.events.spool import Spool
from piolet.events.stream import Writer
from piolet.node.server.eventdesk import EventDesk
from piolet.node.server.verdicts import Who
from piolet.slurm import past
from piolet.transport import wire

from tests.support import spools
from tests.unit.central.making import CATALOGUE, DAY, HOUR, START, concluded, of_catalogue
from tests.unit.node.test_kernelevents import entry
from tests.unit.node.test_watcher import Hand
from tests.wire import messages

XID_48 = "NVRM: Xid (PCI:0000:41:00): 48, pid=77, name=python3, DBE (double bit error) ECC Error"
XID_79 = "NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
XID_31 = (
    "NVRM: Xid (PCI:0000:41:00): 31, pid={}, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS "
    "GPCCLIENT_T1_0 faulted @ 0x7f2a_00000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
)
XID_13 = (
    "NVRM: Xid (PCI:0000:41:00): 13, pid={}, name=python3, Graphics SM Warp Exception on (GPC 3, TPC 1, SM 0): "
    "Out Of Range Address"
)
AER = "pcieport 0000:00:1c.0: AER: Uncorrected (Fatal) error received: 0000:41:00.0"
SXID = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
EDAC = (
    "EDAC MC1: 1 UE memory read error on CPU_SrcID#0_MC#1_Chan#0_DIMM#0 (channel:0 slot:0 page:0x1 offset:0x0 grain:32)"
)
MCE = "mce: Uncorrected hardware memory error in user-access at 3f5a6c0"
NFS = "nfs: server nas1.cluster not responding, still trying"


class Node:
    """A node's part from the kernel's log to the disk; each of its methods returns what is recorded of one thing."""

    def __init__(self, room: Path) -> None:
        self.spooled = room / "events"
        self.spooled.mkdir()
        self.spool, self.verdicts = spools.spool(self.spooled, "n1")
        self.hand = Hand(room)
        self._selector = selectors.DefaultSelector()
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._outcomes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.desk = EventDesk(self._selector, self._ours, self._outcomes, self.spool)
        self._number = 100
        self._read: dict[str, int] = {}
        self.recorded()

    def close(self) -> None:
        self.hand.close()
        self.spool.close()
        self._selector.close()
        for one in (self._ours, self._theirs, self._outcomes):
            one.close()

    def recorded(self) -> list[Event]:
        """Return what is new on the disk, but for the spool's own beginning."""
        self.spool.flush()
        reader, found = Reader(str(self.spooled)), []
        for epoch in reader.streams():
            for line in reader.read(epoch, self._read.get(epoch, 0), 10**6, 1 << 30):
                event = decode(line)
                assert event.source in KINDS[event.kind].sources and event.body.keys() <= KINDS[event.kind].body.keys()
                self._read[epoch] = event.seq
                found += [event] if event.kind != "node.start" else []
        return found

    def _told(self) -> list[Event]:
        for seen in self.hand.said():
            if seen.kind != "node.heartbeat":
                self.desk._take(seen)
        return self.recorded()

    def kernel(self, *texts: str) -> list[Event]:
        for text in texts:
            self.hand.now += 61
            self._number += 1
            self.hand.log(entry(text, number=self._number))
            for seen in self.hand.said():
                self.desk._take(seen)
        return self.recorded()

    def process(self, pid: int, uid: int, state: str = "R", waits: int = 1) -> None:
        """Have a process, as the kernel shows it, that was there when a line was written."""
        rest = " ".join(["1"] * 12)
        self.hand.put(f"proc/{pid}/stat", f"{pid} (python3) {state} 1 1 1 0 -1 0 {rest} 7 1 1")
        status = f"Name:\tpython3\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nvoluntary_ctxt_switches:\t{waits}\n"
        self.hand.put(f"proc/{pid}/status", status)
        self.hand.put(f"proc/{pid}/cgroup", "0::/system.slice/slurmstepd.scope/job_12/step_0/user/task_0\n")

    def faults(self, text: str, uid: int) -> list[Event]:
        self.process(uid, uid)
        return self.kernel(text.format(uid))

    def flaps(self, down: int) -> list[Event]:
        self.hand.put("sys/class/infiniband/mlx5_0/ports/1/counters/link_downed", f"{down}\n")
        self.hand.put("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n")
        self.hand.put("sys/class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n")
        self.hand.now += 60
        self.hand.watcher.look()
        return self._told()

    def waits(self, round_: int, *uids: int) -> list[Event]:
        """Have processes wait for a minute and more, and then go on."""
        for state in "DDR":
            for uid in uids:
                self.process(uid, uid, state, round_)
            self.hand.now += 60
            self.hand.watcher.look()
        return self._told()

    def beats(self) -> list[Event]:
        self.hand.watcher.look()
        for seen in self.hand.said():
            self.desk._take(seen)
        return self.recorded()

    def vetted(self, uid: int, job: int, outcome: str) -> list[Event]:
        said = {"eval": "gpu_memory", "outcome": outcome, "reason": "x", "node": "n1"}
        line = {"origin": "built-in", "kind": "x", "plan": "p", "protocol": "p", "release": "1", "said": said}
        self.verdicts.put(Who(uid, 7, str(job), "0", "cgroup"), json.dumps(line).encode())
        return self.recorded()

    def refused(self, uid: int) -> list[Event]:
        self.verdicts.refuse(Who(uid, 7, "12", "0", "cgroup"), "Read-only file system")
        return self.recorded()

    def died(self, uid: int) -> list[Event]:
        self.desk._tell(wire.decode_outcome(messages.outcome([(6 | 0x80, 0, 1)], job=uid, uid=uid)))
        return self.recorded()

    def boots(self, number: int, *losses: Loss) -> list[Event]:
        """Have the daemon begin after a boot, and find that it has too much on its disk."""
        room = self.spooled.parent / f"boot{number}"
        room.mkdir()
        one = Spool(str(room), Writer("test", "n1", f"{number:08x}-0000-4000-8000-000000000000"), {"booted": number})
        one.close()
        for loss in losses:
            one._tell_loss(loss)
        reader = Reader(str(room))
        return [decode(line) for epoch in reader.streams() for line in reader.read(epoch, 0, 10, 1 << 20)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path)
    yield one
    one.close()


def apart(every: float, groups: Sequence[Sequence[Event]]) -> list[Event]:
    """Return the events, those of one group at one time, and the groups so many seconds apart."""
    assert all(groups), "each thing that happens is recorded"
    return [dataclasses.replace(event, time=START + at * every) for at, group in enumerate(groups) for event in group]


def states(state: str, reason: str, *days: float) -> list[Event]:
    """Return what the service makes of `sacctmgr show event`: each state for an hour."""
    times = [int(START + day * DAY) for day in days]
    rows = "".join(f"n1|{at}|{at + 3600}|{state}|{reason}|slurm(64030)\n" for at in times)
    return sorted(events_of_states(past.states(rows), "test"), key=lambda event: event.time)


def jobs(*uids: int) -> list[Event]:
    """Return what the service makes of `sacct`: a job of one node of each user's, a day apart."""
    rows = ""
    for number, uid in enumerate(uids, 1):
        at = int(START + number * DAY)
        rows += f"{number}|{number}|{uid}|FAILED|1:0|n1|{at - 90}|{at - 80}|{at}\n"
    return list(events_of_jobs(past.jobs(rows), "test"))


def repairs(every: float, many: int) -> list[Event]:
    said = {"text": "new riser", "by": "uid 0"}
    return [hands.repaired("test", "n1", START + number * every, said) for number in range(many)]


def times(many: int, what: Callable[[int], list[Event]]) -> list[list[Event]]:
    return [what(number) for number in range(many)]


RECORDS: dict[str, Callable[[Node], list[Event]]] = {
    "fatal-xids": lambda node: apart(HOUR, times(5, lambda _: node.kernel(XID_48))),
    "xid-31-twice": lambda node: apart(HOUR, times(2, lambda number: node.faults(XID_31, 1000 + number))),
    "xid-13-one-tpc": lambda node: apart(HOUR, times(2, lambda number: node.faults(XID_13, 1000 + number))),
    "gpu-lost": lambda node: apart(HOUR, [node.kernel(XID_79)]),
    "gpu-lost-again": lambda node: apart(DAY, times(2, lambda _: node.kernel(XID_79))),
    "sxid-fatal": lambda node: apart(HOUR, [node.kernel(SXID)]),
    "link-flaps": lambda node: apart(900, times(4, node.flaps)[1:]),
    "link-degraded": lambda node: apart(4 * HOUR, times(6, node.flaps)[1:]),
    "memory-uncorrected": lambda node: apart(DAY, [node.kernel(EDAC), node.kernel(MCE)]),
    "pcie-errors": lambda node: apart(HOUR, times(3, lambda _: node.kernel(AER))),
    "lemon": lambda node: apart(100 * DAY, times(4, lambda _: node.kernel(XID_48))),
    "failed-thrice": lambda _: states("DOWN*", "Not responding", 0, 20, 40),
    "failed-twice": lambda node: apart(3 * DAY, [node.kernel(XID_79), node.kernel(EDAC)]),
    "repairs-often": lambda _: repairs(DAY, 5),
    "repairs-in-all": lambda _: repairs(100 * DAY, 3),
    "down-often": lambda _: states("DOWN*", "Not responding", 0, 4, 8),
    "drain-flapping": lambda _: states("IDLE+DRAIN", "health check", 0, 2, 4),
    "boots-often": lambda node: apart(HOUR, times(4, node.boots)),
    "silent": lambda node: apart(HOUR, [node.beats()]),
    "records-lost": lambda node: apart(HOUR, [node.boots(1, Loss(None, "e" * 16, 1, 7, 100, "a bound"))]),
    "vet-failed-twice": lambda node: apart(DAY, times(2, lambda number: node.vetted(1000, 12 + number, "fail"))),
    "steps-of-three-users": lambda node: apart(DAY, times(3, lambda number: node.died(1000 + number))),
    "jobs-of-three-users": lambda _: jobs(1000, 1001, 1002),
    "file-system-alone": lambda node: apart(HOUR, times(3, lambda _: node.kernel(NFS))),
    "processes-wait": lambda node: apart(HOUR, times(3, lambda number: node.waits(number, 1000, 1001))),
    "vet-cannot-run": lambda node: apart(HOUR, times(2, lambda number: node.refused(1000 + number))),
    "revet-failed": lambda _: [hands.revetted("test", "n1", START, {"outcome": "bad"})],
}


def test_every_rule_has_records_that_are_made() -> None:
    assert {rule.name for rule in parse("catalogue.toml", CATALOGUE)} == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_it_is_fired_by_what_is_recorded(node: Node, name: str) -> None:
    rule, events = of_catalogue(name), RECORDS[name](node)
    until = max(event.time for event in events) - START + rule.settle + rule.missing + 130
    out = concluded([rule], events, until=until)
    assert [(one.rule, one.state, one.node) for one in out] == [(name, "open", "n1")]


@pytest.mark.parametrize("text", [XID_31, XID_13])
def test_one_users_program_that_faults_asks_for_no_re_vet(node: Node, text: str) -> None:
    """Nor does one of which the kernel does not say whose it was."""
    engine = Engine(parse("catalogue.toml", CATALOGUE))
    known = times(5, lambda _: node.faults(text, 1000))
    assert {(event.uid, event.subject) for group in known for event in group} == {(1000, "")}
    unknown = times(5, lambda _: node.kernel(text.format("'<unknown>'")))
    assert {event.uid for group in unknown for event in group} == {None}
    for event in apart(HOUR, [*known, *unknown]):
        assert engine.take(event) == []
    assert engine.wait(START + 2 * DAY) == []


def test_processes_of_one_account_that_wait_ask_for_no_re_vet(node: Node) -> None:
    """A process waits so for its child, where it shares its memory with it (vfork): as long as its user likes."""
    found = times(9, lambda number: node.waits(number, 1000))
    assert [event.body["accounts"] for group in found for event in group] == [1] * 9
    assert concluded([of_catalogue("processes-wait")], apart(HOUR, found), until=2 * DAY) == []


def test_subordinate_ids_are_no_accounts(node: Node) -> None:
    """One user's, as containers have them."""
    node.hand.put("etc/subuid", "alice:100000:65536\n")
    (found,) = node.waits(1, 1000, 100_000, 100_001)
    assert (found.body["processes"], found.body["accounts"]) == (3, 1)
    assert [event.uid for uid in (1000, 100_000) for event in node.faults(XID_31, uid)] == [1000, None]
    (killed,) = node.kernel("oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/x,"
                            "task_memcg=/slurm/uid_1000/job_3/step_0/task_0,task=a,pid=7,uid=100001")  # fmt: skip
    assert (killed.uid, killed.job, killed.step) == (None, 3, "0")


def test_what_users_bring_about_is_within_their_share(node: Node) -> None:
    """Nobody pushes a word of the node's own out with processes that run out of memory."""
    text = (
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/x,task_memcg="
        "/system.slice/slurmstepd.scope/job_{}/step_0/user/task_0,task=python3,pid=7,uid=1001"
    )
    made = [one for one in node.kernel(*map(text.format, range(1, 2000)), XID_48) if one.kind != "spool.dropped"]
    assert sum((event.uid, event.kind) == (1001, "kernel.oom") for event in made) < 1999, "a share has an end"
    assert [(event.uid, event.kind) for event in made if event.uid != 1001] == [(None, "gpu.xid")]
