"""The site's sampler: finds the steps that run on a node and writes a frame of each, every few seconds, to its journal.

All steps have their ticks together, so that what is of the node is read once; a step has two more of its own soon after
it was found, so that short ones have figures as well. What may hang is read in lanes (lanes.py): a tick takes
what has come within its time, and says of the rest that it does not answer. While no step runs, nothing is read but the
list of steps.

One thread calls `turn`. Memory: a few hundred bytes for each step and device, nothing that grows with time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from piolet.api import HOST as HOST_TABLE
from piolet.api import OF_NODE, Place, Row, Source, Unavailable
from piolet.events.envelope import ROOT
from piolet.observe.choosing import GPU, HOST, classes
from piolet.observe.found import FoundStep
from piolet.observe.gpus import Gpus, GpusRead
from piolet.observe.journal import END, FRAME, STEP, VERSION
from piolet.observe.lanes import Lane, wait
from piolet.observe.lists import listed
from piolet.observe.moved import Movers
from piolet.observe.watched import StepRead, Watched, table

LOOK_S = 1.0
EARLY_S = (1.0, 3.0)
ANSWER_S = 5.0
AGAIN_S = 600.0
TOLD_S = 3600.0
_SUBJECTS = {"io": "mount", "net": "port"}
_LEAST_S = 0.5  # of which a sample means something
_QUALITY = ("source", "subject", "start", "end", "reason", "values")


class Spool(Protocol):
    """Where frames go: piolet.events.spool.Spool."""

    def put(
        self, kind: str, source: str, *, at: float | None = None, job: int | None = None, step: str = "",
        uid: int | None = None, body: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Take a record; return whether it was taken."""


class _OfNode:
    """A source of the node, in its lane."""

    def __init__(self, kind: type[Source], place: Place, done: threading.Condition) -> None:
        self.kind = kind
        self.lane = Lane(kind.name, done)
        self.why = "it was not opened yet"
        self.rows: list[Row] = []
        self.blanks: dict[tuple[str, str], int] = {}
        self.never: dict[str, str] = {}
        self._place = place
        self._source: Source | None = None
        self._again = float("-inf")

    def read(self) -> tuple[str, list[Row], dict[tuple[str, str], int], dict[str, str]]:
        """Return why there is nothing, rows, what was missing, and what this node never tells; in the lane."""
        if self._source is None and time.monotonic() >= self._again:
            self._again = time.monotonic() + AGAIN_S
            source = self.kind()
            try:
                source.open(self._place)
            except Unavailable as error:
                self.why = str(error)
                return self.why, [], {}, {}
            self._source = source
        if self._source is None:
            return self.why, [], {}, {}
        rows = self._source.read(time.monotonic_ns())
        blanks = dict(self._source.blanks)
        self._source.blanks.clear()
        return "", rows, blanks, self._source.never

    def take(self) -> None:
        """Take what came; of what did not, or failed, the reason becomes `why`."""
        self.rows, self.blanks = [], {}
        try:
            told = self.lane.take()
            if told is not None:
                self.why, self.rows, self.blanks, self.never = told
        except Exception as error:  # noqa: BLE001 - a source is a plug-in: its fault costs its own figures only
            self.why = str(error) if isinstance(error, TimeoutError) else f"it failed: {type(error).__name__}: {error}"
            self.blanks = {("", self.why[:200]): len(self.kind.columns)}


