"""Whether the profiling counters contradict the utilisation that the driver counts beside them. Pure: arrays only.

Profiling counters are known to stop silently: they then read 0, or their last value, and no error (NVIDIA/DCGM issue
303, NVIDIA/dcgm-exporter issue 662). Utilisation comes from another part of the driver, so each is the other's witness.
Power only supports it: a kernel on one multiprocessor draws little, and is real.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BUSY = 0.5  # of utilisation: above it, counters that see nothing are wrong
SAMPLES = 5  # that contradict each other, one after the other
# NVML: utilisation is of the past sample period, of 1/6 s to 1 s; so after work has ended it is behind for up to that.
WINDOW_S = 2.0
NOTHING = 5e-5  # what is kept of a share is 0.0001
APART = 0.25
COUNTERS = ("engine", "sm", "occupancy", "tensor", "fp64", "fp32", "fp16", "integer", "dram")


def contradicted(values: Mapping[str, Array], seconds: Array, gpu: Array, gpus: int) -> Array:
    """Return which samples are in a run of at least SAMPLES samples and WINDOW_S seconds in which, at a utilisation
    above BUSY, engine or SM activity was 0, or no counter moved and the engine was APART below the utilisation.

    One multiprocessor of an H100's 132 that is busy is an SM activity of 0.008: that is not 0, and is believed.
    `values` has arrays of one length by the names of api.GPU_QUANTITIES; samples of a GPU are in the order of time.
    """
    size = len(gpu)
    result = np.zeros(size, bool)
    utilisation = values.get("utilisation")
    engine, sm = (values.get(name, np.full(size, np.nan)) for name in ("engine", "sm"))
    if utilisation is None or not size:
        return result
    for one in range(gpus):
        mine = np.flatnonzero(gpu == one)
        # Where a source has its rows apart, those without both sides say nothing, and interrupt nothing.
        mine = mine[~np.isnan(utilisation[mine]) & ~(np.isnan(engine[mine]) & np.isnan(sm[mine]))]
        if len(mine) < SAMPLES:
            continue
        busy = utilisation[mine] > BUSY
        zero = (engine[mine] < NOTHING) | (sm[mine] < NOTHING)  # NaN is neither
        still = _still(values, mine) & (engine[mine] < utilisation[mine] - APART)
        for first, end in _runs(busy & (zero | still)):
            if end - first >= SAMPLES and float(seconds[mine[first:end]].sum()) >= WINDOW_S:
                result[mine[first:end]] = True
    return result


def _still(values: Mapping[str, Array], mine: Array) -> Array:
    """Return which samples say to the last bit what the sample before or behind them says."""
    same = np.ones(len(mine) - 1, bool)
    for name in COUNTERS:
        if name in values:
            one, other = values[name][mine[:-1]], values[name][mine[1:]]
            same &= (one == other) | (np.isnan(one) & np.isnan(other))
    result: Array = np.concatenate([same[:1], same[1:] | same[:-1], same[-1:]])
    return result


def _runs(mask: Array) -> list[tuple[int, int]]:
    """Return first and end of each run of what is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
