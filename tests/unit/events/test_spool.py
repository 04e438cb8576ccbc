"""The spool of events: numbers without a gap, whole lines, a share for each user, and nothing lost without a word."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from piolet.events import room, spool, stream
from piolet.events.envelope import ROOT, UNNUMBERED, USER, Event, decode, encode
from piolet.events.reader import Reader
from piolet.events.room import Bounds, Room
from piolet.events.spool import Spool
from piolet.events.stream import Stream, Writer

BOOT = "0b1c2d3e-0000-4000-8000-000000000000"
NODE1 = Writer("alps", "node1", BOOT)
ALICE, BOB = 1001, 1002


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Spool]:
    one = Spool(str(tmp_path), NODE1, {"piolet": "1"})
    yield one
    one.close()


def events(directory: Path) -> list[Event]:
    reader = Reader(str(directory))
    return [decode(line) for epoch in reader.streams() for line in reader.read(epoch, 0, 10**6, 1 << 30)]


def of(directory: Path, kind: str) -> list[Event]:
    return [event for event in events(directory) if event.kind == kind]


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.02)


def draft(text: str = "", uid: int | None = ALICE) -> bytes:
    return encode(Event("alps", "node1", *UNNUMBERED, 1.0, "vet.verdict", USER, BOOT, uid=uid, body={"reason": text}))


def test_a_record_says_whose_it_is_and_stands_in_a_stream_of_its_user(tmp_path: Path, kept: Spool) -> None:
    assert kept.put("vet.verdict", USER, uid=ALICE, job=7, step="0", body={"state": "pass"})
    assert kept.put("gpu.xid", "kernel", severity="fatal", subject="gpu:GPU-1", body={"xid": 79})
    kept.flush()
    names = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert names == ["node", "uid"]
    (verdict,) = of(tmp_path, "vet.verdict")
    assert verdict.time == pytest.approx(time.time(), abs=20)
    assert (verdict.node, verdict.boot, verdict.uid, verdict.job, verdict.seq) == ("node1", BOOT, ALICE, 7, 1)
    (start,), (xid,) = of(tmp_path, "node.start"), of(tmp_path, "gpu.xid")
    assert (start.seq, xid.seq) == (1, 2) and start.epoch == xid.epoch != verdict.epoch
    assert start.body == {"piolet": "1"}


def test_numbers_go_on_after_a_restart_and_not_after_a_reboot(tmp_path: Path) -> None:
    for boot, before in ((BOOT, False), (BOOT, False), (BOOT.replace("b", "c"), True)):
        one = Spool(str(tmp_path), Writer("alps", "node1", boot), {})
        one.put("vet.verdict", USER, uid=ALICE)
        one.close()
        assert ("before" in of(tmp_path, "node.start")[-1].body) == before or len(Reader(str(tmp_path)).streams()) == 4
    own = [(event.boot == BOOT, event.seq) for event in of(tmp_path, "vet.verdict")]
    assert sorted(own) == [(False, 1), (True, 1), (True, 2)]
    starts = sorted(of(tmp_path, "node.start"), key=lambda event: event.boot != BOOT)
    assert [event.body for event in starts] == [{}, {}, {"before": starts[0].epoch}]


@pytest.mark.parametrize("left", [b'{"cluster":"alps","no', b"\0" * 5000, b"\n" * 3, b'{"half": 1}\n'])
def test_what_is_left_of_a_line_is_cut_off_or_begins_a_new_epoch(tmp_path: Path, left: bytes) -> None:
    one = Stream(str(tmp_path), ALICE, NODE1)
    assert one.append([draft("a"), draft("b")]) == 2
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(left)
    again = Stream(str(tmp_path), ALICE, NODE1)
    assert again.append([draft("c")]) == 1
    found = [event.body["reason"] for event in events(tmp_path)]
    assert sorted(found) == ["a", "b", "c"]
    assert (again.epoch == one.epoch) == (b"\n" not in left), "a number is not given twice"
    assert len({event.key for event in events(tmp_path)}) == 3


def test_a_stream_of_another_node_or_cluster_is_not_gone_on_with(tmp_path: Path) -> None:
    """A disk that was copied to another node."""
    epochs = set()
    for writer in (NODE1, Writer("alps", "node2", BOOT), Writer("eiger", "node2", BOOT)):
        one = Stream(str(tmp_path), ALICE, writer)
        line = encode(Event(writer.cluster, writer.node, *UNNUMBERED, 1.0, "vet.verdict", USER, BOOT, uid=ALICE))
        assert one.append([line]) == 1
        epochs.add(one.epoch)
    assert len(epochs) == 3


def test_an_empty_file_is_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 between the making of a file and its first record."""
    monkeypatch.setattr(stream, "FILE_BYTES", 1)
    one = Stream(str(tmp_path), ALICE, NODE1)
    assert one.append([draft("a"), draft("b")]) == 2
    (tmp_path / f"uid-{ALICE}-{one.epoch}-{3:020d}.jsonl").touch()
    again = Stream(str(tmp_path), ALICE, NODE1)
    assert (again.epoch, again.next) == (one.epoch, 3)
    assert again.append([draft("c")]) == 1
    assert [event.seq for event in events(tmp_path)] == [1, 2, 3]
    # And where there is nothing before it, it may have had records before the node lost its power.
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / f"uid-{ALICE}-{one.epoch}-{1:020d}.jsonl").touch()
    assert Stream(str(tmp_path), ALICE, NODE1).epoch != one.epoch
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_takes_whole_lines_and_gives_no_number_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader may have taken a line that came before the one that did not fit."""
    one = Stream(str(tmp_path), ALICE, NODE1)
    write, left = os.write, 2 * len(draft("x" * 100))

    def full(descriptor: int, data: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(28, "No space left on device")
        put = write(descriptor, data[:left])
        left -= put
        return put

    monkeypatch.setattr(os, "write", full)
    assert one.append([draft("x" * 100)] * 5) == 2
    with pytest.raises(OSError, match="No space"):
        one.append([draft("y")])
    left = 1 << 20
    assert one.append([draft("z")]) == 1
    assert [(event.seq, event.body["reason"][0]) for event in events(tmp_path)] == [(1, "x"), (2, "x"), (3, "z")]


def test_a_disk_that_takes_nothing_is_told_when_it_does(tmp_path: Path) -> None:
    place = tmp_path / "missing"
    kept = Spool(str(place), NODE1, {})
    kept.put("vet.verdict", USER, uid=ALICE)
    kept.flush()
    place.mkdir()
    wait_for(lambda: len(of(place, "spool.dropped")) == 2)
    told = {event.uid: event.body for event in of(place, "spool.dropped")}
    assert told[ALICE]["records"] == 1 and told[ALICE]["why"] == "the disk" and told[ALICE]["bytes"] > 100
    assert told[None]["records"] == 1, "node.start"
    kept.close()


def test_one_user_pushes_out_nobody_and_all_is_written_or_counted(tmp_path: Path, kept: Spool) -> None:
    """Row 11 of the attacks: 12 connections with 150 verdicts of 2 kB each, and then as fast as it goes."""
    kept.put("vet.verdict", USER, uid=BOB, body={"reason": "his"})
    for _ in range(20):
        for _ in range(900):
            kept.put("vet.verdict", USER, uid=ALICE, body={"reason": "x" * 2000})
        kept.flush()
    kept.put("vet.verdict", USER, uid=BOB, body={"reason": "another of his"})
    kept.close()
    found = of(tmp_path, "vet.verdict")
    assert [event.body["reason"] for event in found if event.uid == BOB] == ["his", "another of his"]
    told = of(tmp_path, "spool.dropped")
    assert {event.uid for event in told} == {ALICE} and {event.source for event in told} == {ROOT}
    assert sum(event.uid == ALICE for event in found) + sum(event.body["records"] for event in told) == 18000
    assert sum(path.stat().st_size for path in tmp_path.glob("uid-1001-*")) < 2 * spool.BYTES_AT_ONCE


def test_what_is_no_record_is_counted(tmp_path: Path, kept: Spool, caplog: pytest.LogCaptureFixture) -> None:
    assert not kept.put("vet.verdict", USER, uid=ALICE, body={"reason": "x" * 20_000})
    assert not kept.put("vet.verdict", "god", uid=ALICE)
    assert len(caplog.records) == 1
    kept.close()
    assert [event.body for event in of(tmp_path, "spool.dropped")] == [{"records": 2, "bytes": 0, "why": "no record"}]


def test_whoever_goes_on_is_told_of_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "TELL_S", 0.1)
    monkeypatch.setattr(spool, "TELL_NEXT_S", 0.5)
    kept = Spool(str(tmp_path), NODE1, {})
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        kept.drop(ALICE, 1, 100)
        time.sleep(0.005)
    assert 1 <= len(of(tmp_path, "spool.dropped")) <= 3
    kept.close()


def test_above_its_bound_the_oldest_of_a_user_goes_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FILE_BYTES", 1000)
    bounds = Bounds(node=1 << 20, user=4000, total=1 << 20)
    kept = Spool(str(tmp_path), NODE1, {}, bounds=bounds)
    kept.put("vet.verdict", USER, uid=BOB, body={"reason": "his"})
    for number in range(100):
        kept.put("vet.verdict", USER, uid=ALICE, body={"reason": f"{number} {'x' * 300}"})
        kept.flush()
    kept.close()
    own = [event for event in of(tmp_path, "vet.verdict") if event.uid == ALICE]
    assert own[-1].body["reason"].startswith("99 ") and [event.seq for event in own] == list(range(own[0].seq, 101))
    lost = of(tmp_path, "spool.lost")
    assert [one.body["first"] for one in lost] == [1, *(one.body["last"] + 1 for one in lost[:-1])]
    assert lost[-1].body["last"] == own[0].seq - 1 and {one.body["epoch"] for one in lost} == {own[0].epoch}
    assert sum(one.body["records"] for one in lost) + len(own) == 100
    assert all(one.uid == ALICE and one.body["why"] == "the bound of each user" for one in lost)
    assert sum(path.stat().st_size for path in tmp_path.glob("uid-1001-*")) <= 5000
    assert [event.body["reason"] for event in of(tmp_path, "vet.verdict") if event.uid == BOB] == ["his"]


def fill(directory: Path, uid: int | None, files: int, size: int, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(stream, "FILE_BYTES", size)
        one = Stream(str(directory), uid, NODE1)
        for _ in range(files):
            one.append([draft("x" * (size - len(draft("")) + 30), uid)])
    return one.epoch


def make(directory: Path, bounds: Bounds, have: dict[str, object] | None = None, clock: float = 0.0) -> list[room.Loss]:
    lost: list[room.Loss] = []
    (directory.parent / "acknowledged.json").write_text(json.dumps(have or {}))
    one = Room(str(directory), str(directory.parent / "acknowledged.json"), bounds, lost.append, lambda: clock)
    one.make(set())
    return lost


def test_above_the_bound_of_all_goes_what_was_delivered_and_then_of_whoever_has_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "events"
    place.mkdir()
    node = fill(place, None, 4, 1000, monkeypatch)
    alice = fill(place, ALICE, 4, 1000, monkeypatch)
    bob = fill(place, BOB, 2, 1000, monkeypatch)
    everything = sum(path.stat().st_size for path in place.iterdir())
    lost = make(place, Bounds(total=everything - 1), {bob: 1, node: 4})
    assert not lost and Reader(str(place)).streams() == {node: 4, alice: 4, bob: 2}
    assert len(list(place.glob("uid-1002-*"))) == 1, "what was delivered goes without a word"
    lost = make(place, Bounds(total=everything // 2))
    assert [(one.uid, one.epoch, one.first, one.last) for one in lost] == [
        (ALICE, alice, number, number) for number in (1, 2, 3, 4)
    ][: len(lost)] and len(lost) == 4
    lost = make(place, Bounds(files=3))
    assert {one.uid for one in lost} == {BOB, None}, "the node's own goes last"


def test_what_is_partly_delivered_is_lost_in_part(tmp_path: Path) -> None:
    place = tmp_path / "events"
    place.mkdir()
    one = Stream(str(place), ALICE, NODE1)
    one.append([draft("x")] * 10)
    lost = make(place, Bounds(total=1), {one.epoch: 4})
    assert [(loss.first, loss.last) for loss in lost] == [(5, 10)]


def test_what_was_delivered_is_kept_seven_days(tmp_path: Path) -> None:
    place = tmp_path / "events"
    place.mkdir()
    one, two = Stream(str(place), ALICE, NODE1), Stream(str(place), BOB, NODE1)
    one.append([draft("x")] * 3)
    two.append([draft("x")] * 3)
    file = tmp_path / "acknowledged.json"
    now = 0.0
    own = Room(str(place), str(file), Bounds(), lambda _: pytest.fail("nothing is lost"), lambda: now)

    def after(seconds: float, **have: int) -> set[str]:
        nonlocal now
        now += seconds
        file.write_text(json.dumps({one.epoch: have["one"], two.epoch: have["two"]}))
        own.make(set())
        return set(Reader(str(place)).streams())

    assert after(0, one=3, two=2) == {one.epoch, two.epoch}
    assert after(room.KEPT_S - 1, one=2, two=3) == {one.epoch, two.epoch}, "the service was restored"
    assert after(room.KEPT_S - 1, one=3, two=3) == {one.epoch, two.epoch}
    assert after(2, one=3, two=3) == {one.epoch}
    assert after(room.KEPT_S - 1, one=3, two=3) == set()


@pytest.mark.parametrize("text", ["", "[]", '{"0123456789abcdef": "1"}', '{"x": 1}', "[" * 100_000, "null"])
def test_a_file_of_the_forwarders_is_read_as_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "acknowledged.json").write_text(text)
    assert room.acknowledged(str(tmp_path / "acknowledged.json")) == {}
    os.mkfifo(tmp_path / "fifo")
    assert room.acknowledged(str(tmp_path / "fifo")) == {}
    assert room.acknowledged("/dev/zero") == {}


def test_a_damaged_end_hides_no_records(tmp_path: Path) -> None:
    """A node lost its power: there are zeros where the last lines were."""
    place = tmp_path / "events"
    place.mkdir()
    one = Stream(str(place), ALICE, NODE1)
    one.append([draft("x")] * 10)
    (path,) = place.iterdir()
    with path.open("ab") as file:
        file.write(b"\0" * 200 + b"\n")
    assert Reader(str(place)).streams() == {one.epoch: 10}
    assert [(loss.first, loss.last) for loss in make(place, Bounds(total=1))] == [(1, 10)]


def test_a_hung_disk_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    kept = Spool(str(tmp_path), NODE1, {})
    kept.flush()
    append = Stream.append

    def hang(self: Stream, lines: list[bytes]) -> int:
        go.wait(20)
        return append(self, lines)

    monkeypatch.setattr(Stream, "append", hang)
    began = time.monotonic()
    taken = sum(kept.put("gpu.xid", "kernel", uid=1000 + number % 20) for number in range(6000))
    assert time.monotonic() - began < 5.0
    assert spool.WAITING_MAX <= taken <= spool.WAITING_MAX + 300
    go.set()
    kept.close(20)
    found = events(tmp_path)
    told = [event for event in found if event.kind == "spool.dropped"]
    assert sum(event.kind == "gpu.xid" for event in found) == taken
    assert sum(event.body["records"] for event in told) == 6000 - taken


_WRITE = """
import os, sys
from pathlib import Path
from piolet.events import stream
from piolet.events.spool import Spool
from piolet.events.stream import Writer
from piolet.events import spool
from piolet.events.room import Bounds
stream.FILE_BYTES = 30000
spool.LINES_AT_ONCE = spool.BYTES_AT_ONCE = 10 ** 9
most = 1 << 40
one = Spool(sys.argv[1], Writer("alps", "node1", sys.argv[2]), {}, bounds=Bounds(most, most, most, most))
print("go", flush=True)
number = 0
while True:
    if one.put("vet.verdict", "user", uid=1001 + number % 2, body={"reason": "x" * (number * 37 % 900)}):
        number += 1
