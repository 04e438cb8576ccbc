"""What a GPU model really reaches: eta from data sets of loads that saturate one unit each.

A site runs such loads once per model (a large copy, a large matrix product per type) under `--score`, and gives
their data sets. The share that a unit reaches is the median of its busy samples, those above half of its maximum.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from piolet.base.errors import ScoreError
from piolet.samples.dataset import Dataset
from piolet.score.peaks import Peaks, peaks_of

_UNITS = ("tensor", "fp64", "fp32", "fp16", "dram")
_BUSY = 0.5
_SECONDS_LEAST = 3.0


def calibrate(sets: list[Dataset], simulated_too: bool = False) -> dict[str, Peaks]:
    """Return the peaks of each GPU model in the data sets.

    Raises ScoreError: a data set is simulated (unless that is wanted), or no unit was busy for long enough.
    """
    best: dict[str, dict[str, float]] = {}
    for data in sets:
        if data.simulated and not simulated_too:
            raise ScoreError(f"the data set {data.directory} is simulated: a calibration needs real GPUs")
        for node in data.nodes:
            models = [device["name"] for device in node.facts.devices]
            chunks = list(node.chunks(_UNITS))
            for unit in _UNITS if chunks else ():
                values = np.concatenate([chunk[unit] for chunk in chunks])
                seconds = np.concatenate([chunk["span"] for chunk in chunks])
                device = np.concatenate([chunk["device"] for chunk in chunks])
                for index, model in enumerate(models):
                    reached = _reached(values[device == index], seconds[device == index])
                    known = best.setdefault(model, {})
                    if reached is not None:
                        known[unit] = max(known.get(unit, 0.0), reached)
    origin = "from SIMULATED figures" if any(data.simulated for data in sets) else "on the device"
    result = {
        model: dataclasses.replace(
            peaks_of(model),
            source=f"calibrated {origin}: {', '.join(sorted(units))}",
            **{f"eta_{unit}": round(value, 4) for unit, value in units.items()},
        )
        for model, units in best.items()
        if units
    }
    if not result:
        raise ScoreError("no unit of a GPU was busy for 3 seconds in these data sets", "run loads that saturate one")
    return result


def _reached(values: np.ndarray, seconds: np.ndarray) -> float | None:
    known = ~np.isnan(values)
    if not known.any():
        return None
    most = float(values[known].max())
    busy = known & (values > _BUSY * most)
    if most < _BUSY or float(seconds[busy].sum()) < _SECONDS_LEAST:
        return None
    return min(1.0, float(np.median(values[busy])))
