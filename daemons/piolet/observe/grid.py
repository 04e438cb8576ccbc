"""A step's data on one grid of time, as detectors look at it (piolet.api.Observed). Arrays in memory, made once.

A sample goes into the bin that its middle lies in; a bin is the mean of its samples. Bins are as wide as the interval
of the samples, FINEST at least, and wider where there would be more than MOST of them. One empty bin between two
samples is the jitter of who takes them, and gets the value before it; two are a gap. Where there are no samples of GPUs
or hosts any more, or too many to be read, the roll-up stands in for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from piolet.api import Gpu
from piolet.observe import layout, rollup
from piolet.observe.reading import StepData, device_of
from piolet.score import witness

Array = np.ndarray[Any, np.dtype[Any]]

MOST = 8640  # bins: a day of 10 s
ROWS_MOST = 12_000_000  # of `gpu`: above it the roll-up is looked at
FINEST = 1.0  # s: of samples 100 ms apart every tenth has clocks, temperatures and the host
_MARKS_MOST = 200  # names
_FEW_MOST = 10_000_000
_MEASURED_MOST = 1e30  # of any quantity, in its unit: joules, bytes a second
_OFFSET_MOST_S = 86_400.0
_PLACES = {"io": "mount", "net": "port"}


class Grid:
    """A step on its grid; reads a column of a table when it is asked for, once."""

    def __init__(self, step: StepData) -> None:
        self._step = step
        self._arrays: dict[tuple[str, str], Array] = {}
        self._placed: dict[str, _Placed] = {}

    # -- what StepData has

    @property
    def name(self) -> str:
        """Return "112.0"."""
        return self._step.name

    @property
    def meta(self) -> Mapping[str, Any]:
        """What meta.json says."""
        return self._step.meta

    @property
    def start(self) -> int:
        """Nanoseconds since 1970."""
        return self._step.start

    @property
    def end(self) -> int:
        """Nanoseconds since 1970."""
        return self._step.end

    @cached_property
    def nodes(self) -> Sequence[str]:
        """Names of the step's nodes."""
        return self._step.nodes

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table of the layout. Raises ObserveError."""
        return self._step.table(name, columns)

    # -- the grid

    @cached_property
    def width(self) -> float:
        """Seconds that a bin has."""
        length = max(self.end - self.start, 1) / 1e9
        if self._coarse:
            return length / layout.BINS
        interval, span = self.meta.get("interval"), self._span
        if not isinstance(interval, int | float) or not 0 < interval < np.inf:
            interval = span or 10.0
        interval = span if span > 1.5 * interval else interval  # they were thinned since
        return min(max(float(interval), length / MOST, FINEST), max(length, FINEST))

    @cached_property
    def _span(self) -> float:
        """Return what a sample covers, of the first 100,000 the median, in seconds; 0: it is not known."""
        for table in ("gpu", "host", "io", "net"):
            spans = _finite(self.table(table, ["span"])["span"].slice(0, 100_000))
            spans = spans[spans > 0]  # NaN is not
            if len(spans):
                return float(np.median(spans))
        return 0.0

    @cached_property
    def bins(self) -> int:
        """How many bins there are."""
        if self._coarse:
            return layout.BINS
        return max(1, int(np.ceil((self.end - self.start) / 1e9 / self.width - 1e-6)))

    def time(self, at: float) -> int:
        """Return nanoseconds since 1970 of a bin's begin, and not later than the step's end."""
        return min(int(self.start + at * self.width * 1e9), self.end)

    @cached_property
    def gpus(self) -> Sequence[Gpu]:
        """The GPUs that there are samples of, by node and index."""
        placed = self._of("gpu")
        return tuple(
            Gpu(node, int(index), uuid, device_of(self.meta, node, int(index)))
            for (node, index), uuid in zip(placed.keys, placed.uuids, strict=True)
        )

    def gpu(self, quantity: str) -> Array:
        """Return means of a quantity of `gpu`: (gpus, bins)."""
        return self._values("gpu", quantity)

    def host(self, quantity: str) -> Array:
        """Return means of a quantity of `host`: (nodes, bins)."""
        values, placed = self._values("host", quantity), self._of("host")
        where = {node: row for row, (node, _) in enumerate(placed.keys)}
        rows = np.full((len(self.nodes), self.bins), np.nan)
        for row, node in enumerate(self.nodes):
            if node in where:
                rows[row] = values[where[node]]
        return rows

    def lines(self, table: str, quantity: str) -> tuple[list[tuple[str, str]], Array]:
        """Return (node, mount or port) for each line of `io` or `net`, and its means: (lines, bins)."""
        values = self._values(table, quantity)
        return [(node, str(part)) for node, part in self._of(table).keys], values

    def gpu_bits(self, quantity: str, bits: int) -> Array:
        """Return the share of samples in which one of these bits of a mask is set: (gpus, bins)."""
        placed = self._of("gpu")
        if placed.coarse is not None:
            return np.full((len(placed.keys), self.bins), np.nan)  # a mean of masks is no mask
        key = ("gpu", f"{quantity}&{bits}")
        if key not in self._arrays:
            masks = _finite(self.table("gpu", [quantity])[quantity])
            known = ~np.isnan(masks)
            there = (np.where(known, masks, 0).astype(np.int64) & bits) != 0
            self._arrays[key] = self._binned(placed, np.where(known, there, np.nan))
        return self._arrays[key]

    def contradicted(self) -> Array:
        """Return in which bins utilisation contradicts the profiling counters beside it: (gpus, bins), booleans."""
        names = (*witness.COUNTERS, "utilisation")
        values = {name: self.gpu(name).ravel() for name in names}
        shape = (len(self.gpus), self.bins)
        owner = np.repeat(np.arange(shape[0]), shape[1])
        seconds = np.full(owner.shape, self.width)
        return witness.contradicted(values, seconds, owner, shape[0]).reshape(shape)

    def marks(self, word: str) -> dict[str, tuple[Array, Array]]:
        """Return the marks in whose name `word` is found: seconds since the start, and values in order of time."""
        table = self.table("marks", ["time", "name", "value"])
        found: dict[str, tuple[Array, Array]] = {}
        if not len(table):
            return found
        names = pc.unique(table["name"]).drop_null().to_pylist()
        for name in sorted(names)[:_MARKS_MOST]:
            if not re.search(word, name):
                continue
            mine = table.filter(pc.equal(table["name"], name))
            at = (mine["time"].cast(pa.int64()).to_numpy() - self.start // 1000) / 1e6
            order = np.argsort(at, kind="stable")
            found[name] = at[order], _numbers(mine["value"])[order]
        return found

    # -- how it is made

    @cached_property
    def _coarse(self) -> bool:
        """Whether the roll-up stands in for samples."""
        rows = len(self.table("gpu", ["gpu"]))
        if rows > ROWS_MOST:
            return True
        return not rows and not len(self.table("host", ["span"])) and len(self.table("rollup", ["bin"])) > 0

    def _of(self, table: str) -> _Placed:
        if table not in self._placed:
            coarse = self._coarse and table in ("gpu", "host")
            self._placed[table] = _rolled(self._step, table) if coarse else self._place(table)
        return self._placed[table]

    def _place(self, table: str) -> _Placed:
        part = {"gpu": "gpu", **_PLACES}.get(table)
        columns = ["time", "span", "node", *([part] if part else []), *(["uuid"] if table == "gpu" else [])]
        data = self.table(table, columns)
        if not len(data):
            return _Placed((), (), np.zeros(0, np.int64), np.zeros(0, bool))
        node, nodes = _codes(data["node"])
        parts: list[Any]
        if part is None:
            other, parts = np.zeros(len(node), np.int64), [""]
        elif part == "gpu":
            other = data["gpu"].fill_null(0).to_numpy().astype(np.int64)
            parts = list(range(int(other.max()) + 1))
        else:
            other, parts = _codes(data[part])
        at = (data["time"].cast(pa.int64()).to_numpy() - self.start // 1000) / 1e6
        offsets = self._offsets()
        if offsets:
            at = at - np.array([offsets.get(name, 0.0) for name in nodes])[node]
        middle = at - np.nan_to_num(data["span"].to_numpy()) / 2
        place = np.floor(np.nan_to_num(middle) / self.width + 1e-9).astype(np.int64)
        inside = (place >= 0) & (place < self.bins) & ~np.isnan(middle)
        pair = node * len(parts) + other
        pairs, line = np.unique(pair, return_inverse=True) if table != "gpu" else _few(pair)
        order = sorted(range(len(pairs)), key=lambda i: (nodes[pairs[i] // len(parts)], parts[pairs[i] % len(parts)]))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        keys = tuple((nodes[pairs[i] // len(parts)], parts[pairs[i] % len(parts)]) for i in order)
        line = rank[line]
        uuids = ("",) * len(keys)
        if table == "gpu":
            first = np.full(len(keys), -1)
            first[line[::-1]] = np.arange(len(line))[::-1]
            uuids = tuple(data["uuid"][int(i)].as_py() or "" for i in first)
        return _Placed(keys, uuids, (line * self.bins + place)[inside], inside)

    def _offsets(self) -> dict[str, float]:
        """Return how many seconds each node's clock is ahead."""
        told = self.meta.get("clock_offsets")
        found = {}
        for node, value in told.items() if isinstance(told, Mapping) else ():
            value = value.get("seconds") if isinstance(value, Mapping) else value
            value = value[0] if isinstance(value, list | tuple) and value else value
            if isinstance(value, int | float) and abs(value) < _OFFSET_MOST_S:
                found[node] = float(value)
        return found

    def _values(self, table: str, quantity: str) -> Array:
        key = (table, quantity)
        if key not in self._arrays:
            placed = self._of(table)
            if placed.coarse is not None:
                found = placed.coarse(quantity)
            elif not placed.keys:
                found = np.full((0, self.bins), np.nan)
            else:
                found = self._binned(placed, _finite(self.table(table, [quantity])[quantity]))
            self._arrays[key] = found
        return self._arrays[key]

    def _binned(self, placed: _Placed, values: Array) -> Array:
        """Return the mean of each bin."""
        shape = (len(placed.keys), self.bins)
        mine = values if placed.inside.all() else values[placed.inside]
        place, known = placed.place, ~np.isnan(mine)
        if not known.all():
            place, mine = place[known], mine[known]
        many = np.bincount(place, minlength=shape[0] * shape[1])
        total = np.bincount(place, mine, minlength=len(many))
        with np.errstate(invalid="ignore"):
            means = np.where(many > 0, total / many, np.nan).reshape(shape)
        lone = np.isnan(means[:, 1:-1]) & ~np.isnan(means[:, :-2]) & ~np.isnan(means[:, 2:])
        means[:, 1:-1][lone] = means[:, :-2][lone]
        return means


