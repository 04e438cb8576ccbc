"""The sampler: reads collectors at a fixed cadence and gives frames of the journal to a sink, for several steps.

It runs as one small process per node: standard library and the collectors' libraries only (no numpy, no pyarrow).
Tick k of a step is due at start + k * period on the monotonic clock, so lateness never adds up. A tick that comes
too late is not made up for: its samples cover the longer span, and the delay is an event in the journal. Memory is
bounded: what a sink does not take is kept up to KEEP bytes, then dropped, and the number dropped is recorded.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES, Collector, Device, Reading
from piolet.samples.journal import VERSION, Packer, json_frame
from piolet.samples.software import software
from piolet.steps import identity

KEEP = 4 << 20
HOST_PERIOD = 1.0
_QUALITY_EVERY = 10.0
_LATE = 0.5  # of a period: what is worth an event
_EVENTS_MAX = 1000

GPU_COLUMNS = tuple(quantity.name for quantity in GPU_QUANTITIES)
HOST_COLUMNS = tuple(quantity.name for quantity in HOST_QUANTITIES)
COUNTERS = tuple(quantity.name for quantity in (*GPU_QUANTITIES, *HOST_QUANTITIES) if quantity.unit == "J")


@dataclass(frozen=True)
class SampledStep:
    """What a data set says of its origin; `nodes` is 0 where it is not known.

    allocated    how many GPUs Slurm gave to the step on this node; None: nobody told
    unseen       those that cannot be measured: UUID or name, and why
    """

    job: str
    step: str
    node: str
    uid: int = -1
    label: str = ""
    command: str = ""
    nodes: int = 0
    restarts: int = 0
    allocated: int | None = None
    unseen: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The name of this run of the step."""
        return identity.run_name(self.job, self.step, self.restarts)


@dataclass(frozen=True)
class Clock:
    """The clocks, so that tests can bring their own."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    realtime_ns: Callable[[], int] = time.time_ns
    sleep: Callable[[float], None] = time.sleep


class Sink:
    """Gives bytes to a descriptor without ever waiting for it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.dropped = 0
        self.broken = ""
        self._waiting: deque[bytes] = deque()
        self._held = 0
        os.set_blocking(fd, False)

    def put(self, data: bytes) -> None:
        """Take one frame, or drop it when too much is waiting: half a frame is never written."""
        if self.broken or self._held + len(data) > KEEP:
            self.dropped += 1
            return
        self._waiting.append(data)
        self._held += len(data)

    def flush(self) -> bool:
        """Write what the descriptor takes now; return whether nothing is left."""
        while self._waiting and not self.broken:
            data = self._waiting.popleft()
            try:
                done = os.write(self.fd, data)
            except BlockingIOError:
                done = 0
            except OSError as error:
                self.broken = error.strerror or str(error)
                return False
            self._held -= done
            if done < len(data):
                self._waiting.appendleft(data[done:])
                return False
        return not self._waiting


class DeviceTotals:
    """What one device has told so far: for each of the collector's quantities its integral over time and its latest
    value, and the seconds that samples cover. Of a quantity that is a counter, in `counters`, the sum is what was added
    to it since the first reading; where the counter began again, its monotone pieces."""

    def __init__(self, quantities: int, counters: Sequence[int] = ()) -> None:
        self.span = 0.0
        self.sums = [math.nan] * quantities
        self.latest = [math.nan] * quantities
        self._counters = frozenset(counters)

    def add(self, span: float, values: Sequence[float]) -> None:
        """Take one reading; a missing value leaves the integral and the latest value as they are."""
        self.span += span
        for place, value in enumerate(values):
            if value == value:  # not NaN, at a third of what math.isnan costs
                before = self.sums[place]
                if place in self._counters:
                    last = self.latest[place]
                    self.sums[place] = before + max(0.0, value - last) if last == last else 0.0
                    self.latest[place] = value
                    continue
                self.sums[place] = value * span + (before if before == before else 0.0)
                self.latest[place] = value


@dataclass
class _Source:
    collector: Collector
    packer: Packer
    places: tuple[int, ...]
    period: int
    due: int
    failed: bool = False
    totals: dict[int, DeviceTotals] = field(default_factory=dict)


@dataclass
class Session:
    """One step that is being sampled."""

    step: SampledStep
    period: float
    sink: Sink
    sources: list[_Source] = field(default_factory=list)
    late_ticks: int = 0
    worst_late: float = 0.0
    ticks: int = 0
    events: int = 0
    next_quality: int = 0
    next_flush: int = 0
    records: dict[int, list[bytes]] = field(default_factory=dict)
    started: int = 0
    cpu_before: float = 0.0  # what the process had used when the step began


