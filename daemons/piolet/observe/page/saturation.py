"""What limited the GPUs in each bin, by the same formulas as the score (score/saturation.py).

A bin is one sample there, the mean over its length. Where samples are shorter than that, the mean of the busiest of
compute, memory and communication is more than what comes out: it is what the saturation is at least.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from piolet.observe.page.grid import Grid
from piolet.observe.reading import device_of
from piolet.score import saturation, witness
from piolet.score.peaks import Peaks, peaks_of
from piolet.score.report import series
from piolet.score.saturation import Score

Array = np.ndarray[Any, np.dtype[Any]]

NAMES = ("utilisation", *saturation.NEEDED)


@dataclass(frozen=True)
class Saturation:
    """The score of a step's GPUs, and what it is made of by GPU and bin; `is_least`: of means over several samples."""

    score: Score
    lines: dict[str, Array]
    is_least: bool

    @cached_property
    def parts(self) -> list[series.Part]:
        """Return what the time went into, by bin."""
        return series.parts_of(self.lines, self.score)

    def mean(self) -> Array:
        """Return the mean of all GPUs by bin, 0 to 1."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            result: Array = np.nanmean(self.lines["s"], axis=0)
        return result


def of(grid: Grid) -> Saturation | None:
    """Return it; None: the counters that it needs were not told."""
    count, size = len(grid.gpus), len(grid.gpus) * grid.bins
    known = [name for name in NAMES if grid.gpus_of.known(name) is not None]
    if not {"engine", "sm", "dram"} & set(known):
        return None
    values = {name: grid.gpus_of.of[name].mean.ravel() for name in known}
    covered = np.max([grid.gpus_of.of[name].covered.ravel() for name in known], axis=0)
    gpu, seconds = np.repeat(np.arange(count), grid.bins), covered.astype(float) * grid.width
    lies = witness.contradicted(values, seconds, gpu, count)
    values |= {name: np.where(lies, np.nan, values[name]) for name in saturation.NEEDED if name in values}
    samples = _scored(values, [_peaks(grid, *where) for where in grid.gpus], gpu, size)
    score = saturation.summarise(saturation.totals(samples, seconds, gpu, count), grid.seconds)
    if score.value is None:
        return None
    unknown = np.isnan(samples.s)
    rows = {
        name: np.where(unknown, np.nan, np.nan_to_num(values)).reshape(count, grid.bins)
        for name, values in (("s", samples.s), ("c", samples.c), ("m", samples.m), ("n", samples.n))
    }
    aside = {
        "rated": rows["s"],
        "sm": samples.sm.reshape(rows["s"].shape),
        "engine": samples.engine.reshape(rows["s"].shape),
    }
    interval = float(grid.step.meta.get("interval") or 0.0)
    return Saturation(score, rows | aside, grid.width > 1.5 * interval)


def _scored(values: dict[str, Array], peaks: list[Peaks], gpu: Array, size: int) -> saturation.Samples:
    """Return the samples, each by the peaks of its GPU."""
    names = list(saturation.Samples.__dataclass_fields__)
    whole = {name: np.full(size, np.nan) for name in names}
    for own in set(peaks):
        mine = np.isin(gpu, [i for i, each in enumerate(peaks) if each == own])
        found = saturation.score({name: array[mine] for name, array in values.items()}, own)
        for name in names:
            whole[name][mine] = getattr(found, name)
    return saturation.Samples(**whole)


def _peaks(grid: Grid, node: str, index: int) -> Peaks:
    device = device_of(grid.step.meta, node, index)
    pcie = device.get("pcie")
    return peaks_of(str(device.get("name", "")), None, float(pcie) if isinstance(pcie, int | float) else 0.0)
