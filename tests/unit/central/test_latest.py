"""What nodes told last of a step that runs: kept in memory, bounded, and shown to who may see the step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from piolet.central import latest, stepanswers
from piolet.central.answers import Asker
from piolet.central.latest import Latest
from piolet.events.envelope import Event, encode
from piolet.observe.catalogue import WHOLE, Catalogue
from piolet.observe.spool import Batch, Line

from tests.support.frames import began, ended, frame

ALICE, BOB = 1000, 1001
START = 1_790_000_000.0
EPOCH = "00000000000000a1"


def lines(*events: Event) -> list[Line]:
    """Return what the service makes of records."""
    return [
        Line(one.epoch, one.seq, str(one.job), one.step, one.run or 0, one.uid or 0, one.time, encode(one),
             ended=one.kind == "observe.end", kind=one.kind)
        for one in events
    ]  # fmt: skip


def batch(node: str, *events: Event, received: float = START + 45, **more: Any) -> Batch:
    """Return what a node sent."""
    return Batch(node, lines(*events), received, **more)


def held(now: float = START + 50) -> Latest:
    """Return one whose clock stands at `now`."""
    return Latest(lambda: now)


KEY = ("112", "0", 0, ALICE)


def test_of_each_node_there_is_the_last() -> None:
    known = held()
    known.take(
        batch("node1", began("node1", 1, START, EPOCH), *(frame("node1", 2 + at, START, at, EPOCH) for at in range(4)))
    )
    known.take(batch("node2", frame("node2", 1, START, 1, EPOCH), ended("node2", 2, START, START + 20, EPOCH)))
    found = known.of(KEY, 10)
    assert found["node1"]["host"]["rows"] == [[3, 5_000_000_000, 123456789]] and found["node1"]["age"] == 10.0
    assert [one["name"] for one in found["node1"]["devices"]] == ["H100"] * 4
    assert found["node1"]["simulated"] == "made" and not found["node1"]["ended"]
    assert found["node2"]["ended"] and "devices" not in found["node2"]
    assert list(known.of(KEY, 1)) == ["node1"] and known.of(("113", "0", 0, ALICE), 10) == {}


def test_a_clock_that_is_wrong_makes_nothing_older() -> None:
    known = held()
    known.take(batch("node1", frame("node1", 1, START + 3600, 3, EPOCH), ahead=3600.0))
    assert known.of(KEY, 10)["node1"]["age"] == 10.0


def test_what_is_old_or_too_much_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    known = held()
    known.take(batch("node1", frame("node1", 1, START, 1, EPOCH)))
    known.take(batch("node2", frame("node2", 1, START, 1, EPOCH), received=START + 45 + latest.OLD_S))
    assert list(known.of(KEY, 10)) == ["node2"]
    monkeypatch.setattr(latest, "BYTES_MOST", 3000)
    for number in range(50):
        at = START + 700 + number
        known.take(batch(f"n{number}", frame(f"n{number}", 1, START, 1, EPOCH), received=at))
    few = known.of(KEY, 100)
    assert 0 < len(few) < 10 and "n49" in few
    for number in range(50):  # what is forgotten counts no more
        known.take(batch("n49", frame("n49", 2 + number, START, 1, EPOCH), received=START + 800))
    assert len(known.of(KEY, 100)) == len(few)


def asked(catalogue: Catalogue, known: Latest, asker: int | None, **said: str) -> dict[str, Any]:
    """Ask as somebody; 0 is staff."""
    answers = dataclasses.make_dataclass("Asked", ["ask"])({})
    stepanswers.add(answers, catalogue.root, known)
    found: dict[str, Any] = answers.ask["GET", "stepnow"](Asker(asker, asker == 0, False), {"job": "112", **said})
    return found


def test_only_the_steps_user_and_staff_are_shown_it(tmp_path: Path) -> None:
    catalogue, known = Catalogue(tmp_path), held()
    for step in ("extern", "batch", "0"):
        catalogue.add("112", step, 0, ALICE, START, START)
        known.take(batch("node1", frame("node1", 1, START, 1, EPOCH, step=step)))
    catalogue.add("112", "0", 0, BOB, START, START)  # a node says that this job is another user's
    askers: tuple[int | None, ...] = (ALICE, 0)
    for asker in askers:
        said = asked(catalogue, known, asker)
        assert said["step"] == "112.0" and list(said["nodes"]) == ["node1"] and said["complete"]
    assert asked(catalogue, known, ALICE, step="batch")["step"] == "112.batch"
    for asker in (BOB, BOB + 1, None):
        assert asked(catalogue, known, asker) == {"step": "", "nodes": {}, "complete": True}
    row = catalogue.of("112", "0", 0, ALICE)
    assert row is not None
    catalogue.change(row, state=WHOLE)
    assert asked(catalogue, known, ALICE)["step"] == "112.batch"
    catalogue.close()
