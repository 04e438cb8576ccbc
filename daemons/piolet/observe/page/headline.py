"""The figures at the top of the page, each with what it is made of: how much of the time it covers."""

from __future__ import annotations

from typing import Any

import numpy as np

from piolet.observe.page.grid import Grid, Lanes, Series
from piolet.observe.page.saturation import Saturation
from piolet.score.advice import percent
from piolet.score.report.screen import energy

Array = np.ndarray[Any, np.dtype[Any]]

WHOLE = 0.995  # of what is covered: below it, how much it was stands beside the figure
Card = tuple[str, str, str]


def cards(grid: Grid, found: Saturation | None) -> list[Card]:
    """Return figure, what it is, and its quality, '' where there is nothing to say."""
    return [card for make in (_saturation, _utilisation, _energy, _cores, _memory) if (card := make(grid, found))]


def coverage(grid: Grid) -> float | None:
    """Return which share of the GPUs' time, without GPUs of the hosts', samples cover; None: there are none."""
    shares = [_covered(lanes) for lanes in (grid.gpus_of, grid.hosts) if lanes.names]
    return next((share for share in shares if share is not None), None)


def _covered(lanes: Lanes) -> float | None:
    known = [each.covered for each in lanes.of.values()]
    return float(np.max(known, axis=0).mean()) if known else None


def _quality(grid: Grid, series: Series) -> str:
    share = float(np.nan_to_num(series.covered).mean())
    return "" if share >= WHOLE else f"of {percent(share)} of the time"


def _saturation(grid: Grid, found: Saturation | None) -> Card | None:
    if found is None or found.score.value is None:
        return None
    score = found.score
    least = "at least " if found.is_least else ""
    quality = "" if score.coverage >= WHOLE else f"of {percent(score.coverage)} of the time"
    return f"{least}{percent(score.value)}", "GPU saturation", quality


def _utilisation(grid: Grid, found: Saturation | None) -> Card | None:
    series = grid.gpus_of.known("utilisation")
    if series is None:
        return None
    return percent(_mean(series)), "utilisation, as nvidia-smi shows it", _quality(grid, series)


def _energy(grid: Grid, found: Saturation | None) -> Card | None:
    series = grid.gpus_of.known("power")
    if series is None:
        return None
    joules = float(np.nansum(series.mean.astype(float) * series.covered) * grid.width)
    quality = _quality(grid, series)
    return f"{'at least ' if quality else ''}{energy(joules)}", "energy of the GPUs, of their power", quality


def _cores(grid: Grid, found: Saturation | None) -> Card | None:
    series = grid.hosts.known("cpu")
    if series is None:
        return None
    mean = _mean(series)
    return f"{mean:.1f}" if mean >= 0.1 else f"{mean:.1g}", "cores in use on a node", _quality(grid, series)


def _memory(grid: Grid, found: Saturation | None) -> Card | None:
    series = grid.hosts.known("memory_anon") or grid.hosts.known("memory")
    if series is None:
        return None
    most = float(np.nanmax(series.most))
    shown = f"{most / 1e9:.1f} GB" if most >= 1e9 else f"{most / 1e6:.0f} MB"
    return shown, "most memory on a node", _quality(grid, series)


def _mean(series: Series) -> float:
    """Return the mean over what is covered."""
    known = ~np.isnan(series.mean)
    weights = np.where(known, series.covered, 0.0).astype(float)
    return float((np.where(known, series.mean, 0.0) * weights).sum() / max(1e-12, weights.sum()))
