"""The forwarder alone: what it sends when, what it believes, and how it waits."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from piolet.events import batch
from piolet.events.envelope import Event, encode
from piolet.forward import acknowledged
from piolet.forward.forwarder import Forwarder, is_urgent
from piolet.transport.asking import Answer, CentralError

A, B = "00000000000000aa", "00000000000000bb"


def line(seq: int, epoch: str = A, kind: str = "node.heartbeat", **more: Any) -> bytes:
    return encode(Event("alps", more.pop("node", "node1"), epoch, seq, 1.0, kind, more.pop("source", "root"), **more))


class Spool:
    """Streams as lists of lines, by number."""

    def __init__(self, **streams: list[bytes]) -> None:
        self.of: dict[str, dict[int, bytes]] = {}

    def put(self, *lines: bytes) -> None:
        for one in lines:
            said = json.loads(one)
            self.of.setdefault(said["epoch"], {})[said["seq"]] = one

    def streams(self) -> dict[str, int]:
        return {epoch: max(lines) for epoch, lines in self.of.items()}

    def read(self, epoch: str, after: int, records_max: int, bytes_max: int) -> list[bytes]:
        return [one for seq, one in sorted(self.of.get(epoch, {}).items()) if seq > after][:records_max]


class Service:
    """A service with what it has; `fails` is raised instead of an answer."""

    def __init__(self) -> None:
        self.have: dict[str, int] = {}
        self.asked: list[tuple[str, list[int]]] = []
        self.fails: Exception | None = None
        self.offset = 0.0

    def ask(
        self, method: str, target: str, body: bytes = b"", *, cluster: str = "", node: str = "", kind: str = ""
    ) -> Answer:
        assert (method, cluster, node) == ("POST", "alps", "node1")
        if self.fails:
            raise self.fails
        lines = batch.unpack(body) if body else []
        self.asked.append((target, [json.loads(one)["seq"] for one in lines]))
        for word in target.partition("?gone=")[2].split(","):
            if word:
                epoch, seq = word.split(":")
                self.have[epoch] = max(self.have.get(epoch, 0), int(seq))
        for one in lines:
            said = json.loads(one)
            if said["seq"] > self.have.get(said["epoch"], 0) + 1:
                raise CentralError("missing", status=409, said={"have": self.have})
            self.have[said["epoch"]] = max(said["seq"], self.have.get(said["epoch"], 0))
        return Answer({"have": dict(self.have)}, self.offset)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(tmp_path: Path, every_s: float = 5.0) -> tuple[Forwarder, Spool, Service, Clock]:
    spool, service, clock = Spool(), Service(), Clock()
    return Forwarder(spool, service, str(tmp_path), every_s, clock, random.Random(1)), spool, service, clock


def test_it_asks_first_and_then_sends_what_is_missing(tmp_path: Path) -> None:
    forwarder, spool, service, _ = make(tmp_path)
    service.have = {A: 2}
    spool.put(*(line(seq) for seq in range(1, 6)))
    forwarder.turn()
    assert service.asked == [("/v1/events", []), ("/v1/events", [3, 4, 5])]
    assert acknowledged.load(str(tmp_path)) == {A: 5}


def test_records_that_come_while_it_sends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They go along, and the service has more then than there was when it looked: nobody's disk was put back."""
    forwarder, spool, service, clock = make(tmp_path)
    looks = spool.streams

    def looked() -> dict[str, int]:
        found = looks()
        for _ in range(2):
            spool.put(line(max(spool.of[A]) + 1))
        return found

    spool.put(line(1))
    spool.streams = looked  # type: ignore[method-assign]
    forwarder.turn()
    assert service.have == {A: 3} and not caplog.messages
    spool.streams = looks  # type: ignore[method-assign]
    service.have = {A: 90}
    clock.now = 4000.0
    forwarder.turn()
    assert "was this node's disk put back" in caplog.text


def test_an_empty_spool_asks_nobody(tmp_path: Path) -> None:
    forwarder, _, service, _ = make(tmp_path)
    assert 0.5 < forwarder.turn() < 2 and service.asked == []


