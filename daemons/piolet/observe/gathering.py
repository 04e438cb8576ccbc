"""Makes tables of what nodes' journals say of a step: parts while it runs, all of them together when it has ended.

A part is what came in some minutes: its tables, in groups of rows of some 10^5, and facts.json, which says what else is
known by then (of which time there are samples, devices, clocks). Parts are made anew where a process was killed; they
have the same name and the same content then, so nothing is there twice.

**Clocks.** Samples have the time of their node's clock, unless that is more than CLOCK_S off: then `up`, seconds since
boot, which nobody sets, and the service's clock say when a sample was taken. Smaller offsets are left to NTP, as a
request's way takes some time, too; meta.json has them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from piolet.base import files
from piolet.base.errors import EventError, ObserveError
from piolet.events.envelope import Event, decode
from piolet.observe import journal, layout
from piolet.observe.spool import Arrived
from piolet.observe.writing import conformed

CLOCK_S = 30.0
INTERVAL_S = 10.0  # where a node does not say how often it samples
FACTS = "facts.json"
_FACTS_MOST = 256 << 20
FRAMES_MOST = 5_000  # in memory at once: some 60 MB
_TIMES = {"quality": ("start", "end"), "marks": ("time",), "events": ("time",), "findings": ("start", "end")}
_TOLD = ("interval", "began", "found", "devices", "sources", "simulated")
_LATEST_S = 9e9  # 64 bits hold nanoseconds until the year 2262
_LONGEST_S = 1e6  # from one sample to the next


@dataclass
class Run:
    """Samples without a gap, from `start` to `end` (s since 1970): records `first` to `last` of an epoch and a boot."""

    epoch: str
    boot: str
    start: float
    end: float
    first: int
    last: int


@dataclass
class Facts:
    """What is known of a step besides its samples.

    runs      by node, in order
    nodes     what each node said of the step: keys of _TOLD
    ended     by node, when its part of the step ended
    offsets   by node, how far its clock is ahead (s), and when that was measured
    moved     by node, by how much its times were put right, at most
    damaged   by node, how many records were none
    """

    runs: dict[str, list[Run]] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, tuple[float, float]] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    damaged: dict[str, int] = field(default_factory=dict)

    def add(self, other: Facts) -> None:
        """Take what is known besides."""
        for node, said in other.nodes.items():
            self.nodes.setdefault(node, {}).update(said)
        for node, runs in other.runs.items():
            for run in runs:
                self.ran(node, run)
        self.ended.update(other.ended)
        self.offsets.update(other.offsets)
        for node, seconds in other.moved.items():
            self.move(node, seconds)
        for node, count in other.damaged.items():
            self.damaged[node] = self.damaged.get(node, 0) + count

    def ran(self, node: str, run: Run) -> None:
        """Note samples; those that follow upon others of the node at once are one with them."""
        runs = self.runs.setdefault(node, [])
        near = 0.5 * self.interval(node)
        if runs and runs[-1].epoch == run.epoch and -near <= run.start - runs[-1].end <= near:
            runs[-1].end, runs[-1].last = max(runs[-1].end, run.end), run.last
        else:
            runs.append(run)

    def interval(self, node: str) -> float:
        """Return how often a node samples, in seconds."""
        said = self.nodes.get(node, {}).get("interval")
        return float(said) if isinstance(said, int | float) and said > 0 else INTERVAL_S

    def move(self, node: str, seconds: float) -> None:
        """Note by how much a time was put right."""
        if abs(seconds) > abs(self.moved.get(node, 0.0)):
            self.moved[node] = round(seconds, 1)

    def to_json(self) -> bytes:
        """Return it as a text."""
        runs = {node: [list(vars(run).values()) for run in own] for node, own in self.runs.items()}
        return json.dumps({**vars(self), "runs": runs}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Facts:
        """Return what `to_json` made. Raises ValueError, TypeError, KeyError."""
        said = json.loads(text)
        return cls(**{**said, "runs": {node: [Run(*run) for run in own] for node, own in said["runs"].items()}})


def facts_of(path: Path) -> Facts:
    """Return what a file has; nothing where there is none. Raises ObserveError."""
    try:
        return Facts.from_json(files.read_small(str(path), _FACTS_MOST)[0])
    except FileNotFoundError:
        return Facts()
    except (OSError, ValueError, TypeError, KeyError, files.NotRegularError) as error:
        raise ObserveError(f"{path} is damaged: {error}") from None


class Gathering:
    """Makes tables of records of a step, as they come."""

    def __init__(self) -> None:
        self.facts = Facts()
        self._rows: dict[str, dict[tuple[str, ...], list[tuple[Any, ...]]]] = {}
        self.frames = 0

    def take(self, arrived: Arrived) -> None:
        """Take records that came together."""
        if arrived.ahead is not None:
            self.facts.offsets[arrived.node] = (round(arrived.ahead, 3), round(arrived.received, 3))
        for line in arrived.lines:
            try:
                event = decode(line)
                self._take(event, _moved(event, arrived))
            except EventError:
                self.facts.damaged[arrived.node] = self.facts.damaged.get(arrived.node, 0) + 1

    def _take(self, event: Event, moved: float) -> None:
        body, when = event.body, event.time - moved
        if not _within(when, _LATEST_S):
            raise EventError("a record says no time")
        self.facts.move(event.node, moved)
        if event.kind == journal.STEP:
            said = {name: body[name] for name in _TOLD if name in body}
            if "interval" in said and not _within(said["interval"], _LONGEST_S):
                del said["interval"]
            for name in ("began", "found"):
                if name in said and _within(said[name], _LATEST_S) and _within(said[name] - moved, _LATEST_S):
                    said[name] -= moved
                else:
                    said.pop(name, None)
            self.facts.nodes.setdefault(event.node, {}).update(said)
        elif event.kind == journal.END:
            told = body.get("ended")
            ended = told - moved if _within(told, _LATEST_S) else when
            self.facts.ended[event.node] = ended if _within(ended, _LATEST_S) else when
        elif event.kind == journal.FRAME:
            span = body.get("span")
            if not _within(span, _LONGEST_S):
                raise EventError("a frame says no span")
            found = [(table, rows) for table in layout.TABLES if (rows := list(journal.rows_of(event, table)))]
            self.facts.ran(event.node, Run(event.epoch, event.boot, when - span, when, event.seq, event.seq))
            for table, rows in found:
                self._keep(table, rows, event.node, when, span, moved)
            self.frames += 1
            return
        if rows := list(journal.rows_of(event, "quality")):
            self._keep("quality", rows, event.node, when, 0.0, moved)

    def _keep(
        self, table: str, rows: Iterable[Mapping[str, Any]], node: str, when: float, span: float, moved: float
    ) -> None:
        known = layout.schema(table).names
        of_table = self._rows.setdefault(table, {})
        for row in rows:
            if table in _TIMES:
                times = {
                    name: ns(row[name] - moved if _within(row.get(name), _LATEST_S) else when) for name in _TIMES[table]
                }
                row = {**row, "node": node, **times}
            else:
                row = {"time": ns(when), "span": span, **row, "node": node}
            if "span" in row and row["span"] is None:
                row = {**row, "span": span}
            names = tuple(name for name in row if name in known)
            of_table.setdefault(names, []).append(tuple(row[name] for name in names))

    def tables(self) -> dict[str, pa.Table]:
        """Return what was taken since, by node, device and time. Rows that fit no column are left out and counted."""
        found = {}
        for table, by_names in self._rows.items():
            pieces = []
            for names, rows in by_names.items():
                if (piece := self._piece(table, names, rows)) is not None:
                    pieces.append(piece)
            if pieces:
                found[table] = in_order(pa.concat_tables(pieces))
        self._rows.clear()
        self.frames = 0
        return found

    def _piece(self, table: str, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> pa.Table | None:
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        try:
            return conformed(table, columns)
        except ObserveError:
            if len(rows) == 1:
                node = rows[0][names.index("node")]
                self.facts.damaged[node] = self.facts.damaged.get(node, 0) + 1
                return None
        half = len(rows) // 2
        found = [piece for part in (rows[:half], rows[half:]) if (piece := self._piece(table, names, part)) is not None]
        return pa.concat_tables(found) if found else None


def ns(seconds: float) -> int:
    """Return nanoseconds, of whole microseconds: what tables keep, and what 64 bits tell of seconds since 1970."""
    return round(seconds * 1e6) * 1000


def _within(value: Any, most: float) -> TypeGuard[float]:
    """Return whether a value is a number above 0 and below `most`."""
    return type(value) in (int, float) and 0 < value < most


def _moved(event: Event, arrived: Arrived) -> float:
    """Return how far the clock was ahead that a record has its time of, where that is too far; else 0."""
    up = event.body.get("up")
    if arrived.booted is not None and event.boot == arrived.boot and _within(up, _LATEST_S):
        off = event.time - (arrived.booted + up)
    else:
        off = arrived.ahead or 0.0
    return off if abs(off) > CLOCK_S else 0.0


def in_order(table: pa.Table) -> pa.Table:
    """Return rows by node, device and time: like values lie together, and a series is in one piece."""
    table = table.unify_dictionaries()
    names = [name for name in ("node", "gpu", "mount", "port", "start", "time") if name in table.column_names]
    return table.take(np.lexsort([_keys_of(table[name]) for name in reversed(names)]))


def _keys_of(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return numbers in the order of a column's values; what is missing is last."""
    if not pa.types.is_dictionary(column.type):
        return np.asarray(pc.fill_null(column.cast(pa.int64()), 2**62), np.int64)
    if not len(column):
        return np.zeros(0, np.int64)
    array = column.combine_chunks()
    values = array.dictionary.to_pylist()
    rank = np.empty(len(values) + 1, np.int64)
    rank[sorted(range(len(values)), key=lambda place: values[place])] = np.arange(len(values))
    rank[-1] = len(values)
    found: np.ndarray[Any, np.dtype[np.int64]] = rank[np.asarray(pc.fill_null(array.indices, -1))]
    return found


def gathered(arrived: Iterable[Arrived]) -> Iterator[tuple[Gathering, dict[str, pa.Table]]]:
    """Yield tables of FRAMES_MOST frames or so at a time, and the gathering, whose facts are of all so far."""
    gathering = Gathering()
    for one in arrived:
        gathering.take(one)
        if gathering.frames >= FRAMES_MOST:
            yield gathering, gathering.tables()
    yield gathering, gathering.tables()
