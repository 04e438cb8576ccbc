"""Where a step changes its behaviour: change points of a series. Pure.

Optimal partitioning (Jackson et al., IEEE Signal Processing Letters 12(2), 2005): the segmentation that minimises
the sum of squared distances from the segments' means plus a penalty for each segment. The penalty is that of the
Bayesian information criterion, 2 sigma^2 log(n) for each quantity, sigma from the differences of neighbours, with
a floor, so that small wobbles of a steady series are no phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BINS_MAX = 600
PHASES_MAX = 30
_FLOOR = 0.02
_SHORTEST = 3


@dataclass(frozen=True)
class Phase:
    """Bins `start` to `end` (excluded) of the series, and the mean of each of its columns there."""

    start: int
    end: int
    means: tuple[float, ...]


def phases(series: Array) -> list[Phase]:
    """Return the phases of `series`, shape (bins, quantities), values of 0..1; bins with a NaN belong to none."""
    known = np.flatnonzero(~np.isnan(series).any(axis=1))
    if len(known) == 0:
        return []
    data = series[known].astype(np.float64)
    penalty = _penalty(data)
    cuts = _cuts(data, penalty)
    while len(cuts) > PHASES_MAX:
        penalty *= 2
        cuts = _cuts(data, penalty)
    # What lies before a gap and what lies behind it are two.
    gaps = np.flatnonzero(np.diff(known) > max(_SHORTEST, len(series) // 100)) + 1
    cuts = sorted({*cuts, *(int(gap) for gap in gaps)})
    result = []
    for start, end in zip([0, *cuts[:-1]], cuts, strict=True):
        means = tuple(float(value) for value in data[start:end].mean(axis=0))
        result.append(Phase(int(known[start]), int(known[end - 1]) + 1, means))
    return result


def _penalty(data: Array) -> float:
    if len(data) < 2:
        return 1.0
    steps = np.abs(np.diff(data, axis=0))
    # Of two neighbours the difference has sqrt(2) sigma, and the median of a normal's magnitude is 0.6745 sigma.
    sigma = np.maximum(np.median(steps, axis=0) / (0.6745 * np.sqrt(2)), _FLOOR)
    return float(2 * (sigma**2).sum() * np.log(len(data)) + _FLOOR)


def _cuts(data: Array, penalty: float) -> list[int]:
    """Return the ends of the best segments."""
    size = len(data)
    first = np.vstack([np.zeros(data.shape[1]), np.cumsum(data, axis=0)])
    second = np.concatenate([[0.0], np.cumsum((data**2).sum(axis=1))])
    best = np.full(size + 1, np.inf)
    best[0] = -penalty
    origin = np.zeros(size + 1, np.int64)
    for end in range(1, size + 1):
        starts = np.arange(0, max(1, end - _SHORTEST + 1))
        length = end - starts
        cost = second[end] - second[starts] - ((first[end] - first[starts]) ** 2).sum(axis=1) / length
        whole = best[starts] + cost + penalty
        chosen = int(np.argmin(whole))
        best[end], origin[end] = whole[chosen], starts[chosen]
    cuts = [size]
    while origin[cuts[-1]] > 0:
        cuts.append(int(origin[cuts[-1]]))
    return cuts[::-1]
