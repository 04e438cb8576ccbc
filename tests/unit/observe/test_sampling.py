"""The sampler of all steps: frames, what is missing in them, and what hangs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from piolet.api import IO, Collector, Device, Place, Reading, Row, Source, Unavailable
from piolet.events.envelope import Event, encode
from piolet.observe import choosing, gpus, sampling
from piolet.observe.found import FoundStep
from piolet.observe.journal import END, FRAME, STEP, line_of, rows_of
from piolet.observe.layout import TABLES
from piolet.observe.reading import device_of
from piolet.observe.sampling import Observer


class Kept:
    """A spool that keeps records, each encoded as the real one does."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(
        self, kind: str, source: str, *, at: float | None = None, body: Mapping[str, Any] | None = None, **who: Any
    ) -> bool:
        event = Event("c", "node1", "0" * 16, len(self.events) + 1, at or 0.0, kind, source, body=body or {}, **who)
        assert line_of(encode(event)) is not None
        self.events.append(event)
        return True

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


class Fast(Source):
    """Tells a mount."""

    name, text, table = "fast", "a mount", IO
    columns: ClassVar[tuple[str, ...]] = ("kind", "scope", "read")

    def read(self, now: int) -> list[Row]:
        return [Row("/scratch", {"kind": "lustre", "scope": "node", "read": 5.0})]


class Hangs(Source):
    """Hangs until it is let go."""

    name, text, table = "hangs", "a file system that hangs", IO
    columns: ClassVar[tuple[str, ...]] = ("read", "write")
    hold = threading.Event()

    def read(self, now: int) -> list[Row]:
        Hangs.hold.wait(60)
        return []


class Broken(Source):
    """Fails."""

    name, text = "broken", "a source with a fault"
    columns: ClassVar[tuple[str, ...]] = ("node_power",)

    def read(self, now: int) -> list[Row]:
        raise RuntimeError("no such bit")


class Absent(Source):
    """Is not there."""

    name, text = "absent", "hardware that is not there"

    def open(self, place: Place) -> None:
        raise Unavailable("there is no such card")


@pytest.fixture
def step(tmp_path: Path) -> Iterator[FoundStep]:
    """A step of one process, which is in a group of a tree in the stead of a hierarchy of version 2."""
    group = tmp_path / "job_7/step_0"
    group.mkdir(parents=True)
    with subprocess.Popen(["sleep", "100"]) as process:
        texts = {
            "cgroup.procs": f"{process.pid}\n", "cpu.stat": "usage_usec 1000000\nthrottled_usec 0\n",
            "memory.current": "4096\n", "memory.stat": "anon 1000\nfile 3000\n", "memory.max": "8192\n",
            "memory.events": "oom_kill 0\n", "io.stat": "", "cpu.pressure": "some total=0\n",
            "memory.pressure": "some total=0\n", "io.pressure": "some total=0\n",
        }  # fmt: skip
        for name, text in texts.items():
            (group / name).write_text(text)
        yield FoundStep("7", "0", os.getuid(), os.getgid(), (("", str(group)),), (str(group), 1), time.time())
        process.kill()


class Run:
    """A sampler with sources of the test's, whose steps the test sets, and whose clock stands at each of its ticks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *kinds: type[Source], without: str = "gpu") -> None:
        real = [kind for kind in choosing.classes() if kind.scope == "step"]
        monkeypatch.setattr(sampling, "classes", lambda _: [*real, *kinds])
        monkeypatch.setattr(sampling, "ANSWER_S", 1.0)
        self.kept = Kept()
        self.steps: dict[tuple[str, int], FoundStep] = {}
        self.wanted: bool | None = True
        self.observer = Observer(self.kept, lambda: self.steps, lambda _: self.wanted, Place(period=0.2), without)

    def turns(self, frames: int) -> None:
        """Go on until there are so many frames of the node's tick."""
        deadline = time.monotonic() + 60
        while sum("io" in frame.body or "net" in frame.body for frame in self.kept.of(FRAME)) < frames:
            assert time.monotonic() < deadline, self.kept.events
            time.sleep(min(0.05, self.observer.turn()))

    def end(self) -> None:
        """Have all steps end."""
        self.steps = {}
        while not self.kept.of(END):
            time.sleep(min(0.05, self.observer.turn()))


def test_a_frame_has_the_step_and_the_node(monkeypatch: pytest.MonkeyPatch, step: FoundStep) -> None:
    run = Run(monkeypatch, Fast, Absent)
    run.steps = {step.place: step}
    run.turns(2)
    run.end()
    (first,) = run.kept.of(STEP)
    assert (first.job, first.step, first.uid) == (7, "0", os.getuid())
    assert first.body["sources"]["fast"] == first.body["sources"]["groups"] == ""
    assert first.body["sources"]["absent"] == "there is no such card"
    frame = next(frame for frame in run.kept.of(FRAME) if "io" in frame.body)
    (host,) = rows_of(frame, "host")
    assert (host["cpu"], host["memory"], host["memory_limit"], host["processes"]) == (0, 4096, 8192, 1)
    (io,) = rows_of(frame, "io")
    assert io == {"mount": "/scratch", "kind": "lustre", "scope": "node", "read": 5}
    for table in ("host", "io"):
        known = {column.name for column in TABLES[table]}
        assert {name for row in rows_of(frame, table) for name in row} <= known
    assert [event.kind for event in run.kept.events][-1] == END