def test_what_nobody_waits_for_is_sent_after_a_while(tmp_path: Path) -> None:
    forwarder, spool, service, clock = make(tmp_path)
    spool.put(line(1))
    forwarder.turn()
    spool.put(line(2))
    clock.now = 2.0
    forwarder.turn()
    assert service.have == {A: 1}
    spool.put(line(3, kind="gpu.xid", source="kernel", severity="fatal"))
    clock.now = 3.0
    forwarder.turn()
    assert service.have == {A: 3}
    spool.put(line(4))
    clock.now = 10.0
    forwarder.turn()
    assert service.have == {A: 4}


def test_heartbeats_wait_for_company(tmp_path: Path) -> None:
    """Where nothing else is new they go every five minutes; with whatever else goes, they go along."""
    spool, service, clock = Spool(), Service(), Clock()
    forwarder = Forwarder(spool, service, str(tmp_path), 5.0, clock, random.Random(1), beats_s=300.0)
    spool.put(line(1))
    forwarder.turn()
    for beat in range(2, 9):  # one a minute
        clock.now = 60.0 * beat
        spool.put(line(beat))
        forwarder.turn()
    assert [seqs for _, seqs in service.asked] in ([[], [1], [2, 3, 4, 5]], [[], [1], [2, 3, 4, 5, 6]])
    clock.now = 481.0
    spool.put(line(9, kind="step.outcome", source="user", body={"why": "exit", "status": 0}))
    forwarder.turn()
    assert service.have == {A: 9}
    spool.put(line(10), line(11, kind="step.outcome", source="user", body={"why": "exit", "status": 0}), line(12))
    forwarder.turn()
    assert service.have == {A: 9}
    clock.now = 488.0
    forwarder.turn()
    assert service.have == {A: 12}
    again = Forwarder(spool, service, str(tmp_path), 5.0, clock, random.Random(1), beats_s=300.0)
    spool.put(line(13))
    again.turn()
    assert service.have == {A: 13}


def test_what_was_not_taken_is_no_heartbeat_because_of_that(tmp_path: Path) -> None:
    """A fault that could not be delivered does not wait for five minutes once the service is there again."""
    spool, service, clock = Spool(), Service(), Clock()
    forwarder = Forwarder(spool, service, str(tmp_path), 5.0, clock, random.Random(1), beats_s=300.0)
    spool.put(line(1))
    forwarder.turn()
    service.fails = CentralError("away")
    spool.put(line(2, kind="gpu.xid", source="kernel", severity="fatal"), line(3))
    clock.now = 10.0
    forwarder.turn()
    service.fails = None
    clock.now = 20.0
    forwarder.turn()
    assert service.have == {A: 3}


@pytest.mark.parametrize(
    ("one", "urgent"),
    [
        (line(1), False),
        (line(1, kind="gpu.xid", source="kernel", severity="warn"), True),
        (line(1, kind="gpu.xid", source="kernel", severity="info"), False),
        (line(1, kind="step.outcome", source="user", body={"why": "exit", "status": 0}), False),
        (line(1, kind="step.outcome", source="user", body={"why": "exit", "status": 1}), True),
        (line(1, kind="step.outcome", source="user", body={"why": "signal", "signal": 9}), True),
        (b"{}\n", False),
    ],
)
def test_what_is_urgent(one: bytes, urgent: bool) -> None:
    assert is_urgent(one) is urgent


def test_many_records_go_in_batches_without_a_pause(tmp_path: Path) -> None:
    forwarder, spool, service, _ = make(tmp_path)
    spool.put(*(line(seq) for seq in range(1, 1202)), *(line(seq, B) for seq in (1, 2)))
    assert forwarder.turn() == 0.0
    assert forwarder.turn() == 0.0
    assert forwarder.turn() > 0.0
    assert [len(seqs) for _, seqs in service.asked] == [0, 500, 500, 203]
    assert service.have == {A: 1201, B: 2}


