"""A device's energy counter: what was added to it, whatever the times at which it began again.

NVML's counter (nvmlDeviceGetTotalEnergyConsumption, DCGM's field 156) counts millijoules since the driver was loaded,
so a reload of the driver or a reset of the GPU makes it smaller. Then the monotone pieces are added; what was drawn
between the last reading before and the first one after is in neither. Beside it the power is added up over that time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class EnergyCounter:
    """One device's counter. J and s; NaN: not told.

    joules       the monotone pieces added
    by_power     the integral of the power between the first and the last reading of the counter
    seconds      the time between those
    restarts     how often the counter became smaller
    """

    def __init__(self) -> None:
        self.joules = self.by_power = math.nan
        self.seconds = 0.0
        self.restarts = 0
        self._last = math.nan
        self._end = 0
        self._open = 0.0  # the integral since the counter's last reading

    def add(self, end: Array, seconds: Array, joules: Array, power: Array) -> None:
        """Take samples in any order, which end (ns) after those taken before; NaN where a sample has no value."""
        order = np.argsort(end, kind="stable")
        end, joules = end[order], joules[order]
        drawn = np.cumsum(np.nan_to_num(power[order]) * seconds[order])
        told = np.flatnonzero(~np.isnan(joules))
        if not len(told):
            self._open += float(drawn[-1]) if len(drawn) else 0.0
            return
        steps = np.diff(joules[told], prepend=joules[told[0]] if math.isnan(self._last) else self._last)
        first = math.isnan(self._last)
        if first:
            self.joules, self._open = 0.0, -float(drawn[told[0]])
            self.by_power = 0.0
        else:
            self.seconds += (int(end[told[0]]) - self._end) / 1e9
        self.joules += float(steps[steps > 0].sum())
        self.restarts += int((steps < 0).sum())
        self.by_power += self._open + float(drawn[told[-1]])
        self.seconds += (int(end[told[-1]]) - int(end[told[0]])) / 1e9
        self._open = float(drawn[-1] - drawn[told[-1]])
        self._last, self._end = float(joules[told[-1]]), int(end[told[-1]])