class _Placed:
    """Where the rows of a table go: for each its place in (lines, bins), flat; `inside`: which rows have one."""

    def __init__(
        self,
        keys: tuple[tuple[str, Any], ...],
        uuids: tuple[str, ...],
        place: Array,
        inside: Array,
        coarse: Any = None,
    ) -> None:
        self.keys, self.uuids, self.place, self.inside, self.coarse = keys, uuids, place, inside, coarse


def _few(pair: Array) -> tuple[Array, Array]:
    """Return what np.unique does with return_inverse; quicker where numbers are small."""
    if pair.max() > _FEW_MOST:
        return np.unique(pair, return_inverse=True)
    seen = np.flatnonzero(np.bincount(pair))
    rank = np.zeros(int(seen[-1]) + 1, np.int64)
    rank[seen] = np.arange(len(seen))
    return seen, rank[pair]


def _codes(column: pa.ChunkedArray) -> tuple[Array, list[str]]:
    """Return each row's place among the names, and these; a null is the name ''."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) and whole.num_chunks == 1 else whole
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.cast(pa.string()).combine_chunks().dictionary_encode()
    names = [str(name) for name in whole.dictionary.to_pylist()]
    codes = whole.indices.fill_null(len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, [*names, ""]


def _numbers(column: pa.ChunkedArray) -> Array:
    return np.asarray(column.to_numpy(), np.float64)


def _finite(column: pa.ChunkedArray) -> Array:
    """Return numbers; what is infinite, or might as well be, no sensor has measured."""
    values = _numbers(column)
    strange = np.abs(values) > _MEASURED_MOST
    return np.where(strange, np.nan, values) if strange.any() else values


def _rolled(step: StepData, table: str) -> _Placed:
    """Return a table from the roll-up."""
    known = rollup.lines(step, "utilisation" if table == "gpu" else "cpu")
    keys = tuple((node, gpu) for node, gpu in known.keys)

    def of(quantity: str) -> Array:
        found = rollup.lines(step, quantity)
        where = {key: row for row, key in enumerate(found.keys)}
        rows = np.full((len(keys), layout.BINS), np.nan)
        for row, key in enumerate(keys):
            if key in where:
                rows[row] = found.mean[where[key]]
        return rows

    return _Placed(keys, ("",) * len(keys), np.zeros(0, np.int64), np.zeros(0, bool), of)
