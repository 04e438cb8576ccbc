"""The sampler: its cadence, what happens when sinks and collectors fail, and a journal that survives any end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from piolet.api import Collector, Device, Reading, Target
from piolet.base.errors import ScoreError
from piolet.samples import journal
from piolet.samples.dataset import finish, open_dataset
from piolet.samples.sampler import GPU_COLUMNS, KEEP, SampledStep, Sampler, Session, Sink
from piolet.score.summary import summarise

from tests.score import simulation
from tests.score.hands import Hands


class Counting(Collector):
    """A collector that notes when it was read."""

    name = "counting"
    least = 0.01
    quantities = ("engine", "sm")

    def __init__(self, cost: int = 0, fail: bool = False) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.fail, self.cost, self.closed = fail, cost, False
        self.spend: Callable[[int], None] = lambda _: None
        self.devices = (Device("GPU-0", "fake"),)

    def open(self, target: Target) -> None:
        """Nothing is needed."""

    def read(self, now: int) -> list[Reading]:
        """Return a reading, after having taken some time."""
        self.reads.append(now)
        self.spend(self.cost)
        if self.fail:
            raise RuntimeError("the bus is on fire")
        return [Reading(0, now, 0.1, (0.5, 0.25))]

    def close(self) -> None:
        """Note it."""
        self.closed = True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal."""
    return tmp_path / f"node{journal.SUFFIX}"


def begin(hands: Hands, path: Path, *collectors: Counting, period: float = 0.1) -> tuple[Sampler, Session]:
    """Begin to sample."""
    for collector in collectors:
        collector.spend = hands.pass_
    sampler = Sampler(hands.clock())
    sink = Sink(journal.open_for_writing(str(path)))
    return sampler, sampler.add(SampledStep("1", "0", "node"), collectors, period, sink, {})


def test_the_cadence_does_not_drift(hands: Hands, path: Path) -> None:
    """Each read costs 7 ms, and the thousandth tick still is at its place."""
    collector = Counting(cost=7_000_000)
    sampler, _ = begin(hands, path, collector)
    start = hands.now - 7_000_000  # the first look has cost as much
    sampler.run_until(lambda: hands.now >= start + 100 * 10**9)
    ticks = collector.reads[1:]
    assert len(ticks) == pytest.approx(1000, abs=1)
    assert all(abs((tick - start) % 10**8) < 10**6 for tick in ticks)


def test_lateness_is_an_event_and_is_not_made_up_for(hands: Hands, path: Path) -> None:
    """After a stop of a second the grid goes on where it would be."""
    collector = Counting()
    sampler, session = begin(hands, path, collector)
    start = hands.now
    sampler.run_until(lambda: hands.now >= start + 10**9)
    before = len(collector.reads)
    hands.pass_(1_030_000_000)
    sampler.tick()
    sampler.tick()
    assert len(collector.reads) == before + 1 and session.late_ticks == 1
    due = sampler.next_due()
    assert due is not None and due > hands.now and (due - start) % 10**8 == 0


def test_several_steps_at_once_with_periods_of_their_own(hands: Hands, tmp_path: Path) -> None:
    """One ends, the other goes on."""
    slow, fast = Counting(), Counting()
    sampler, one = begin(hands, tmp_path / "one.journal", slow, period=1.0)
    sink = Sink(journal.open_for_writing(str(tmp_path / "two.journal")))
    sampler.add(SampledStep("2", "0", "node"), [fast], 0.1, sink, {})
    start = hands.now
    sampler.run_until(lambda: hands.now >= start + 10 * 10**9)
    sampler.remove(one)
    assert (len(slow.reads), len(fast.reads)) == (11, 101) and slow.closed and not fast.closed
    sampler.run_until(lambda: hands.now >= start + 11 * 10**9)
    assert len(slow.reads) == 11 and len(fast.reads) == 111


def test_the_end_mark_is_behind_the_last_samples(hands: Hands, path: Path) -> None:
    """Whoever sees it has all; a collector is closed when everything is said, for that may hang."""
    collector = Counting()
    sampler, session = begin(hands, path, collector)
    sampler.run_until(lambda: hands.now >= 3 * 10**9)
    hands.pass_(70_000_000)
    collector.close = lambda: kinds.extend(frame.kind for frame in journal.read(str(path)))  # type: ignore[method-assign]
    kinds: list[str] = []
    end = hands.now
    sampler.remove(session)
    assert kinds[-3:] == ["G", "Q", "E"]
    last, _, mark = list(journal.read(str(path)))[-3:]
    assert mark.json()["event"] == "end" and collector.reads[-1] == end
    assert int.from_bytes(last.body[-len(GPU_COLUMNS) * 8 - 8 : -len(GPU_COLUMNS) * 8], "little") == end


