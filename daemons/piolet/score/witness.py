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
SAMPLES = 5  # of a run in which they see nothing must be so
# NVML: utilisation is of the past sample period, of 1/6 s to 1 s, and comes late by as much. So after work has ended it
# is behind for up to 2 s; what it says later in a run is of that run.
WINDOW_S, BEHIND = 2.0, 3
NOTHING = 5e-5  # what is kept of a share is 0.0001
APART = 0.25
COUNTERS = ("engine", "sm", "occupancy", "tensor", "fp64", "fp32", "fp16", "integer", "dram")


def contradicted(values: Mapping[str, Array], seconds: Array, gpu: Array, gpus: int) -> Array:
    """Return which samples are not believed: of each run in which engine or SM activity is 0, or no counter moves,
    those from the first on that utilisation contradicts.

    A sample is contradicted at a utilisation above BUSY; in a run that does not move, if the engine is APART below it,
    too. There must be SAMPLES of those in a run, and BEHIND of them after its first WINDOW_S seconds. One busy
    multiprocessor of an H100's 132 is an SM activity of 0.008: that is not 0, and is believed.

    `values` has arrays of one length by the names of api.GPU_QUANTITIES; samples of a GPU are in the order of time.
    """
    size = len(gpu)
    result = np.zeros(size, bool)
    utilisation = values.get("utilisation")
    engine, sm = (values.get(name, np.full(size, np.nan)) for name in ("engine", "sm"))
    if utilisation is None or not (utilisation > BUSY).any():
        return result
    for one in range(gpus):
        mine = np.flatnonzero(gpu == one)
        # Where a source has its rows apart, those without both sides say nothing, and interrupt nothing.
        mine = mine[~np.isnan(utilisation[mine]) & ~(np.isnan(engine[mine]) & np.isnan(sm[mine]))]
        if len(mine) < SAMPLES:
            continue
        busy = utilisation[mine] > BUSY
        apart = busy & (engine[mine] < utilisation[mine] - APART)
        zero = (engine[mine] < NOTHING) | (sm[mine] < NOTHING)  # NaN is neither
        for runs, against in ((_runs(zero), busy), (_unmoved(values, mine), apart)):
            for first, end in runs:
                found = np.flatnonzero(against[first:end])
                into = np.cumsum(seconds[mine[first:end]])
                if len(found) >= SAMPLES and (into[found] >= WINDOW_S - 1e-6).sum() >= BEHIND:
                    result[mine[first + found[0] : end]] = True
    return result


def _unmoved(values: Mapping[str, Array], mine: Array) -> list[tuple[int, int]]:
    """Return the runs of at least SAMPLES samples that say the same to the last bit."""
    same = np.ones(len(mine) - 1, bool)
    for name in COUNTERS:
        if name in values:
            one, other = values[name][mine[:-1]], values[name][mine[1:]]
            same &= (one == other) | (np.isnan(one) & np.isnan(other))
    return [(first, end + 1) for first, end in _runs(same) if end + 1 - first >= SAMPLES]


def _runs(mask: Array) -> list[tuple[int, int]]:
    """Return first and end of each run of what is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