class Sampler:
    """Samples any number of steps; one thread, driven by `run_until` or by calling `tick` when `next_due` says so."""

    def __init__(self, clock: Clock | None = None, *, totals: bool = False) -> None:
        """`totals`: sum up what devices tell, for those who ask while the step runs (metrics.py)."""
        self.clock = clock or Clock()
        self._totals = totals
        # The step for which a library is at work, and since when: what a watchdog wants to know.
        self.busy: tuple[str, int] | None = None
        self._asking: Collector | None = None
        self.sessions: list[Session] = []
        self._order = itertools.count()
        self._queue: list[tuple[int, int, Session, _Source]] = []

    @contextlib.contextmanager
    def working(self, step: str, collector: Collector | None = None) -> Iterator[None]:
        """Note meanwhile that a library is at work for the step of that name: one opening, reading or closing."""
        self.busy = step, self.clock.monotonic_ns()
        self._asking = collector
        try:
            yield
        finally:
            self.busy = self._asking = None

    @property
    def asked(self) -> tuple[str, str] | None:
        """The GPU that the library at work is being asked about; see Collector."""
        return None if self._asking is None else self._asking.asked

    def add(
        self, step: SampledStep, collectors: Sequence[Collector], period: float, sink: Sink, why_not: dict[str, str]
    ) -> Session:
        """Begin to sample a step with collectors that are open. `why_not`: the collectors that cannot, and why."""
        now = self.clock.monotonic_ns()
        session = Session(step, period, sink, next_quality=now, next_flush=now + 10**9, started=now)
        session.cpu_before = time.process_time()
        devices: tuple[Device, ...] = ()
        for collector in collectors:
            host = collector.quantities[0] in HOST_COLUMNS
            packer = Packer("N" if host else "G", HOST_COLUMNS if host else GPU_COLUMNS)
            seconds = max(period, collector.least, HOST_PERIOD if host else 0.0)
            every = round(seconds * 1e9)
            source = _Source(collector, packer, packer.places(collector.quantities), every, now + every)
            session.sources.append(source)
            heapq.heappush(self._queue, (source.due, next(self._order), session, source))
            devices = collector.devices or devices
            # A collector that fails is told of at its first tick.
            with contextlib.suppress(Exception), self.working(step.name, collector):
                collector.read(now)  # counters need a first look, so that the first tick has a span
        sink.put(json_frame("H", self._header(session, collectors, devices, why_not, now)))
        self._note_shared(session)
        self.sessions.append(session)
        sink.flush()
        return session

    def _note_shared(self, session: Session) -> None:
        """Note in both steps' data which of their GPUs another step has at the same time: figures are of the GPU."""
        mine = _uuids(session)
        for other in self.sessions:
            for uuid in sorted(mine & _uuids(other)):
                for one, two in ((session, other), (other, session)):
                    # Whose step it is, is another user's business.
                    name = two.step.name if two.step.uid == one.step.uid else ""
                    self._event(one, "shared", {"gpu": uuid, "with": name})

    def _header(
        self,
        session: Session,
        collectors: Sequence[Collector],
        devices: Sequence[Device],
        why_not: dict[str, str],
        now: int,
    ) -> dict[str, Any]:
        step = session.step
        model = devices[0].name if devices else ""  # of a GPU that does not answer: most likely that of its neighbours
        return {
            "version": VERSION,
            "job": step.job,
            "step": step.step,
            "node": step.node,
            "uid": step.uid,
            "label": step.label,
            "command": step.command,
            "nodes": step.nodes,
            "software": software(),
            "restarts": step.restarts,
            "period": session.period,
            "start": now,
            "origin": self.clock.realtime_ns() - now,
            "gpu_columns": list(GPU_COLUMNS),
            "host_columns": list(HOST_COLUMNS),
            "allocated": step.allocated,
            "devices": [
                *(asdict(device) for device in devices),
                *(asdict(Device(uuid, model)) | {"unseen": why} for uuid, why in step.unseen),
            ],
            "collectors": [
                {"name": c.name, "source": c.source, "simulated": c.simulated, "period": s.period / 1e9}
                for c, s in zip(collectors, session.sources, strict=True)
            ],
            "facts": {key: value for collector in collectors for key, value in collector.facts.items()},
            "not_used": why_not,
            "simulated": next((c.simulated for c in collectors if c.simulated), ""),
        }

    def next_due(self) -> int | None:
        """Return when `tick` has something to do (monotonic nanoseconds), None when there is no step."""
        return self._queue[0][0] if self._queue else None

    def tick(self) -> None:
        """Read every collector that is due."""
        now = self.clock.monotonic_ns()
        while self._queue and self._queue[0][0] <= now:
            due, _, session, source = heapq.heappop(self._queue)
            if session not in self.sessions:
                continue
            self._read(session, source, due)
            now = self.clock.monotonic_ns()
            # The next tick of the grid that is not past: lateness does not move the grid.
            source.due = due + source.period * (1 + max(0, (now - due) // source.period))
            heapq.heappush(self._queue, (source.due, next(self._order), session, source))

    def _read(self, session: Session, source: _Source, due: int) -> None:
        now = self.clock.monotonic_ns()
        session.ticks += 1
        late = (now - due) / 1e9
        session.worst_late = max(session.worst_late, late)
        if late > _LATE * source.period / 1e9:
            session.late_ticks += 1
            self._event(session, "late", {"source": source.collector.name, "seconds": round(late, 4)})
        self._take(session, source, source.collector.read, now)
        if now >= session.next_flush:
            self._flush(session, now)

    def _take(self, session: Session, source: _Source, read: Callable[[int], list[Reading]], now: int) -> None:
        try:
            with self.working(session.step.name, source.collector):
                readings = read(now)
        except Exception as error:  # noqa: BLE001 - a collector is a plug-in: its fault costs its own samples only
            if not source.failed:
                what = f"{type(error).__name__}: {error}"
                self._event(session, "error", {"source": source.collector.name, "text": what[:500]})
            source.failed = True
            return
        source.failed = False
        records = session.records.setdefault(id(source), [])
        records += [source.packer.pack(reading, source.places) for reading in readings]
        if self._totals:
            for reading in readings:
                if (totals := source.totals.get(reading.device)) is None:
                    totals = source.totals[reading.device] = DeviceTotals(
                        len(source.collector.quantities),
                        [place for place, name in enumerate(source.collector.quantities) if name in COUNTERS],
                    )
                totals.add(reading.span, reading.values)

    def _flush(self, session: Session, now: int) -> None:
        """Once a second: what is on the disk is at most a second old."""
        session.next_flush = now + 10**9
        for source in session.sources:
            if records := session.records.get(id(source)):
                session.sink.put(source.packer.frame(records))
                records.clear()
        if now >= session.next_quality:
            session.next_quality = now + round(_QUALITY_EVERY * 1e9)
            session.sink.put(json_frame("Q", self.quality(session, now)))
        session.sink.flush()

    def _event(self, session: Session, kind: str, content: dict[str, Any]) -> None:
        session.events += 1
        if session.events <= _EVENTS_MAX:
            session.sink.put(json_frame("E", {"event": kind, "at": self.clock.monotonic_ns(), **content}))

    def quality(self, session: Session, now: int) -> dict[str, Any]:
        """Return the totals of a Q frame: missing values, lateness, and what sampling cost."""
        wall = max(1e-9, (now - session.started) / 1e9)
        blanks: dict[str, dict[str, int]] = {}
        for source in session.sources:
            for (quantity, reason), count in source.collector.blanks.items():
                blanks.setdefault(quantity, {})[reason] = count
        return {
            "at": now,
            "ticks": session.ticks,
            "late_ticks": session.late_ticks,
            "worst_late_s": round(session.worst_late, 6),
            "dropped_frames": session.sink.dropped,
            "events": session.events,
            "blanks": blanks,
            "process_cores": (time.process_time() - session.cpu_before) / wall,
            "rss_max_bytes": _rss_max(),
        }

    def remove(self, session: Session) -> None:
        """End a step: its last samples, the totals, and behind all of it an end mark; its collectors are closed."""
        self.sessions.remove(session)
        now = self.clock.monotonic_ns()
        for source in session.sources:
            with contextlib.suppress(Exception):
                # A last, shorter sample, unless it would be too short to mean anything.
                if now - (source.due - source.period) > source.period // 2:
                    self._read(session, source, source.due)
                self._take(session, source, source.collector.rest, now)
        session.next_quality = now
        self._flush(session, now)
        session.sink.put(json_frame("E", {"event": "end", "at": now}))
        session.sink.flush()
        for source in session.sources:
            with contextlib.suppress(Exception), self.working(session.step.name):
                source.collector.close()

    def run_until(self, stop: Callable[[], bool]) -> None:
        """Sample until `stop` says so; it is asked at least every 0.2 seconds."""
        while not stop():
            now = self.clock.monotonic_ns()
            due = self.next_due()
            wait = 0.2 if due is None else min(0.2, (due - now) / 1e9)
            if wait > 0:
                self.clock.sleep(wait)
            self.tick()


def _uuids(session: Session) -> set[str]:
    return {device.uuid for source in session.sources for device in source.collector.devices}


def _rss_max() -> int:
    """Return the most resident memory so far. (getrusage's figure outlives exec: it would be the parent's.)"""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