def test_what_is_gone_is_said(tmp_path: Path) -> None:
    forwarder, spool, service, clock = make(tmp_path)
    spool.put(line(1), line(5), line(6), line(9))
    for clock.now in (0.0, 10.0, 20.0, 30.0):
        forwarder.turn()
    assert service.asked[1:] == [
        ("/v1/events", [1]), (f"/v1/events?gone={A}:4", [5, 6]), (f"/v1/events?gone={A}:8", [9])
    ]  # fmt: skip


def test_damaged_records_and_those_of_another_name_are_passed_over(tmp_path: Path) -> None:
    forwarder, spool, service, clock = make(tmp_path)
    spool.put(line(1), line(2), line(3, node="node2"), line(4))
    spool.of[A][2] = spool.of[A][2].replace(b'"root"', b'"roo\x00"')
    for clock.now in (0.0, 10.0, 20.0, 30.0):
        forwarder.turn()
    assert service.have == {A: 4}
    assert [seqs for _, seqs in service.asked] == [[], [1], [4]]


def test_a_record_of_a_later_release_stays_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is no damage: whoever is restarted as that release sends it."""
    forwarder, spool, service, clock = make(tmp_path)
    spool.put(line(1), line(2).replace(b'"version":1', b'"version":2'))
    for clock.now in (0.0, 400.0):
        assert forwarder.turn() >= 0.5
    assert service.have == {} and "version 2" in caplog.text
    spool.of[A][2] = line(2)
    clock.now = 1000.0
    forwarder.turn()
    assert service.have == {A: 2}


def test_a_service_that_has_less_than_it_said(tmp_path: Path) -> None:
    forwarder, spool, service, clock = make(tmp_path)
    spool.put(*(line(seq) for seq in range(1, 4)), line(1, B))
    forwarder.turn()
    service.have = {A: 1}
    spool.put(line(4))
    for clock.now in (10.0, 20.0, 30.0):
        forwarder.turn()
    assert service.have == {A: 4, B: 1}
    assert acknowledged.load(str(tmp_path)) == {A: 4, B: 1}


def test_a_service_that_was_restored_is_noticed_though_nothing_is_new(tmp_path: Path) -> None:
    forwarder, spool, service, clock = make(tmp_path)
    spool.put(line(1), line(2))
    forwarder.turn()
    service.have = {}
    clock.now = 3700.0
    forwarder.turn()
    assert service.have == {A: 2}


def test_it_waits_longer_each_time_and_never_very_long(tmp_path: Path) -> None:
    forwarder, spool, service, _ = make(tmp_path)
    spool.put(line(1))
    service.fails = CentralError("away")
    waits = [forwarder.turn() for _ in range(40)]
    assert waits[0] <= 2 and max(waits) <= 300 and min(waits[20:]) >= 150
    assert len(set(waits)) == 40, "all nodes would come at once"
    service.fails = None
    forwarder.turn()
    assert service.have == {A: 1}


def test_a_full_disk_is_no_reason_to_end(tmp_path: Path) -> None:
    forwarder, spool, service, _ = make(tmp_path / "not" / "there")
    spool.put(line(1))
    assert forwarder.turn() > 0 and forwarder.turn() > 0
    assert service.have == {A: 1} or service.have == {}


def test_the_offset_of_the_clock(tmp_path: Path) -> None:
    forwarder, spool, service, _ = make(tmp_path)
    service.offset = 3600.0
    spool.put(line(1))
    forwarder.turn()
    assert forwarder.offset == 3600.0


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"x": 1}', '{"00000000000000aa": -1}', '{"00000000000000aa": true}', "[" * 9999]
)
def test_a_file_that_is_damaged_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / acknowledged.NAME).write_text(text)
    assert acknowledged.load(str(tmp_path)) == {}


def test_a_pipe_in_the_place_of_the_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / acknowledged.NAME)
    assert acknowledged.load(str(tmp_path)) == {}


def test_batches_are_what_they_were() -> None:
    lines = [line(seq) for seq in range(1, 4)]
    assert batch.unpack(batch.pack(lines)) == lines
    assert batch.unpack(gzip.compress(b"")) == []
