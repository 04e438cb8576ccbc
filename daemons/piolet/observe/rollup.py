"""A step's roll-up: every quantity of every GPU and host in 600 bins, for pages and for when the samples are gone.

A sample is a mean over its span, and goes into each bin with the part of it that lies there; so a bin's mean is exact
whether it has a thousand samples or is a hundredth of one. Samples of one GPU do not overlap; where they do, the bin is
no more than covered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from piolet.observe import layout
from piolet.observe.reading import StepData
from piolet.observe.writing import write_pieces

Array = np.ndarray[Any, np.dtype[Any]]

ROWS_MOST = 24_000_000  # as many as 1,024 GPUs have in bins of their own; of more GPUs, rows stand for several bins
_ROWS_AT_ONCE = 4_000_000  # of which there are sums at the same time, 100 MB
_WHERE = ("time", "span", "node")
_NO_QUANTITIES = (*_WHERE, "gpu", "uuid")
_Key = tuple[str, int]


@dataclass(frozen=True)
class Lines:
    """A quantity over time: each array has a row for each of `keys` (node, GPU or layout.HOST) and BINS columns.

    mean, least, most   NaN where there was no sample
    covered             0 to 1
    """

    keys: tuple[_Key, ...]
    mean: Array
    least: Array
    most: Array
    covered: Array


@dataclass
class _Sums:
    """What is added up of one quantity: arrays of series x bins."""

    total: Array
    seconds: Array
    least: Array
    most: Array

    def followed_by(self, others: _Sums) -> _Sums:
        return _Sums(*(np.concatenate((vars(self)[name], vars(others)[name])) for name in vars(self)))


@dataclass
class _Table:
    """What is added up of one table."""

    edges: Array  # of bins, in seconds since the step's start
    places: dict[_Key, int] = field(default_factory=dict)
    sums: dict[str, _Sums] = field(default_factory=dict)

    def place(self, key: _Key) -> int:
        return self.places.setdefault(key, len(self.places))

    def of(self, quantity: str) -> _Sums:
        """Return the sums of a quantity, with room for all series."""
        bins = len(self.edges) - 1
        known = self.sums.get(quantity)
        have = 0 if known is None else len(known.total)
        if have < len(self.places):
            room = max(len(self.places), 2 * have) - have
            fresh = _Sums(
                np.zeros((room, bins)), np.zeros((room, bins)),
                np.full((room, bins), np.nan, np.float32), np.full((room, bins), np.nan, np.float32),
            )  # fmt: skip
            known = self.sums[quantity] = fresh if known is None else known.followed_by(fresh)
        assert known is not None
        return known


def of(step: StepData) -> pa.Table:
    """Return the roll-up of a step's samples: by quantity, node, GPU and bin. Raises ObserveError."""
    pieces = list(_rows(step))
    return pa.concat_tables(pieces).unify_dictionaries() if pieces else layout.schema("rollup").empty_table()


def write(step: StepData) -> Path:
    """Write the roll-up into the step's directory, each quantity in a group of rows of its own. Raises ObserveError."""
    return write_pieces(step.directory, "rollup", _rows(step))


def lines(step: StepData, quantity: str) -> Lines:
    """Return a quantity over time from the roll-up, which is made if there is none. Raises ObserveError."""
    pieces = list(step.only("rollup", "quantity", quantity))
    if not pieces and not len(step.table("rollup", ["bin"])):
        table = next((name for name in ("gpu", "host") if quantity in layout.schema(name).names), "")
        pieces = list(_rows(step, table, quantity)) if table else []
    found = pa.concat_tables(pieces).unify_dictionaries() if pieces else layout.schema("rollup").empty_table()
    return _lines(found)


