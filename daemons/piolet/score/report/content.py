"""What the page's script draws, as JSON: the same series as the figures, at the full number of bins.

Text is data there, and whoever reads it makes text of it; `<` is written so that no text ends the element it is in.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from piolet.score.report import series
from piolet.score.report.figures import PHASE_COLOURS
from piolet.score.report.series import RED, Array, Panel
from piolet.score.summary import Summary

_CELLS = 2_000_000  # of the heat map
_COLUMNS_LEAST, _COLUMNS_MOST = 60, 300
_TEXT_MOST = 200


def content(summary: Summary, names: Iterable[str]) -> str:
    """Return the JSON of the figures with these names."""
    view = summary.view
    size = next(iter(view.lines.values())).shape[-1]
    plots: dict[str, Any] = {}
    for name in names:
        if name == "saturation":
            plots[name] = _stack(summary)
        elif name == "heat":
            plots[name] = _heat(summary)
        elif name in _PANELS:
            plots[name] = {"panels": [_panel(panel) for panel in _PANELS[name](summary)]}
    phases = [
        {"start": phase.start, "end": phase.end, "what": phase.what, "colour": PHASE_COLOURS.get(phase.what, RED)}
        for phase in summary.phases
    ]
    whole = {
        "seconds": max(view.seconds, 1e-3),
        "origin": view.origin,
        "width": view.bin_seconds,
        "bins": size,
        "phases": phases,
        "plots": plots,
    }
    return json.dumps(whole, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _numbers(values: Array, digits: int = 1) -> list[float | None]:
    return [None if not np.isfinite(value) else round(float(value), digits) for value in values]


def _stack(summary: Summary) -> dict[str, Any]:
    view = summary.view
    parts = [
        {"name": name, "colour": colour, "mean": _numbers(100 * values)}
        for name, colour, values in series.stack(summary)
    ]
    return {
        "parts": parts,
        "saturation": _numbers(100 * np.nanmean(view.lines["s"].astype(float), axis=0)),
        "utilisation": _numbers(100 * np.nanmean(view.lines["utilisation"].astype(float), axis=0)),
        **({"aggregated": _numbers(100 * view.aggregate()), "weights": view.weights.text} if view.weights.text else {}),
    }


def _panel(panel: Panel) -> dict[str, Any]:
    drawn = [panel.mean, *panel.rows, *(high for _, _, high in panel.bands), *(values for _, _, values in panel.more)]
    most = max((float(np.nanmax(each)) for each in drawn if not np.isnan(each).all()), default=0.0)
    digits = 1 if most >= 20 else 3
    return {
        "title": f"{panel.title} ({panel.unit})" if panel.unit else panel.title,
        "unit": panel.unit,
        "colour": panel.colour,
        "top": panel.top or most * 1.05 or 1.0,
        "label": panel.label,
        "mean": _numbers(panel.mean, digits),
        "rows": [_numbers(row, digits) for row in panel.rows],
        "names": [name[:_TEXT_MOST] for name in panel.names],
        "bands": [
            {"label": name, "low": _numbers(low, digits), "high": _numbers(high, digits)}
            for name, low, high in panel.bands
        ],
        "more": [
            {"label": label, "colour": colour, "mean": _numbers(values, digits)} for label, colour, values in panel.more
        ],
    }


def _heat(summary: Summary) -> dict[str, Any]:
    rows = max(1, len(summary.view.lanes))
    found = series.heat(summary, min(_COLUMNS_MOST, max(_COLUMNS_LEAST, _CELLS // rows)))
    own = {} if found.worst is found.mean else {"worst": _bytes(found.worst)}
    names = [name[:_TEXT_MOST] for name in found.names]
    return {"names": names, "columns": found.mean.shape[1], "mean": _bytes(found.mean), **own}


def _bytes(shares: Array) -> str:
    """Return shares as bytes of 250ths, 255 where nothing is known."""
    whole = np.where(np.isnan(shares), 255, np.round(np.clip(np.nan_to_num(shares), 0, 1) * 250))
    return base64.b64encode(whole.astype(np.uint8).tobytes()).decode()


_PANELS = {"activity": series.activity, "power": series.power, "host": series.host}