def test_a_source_that_hangs_costs_its_own_figures(monkeypatch: pytest.MonkeyPatch, step: FoundStep) -> None:
    Hangs.hold.clear()
    run = Run(monkeypatch, Fast, Hangs, Broken)
    run.steps = {step.place: step}
    try:
        run.turns(2)
        run.end()
    finally:
        Hangs.hold.set()
    quality = [row for event in run.kept.events for row in rows_of(event, "quality")]
    said = {(row["source"], row["reason"]) for row in quality}
    assert ("hangs", "it does not answer") in said
    assert ("broken", "it failed: RuntimeError: no such bit") in said
    assert all(row["start"] <= row["end"] and row["values"] >= 1 for row in quality if row["source"] == "hangs")


def test_a_step_that_is_not_wanted_leaves_nothing(monkeypatch: pytest.MonkeyPatch, step: FoundStep) -> None:
    run = Run(monkeypatch, Fast)
    run.steps = {step.place: step}
    for wanted in (None, False):
        run.wanted = wanted
        run.observer._look = 0.0
        run.observer.turn()
    assert run.kept.events == []


def test_a_job_without_a_number_is_named(monkeypatch: pytest.MonkeyPatch, step: FoundStep) -> None:
    run = Run(monkeypatch, Fast)
    run.steps = {step.place: dataclasses.replace(step, job="s1abc")}
    run.turns(1)
    assert {event.job for event in run.kept.events} == {None}
    assert {event.body["sluid"] for event in run.kept.events} == {"s1abc"}


def test_what_is_known_of_gaps_is_written_when_the_sampler_ends(
    monkeypatch: pytest.MonkeyPatch, step: FoundStep
) -> None:
    run = Run(monkeypatch, Fast, Broken)
    run.steps = {step.place: step}
    run.turns(2)
    run.observer.end()
    reasons = {row["reason"] for row in rows_of(run.kept.of(STEP)[-1], "quality")}
    assert "it failed: RuntimeError: no such bit" in reasons


def test_without_a_step_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    class Counts(Fast):
        def read(self, now: int) -> list[Row]:
            reads.append(now)
            return []

    run = Run(monkeypatch, Counts)
    for _ in range(5):
        run.observer._look = run.observer._tick = 0.0
        run.observer.turn()
    assert reads == [] and run.kept.events == []


class Driver(Collector):
    """Two GPUs; `users` are processes on the first."""

    name = "gpm"
    quantities: ClassVar[tuple[str, ...]] = ("sm", "power")
    users: ClassVar[set[int]] = set()
    fails: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.devices = (Device("GPU-a", "H100"), Device("GPU-b", "H100"))
        self.simulated = "a test"

    def processes(self, place: int) -> set[int]:
        return self.users if place == 0 else set()

    def read(self, now: int) -> list[Reading]:
        if self.fails:
            raise RuntimeError("the driver was loaded anew")
        self.blank("xid", "not told")
        return [Reading(place, now, 0.2, (0.5, float("nan"))) for place in range(2)]


def rows_of_gpus(run: Run) -> set[str]:
    return {row["uuid"] for frame in run.kept.of(FRAME) for row in rows_of(frame, "gpu")}


@pytest.mark.parametrize(
    ("used", "others", "seen"),
    [(True, False, {"GPU-a": "process", "GPU-b": "alone"}), (True, True, {"GPU-a": "process"}), (False, True, {})],
)
def test_which_gpus_are_a_steps(
    monkeypatch: pytest.MonkeyPatch, step: FoundStep, used: bool, others: bool, seen: dict[str, str]
) -> None:
    """Those that it computes on; and all, while no other job is on the node."""
    (pid,) = map(int, Path(step.place[0], "cgroup.procs").read_text().split())
    monkeypatch.setattr(Driver, "users", {pid} if used else {1})
    monkeypatch.setattr(gpus, "opened", lambda *_: (Driver(), ""))
    run = Run(monkeypatch, Fast, without="")
    other = dataclasses.replace(step, job="8", place=(step.place[0], 2))
    run.wanted = True
    run.steps = {step.place: step, **({other.place: other} if others else {})}
    run.observer._wanted = lambda one: one.job == "7"
    run.turns(2)
    assert rows_of_gpus(run) == set(seen)
    last = run.kept.of(STEP)[-1].body
    assert {device["uuid"]: device["by"] for device in last["devices"]} == seen
    assert all(
        device_of({"devices": {"n": last["devices"]}}, "n", device["gpu"]) == device for device in last["devices"]
    )
    assert last["simulated"] == "a test"
    if seen:
        (row, *_) = [row for frame in run.kept.of(FRAME) for row in rows_of(frame, "gpu")]
        assert (row["sm"], row.get("power")) == (0.5, None)


def test_a_driver_that_fails_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def opens(*_: object) -> tuple[Driver, str]:
        opened.append(1)
        return Driver(), ""

    monkeypatch.setattr(gpus, "opened", opens)
    reader = gpus.Gpus()
    assert len(reader.read(10**9).readings) == 2
    monkeypatch.setattr(Driver, "fails", True)
    with pytest.raises(RuntimeError):
        reader.read(2 * 10**9)
    monkeypatch.setattr(Driver, "fails", False)
    assert reader.read(3 * 10**9).readings == ()
    assert len(reader.read(10**12).readings) == 2
    assert len(opened) == 2
