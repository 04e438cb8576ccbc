"""What nodes send is there once, whatever is killed when."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import ObserveError
from piolet.events.envelope import Event, encode
from piolet.observe import finishing, gaps, reading, spool
from piolet.observe.catalogue import OPEN, WHOLE, Catalogue, Row, rebuild
from piolet.observe.spool import Batch, Line, Remark, Spool

START = 1_790_000_000.0
EPOCH, OTHER = "00000000000000a1", "00000000000000a2"
BOOT = "0b1c2d3e-0000-4000-8000-000000000000"
UID = 1000


def record(node: str, seq: int, kind: str, when: float, epoch: str = EPOCH, **body: Any) -> Line:
    """Return a record of step 112.0."""
    more = {key: body.pop(key) for key in ("job", "step", "uid", "boot") if key in body}
    fields: dict[str, Any] = {"job": 112, "step": "0", "uid": UID, "run": 0, "boot": BOOT, **more}
    event = Event("alps", node, epoch, seq, when, kind, "root", body=body, **fields)
    return Line(
        epoch, seq, str(event.job), event.step, event.run or 0, event.uid or 0, when, encode(event),
        body.get("began"), kind == "observe.end",
    )  # fmt: skip


def node_lines(
    node: str, frames: range | list[int], epoch: str = EPOCH, end: float | None = None, **more: Any
) -> list[Line]:
    """Return records of a step that began at START: a frame of 10 s for each number, the end of the 10 s."""
    ahead = more.pop("ahead", 0.0)
    found = [record(node, 1, "observe.step", START + 2 + ahead, epoch, version=1, interval=10, began=START + ahead,
                    found=START + 2 + ahead, up=102.0, devices=[{"uuid": f"GPU-{node}", "name": "H100"}],
                    sources={"gpu": "", "pm_counters": "there is no /sys/cray"}, **more)]  # fmt: skip
    for number in frames:
        body = {
            "up": 110.0 + 10 * number, "span": 10.0,
            "gpu": {"columns": ["gpu", "uuid", "sm"], "rows": [[0, f"GPU-{node}", 0.5], [1, f"GPV-{node}", None]]},
            "host": {"columns": ["cpu", "memory"], "rows": [[float(number), 5e9]]},
        }  # fmt: skip
        when = START + 10 * (number + 1) + ahead
        found.append(record(node, number + 2, "observe.frame", when, epoch, **body, **more))
    if end is not None:
        said = {"up": 100.0 + end - START, "ended": end + ahead}
        found.append(record(node, found[-1].seq + 1, "observe.end", end + ahead, epoch, **said, **more))
    return found


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """A catalogue of nothing."""
    made = Catalogue(tmp_path)
    yield made
    made.close()


def batch(node: str, lines: list[Any], **fields: Any) -> Batch:
    """Return a batch that comes when its last record is made."""
    last = max((one.time for one in lines), default=START)
    return Batch(node, lines, fields.pop("received", last), boot=BOOT, **fields)


def only(catalogue: Catalogue) -> Row:
    """Return the one row."""
    (row,) = catalogue.rows()
    return row


def test_records_become_tables(catalogue: Catalogue) -> None:
    store = Spool(catalogue)
    taken = store.append([
        batch(node, node_lines(node, range(6), end=START + 60)) for node in ("node1", "node2")
    ])  # fmt: skip
    assert [(one.have, one.missing, one.records) for one in taken] == [({EPOCH: 8}, False, 8)] * 2
    row = only(catalogue)
    assert (row.name, row.uid, row.state, row.path) == ("112.0", UID, OPEN, "2026-09-21/112.0")
    assert not finishing.is_due(catalogue, row, row.last + 1, silent_s=900, settle_s=60)
    assert finishing.is_due(catalogue, row, row.last + 61, silent_s=900, settle_s=60)
    assert finishing.finish(catalogue, row, START + 200)
    assert only(catalogue).state == WHOLE and only(catalogue).size > 0
    step = reading.open_step(catalogue.root / row.path)
    assert (step.name, step.nodes, step.start, step.end) == (
        "112.0", ("node1", "node2"), round(START * 1e9), round((START + 60) * 1e9),
    )  # fmt: skip
    gpu, host = step.table("gpu"), step.table("host")
    assert len(gpu) == 2 * 2 * 6 and gpu["sm"].null_count == 12
    assert host["cpu"].to_pylist() == [float(number) for number in range(6)] * 2  # by node and time
    assert step.meta["devices"]["node1"][0]["uuid"] == "GPU-node1"
    assert len(step.table("rollup")) > 0
    assert {(row["node"], row["source"], row["reason"]) for row in step.quality.to_pylist()} == {
        (node, "pm_counters", "there is no /sys/cray") for node in ("node1", "node2")
    }
    assert not (catalogue.root / "spool" / str(row.id)).exists()


def test_what_is_sent_again_is_not_there_twice(catalogue: Catalogue) -> None:
    store = Spool(catalogue)
    lines = node_lines("node1", range(6), end=START + 60)
    store.append([batch("node1", lines[:5])])
    taken = store.append([batch("node1", lines[2:]), batch("node1", lines)])
    assert [one.records for one in taken] == [3, 0] and catalogue.have("node1") == {EPOCH: 8}
    finishing.finish(catalogue, only(catalogue), START)
    assert len(reading.open_step(catalogue.root / only(catalogue).path).table("host")) == 6


def test_what_does_not_follow_is_not_taken(catalogue: Catalogue) -> None:
    store = Spool(catalogue)
    lines = node_lines("node1", range(6))
    taken = store.append([batch("node1", lines[2:])])[0]
    assert (taken.missing, taken.have, catalogue.rows()) == (True, {EPOCH: 0}, [])
    taken = store.append([batch("node1", lines[2:], gone={EPOCH: 2})])[0]
    assert (taken.missing, taken.have) == (False, {EPOCH: 7})


def test_a_batch_of_which_a_disk_takes_half_is_not_there(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Spool(catalogue)
    lines = node_lines("node1", range(6), end=START + 60)
    store.append([batch("node1", lines[:4])])
    pwrite = os.pwrite
    written: list[int] = []

    def full(descriptor: int, data: bytes, at: int) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(pwrite(descriptor, data[:100], at))
        return written[0]

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ObserveError, match="No space left"):
        store.append([batch("node1", lines[4:])])
    monkeypatch.undo()
    assert catalogue.have("node1") == {EPOCH: 4}
    store.append([batch("node1", lines[4:])])
    finishing.finish(catalogue, only(catalogue), START)
    assert len(reading.open_step(catalogue.root / only(catalogue).path).table("host")) == 6


def test_what_a_killed_writer_left_is_cut_off(catalogue: Catalogue) -> None:
    store = Spool(catalogue)
    lines = node_lines("node1", range(6), end=START + 60)
    store.append([batch("node1", lines[:4])])
    path = spool.file_of(catalogue.root, only(catalogue).id, 1)
    with path.open("ab") as file:
        file.write(path.read_bytes())  # it was killed before it said that this counts
    Spool(catalogue).append([batch("node1", lines[4:])])
    finishing.finish(catalogue, only(catalogue), START)
    assert len(reading.open_step(catalogue.root / only(catalogue).path).table("host")) == 6


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("after", [*range(0, 30, 6), *range(30, 52, 2)])
def test_a_keeper_that_is_killed_anywhere_begins_again(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    store = Spool(catalogue)
    lines = node_lines("node1", range(12), end=START + 120)
    store.append([batch("node1", lines[:5])])
    finishing.part(catalogue, only(catalogue))
    store.append([batch("node1", lines[5:])])
    calls = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise Killed
            return function(*arguments, **named)

        return call

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    with contextlib.suppress(Killed):
        finishing.finish(catalogue, only(catalogue), START)
    monkeypatch.undo()
    if only(catalogue).state == OPEN:
        assert calls > after
        assert finishing.finish(catalogue, only(catalogue), START)
    step = reading.open_step(catalogue.root / only(catalogue).path)
    assert step.table("host")["cpu"].to_pylist() == [float(number) for number in range(12)]
    assert [row for row in step.quality.to_pylist() if row["source"] == gaps.SOURCE] == []


def test_what_comes_late_is_added(catalogue: Catalogue) -> None:
    store = Spool(catalogue)
    first, second = (node_lines(node, range(6), end=START + 60) for node in ("node1", "node2"))
    store.append([batch("node1", first), batch("node2", second[:3])])
    finishing.finish(catalogue, only(catalogue), START + 1000)
    step = reading.open_step(catalogue.root / only(catalogue).path)
    assert "end" not in step.meta
    (gap,) = [row for row in step.quality.to_pylist() if row["source"] == gaps.SOURCE]
    assert (gap["node"], gap["reason"]) == ("node2", "nothing more came of this node")
    store.append([batch("node2", second[3:])])
    assert only(catalogue).state == OPEN
    finishing.finish(catalogue, only(catalogue), START + 2000)
    step = reading.open_step(catalogue.root / only(catalogue).path)
    assert step.table("host")["cpu"].to_pylist() == [float(number) for number in range(6)] * 2
    assert step.meta["end"] == round((START + 60) * 1e9)
    assert [row for row in step.quality.to_pylist() if row["source"] == gaps.SOURCE] == []


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_a_clock_that_is_an_hour_off_is_put_right(catalogue: Catalogue, ahead: float) -> None:
    store = Spool(catalogue)
    right = node_lines("node1", range(6), end=START + 60)
    wrong = node_lines("node2", range(6), end=START + 60, ahead=ahead)
    store.append([
        batch("node1", right, ahead=0.01, booted=START - 100),
        batch("node2", wrong, received=START + 60, ahead=ahead, booted=START - 100),
    ])  # fmt: skip
    finishing.finish(catalogue, only(catalogue), START)
    step = reading.open_step(catalogue.root / only(catalogue).path)
    host = step.table("host")
    assert host["time"].to_pylist()[:6] == host["time"].to_pylist()[6:]
    assert (step.start, step.end) == (round(START * 1e9), round((START + 60) * 1e9))
    assert step.meta["clock_offsets"]["node2"]["seconds"] == ahead
    (told,) = [row for row in step.quality.to_pylist() if row["source"] == "clock"]
    assert told["node"] == "node2" and f"3600 s {'ahead' if ahead > 0 else 'behind'}" in told["reason"]


def test_a_clock_that_jumps_while_a_step_runs_is_put_right(catalogue: Catalogue) -> None:
    store = Spool(catalogue)
    before, after = (
        node_lines("node1", range(6), end=START + 60),
        node_lines("node1", range(6), end=START + 60, ahead=3600),
    )
    store.append([batch("node1", [*before[:4], *after[4:]], received=START + 60, ahead=3600.0, booted=START - 100)])
    finishing.finish(catalogue, only(catalogue), START)
    step = reading.open_step(catalogue.root / only(catalogue).path)
    times = [one.timestamp() for one in step.table("host")["time"].to_pylist()]
    assert times == pytest.approx([START + 10 * number for number in range(1, 7)])
    assert [row for row in step.quality.to_pylist() if row["source"] == gaps.SOURCE] == []


def test_two_users_have_each_their_own(catalogue: Catalogue) -> None:
    """A node that says a job is another user's makes a step of that user's, and takes nothing of the first one's."""
    store = Spool(catalogue)
    mine = node_lines("node1", range(6), end=START + 60)
    foreign = [dataclasses.replace(one, uid=1001) for one in node_lines("node9", range(6), end=START + 60)]
    store.append([batch("node1", mine), batch("node9", foreign)])
    for row in catalogue.rows():
        finishing.finish(catalogue, row, START)
    found = {row.uid: reading.open_step(catalogue.root / row.path) for row in catalogue.rows()}
    assert {uid: step.nodes for uid, step in found.items()} == {UID: ("node1",), 1001: ("node9",)}


