"""The thread that writes and the one that judges: each record is judged once, in order, whatever happens between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from piolet.base.errors import EventError
from piolet.central.conclusions import OPEN, Conclusion
from piolet.central.ledger import Judge, Ledger
from piolet.central.store.database import StoreError
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Arrival, Refused, Writer
from piolet.events.envelope import Event

from tests.support.waiting import wait_until
from tests.unit.central.test_store import A, B, event


class Engine:
    """Remembers what it saw; concludes of each gpu.lost."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def take(self, event: Event, received: float | None = None) -> list[Conclusion]:
        self.gate.wait(10)
        if event.kind == "gpu.xid":
            raise ZeroDivisionError
        self.seen.append((event.epoch, event.seq))
        if event.kind != "gpu.lost":
            return []
        return [Conclusion(f"{event.seq:016x}", "r", "0" * 16, "alps", event.node, "", event.time, OPEN, "note", "s",
                           (event.key,), {})]  # fmt: skip


class Pair:
    """Ledger and judge of one store."""

    def __init__(self, store: sa.Engine) -> None:
        self.engine = Engine()
        self.judge = Judge(Reader(store, "alps"), self.engine)
        self.ledger = Ledger(Writer(store), self.judge)
        self.reader = Reader(store, "alps")

    def start(self) -> None:
        self.ledger.start()
        self.judge.start(self.ledger)

    def stop(self) -> None:
        self.engine.gate.set()
        self.judge.stop()
        self.ledger.stop()

    def add(self, *records: Event | Refused, node: str = "node1") -> Any:
        return self.ledger.add(Arrival(node, records, 1.7e9 + 1)).result(10)

    def judged(self) -> list[tuple[str, int]]:
        wait_until(lambda: self.judge.is_caught_up or self.judge.broken, what="judging")
        return self.engine.seen


@pytest.fixture
def pair(store: sa.Engine) -> Iterator[Pair]:
    made = Pair(store)
    made.start()
    yield made
    made.stop()


def lost(seq: int, epoch: str = A) -> Event:
    return event(seq, epoch=epoch, kind="gpu.lost", source="kernel")


def test_what_is_written_is_judged_in_order(pair: Pair) -> None:
    for seq in range(1, 30):
        pair.add(event(seq))
    assert pair.judged() == [(A, seq) for seq in range(1, 30)]


def test_what_the_store_has_is_judged_first_and_concluded_once(store: sa.Engine) -> None:
    first = Pair(store)
    first.start()
    first.add(lost(1), lost(2))
    wait_until(lambda: len(first.reader.conclusions()) == 2, what="conclusions")
    first.stop()
    second = Pair(store)
    second.start()
    second.add(lost(3))
    assert second.judged() == [(A, 1), (A, 2), (A, 3)]
    wait_until(lambda: len(second.reader.conclusions()) == 3, what="conclusions")
    second.stop()


def test_what_is_written_while_the_store_is_read_is_judged_once(store: sa.Engine) -> None:
    pair = Pair(store)
    pair.ledger.start()
    for seq in range(1, 50):
        pair.add(event(seq))
    pair.engine.gate.clear()
    pair.judge.start(pair.ledger)
    for seq in range(50, 100):
        pair.add(event(seq))
    pair.engine.gate.set()
    assert pair.judged() == [(A, seq) for seq in range(1, 100)]
    pair.stop()


def test_more_than_waits_in_memory_is_read_from_the_store(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piolet.central.ledger._UNJUDGED_MOST", 5)
    pair.add(event(1))
    pair.judged()
    pair.engine.gate.clear()
    for seq in range(2, 40):
        pair.add(event(seq))
    pair.engine.gate.set()
    assert pair.judged() == [(A, seq) for seq in range(1, 40)]


def test_a_rule_that_breaks_ends_judging_and_not_keeping(pair: Pair) -> None:
    pair.add(event(1))
    pair.add(event(2, kind="gpu.xid", source="kernel"))
    wait_until(lambda: pair.judge.broken, what="a break")
    assert "ZeroDivisionError" in pair.judge.broken
    assert pair.add(event(3)).have == {A: 3}


def test_a_store_that_takes_nothing_is_told_as_long_as_it_does(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where a single batch is to blame."""
    writer = pair.ledger._writer
    appends = writer.append

    def full(arrivals: Any) -> Any:
        raise StoreError("the store does not take records: database or disk is full")

    pair.add(event(1))
    assert pair.ledger.failing == ""
    monkeypatch.setattr(writer, "append", full)
    with pytest.raises(StoreError):
        pair.add(event(2))
    assert pair.ledger.failing == "the store does not take records: database or disk is full"
    monkeypatch.setattr(writer, "append", appends)
    assert pair.add(event(2)).have == {A: 2} and pair.ledger.failing == ""


def test_own_records_are_judged_too(pair: Pair) -> None:
    """What Slurm's accounting says: the poller's side of it."""
    own = [lost(9, B), lost(4, B)]
    assert pair.ledger.take_own(own) == 2 and pair.ledger.take_own(own) == 0
    assert pair.judged() == [(B, 9), (B, 4)]
    assert pair.ledger.cursor("x") is None
    pair.ledger.set_cursor("x", 3.5)
    assert pair.ledger.cursor("x") == 3.5


def test_one_bad_batch_does_not_take_those_that_waited_with_it(pair: Pair) -> None:
    """A node writes to a stream of the service's own, at the same time as others send."""
    pair.ledger.take_own([event(7, epoch=B, node="node2")])
    blocked = threading.Event()
    pair.ledger.call(lambda writer: blocked.wait(10))
    good = pair.ledger.add(Arrival("node1", [event(1)], 1.0))
    bad = pair.ledger.add(Arrival("node2", [event(1, "node2", B)], 1.0))
    last = pair.ledger.add(Arrival("node3", [event(1, "node3")], 1.0))
    blocked.set()
    assert good.result(10).have == {A: 1} and last.result(10).have == {A: 1}
    with pytest.raises(EventError, match="own"):
        bad.result(10)


def test_a_data_base_that_is_away(store: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends is told to come again, and conclusions are written when it is back."""
    monkeypatch.setattr("piolet.central.ledger._AGAIN_S", 0.05)
    pair = Pair(store)
    pair.start()
    pair.add(event(1))
    pair.judged()
    away = threading.Event()
    away.set()

    def begin(connection: sa.Connection) -> None:
        if away.is_set():
            raise sa.exc.OperationalError("x", None, Exception("it is away"))

    pair.engine.gate.clear()
    pair.add(lost(2))
    sa.event.listen(store, "begin", begin)
    pair.engine.gate.set()
    with pytest.raises(StoreError, match="it is away"):
        pair.add(event(3))
    away.clear()
    wait_until(lambda: len(pair.reader.conclusions()) == 1, what="the conclusion")
    assert pair.add(event(3)).have == {A: 3}
    assert pair.judged() == [(A, 1), (A, 2), (A, 3)]
    pair.stop()


def test_more_than_the_disk_takes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = threading.Event()
    pair.ledger.call(lambda writer: blocked.wait(10))
    try:
        with pytest.raises(StoreError, match="more to write"):
            for seq in range(1, 5000):
                pair.ledger.add(Arrival("node1", [event(seq)], 1.0))
    finally:
        blocked.set()
