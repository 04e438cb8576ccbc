"""Heat maps: nodes by time, or GPUs where they are few; for each quantity the mean of a row, and its worst GPU."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from piolet.observe.page.grid import Grid, Lanes
from piolet.observe.page.saturation import Saturation
from piolet.score.report import content, series

Array = np.ndarray[Any, np.dtype[Any]]

GPUS_MOST = 64  # with a row each
ROWS_MOST = 1024
_CELLS = 36_000  # of the first map, in the page's first data
_COLUMNS_LEAST, _COLUMNS_MOST = 60, 300
_STEP = 0.02  # what a cell's colour tells apart
_CHOICES = (
    ("utilisation", "utilisation", "%", 100.0, False),
    ("power", "power", "W", 1.0, False),
    ("temperature", "temperature", "°C", 1.0, True),
    ("clock_sm", "SM clock", "MHz", 1.0, False),
    ("memory_used", "device memory", "GiB", 2.0**-30, True),
)
_HOST_CHOICES = (
    ("cpu", "cores in use", "cores", 1.0, False),
    ("io_pressure", "waited for I/O", "%", 100.0, True),
    ("memory_anon", "memory", "GB", 1e-9, True),
)


@dataclass(frozen=True)
class Choice:
    """A map that can be chosen: what the button says, and what the script draws."""

    label: str
    plain: dict[str, Any]


def of(grid: Grid, found: Saturation | None) -> list[Choice]:
    """Return the maps that there are, the first of which is seen first."""
    choices = []
    rows = _Rows(grid)
    if found is not None:
        choices.append(Choice("saturation", rows.map("saturation", 100 * found.lines["s"], "%", False, 100.0)))
    for lanes, table in ((grid.gpus_of, _CHOICES), (grid.hosts, _HOST_CHOICES)):
        for name, label, unit, factor, up in table:
            if (each := lanes.known(name)) is not None:
                values = series.bridged(each.mean, grid.width) * factor
                choices.append(Choice(label, rows.map(label, values, unit, up, 100.0 if unit == "%" else None, lanes)))
    return choices


class _Rows:
    """What the rows of all maps of a page are: of one map as of the next, for zoom holds for all."""

    def __init__(self, grid: Grid) -> None:
        self.is_gpus = 0 < len(grid.gpus) <= GPUS_MOST
        nodes = list(dict.fromkeys([node for node, _ in grid.gpus] or grid.hosts.names))
        self.names = grid.gpus_of.names if self.is_gpus else nodes
        self.of_gpu = [nodes.index(node) for node, _ in grid.gpus] if grid.gpus else []
        self.hosts = grid.hosts
        self.gpus = grid.gpus
        columns = min(_COLUMNS_MOST, max(_COLUMNS_LEAST, _CELLS // max(1, len(self.names))))
        self.columns = next(n for n in range(columns, 0, -1) if grid.bins % n == 0)

    def map(
        self, label: str, values: Array, unit: str, up: bool, top: float | None, lanes: Lanes | None = None
    ) -> dict[str, Any]:
        """Return the map of values by GPU or host and bin; `up`: what is high is bad."""
        pooled = series.pooled(values.astype(float), columns=self.columns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            mean, worst = self._by_row(pooled, up, lanes is self.hosts)
            most = float(np.nanmax(worst if up else mean)) if not np.isnan(mean).all() else 1.0
        top = top or max(1e-9, most)
        shares = [np.round(each / top / _STEP) * _STEP for each in (mean, worst)]
        same = np.array_equal(mean, worst, equal_nan=True)
        found = series.Heat(self.names, "row", shares[0], shares[0] if same else shares[1])
        return content.heat(found) | {"label": label, "unit": unit, "top": round(top, 3), **({"up": 1} if up else {})}

    def _by_row(self, values: Array, up: bool, is_host: bool) -> tuple[Array, Array]:
        if is_host:
            row = {name: i for i, name in enumerate(self.hosts.names)}
            names = [node for node, _ in self.gpus] if self.is_gpus else self.names
            empty = np.full((1, values.shape[1]), np.nan)
            own = np.concatenate([values, empty])[[row.get(name, -1) for name in names]]
            return own, own
        if self.is_gpus:
            return values, values
        size = (len(self.names), values.shape[1])
        total, count = np.zeros(size), np.zeros(size)
        nothing = -np.inf if up else np.inf
        worst = np.full(size, nothing)
        np.add.at(total, self.of_gpu, np.nan_to_num(values))
        np.add.at(count, self.of_gpu, ~np.isnan(values))
        (np.maximum if up else np.minimum).at(worst, self.of_gpu, np.where(np.isnan(values), nothing, values))
        unknown = count == 0
        return np.where(unknown, np.nan, total / np.maximum(count, 1)), np.where(unknown, np.nan, worst)