def test_records_that_are_no_frames_are_counted(catalogue: Catalogue) -> None:
    store = Spool(catalogue)
    lines = node_lines("node1", range(3))
    bad = [
        record("node1", 5, "observe.frame", START + 40, span=10.0, host="text"),
        record("node1", 6, "observe.frame", START + 50, span=-1),
        record("node1", 7, "observe.frame", START + 60, span=10.0, up=160.0,
               host={"columns": ["cpu", "memory"], "rows": [["many", 1.0], [1.0, 2.0]]}),
        record("node1", 8, "observe.frame", START + 70, span=10.0, up=170.0,
               host={"columns": ["cpu"], "rows": [[1.0, 2.0]]}),
        record("node1", 9, "observe.end", START + 80, up=180.0, ended=START + 80),
    ]  # fmt: skip
    store.append([batch("node1", [*lines, *bad])])
    finishing.finish(catalogue, only(catalogue), START)
    step = reading.open_step(catalogue.root / only(catalogue).path)
    assert len(step.table("host")) == 4
    (told,) = [row for row in step.quality.to_pylist() if row["reason"] == "records were damaged"]
    assert (told["node"], told["values"]) == ("node1", 4)


def test_the_catalogue_is_made_again_from_directories(catalogue: Catalogue, tmp_path: Path) -> None:
    store = Spool(catalogue)
    store.append([batch("node1", node_lines("node1", range(6), end=START + 60))])
    finishing.finish(catalogue, only(catalogue), START)
    before = only(catalogue)
    catalogue.close()
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    (tmp_path / "2026-09-21" / "113.0").mkdir()
    (tmp_path / "2026-09-21" / "113.0" / "meta.json").write_text("{")
    again = Catalogue(tmp_path)
    assert rebuild(tmp_path, again, START + 100) == 1
    row = only(again)
    assert (row.name, row.uid, row.path, row.state, row.size, row.start) == (
        before.name, before.uid, before.path, WHOLE, before.size, START,
    )  # fmt: skip
    assert rebuild(tmp_path, again, START + 100) == 0
    again.close()


def test_remarks_explain_gaps(catalogue: Catalogue) -> None:
    store = Spool(catalogue)
    lines = node_lines("node1", [0, 1, 2, 6, 7, 8], end=START + 90)
    lost = Remark(OTHER, 1, START + 5000, "spool.lost", "total_mib", EPOCH, 5, 7)
    store.append([batch("node1", lines[:4]), batch("node1", [lost]), batch("node1", lines[4:], gone={EPOCH: 7})])
    finishing.finish(catalogue, only(catalogue), START)
    step = reading.open_step(catalogue.root / only(catalogue).path)
    (gap,) = [row for row in step.quality.to_pylist() if row["source"] == gaps.SOURCE]
    assert gap["start"].timestamp() == START + 30 and gap["end"].timestamp() == START + 60
    assert "total_mib" in gap["reason"]