class Observer:
    """Samples the steps that `finder` finds and `wanted` wants, of which None is: not known yet.

    place    what sources are opened with; its control groups are each step's
    movers   who tells what the processes of users moved; None: what this process may read itself
    """

    def __init__(
        self,
        spool: Spool,
        look: Callable[[], Mapping[tuple[str, int], FoundStep]],
        wanted: Callable[[FoundStep], bool | None],
        place: Place,
        without: str = "",
        movers: Movers | None = None,
    ) -> None:
        self._spool, self._find, self._wanted, self._place = spool, look, wanted, place
        self._movers = movers
        self._left_out = listed(without)[0]
        self._classes = classes(without)
        self._done = threading.Condition()
        self._steps_lane = Lane("steps", self._done)
        self._node = [_OfNode(kind, place, self._done) for kind in self._classes if kind.scope == OF_NODE]
        self._gpus = Gpus()
        self._gpu_lane = None if GPU in self._left_out else Lane(GPU, self._done)
        self._gpu_why: dict[str, str] = {}
        self._seen = GpusRead()
        self._watched: dict[tuple[str, int], Watched] = {}
        self._all: Mapping[tuple[str, int], FoundStep] = {}
        self._look = self._tick = time.monotonic()

    def turn(self) -> float:
        """Do what is due; return the seconds until something is."""
        now = time.monotonic()
        if now >= self._look:
            self._look = now + LOOK_S
            self._look_for_steps()
        if now >= self._tick:
            self._tick += self._place.period * (1 + (now - self._tick) // self._place.period)
            if self._watched:
                self._sample(list(self._watched.values()), node=True)
        elif early := [one for one in self._watched.values() if one.early and now >= one.early[0]]:
            self._sample(early, node=False)
        due = [one.early[0] for one in self._watched.values() if one.early]
        return max(0.0, min(self._look, self._tick, *due) - time.monotonic())

    def end(self) -> None:
        """Write what is known of gaps: the sampler ends, the steps do not."""
        for one in self._watched.values():
            self._tell(one, time.time(), ends=True)

    # -- which steps

    def _look_for_steps(self) -> None:
        self._all = self._find()
        for key in [key for key in self._watched if key not in self._all]:
            self._end_of(self._watched.pop(key))
        if self._movers is not None:
            self._movers.keep({(one.step.uid, one.step.gid) for one in self._watched.values()})
        new = []
        for key, step in self._all.items():
            if key not in self._watched and self._wanted(step):
                new.append(self._begin(key, step))
        if not new:
            return
        lanes = self._give_steps(new)
        if len(new) == len(self._watched):  # there was none before: what is of the node begins now
            self._tick = time.monotonic() + self._place.period
            lanes += self._give_node()
        wait(lanes, self._done, ANSWER_S)
        with contextlib.suppress(Exception):  # what failed is told at the first tick
            self._steps_lane.take()
        self._take_node()

    def _begin(self, key: tuple[str, int], step: FoundStep) -> Watched:
        now = time.time()
        ask = None if self._movers is None else self._movers.of(step.uid, step.gid)
        place = replace(self._place, groups=step.groups, ask=ask)
        early = [time.monotonic() + early for early in EARLY_S]
        one = self._watched[key] = Watched(step, early, now, self._classes, place, host=HOST not in self._left_out)
        return one

    def _end_of(self, one: Watched) -> None:
        now = time.time()
        if one.told == float("-inf"):
            self._tell(one, now)
        quality = self._quality(one, all_of_them=True)
        self._put(one.step, END, {"up": _up(), "ended": round(now, 3), "quality": quality}, now)

    # -- samples

    def _give_node(self) -> list[Lane]:
        lanes = []
        for one in self._node:
            if one.lane.give(one.read):  # one that hangs since an earlier tick is not waited for again
                lanes.append(one.lane)
        if self._gpu_lane is not None and self._gpu_lane.give(lambda: self._gpus.read(time.monotonic_ns())):
            lanes.append(self._gpu_lane)
        return lanes

    def _give_steps(self, watched: list[Watched]) -> list[Lane]:
        def read() -> dict[int, StepRead | None]:
            now = time.monotonic_ns()
            return {id(one): _read(one, now) for one in watched}

        return [self._steps_lane] if self._steps_lane.give(read) else []

    def _take_node(self) -> GpusRead:
        for one in self._node:
            one.take()
        if self._gpu_lane is None:
            return GpusRead()
        try:
            read: GpusRead = self._gpu_lane.take() or GpusRead()
        except Exception as error:  # noqa: BLE001 - a driver may fail in any way
            asked = self._gpus.asked
            text = str(error) if isinstance(error, TimeoutError) else f"it failed: {type(error).__name__}: {error}"
            read = GpusRead(failed=f"{text} (GPU {asked})" if asked else text)
        if not read.failed:
            self._seen = read
        self._gpu_why = dict(read.why)
        if read.collector:
            self._gpu_why[read.collector] = ""
        return read

    def _sample(self, watched: list[Watched], *, node: bool) -> None:
        for one in watched:
            one.early = [due for due in one.early if due > time.monotonic()]
        wait([*self._give_steps(watched), *(self._give_node() if node else [])], self._done, ANSWER_S)
        now = time.time()
        failed = ""
        steps: dict[int, StepRead | None] = {}
        try:
            steps = self._steps_lane.take() or {}
        except Exception as error:  # noqa: BLE001 - a fault here must not end the sampling of all
            failed = str(error)
        gpus = self._take_node() if node else None
        for one in watched:
            told = steps.get(id(one))
            if told is None and not failed:
                continue  # it has ended, which the next look says
            self._write(one, told or StepRead(), gpus, now, failed)

    def _write(self, one: Watched, told: StepRead, gpus: GpusRead | None, now: float, failed: str) -> None:
        start, one.last = max(one.last, one.found), now
        for (source, subject, reason), count in told.blanks.items():
            one.gaps.add(source, subject, reason, start, now, count)
        if failed:
            one.gaps.add(HOST, "", failed, start, now, 0)
        host = dict(told.values)
        tables: dict[str, list[dict[str, Any]]] = {"io": [], "net": []}
        if gpus is not None:
            for each in self._node:
                for row in each.rows:
                    if each.kind.table == HOST_TABLE:
                        host.update({n: v for n, v in row.values.items() if isinstance(v, float) and n not in host})
                    else:
                        tables[each.kind.table].append({_SUBJECTS[each.kind.table]: row.subject, **row.values})
                for (subject, reason), count in each.blanks.items():
                    one.gaps.add(each.kind.name, subject, reason, start, now, count)
        span = told.span if told.span >= _LEAST_S else now - start
        body: dict[str, Any] = {"up": _up(), "span": round(span, 4)}
        tables["host"], tables["gpu"] = [host] if host else [], self._gpu_rows(one, gpus, start, now, span)
        for name, rows in tables.items():
            if (made := table(rows)) is not None:
                body[name] = made
        if (quality := self._quality(one)) is not None:
            body["quality"] = quality
        if time.monotonic() - one.told >= TOLD_S:
            self._tell(one, now)
        if len(body) > 2:
            self._put(one.step, FRAME, body, now)

    def _gpu_rows(
        self, one: Watched, gpus: GpusRead | None, start: float, now: float, span: float
    ) -> list[dict[str, Any]]:
        if gpus is None:
            return []
        if gpus.failed:
            one.gaps.add(GPU, "", gpus.failed, start, now, 0)
            return []
        alone = len({step.job for step in self._all.values()}) == 1
        mine: dict[int, str] = {}
        for place, device in enumerate(gpus.devices):
            uuid = device["uuid"]
            if one.gpus.get(uuid) == "process" or gpus.users.get(place, set()) & one.pids():
                mine[place] = "process"
            elif alone:
                mine[place] = "alone"
        by_uuid = {gpus.devices[place]["uuid"]: by for place, by in mine.items()}
        if by_uuid != one.gpus:
            one.gpus, one.told = by_uuid, float("-inf")
        rows = []
        for reading in gpus.readings:
            if reading.device in mine:
                values = {n: v for n, v in zip(gpus.columns, reading.values, strict=True) if v == v}
                own = {} if abs(reading.span - span) < 0.02 * span else {"span": round(reading.span, 4)}
                rows.append({"gpu": reading.device, "uuid": gpus.devices[reading.device]["uuid"], **own, **values})
        if mine:
            for (quantity, reason), count in gpus.blanks.items():
                one.gaps.add(gpus.collector, quantity, reason, start, now, count)
        return rows

    # -- what is written

    def _tell(self, one: Watched, now: float, *, ends: bool = False) -> None:
        """Write what the step is, and what this node can tell of it."""
        gpus = self._seen
        one.told = time.monotonic()
        why = {**one.why, **{source.kind.name: source.why for source in self._node}, **self._gpu_why}
        for source in self._node:
            why |= {f"{source.kind.name}.{column}": reason for column, reason in source.never.items()}
        body = {
            "version": VERSION,
            "interval": self._place.period,
            "began": round(one.step.began, 3),
            "found": round(one.found, 3),
            "up": _up(),
            "devices": [
                device | {"by": one.gpus[device["uuid"]], "gpu": place}
                for place, device in enumerate(gpus.devices)
                if device["uuid"] in one.gpus
            ],
            "sources": why,
            **({"simulated": gpus.simulated} if gpus.simulated else {}),
            **({"quality": self._quality(one, all_of_them=True)} if ends else {}),
        }
        self._put(one.step, STEP, body, now)

    def _quality(self, one: Watched, *, all_of_them: bool = False) -> dict[str, Any] | None:
        rows = one.gaps.told(all_of_them=all_of_them)
        return table([dict(zip(_QUALITY, row, strict=True)) for row in rows])

    def _put(self, step: FoundStep, kind: str, body: Mapping[str, Any], now: float) -> None:
        job = int(step.job) if step.job.isdecimal() else None
        named = {} if job is not None else {"sluid": step.job}
        body = {**named, **{name: value for name, value in body.items() if value is not None}}
        self._spool.put(kind, ROOT, at=now, job=job, step=step.step, uid=step.uid, body=body)


def _read(one: Watched, now: int) -> StepRead | None:
    try:
        return one.read(now)
    except OSError:
        return None


def _up() -> float:
    return round(time.clock_gettime(time.CLOCK_BOOTTIME), 3)
