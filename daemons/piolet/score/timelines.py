"""Timelines that grow with a step: at most 600 bins, whose width doubles whenever they are full.

Bins lie on one grid for all nodes: width number k is the same power of two times UNIT, and a bin begins at a multiple
of its width since 1970. So timelines of several nodes fit together, whenever each began, and a wider one is made of a
narrow one without loss. Beside the mean a bin keeps the lowest and the highest sample: bursts that are shorter than a
bin are seen in these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from piolet.base.errors import ScoreError
from piolet.score.phases import BINS_MAX

Array = np.ndarray[Any, np.dtype[Any]]

_LAYOUT = 2
UNIT = 390_625  # ns; 256 of them are 100 ms
_STEPS, _EDGE_STEPS = 500, 250  # in which a mean and an extreme are kept, of the largest value or of 1


def width_of(start: int, end: int, period: float) -> int:
    """Return the least width in ns of which each bin has two samples of `period` seconds, and all fit into BINS_MAX."""
    width = UNIT
    while width < 2e9 * period - 1 or end // width - start // width >= BINS_MAX:
        width *= 2
    return width


class Timelines:
    """Sums over bins of `rows` devices, for each of `names`; ns since 1970.

    width, first    of a bin, and the number of the first one: it begins at first * width
    sums            (2, name, row, bin): the integral in seconds, and the seconds in which it was told
    low, high       (name, bin): the lowest and the highest sample of all rows, NaN where there is none
    apart           keep what is of single rows, and the extremes, apart: a screen does not need them
    """

    def __init__(self, names: Sequence[str], rows: int, start: int, period: float, apart: bool = False) -> None:
        self.names, self.rows, self.apart = tuple(names), rows, apart
        self.width = width_of(start, start, period)
        self.first = start // self.width
        self.sums = np.zeros((2, len(names), rows, 0))
        self.low, self.high = (np.zeros((len(names), 0)) for _ in range(2))

    @property
    def layout(self) -> str:
        """What `state` yields, in a word: of another layout nothing can be restored."""
        return f"{_LAYOUT} {self.names} {self.rows} {self.apart} {_STEPS} {_EDGE_STEPS} {BINS_MAX}"

    def places(self, times: Array) -> Places:
        """Return the bins of samples with these middles; the bins become wider if need be."""
        if self.sums.dtype != np.float64 or self.low.shape[-1] < BINS_MAX:
            more = BINS_MAX - self.low.shape[-1]
            edge = np.full((len(self.names), more), np.nan)
            self.low, self.high = (np.concatenate([each, edge], axis=-1) for each in (self.low, self.high))
            self.sums = np.concatenate([self.sums, np.zeros((*self.sums.shape[:3], more))], axis=-1)
        while len(times) and int(times.max()) // self.width - self.first >= BINS_MAX:
            self.coarsen()
        return Places(np.clip(times // self.width - self.first, 0, BINS_MAX - 1))

    def add(self, name: str, values: Array, row: Array, places: Places, seconds: Array) -> None:
        """Add samples; NaN is left out."""
        weights = np.where(np.isnan(values), 0, seconds)
        if not weights.any():
            return
        at, place, size = self.names.index(name), row * BINS_MAX + places.bins, self.rows * BINS_MAX
        whole = np.bincount(place, weights=np.nan_to_num(values) * weights, minlength=size)
        self.sums[0, at] += whole.reshape(self.rows, BINS_MAX)
        self.sums[1, at] += np.bincount(place, weights=weights, minlength=size).reshape(self.rows, BINS_MAX)
        ordered = values[places.order]
        for edge, how in ((self.low[at], np.fmin), (self.high[at], np.fmax)):
            edge[places.filled] = how(edge[places.filled], how.reduceat(ordered, places.starts))

    def coarsen(self) -> None:
        """Make two bins one."""
        odd = self.first & 1
        self.first, self.width = self.first >> 1, self.width * 2
        self.sums = _halved(self.sums, odd, 0.0, np.add)
        self.low = _halved(self.low, odd, np.nan, np.fmin)
        self.high = _halved(self.high, odd, np.nan, np.fmax)

    def state(self) -> Iterator[tuple[str, Array | float]]:
        """Yield the content by name, in the precision that is kept; what is kept apart has names with "row."."""
        used = np.flatnonzero(self.sums[1].any(axis=(0, 1)))
        bins = int(used[-1]) + 1 if len(used) else 0
        told, heard = self.sums[0, ..., :bins], self.sums[1, ..., :bins]
        yield "width", self.width
        yield "first", self.first
        seconds = self.width / 1e9
        whole = heard.sum(axis=1)
        row = "row." if self.apart else ""
        for key, values, steps in (
            ("row.mean", _ratio(told, heard), _STEPS),
            ("row.told", heard / seconds, _STEPS),
            ("mean", _ratio(told.sum(axis=1), whole), _STEPS),
            ("told", whole / max(1, self.rows) / seconds, _STEPS),
            (f"{row}low", self.low[:, :bins], _EDGE_STEPS),
            (f"{row}high", self.high[:, :bins], _EDGE_STEPS),
        )[0 if self.apart else 2 :]:
            largest = np.fmax.reduce(values.reshape(len(self.names), -1), axis=1, initial=1.0)
            most = largest.astype(float).reshape(-1, *[1] * (values.ndim - 1))
            yield f"{key}.most", most
            yield key, _whole(values / most, steps)

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` yielded; without what is kept apart there is one row, which stands for all.

        Raises ScoreError: it is not of timelines like this.
        """
        row = "row." if "row.mean" in state else ""
        try:
            self.width, self.first = int(state["width"]), int(state["first"])
            units = self.width // UNIT
            if units < 1 or units & (units - 1) or self.width % UNIT or not 0 <= self.first * self.width < 1 << 62:
                raise ValueError("width")
            mean, told = (_read(state, f"{row}{key}", _STEPS) for key in ("mean", "told"))
            bins, edges = mean.shape[-1], (self.low[:, :0], self.high[:, :0])
            if row or not self.apart:
                edges = _read(state, f"{row}low", _EDGE_STEPS), _read(state, f"{row}high", _EDGE_STEPS)
            low, high = edges
            if not row:
                mean, told = mean[:, None], told[:, None] * self.rows
            rows = self.rows if row else 1
            fits = mean.shape == told.shape == (len(self.names), rows, bins) and low.shape == high.shape
            if not fits or low.shape not in ((len(self.names), bins), (len(self.names), 0)) or bins > BINS_MAX:
                raise ValueError("shapes")
            heard = told * np.float32(self.width / 1e9)
            self.sums = np.stack([np.where(heard > 0, mean, 0.0) * heard, heard])
            self.low, self.high = low, high
        except (KeyError, ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
            raise ScoreError(f"a node's summary has no such timelines: {error}") from None


class Places:
    """The bins of samples: `order` sorts these by bin, `filled` are bins that have any, `starts` where each begins."""

    def __init__(self, bins: Array) -> None:
        self.bins = bins
        self.order = np.argsort(bins, kind="stable")
        ordered = bins[self.order]
        self.starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        self.filled = ordered[self.starts]


def _halved(values: Array, odd: int, nothing: float, how: np.ufunc) -> Array:
    """Return pairs of the last axis as one; `odd`: the first is alone."""
    edge = np.full((*values.shape[:-1], odd), nothing)
    last = np.full((*values.shape[:-1], (values.shape[-1] + odd) % 2), nothing)
    padded = np.concatenate([edge, values, last], axis=-1)
    pairs = how.reduce(padded.reshape(*values.shape[:-1], padded.shape[-1] // 2, 2), axis=-1)
    result = np.full(values.shape, nothing)
    result[..., : pairs.shape[-1]] = pairs
    return result


def _read(state: dict[str, Any], key: str, steps: int) -> Array:
    """Return what was kept, as accurately as it is drawn."""
    result: Array = _share(state[key], steps) * state[f"{key}.most"].astype(np.float32)
    return result


def _whole(shares: Array, steps: int) -> Array:
    """Return shares of 0..1 as whole numbers of steps; NaN is the largest one of its kind."""
    kind = np.uint8 if steps < 255 else np.uint16
    missing = np.iinfo(kind).max
    return np.where(np.isnan(shares), missing, np.round(np.clip(shares, 0, 1) * steps)).astype(kind)


def _share(whole: Array, steps: int) -> Array:
    missing = np.iinfo(whole.dtype).max
    result: Array = whole * np.float32(1 / steps)
    result[whole == missing] = np.nan
    return result


class Grid:
    """The timelines of all nodes of a step between `start` and `end`, put together one node after the other.

    rows     how many rows there are to be, each a device, or the mean of a node's; 0: one of all of them
    """

    def __init__(self, names: Sequence[str], rows: int, width: int, start: int, end: int) -> None:
        self.names, self.width, self.first = list(names), width, start // width
        self.bins = max(1, -(-end // width) - self.first)
        self.low, self.high = (np.full((len(names), self.bins), np.nan) for _ in range(2))
        self._rows = np.full((len(names), rows, self.bins), np.nan, np.float32)
        self._filled = 0
        self._sums = np.zeros((2, len(names), self.bins))  # of all, where there is one row only
        self._worst: list[Array] = []

    def take(self, one: Timelines, how: str) -> None:
        """Take a node's timelines, which are changed for it. `how`: each, node or all."""
        while one.width < self.width:
            one.coarsen()
        inside, at = self._places(one)
        if one.low.shape[-1]:
            self.low[:, at] = np.fmin(self.low[:, at], one.low[:, inside])
            self.high[:, at] = np.fmax(self.high[:, at], one.high[:, inside])
        if not one.rows:
            return
        sums = one.sums[..., inside]
        if how == "all":
            self._sums[..., at] += sums.sum(axis=2)
            return
        means = _ratio(sums[0], sums[1])
        if how == "node":
            self._worst.append(np.full(self.bins, np.nan, np.float32))
            self._worst[-1][at] = np.fmin.reduce(means[0], axis=0)
            means = _ratio(*sums.sum(axis=2))[:, None]
        self._rows[:, self._filled : self._filled + means.shape[1], at] = means
        self._filled += means.shape[1]

    def _places(self, one: Timelines) -> tuple[Any, Any]:
        """Return which bins of a node lie in the step, and where; as slices, which are fast, if they can be."""
        bins, begin = one.sums.shape[-1], one.first - self.first
        if one.width == self.width and 0 <= begin <= self.bins - bins:
            return slice(bins), slice(begin, begin + bins)
        places = (one.first + np.arange(bins)) * one.width // self.width - self.first
        inside = np.flatnonzero((places >= 0) & (places < self.bins))
        return inside, places[inside]

    def lines(self) -> dict[str, Array]:
        """Return (row, bin) of each name."""
        rows = self._rows
        if self._sums[1].any():
            rows = _ratio(self._sums[0], self._sums[1])[:, None].astype(np.float32)
        return dict(zip(self.names, rows, strict=True))

    def edges(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the lowest and the highest sample of each bin, by name."""
        return dict(zip(self.names, self.low, strict=True)), dict(zip(self.names, self.high, strict=True))

    def worst(self) -> Array:
        """Return the lowest mean of the first name of each node's devices, (node, bin)."""
        return np.stack(self._worst) if self._worst else np.zeros((0, self.bins), np.float32)


def _ratio(sums: Array, weights: Array) -> Array:
    result: Array = np.divide(sums, weights, out=np.full(sums.shape, np.nan), where=weights > 0)
    return result
