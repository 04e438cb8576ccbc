"""What the page's script draws, as plain values: the same series as the figures, at the full number of bins.

Text is data there, and whoever reads it makes text of it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from piolet.score.report import series
from piolet.score.report.series import PHASE_COLOURS, RED, Array, Heat, Panel, Part
from piolet.score.report.shell import TEXT_MOST, plain
from piolet.score.summary import Summary

_CELLS = 2_000_000  # of the heat map
_COLUMNS_LEAST, _COLUMNS_MOST = 60, 300
LEVELS = 250  # as the script has it
COARSE = 2.5  # of them: a pixel of a panel of 100


def content(summary: Summary, names: Iterable[str]) -> dict[str, Any]:
    """Return the figures with these names as plain values."""
    view = summary.view
    size = next(iter(view.lines.values())).shape[-1]
    plots: dict[str, Any] = {}
    for name in names:
        if name == "saturation":
            plots[name] = _stack(summary)
        elif name == "heat":
            plots[name] = _heat(summary)
        elif name in _PANELS:
            plots[name] = {"panels": [panel(each) for each in _PANELS[name](summary)]}
    phases = [
        {"start": phase.start, "end": phase.end, "what": phase.what, "colour": PHASE_COLOURS.get(phase.what, RED)}
        for phase in summary.phases
    ]
    return {
        "seconds": max(view.seconds, 1e-3),
        "origin": view.origin,
        "width": view.bin_seconds,
        "bins": size,
        "phases": phases,
        "plots": plots,
    }


def numbers(values: Array, digits: int = 1) -> list[float | None]:
    """Return a series as JSON has it: null where nothing is known."""
    rounded = np.round(np.asarray(values, float), digits)
    return [
        value if known else None for value, known in zip(rounded.tolist(), np.isfinite(rounded).tolist(), strict=True)
    ]


def _stack(summary: Summary) -> dict[str, Any]:
    view = summary.view
    saturation, utilisation = (
        100 * np.nanmean(view.lines[name].astype(float), axis=0) for name in ("s", "utilisation")
    )
    text = view.weights.text
    more = {"aggregated": numbers(100 * view.aggregate()), "weights": text} if text else {}
    return stack(series.stack(summary), saturation, utilisation) | more


def stack(parts: list[Part], saturation: Array, utilisation: Array) -> dict[str, Any]:
    """Return a stack of shares, and two lines in percent, as the page's script has them."""
    return {
        "kind": "stack",
        "parts": [{"name": name, "colour": colour, "mean": numbers(100 * part)} for name, colour, part in parts],
        "saturation": numbers(saturation),
        "utilisation": numbers(utilisation),
    }


def panel(own: Panel, coarse: bool = False) -> dict[str, Any]:
    """Return a panel as the page's script has it; `coarse`: bands and rows in LEVELS steps of the axis, as bytes."""
    drawn = [own.mean, *own.rows, *(high for _, _, high in own.bands), *(values for _, _, values in own.more)]
    most = max((float(np.nanmax(each)) for each in drawn if not np.isnan(each).all()), default=0.0)
    digits = 1 if most >= 20 or most <= 0 else max(3, 3 - math.floor(math.log10(most)))
    top = own.top or most * 1.05 or 1.0

    def series(values: Array) -> Any:
        return levels(np.round(values / top * LEVELS / COARSE) * COARSE / LEVELS) if coarse else numbers(values, digits)

    return {
        "kind": "lines",
        "title": f"{own.title} ({own.unit})" if own.unit else own.title,
        "unit": own.unit,
        "colour": own.colour,
        "top": top,
        "label": own.label,
        **({"step": top * COARSE / LEVELS} if coarse else {}),
        "mean": numbers(own.mean, digits),
        "rows": [series(row) for row in own.rows],
        "names": [plain(name)[:TEXT_MOST] for name in own.names],
        "bands": [{"label": name, "low": series(low), "high": series(high)} for name, low, high in own.bands],
        "more": [{"label": label, "colour": colour, "mean": numbers(v, digits)} for label, colour, v in own.more],
    }


def _heat(summary: Summary) -> dict[str, Any]:
    rows = max(1, len(summary.view.lanes))
    return heat(series.heat(summary, min(_COLUMNS_MOST, max(_COLUMNS_LEAST, _CELLS // rows))))


def heat(found: Heat) -> dict[str, Any]:
    """Return a heat map as the page's script has it."""
    own = {} if found.worst is found.mean else {"worst": levels(found.worst)}
    names = [plain(name)[:TEXT_MOST] for name in found.names]
    return {"kind": "heat", "names": names, "columns": found.mean.shape[1], "mean": levels(found.mean), **own}


def levels(shares: Array) -> str:
    """Return shares as bytes of LEVELS, 255 where nothing is known."""
    whole = np.where(np.isnan(shares), 255, np.round(np.clip(np.nan_to_num(shares), 0, 1) * LEVELS))
    return base64.b64encode(whole.astype(np.uint8).tobytes()).decode()


_PANELS = {"activity": series.activity, "power": series.power, "host": series.host}