def _lines(found: pa.Table) -> Lines:
    node = found["node"].combine_chunks()
    names = node.dictionary.to_pylist() if len(found) else []
    numbers = np.asarray(node.indices if len(found) else [], np.int64)
    gpu = found["gpu"].to_numpy().astype(np.int64)
    series, where = np.unique(numbers << 32 | (gpu + 2), return_inverse=True)
    keys = tuple((names[one >> 32], (one & 0xFFFFFFFF) - 2) for one in series.tolist())
    bins = found["bins"].to_numpy().astype(np.int64)
    wide = int(bins.max()) if len(bins) else 1
    place = where * layout.BINS + found["bin"].to_numpy().astype(np.int64)
    arrays = []
    for name, empty in (("mean", np.nan), ("least", np.nan), ("most", np.nan), ("covered", 0.0)):
        array = np.full(len(keys) * layout.BINS, empty, np.float32)
        values = found[name].to_numpy()
        for shift in range(wide):
            array[place + shift] = values
        arrays.append(array.reshape(len(keys), layout.BINS))
    return Lines(keys, *arrays)


def _rows(step: StepData, table: str = "", quantity: str = "") -> Iterator[pa.Table]:
    """Yield the rows of each quantity."""
    length = max(step.end - step.start, 1) / 1e9
    for name in (table,) if table else ("gpu", "host"):
        known = [column for column in layout.schema(name).names if column not in _NO_QUANTITIES]
        wanted = [quantity] if quantity else known
        count = max(1, len(step.nodes) * (_gpus_of(step) if name == "gpu" else 1))
        finest = _finest(step) / length * layout.BINS
        group = next(
            n for n in _DIVISORS
            if (n >= finest and layout.BINS // n * count * len(known) <= ROWS_MOST) or n == layout.BINS
        )  # fmt: skip
        edges = np.linspace(0, length, layout.BINS // group + 1)
        where = [*_WHERE, *(["gpu"] if name == "gpu" else [])]
        at_once = max(1, _ROWS_AT_ONCE // (count * (layout.BINS // group)))
        for begin in range(0, len(wanted), at_once):
            yield from _rows_of(step, name, where, wanted[begin : begin + at_once], edges, group)


def _rows_of(
    step: StepData, table: str, where: list[str], wanted: list[str], edges: Array, group: int
) -> Iterator[pa.Table]:  # fmt: skip
    sums = _Table(edges)
    for piece in step.pieces(table, [*where, *wanted]):
        _add(sums, piece, wanted, step.start)
    order = sorted(sums.places.items())
    for one in wanted:
        if one in sums.sums:
            yield _table_of(one, sums.of(one), edges, order, group)


_DIVISORS = [n for n in range(1, layout.BINS + 1) if layout.BINS % n == 0]


def _finest(step: StepData) -> float:
    """Return the seconds below which a bin tells nothing: half of a sample; 0 where that is not known."""
    interval = step.meta.get("interval")
    return interval / 2 if isinstance(interval, int | float) and interval > 0 else 0.0


def _gpus_of(step: StepData) -> int:
    """Return how many GPUs a node has at most, or a guess."""
    devices = step.meta.get("devices")
    return max((len(found) for found in devices.values()), default=4) if isinstance(devices, dict) else 4


def _add(sums: _Table, piece: pa.Table, wanted: list[str], start: int) -> None:
    piece = piece.unify_dictionaries()
    count = len(piece)
    if not count or piece["time"].null_count == count:
        return
    node = piece["node"].combine_chunks()
    names = node.dictionary.to_pylist()
    device = piece["gpu"].to_numpy().astype(np.int64) if "gpu" in piece.column_names else np.full(count, layout.HOST)
    key = np.asarray(pc.fill_null(node.indices, -1), np.int64) << 32 | (device + 2)
    end = (piece["time"].cast(pa.int64()).to_numpy() - start // 1000) / 1e6
    order = None
    ahead = np.diff(key)
    if np.any((ahead < 0) | (ahead == 0) & (np.diff(end) < 0)):
        order = np.lexsort((end, key))
        key, end = key[order], end[order]
    firsts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    cut = _Cut(sums.edges, end, _padded(np.nan_to_num(piece["span"].to_numpy()), order), [*firsts.tolist(), count])
    places = [
        sums.place((names[one >> 32] if one >= 0 else "", int((one & 0xFFFFFFFF) - 2))) for one in key[firsts].tolist()
    ]
    for name in wanted:
        column = piece[name]
        if column.null_count != count:
            cut.add(sums.of(name), places, _padded(column.to_numpy(), order), column.null_count > 0)


def _padded(values: Array, order: Array | None) -> Array:
    """Return values in order, and one that stands for none behind them."""
    padded = np.empty(len(values) + 1, values.dtype)
    padded[:-1] = values if order is None else values[order]
    padded[-1] = 0
    return padded


class _Cut:
    """Where the edges of bins cut through the samples of a piece, which are in order of series and time.

    Arrays are of series x edges, or of series x bins. Of each edge `first` is the first of the samples that end behind
    it, and `part` how much of that one lies before the edge, in seconds.
    """

    def __init__(self, edges: Array, end: Array, span: Array, bounds: list[int]) -> None:
        self.span = span.astype(np.float64)
        self.first = np.empty((len(bounds) - 1, len(edges)), np.int64)
        for number, (begin, behind) in enumerate(pairwise(bounds)):
            self.first[number] = begin + np.searchsorted(end[begin:behind], edges, "right")
        is_there = self.first < np.array(bounds[1:])[:, None]
        begun = edges - (np.append(end, 0.0)[self.first] - self.span[self.first])
        self.part = np.where(is_there, np.clip(begun, 0.0, self.span[self.first]), 0.0)
        self.ends = self.first[:, :-1] < self.first[:, 1:]  # whether a sample ends in the bin
        self.goes_on = self.part[:, 1:] > 0  # whether one begins in it, or before, and ends behind it
        self.seconds = self.integral(self.span, np.ones(len(span), np.float32))

    def integral(self, weighted: Array, values: Array) -> Array:
        """Return the integral of `values` over each bin, which are 0 where missing; `weighted`: times their spans."""
        at_edge = values[self.first] * self.part
        result: Array = np.where(self.ends, self._reduced(np.add, weighted), 0.0) - at_edge[:, :-1] + at_edge[:, 1:]
        return result

    def add(self, sums: _Sums, places: list[int], values: Array, gaps: bool) -> None:
        """Add the samples of one quantity; NaN is missing."""
        plain, seconds = values, self.seconds
        if gaps:
            known = ~np.isnan(values)
            plain = np.where(known, values, 0)
            seconds = self.integral(self.span * known, known)
        sums.total[places] += self.integral(plain * self.span, plain)
        sums.seconds[places] += np.maximum(seconds, 0.0)
        at_end = np.where(self.goes_on, values[self.first[:, 1:]], np.nan)
        for target, best in ((sums.least, np.fmin), (sums.most, np.fmax)):
            within = np.where(self.ends, self._reduced(best, values), np.nan)
            target[places] = best(target[places], best(within, at_end))

    def _reduced(self, function: np.ufunc, values: Array) -> Array:
        """Return what becomes of the samples that end in each bin; where none does it means nothing."""
        reduced: Array = function.reduceat(values, self.first.ravel()).reshape(self.first.shape)[:, :-1]
        return reduced


def _table_of(quantity: str, sums: _Sums, edges: Array, order: list[tuple[_Key, int]], group: int) -> pa.Table:
    rows = [place for _, place in order]
    width = edges[1] - edges[0]
    seconds = sums.seconds[rows]
    series, bins = np.nonzero(seconds > 1e-6 * width)
    covered = seconds[series, bins]
    place = np.array(rows, np.int64)[series]
    names = [key[0] for key, _ in order]
    unique = sorted(set(names))
    number = {name: code for code, name in enumerate(unique)}
    codes = np.array([number[name] for name in names], np.int32)
    columns = {
        "bin": pa.array((bins * group).astype(np.uint16)),
        "bins": pa.array(np.full(len(bins), group, np.uint16)),
        "node": pa.DictionaryArray.from_arrays(codes[series], unique),
        "gpu": pa.array(np.array([key[1] for key, _ in order], np.int16)[series]),
        "quantity": pa.DictionaryArray.from_arrays(np.zeros(len(bins), np.int32), [quantity]),
        "mean": pa.array((sums.total[place, bins] / covered).astype(np.float32)),
        "least": pa.array(sums.least[place, bins]),
        "most": pa.array(sums.most[place, bins]),
        "covered": pa.array(np.minimum(covered / width, 1.0).round(4).astype(np.float32)),
    }
    schema = layout.schema("rollup")
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
