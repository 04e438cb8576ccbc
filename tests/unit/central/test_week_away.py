"""The service is away for a week. A node's disk fills up to its bounds, and the node boots in between: what then comes,
what the node says that it lost, and what it says that it never wrote are together what happened."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import sqlalchemy as sa
from piolet.base.rates import Rates
from piolet.central import intake
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Writer as Store
from piolet.events import spool as spools
from piolet.events.envelope import KERNEL, ROOT, USER
from piolet.events.reader import Reader as SpoolReader
from piolet.events.room import Bounds
from piolet.events.spool import Spool
from piolet.events.stream import Writer
from piolet.forward.forwarder import Forwarder
from piolet.transport import statements
from piolet.transport.asking import Answer, CentralError
from piolet.transport.statements import Statement

BEGIN, DAY = 1.79e9, 86400.0
ALICE, BOB, CAROL = 1000, 1001, 1002
BOOTS = ("0b1c2d3e-0000-4000-8000-000000000000", "0b1c2d3e-0000-4000-8000-000000000001")
# As in [events], divided by 16, and as many records: a week of a busy node, in less time.
BOUNDS = Bounds(node=1 << 20, user=256 << 10, total=4 << 20)


class Service:
    """The central service without its network; `is_away` for a week."""

    def __init__(self, store: sa.Engine) -> None:
        self._writer, self._reader = Store(store), Reader(store, "alps")
        self.is_away, self.asked, self.now = True, 0, BEGIN

    def ask(
        self, method: str, target: str, body: bytes = b"", *, cluster: str = "", node: str = "", kind: str = ""
    ) -> Answer:
        self.asked += 1
        if self.is_away:
            raise CentralError("the central service does not answer: Connection refused")
        statement = Statement(method, target, cluster, node, statements.digest(body), "", self.now)
        arrival = intake.arrival(statement, body, target.partition("?gone=")[2], self.now)
        if not arrival.records and not arrival.gone:
            return Answer({"have": self._reader.have(node)}, 0.0)
        (taken,) = self._writer.append([arrival])
        if taken.missing:
            raise CentralError("missing", status=409, said={"have": taken.have})
        return Answer({"have": taken.have}, 0.0)


class Node:
    """A node's daemon; its clock is the test's."""

    def __init__(self, directory: Path, service: Service) -> None:
        self._directory, self._service = directory, service
        self.happened: Counter[int | None] = Counter()
        self.kept: Spool | None = None

    def boot(self, which: str) -> None:
        """Begin, after what ran before has ended."""
        self.end()
        acknowledged = str(self._directory.parent / "state" / "acknowledged.json")
        self.kept = Spool(str(self._directory), Writer("alps", "node1", which), {}, acknowledged, BOUNDS)
        self.kept._lines = Rates(spools.LINES_A_SECOND, spools.LINES_AT_ONCE, lambda: self._service.now)
        self.kept._bytes = Rates(spools.BYTES_A_SECOND, spools.BYTES_AT_ONCE, lambda: self._service.now)
        self.happened[None] += 1  # node.start

    def end(self) -> None:
        """End, as for a reboot."""
        if self.kept is not None:
            self.kept.close(30)

    def say(self, kind: str, source: str, uid: int | None = None, **body: object) -> None:
        """Have something happen."""
        assert self.kept is not None
        self.kept.put(kind, source, at=self._service.now, uid=uid, job=7 if uid else None, body=body)
        self.happened[uid] += 1
        if sum(self.happened.values()) % 1000 == 0:
            self.kept.flush(30)


def test_all_of_a_week_is_here_or_is_counted(tmp_path: Path, store: sa.Engine) -> None:
    rng = random.Random(18)
    (tmp_path / "spool").mkdir()
    (tmp_path / "state").mkdir()
    service = Service(store)
    node = Node(tmp_path / "spool", service)
    forwarder = Forwarder(
        SpoolReader(str(tmp_path / "spool")), service, str(tmp_path / "state"), 5.0, lambda: service.now, rng
    )  # fmt: skip
    node.boot(BOOTS[0])
    look = service.now
    for minute in range(7 * 24 * 6):  # of ten
        service.now = BEGIN + 600 * minute
        if minute == 3 * 24 * 6:
            node.boot(BOOTS[1])
        node.say("node.heartbeat", ROOT, uptime_s=600 * minute)
        for task in range(4):
            node.say("step.outcome", USER, ALICE, status=1, why="exit", task=task, tasks=1)
        if minute % 144 == 72:  # a program that crashes in a loop, once a day
            for task in range(1500):
                node.say("step.outcome", USER, BOB, signal=11, why="signal", task=task, tasks=1)
        if minute == 500:
            node.say("gpu.xid", KERNEL, xid=79, pci="0000:3b:00")
            node.say("vet.refused", USER, CAROL, reason="no room", by="user")
        while look <= service.now:
            look += max(1.0, forwarder.turn())
    node.end()
    # A forwarder that is refused waits up to five minutes: a thousand and some tries, and none in a tight loop.
    assert 1000 < service.asked < 4000
    service.is_away = False
    for _ in range(2000):
        service.now += 301
        if forwarder.turn() > 0 and service.asked and forwarder._failures == 0:
            break
    reader = Reader(store, "alps")
    here = [one.event for one in reader.arrivals()]
    assert len({one.key for one in here}) == len(here)
    came = Counter(one.uid for one in here if not one.kind.startswith("spool."))
    lost: Counter[int | None] = Counter()
    dropped: Counter[int | None] = Counter()
    for one in here:
        if one.kind == "spool.lost":
            lost[one.uid] += one.body["records"]
        if one.kind == "spool.dropped":
            dropped[one.uid] += one.body["records"]
    assert came + lost + dropped == node.happened
    # Each bound was reached, by whom it is for, and by nobody else.
    assert lost[ALICE] > 500 and lost[BOB] > 500 and dropped[BOB] > 500 and not dropped[ALICE]
    assert not lost[None] and not lost[CAROL] and not dropped[None] and not dropped[CAROL]
    assert {one.kind for one in here if one.source == KERNEL} == {"gpu.xid"}
    # What the node lost are the gaps that the service has, number by number.
    gaps = Counter((gap["epoch"], seq) for gap in reader.gaps("node1") for seq in range(gap["first"], gap["last"] + 1))
    said = Counter(
        (one.body["epoch"], seq)
        for one in here if one.kind == "spool.lost" for seq in range(one.body["first"], one.body["last"] + 1)
    )  # fmt: skip
    assert max(said.values()) == max(gaps.values()) == 1 and gaps.keys() <= said.keys()
    there = {epoch for epoch, _ in gaps}
    # Of a stream that went as a whole the service has not heard but by that word.
    assert {epoch for epoch, _ in said.keys() - gaps.keys()}.isdisjoint(there | {one.epoch for one in here})
    counted = reader.counted()
    assert (counted["gone"], counted["records"]) == (len(gaps), len(here))
    assert (counted["lost"], counted["dropped"]) == (len(said), dropped.total())