"""


def test_kill_9_costs_no_number_and_gives_none_twice(tmp_path: Path) -> None:
    """Read all the while, as the forwarder does: what was once read stays what it is."""
    random.seed(18)
    seen: dict[tuple[str, int], bytes] = {}
    reader = Reader(str(tmp_path))
    have: dict[str, int] = {}

    def read() -> None:
        for epoch in reader.streams():
            for line in reader.read(epoch, have.get(epoch, 0), 500, 1 << 20):
                seq = decode(line).seq
                assert seq == have.get(epoch, 0) + 1
                assert seen.setdefault((epoch, seq), line) == line
                have[epoch] = seq

    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", _WRITE, str(tmp_path), BOOT], stdout=subprocess.PIPE)
        with writer:
            try:
                assert writer.stdout is not None and writer.stdout.readline()
                end = time.monotonic() + random.uniform(0.0, 0.15)
                while time.monotonic() < end:
                    read()
            finally:
                writer.kill()
        assert writer.returncode == -signal.SIGKILL
    for _ in range(100):
        read()
    assert len(have) == 3, "one epoch for each stream"
    for epoch, last in have.items():
        fresh = Reader(str(tmp_path)).read(epoch, 0, 10**6, 1 << 30)
        assert [seen[epoch, seq] for seq in range(1, last + 1)] == fresh[:last]
    assert len(seen) > 500
