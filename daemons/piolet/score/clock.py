"""What the clock takes from a GPU that is busy. Pure: arrays in, arrays out.

Activity is a share of cycles, and says nothing of how many cycles a second has: a GPU whose power limit holds it at
60 % of its clock with a busy tensor pipe is 90 % active, and does 54 % of what it could. The driver tells the clocks
about once a second (an instant's, which averages out), and why they are held back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

HELD_S = 2.5  # so long a clock that was read stands for what comes after
# nvmlClocksEventReason (NVML API reference, read in November 2026), the first that is there counts: thermal slowdown by
# software or hardware; software power cap and hardware power brake; hardware slowdown, for one of these; what somebody
# has set: application clocks, sync boost, display clocks.
CAUSES = {"heat": 0x20 | 0x40, "power": 0x4 | 0x80, "hardware": 0x8, "cap": 0x2 | 0x10 | 0x100}
UNNAMED = "unnamed"
IDLE = 0x1  # nvmlClocksEventReasonGpuIdle: nothing runs, and the clock drops


class Held:
    """Keeps for each GPU what was read last, from one chunk of samples to the next."""

    def __init__(self, gpus: int) -> None:
        self._last = np.full(gpus, np.nan)
        self._end = np.zeros(gpus, np.int64)

    def fill(self, values: Array, end: Array, gpu: Array) -> Array:
        """Return values, NaN where none was read, with the last that was read up to HELD_S before in their place.

        Samples of a GPU are in the order of time; `end` in ns.
        """
        result = np.array(values, np.float64)
        for one in range(len(self._last)):
            mine = np.flatnonzero(gpu == one)
            if not len(mine):
                continue
            known = ~np.isnan(result[mine])
            at = np.maximum.accumulate(np.where(known, np.arange(len(mine)), -1))
            found = np.where(at >= 0, result[mine[at]], self._last[one])
            since = np.where(at >= 0, end[mine[at]], self._end[one])
            result[mine] = np.where(end[mine] - since <= HELD_S * 1e9, found, np.nan)
            if at[-1] >= 0:
                self._last[one], self._end[one] = result[mine[at[-1]]], end[mine[at[-1]]]
        return result


def read(chunk: Mapping[str, Array]) -> dict[str, Array]:
    """Return the clocks and the reasons that count as read: NaN where nothing ran in the instant in which they were.

    A clock that drops since there is nothing to do says nothing of the one at which the GPU works.
    """
    idle = (np.nan_to_num(chunk["clock_events"]).astype(np.int64) & IDLE) != 0
    return {name: np.where(idle, np.nan, chunk[name]) for name in ("clock_sm", "clock_memory", "clock_events")}


def cause(events: Array) -> Array:
    """Return each sample's cause as its place in CAUSES, len(CAUSES) where no cause is named; `events` are masks."""
    mask = np.nan_to_num(events).astype(np.int64)
    result = np.full(len(mask), len(CAUSES))
    for place, bits in reversed(list(enumerate(CAUSES.values()))):
        result[(mask & bits) != 0] = place
    return result


def shares(values: Mapping[str, Array], gpu: Array, most: Array, memory_most: Array) -> dict[str, Array]:
    """Return 'clock_share' and 'memory_clock_share': clocks over the highest that they can be, 0..1, NaN: not told.

    `most` and `memory_most` are MHz for each GPU, NaN: not told.
    """
    pairs = (("clock_share", "clock_sm", most), ("memory_clock_share", "clock_memory", memory_most))
    return {name: np.clip(values[clock] / best[gpu], 0, 1) for name, clock, best in pairs}