def test_the_cost_is_that_of_the_step(hands: Hands, path: Path) -> None:
    """Not what the process has used in all its time."""
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    sampler, session = begin(hands, path, Counting())
    hands.pass_(10**9)
    assert sampler.quality(session, hands.now)["process_cores"] < 0.1


def test_a_failing_collector_costs_only_its_own_samples(hands: Hands, path: Path) -> None:
    """It is said once, not ten times a second."""
    sampler, session = begin(hands, path, Counting(fail=True), Counting())
    sampler.run_until(lambda: hands.now >= 5 * 10**9)
    sampler.remove(session)
    frames = list(journal.read(str(path)))
    errors = [frame.json() for frame in frames if frame.kind == "E" and frame.json()["event"] == "error"]
    assert len(errors) == 1 and errors[0]["text"] == "RuntimeError: the bus is on fire"
    assert any(frame.kind == "G" for frame in frames)


def test_a_sink_that_takes_nothing_does_not_stop_the_sampler(hands: Hands) -> None:
    """Memory is bounded, what was dropped is counted, and what comes out is whole frames."""
    reader, writer = os.pipe()
    collector = Counting()
    sampler = Sampler(hands.clock())
    session = sampler.add(SampledStep("1", "0", "node"), [collector], 0.01, Sink(writer), {})
    sampler.run_until(lambda: hands.now >= 600 * 10**9)
    assert session.sink.dropped > 0 and session.sink._held <= KEEP
    os.set_blocking(reader, False)
    taken = b""
    while piece := _read(reader):
        taken += piece
        session.sink.flush()
    assert taken.startswith(b"PSJ1") and len(taken) > KEEP // 2
    os.close(reader)
    session.sink.put(b"more")
    assert not session.sink.flush() and session.sink.broken == "Broken pipe"


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_a_journal_is_good_up_to_any_byte(hands: Hands, path: Path, tmp_path: Path) -> None:
    """Cut anywhere, it reads as its whole frames; and a restarted sampler goes on behind them."""
    sampler, session = begin(hands, path, Counting())
    sampler.run_until(lambda: hands.now >= 6 * 10**9)
    sampler.remove(session)
    whole = path.read_bytes()
    ends = [frame.end for frame in journal.read(str(path))]
    torn = tmp_path / "torn.journal"
    for cut in [*range(0, len(whole), 37), *ends, *(end - 1 for end in ends)]:
        torn.write_bytes(whole[:cut])
        got = [frame.end for frame in journal.read(str(torn))]
        assert got == [end for end in ends if end <= cut]
    damaged = bytearray(whole)
    damaged[ends[2] - 3] ^= 1
    torn.write_bytes(damaged)
    assert [frame.end for frame in journal.read(str(torn))] == ends[:2]
    begin(hands, torn, Counting())
    kinds = [frame.kind for frame in journal.read(str(torn))]
    assert kinds[-1] == "H" and len(kinds) == 3
    facts = open_dataset(tmp_path)
    assert any(e["event"] == "restart" for node in facts.nodes for e in node.facts.events)


def test_what_is_no_journal_is_refused(path: Path) -> None:
    """In one sentence."""
    path.write_text("#!/bin/sh\necho hello world\n")
    with pytest.raises(ScoreError, match="is not a journal"):
        list(journal.read(str(path)))
    with pytest.raises(ScoreError, match="is not a journal"):
        journal.open_for_writing(str(path))
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ScoreError, match="cannot write"):
        journal.open_for_writing(str(path))


def test_a_pipe_in_a_journals_place_is_not_waited_for(path: Path) -> None:
    """Whoever reads or writes it would wait for ever."""
    os.mkfifo(path)
    for act in (lambda: journal.open_for_writing(str(path)), lambda: list(journal.read(str(path)))):
        with pytest.raises(ScoreError, match=r"node\.journal is no file"):
            act()


