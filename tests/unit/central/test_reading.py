"""What is read of a node: its latest records, by what is asked for."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from piolet.central.conclusions import OPEN, Conclusion
from piolet.central.store import wordings
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Writer

from tests.unit.central.test_store import add, event


def test_a_fault_is_not_sought_among_heartbeats_nor_among_what_users_bring_about(store: sa.Engine) -> None:
    """A node says each minute that it is well, and whoever has many steps fail says so of each."""
    writer = Writer(store)
    add(writer, event(1, kind="gpu.lost", source="kernel"))
    for seq in range(2, 3002, 5):
        add(
            writer,
            *(event(seq + one, time=1.7e9 + 60 * (seq + one)) for one in range(5)),
            received=1.7e9 + 60 * seq + 300,
        )
    outcome: dict[str, Any] = {"kind": "step.outcome", "source": "user", "uid": 1000, "epoch": "00000000000000cc"}
    add(writer, *(event(seq, time=1.7e9 + 60 * seq, **outcome) for seq in range(1, 401)), received=1.7e9 + 60 * 400)
    reader = Reader(store, "alps")
    found = reader.records("node1", 1.7e9, 1000)
    assert found.whole and found.beats == 3000 and sum(one.kind == "node.heartbeat" for one in found.events) <= 104
    assert [one.kind for one in found.events if one.kind != "node.heartbeat"][-1] == "gpu.lost"
    assert found.events == sorted(found.events, key=lambda one: -one.time)
    assert not reader.records("node1", 1.7e9, 300).whole
    few = reader.records("node1", 1.7e9, 300, ("kernel", "root"))
    assert few.whole and few.events[-1].kind == "gpu.lost" and {one.source for one in few.events} == {"kernel", "root"}


def test_when_a_case_was_opened_that_staff_has_acknowledged(store: sa.Engine) -> None:
    """By node, of these rules alone; of several the latest."""
    writer = Writer(store)
    add(writer, event(1))
    opened = [
        Conclusion(case * 16, rule, "0" * 16, "alps", node, "", time, OPEN, "ticket", "…", (), {})
        for case, rule, node, time in (
            ("a", "silent", "node1", 100.0), ("b", "silent", "node1", 300.0), ("c", "silent", "node1", 400.0),
            ("d", "silent", "node2", 500.0), ("e", "gpu-lost", "node2", 600.0), ("f", "mute", "node3", 700.0),
        )
    ]  # fmt: skip
    wordings.conclude(writer, [(one, 1) for one in opened], 800.0)
    for kind, cases in ((wordings.ACKNOWLEDGED, "abbef"), (wordings.NOTE, "cd")):
        for case in cases:
            wordings.say(writer, kind, "seen", 0, 900.0, case=case * 16)
    reader = Reader(store, "alps")
    assert reader.acknowledged(["silent", "mute"]) == {"node1": 300.0, "node3": 700.0}
    assert reader.acknowledged([]) == {}
