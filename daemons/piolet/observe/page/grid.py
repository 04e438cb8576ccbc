"""A step in bins of one length, as the page draws it: by GPU, node, mount point, port or name of a mark.

GPUs and hosts come from the roll-up; a bin has the mean over what samples cover of it. File systems and ports, which
the roll-up does not have, are spread over the bins here in the same way. NaN is unknown, and stays so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from piolet.observe import layout, rollup
from piolet.observe.reading import StepData

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Series:
    """A quantity by row and bin; `covered` is the share of the bin that samples cover."""

    mean: Array
    least: Array
    most: Array
    covered: Array


@dataclass(frozen=True)
class Lanes:
    """Rows with names, and what is known of them: quantities that nobody told are not there."""

    names: list[str]
    of: dict[str, Series]

    def known(self, name: str) -> Series | None:
        """Return a quantity of which at least one value is known."""
        found = self.of.get(name)
        return None if found is None or np.isnan(found.mean).all() else found


@dataclass(frozen=True)
class Grid:
    """All of a step in `bins` bins; `start` is in nanoseconds since 1970, `seconds` how long it was."""

    step: StepData
    bins: int
    gpus_of: Lanes
    gpus: list[tuple[str, int]]
    hosts: Lanes
    findings: pa.Table

    @property
    def start(self) -> int:
        """When the first bin begins."""
        return self.step.start

    @property
    def seconds(self) -> float:
        """How long all bins are together."""
        return max(1e-3, (self.step.end - self.step.start) / 1e9)

    @property
    def width(self) -> float:
        """What a bin covers, in seconds."""
        return self.seconds / self.bins

    @cached_property
    def edges(self) -> Array:
        """Where bins begin and end, in nanoseconds since 1970: bins + 1."""
        return self.start + np.linspace(0, self.seconds * 1e9, self.bins + 1)

    def at(self, time: int | None) -> float | None:
        """Return a time as seconds since the start, within the step; None stays None."""
        return None if time is None else min(self.seconds, max(0.0, (time - self.start) / 1e9))


def of(step: StepData, gpus: Sequence[str], hosts: Sequence[str], findings: pa.Table | None = None) -> Grid:
    """Return a step in bins, with these quantities of GPUs and of hosts. Raises ObserveError."""
    order = {name: i for i, name in enumerate(step.nodes)}
    found: dict[bool, dict[str, rollup.Lines]] = {True: {}, False: {}}
    for host, names in ((False, gpus), (True, hosts)):
        for name in names:
            lines = rollup.lines(step, name)
            if lines.keys:
                found[host][name] = lines
    keys = {
        host: sorted(
            {key for lines in all_.values() for key in lines.keys}, key=lambda key: (order.get(key[0], len(order)), key)
        )
        for host, all_ in found.items()
    }  # fmt: skip
    tables = {host: {name: _aligned(lines, keys[host]) for name, lines in found[host].items()} for host in found}
    return Grid(
        step,
        layout.BINS,
        Lanes([f"{node}:{index}" for node, index in keys[False]], tables[False]),
        keys[False],
        Lanes([node for node, _ in keys[True]], tables[True]),
        step.table("findings") if findings is None else findings,
    )


def _aligned(lines: rollup.Lines, keys: list[tuple[str, int]]) -> Series:
    fields = (lines.mean, lines.least, lines.most, lines.covered)
    if list(lines.keys) == keys:
        return Series(*fields)
    row = {key: i for i, key in enumerate(keys)}
    result = [np.full((len(keys), layout.BINS), empty, np.float32) for empty in (np.nan, np.nan, np.nan, 0.0)]
    for array, each in zip(result, fields, strict=True):
        array[[row[key] for key in lines.keys]] = each
    return Series(*result)


def coded(column: pa.ChunkedArray) -> tuple[Array, list[str]]:
    """Return the codes of a column of names, and what they stand for; a null is ''."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.unify_dictionaries().chunk(0) if whole.num_chunks else pa.array([], column.type)
    names = [str(name) for name in whole.dictionary.to_pylist()]
    codes = whole.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), [*names, ""] if whole.null_count else names


def spread(grid: Grid, table: pa.Table, names: Sequence[str], quantities: Sequence[str]) -> dict[tuple[str, ...], Any]:
    """Return a table of samples by its columns `names`: for each combination a dict of (bin) by quantity."""
    if not len(table):
        return {}
    keys = [coded(table[name]) for name in names]
    end = table["time"].cast(pa.int64()).to_numpy() * 1000.0
    begin = end - table["span"].to_numpy().astype(float) * 1e9
    columns = {name: table[name].to_numpy().astype(float) for name in quantities}
    key = np.zeros(len(table), np.int64)
    for codes, own in keys:
        key = key * len(own) + codes
    order = np.lexsort((end, key))
    cuts = np.flatnonzero(np.diff(key[order])) + 1
    result: dict[tuple[str, ...], Any] = {}
    for mine in np.split(order, cuts):
        where = tuple(own[int(codes[mine[0]])] for codes, own in keys)
        found = {name: means(begin[mine], end[mine], values[mine], grid.edges) for name, values in columns.items()}
        result[where] = {name: values for name, values in found.items() if not np.isnan(values).all()}
    return result


def means(begin: Array, end: Array, values: Array, edges: Array) -> Array:
    """Return the mean of samples, in the order of time, over what they cover of each bin; NaN where that is nothing."""
    known = ~np.isnan(values)
    begin, end, values = begin[known], end[known], values[known]
    if not len(end):
        return np.full(len(edges) - 1, np.nan)
    begin = np.maximum(begin, np.concatenate([[-np.inf], end[:-1]]))  # never twice
    long = np.maximum(0.0, end - begin)
    times = np.stack([begin, np.maximum(end, begin)], axis=1).ravel()
    grown = [np.stack([np.zeros(len(end)), part], axis=1).ravel().cumsum() for part in (values * long, long)]
    total, covered = (np.diff(np.interp(edges, times, part)) for part in grown)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result: Array = np.where(covered > 0, total / covered, np.nan)
    return result


def stacked(found: Mapping[tuple[str, ...], Mapping[str, Array]], name: str) -> tuple[list[str], Array]:
    """Return the rows of a quantity that have it, named by the first of their keys."""
    own = {" ".join(key): values[name] for key, values in found.items() if name in values}
    return list(own), np.array(list(own.values()))