def test_a_journal_is_measured_when_nobody_writes_to_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier writer may be in the middle of a frame; and may have finished the data set when it lets go."""
    frame = journal.json_frame("H", {"job": "1", "step": "0"})
    earlier = journal.open_for_writing(str(path))
    os.write(earlier, frame[:20])
    monkeypatch.setattr(journal, "_LOCK_S", 0.1)
    with pytest.raises(ScoreError, match="is being written by another process"):
        journal.open_for_writing(str(path))
    assert path.read_bytes() == frame[:20]

    def go_on(_: float) -> None:
        os.write(earlier, frame[20:])
        os.close(earlier)

    monkeypatch.setattr(time, "sleep", go_on)
    later = journal.open_for_writing(str(path))
    assert path.read_bytes() == frame

    def finish_it(_: float) -> None:
        path.unlink()
        os.close(later)

    monkeypatch.setattr(time, "sleep", finish_it)
    with pytest.raises(ScoreError, match="was finished meanwhile"):
        journal.open_for_writing(str(path))


@pytest.fixture
def running(libraries: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real sampler beside a real command."""
    script = tmp_path / "script"
    script.write_text("gpus 4\n".replace("gpus 4\n", "gpu\nload matmul 100 50 0.5\n" * 4))
    words = [
        sys.executable,
        "-m",
        "piolet.cli.main",
        "score",
        "run",
        "--out",
        str(tmp_path / "data"),
        "--",
        "sleep",
        "60",
    ]
    environment = simulation.environment(libraries, script)
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def test_a_killed_step_leaves_all_but_the_last_second(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """kill -9 of everything: what is on the disk is at most a second (and a sampler's tick) old."""
    data = tmp_path / "data"
    _wait(lambda: _frames(data, "G") >= 3)
    for process in [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]:
        process.kill()  # the sampler has a session of its own: it would see its parent's end, and end in peace
    killed = time.time()
    running.wait()
    found = open_dataset(data)
    assert killed - found.end / 1e9 < 1.6
    assert not found.nodes[0].facts.complete
    got = summarise(found)
    assert got.score.value is not None and any("was killed" in line for line in got.quality)
    assert finish(found.nodes[0].path).exists() and open_dataset(data).end == found.end


def _frames(data: Path, kind: str) -> int:
    return sum(frame.kind == kind for path in data.glob("*.journal") for frame in journal.read(str(path)))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 20 seconds"
        time.sleep(0.05)


def test_the_cost_is_measured_and_small(running: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """10 Hz and 4 GPUs: the memory bound is hard, the processor's is three times the goal, for busy machines."""
    data = tmp_path / "data"
    _wait(lambda: _frames(data, "G") >= 5)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 128 + signal.SIGTERM
    cost = summarise(open_dataset(data)).cost
    assert cost is not None
    assert cost[0] < 0.03 and cost[1] < 60e6


def test_the_sampler_stays_small() -> None:
    """It imports neither numpy nor pyarrow nor what draws."""
    modules = (
        "piolet.samples.local, piolet.samples.writer, piolet.samples.collectors.gpm, piolet.samples.collectors.dcgm"
    )
    code = f"import sys, {modules}, piolet.samples.collectors.host; print(*sys.modules)"
    environment = {"PYTHONPATH": str(Path(journal.__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"numpy", "pyarrow", "rich", "matplotlib", "pandas"} & set(done.stdout.split())


@pytest.mark.parametrize(("other", "told"), [(1000, "2.0"), (1001, "")])
def test_two_steps_on_one_gpu_say_so(hands: Hands, tmp_path: Path, other: int, told: str) -> None:
    """Figures of a GPU are not a step's then: at most, all of them. Another user's step is not named."""
    sampler = Sampler(hands.clock())
    sessions = []
    for number, uid in ((1, 1000), (2, other)):
        (tmp_path / str(number)).mkdir()
        sink = Sink(journal.open_for_writing(str(tmp_path / str(number) / "node.journal")))
        step = SampledStep(str(number), "0", "node", uid, allocated=1)
        sessions.append(sampler.add(step, [Counting()], 0.1, sink, {}))
    sampler.run_until(lambda: hands.now >= 5 * 10**9)
    for session in sessions:
        sampler.remove(session)
    (node,) = open_dataset(tmp_path / "1").nodes
    events = [event for event in node.facts.events if event["event"] == "shared"]
    assert [(event["gpu"], event["with"]) for event in events] == [("GPU-0", told)]
    got = summarise(open_dataset(tmp_path / "1"))
    name = f"step {told}" if told else "another step"
    assert any(f"1 GPU shared with {name}: the figures are of the GPUs" in line for line in got.quality), got.quality


def test_quality_frames_are_json(hands: Hands, path: Path) -> None:
    """NaN is not JSON, and must not get there."""
    sampler, session = begin(hands, path, Counting())
    sampler.run_until(lambda: hands.now >= 3 * 10**9)
    json.dumps(sampler.quality(session, hands.now), allow_nan=False)
