"""Two steps side by side: the difference of their saturation, with a confidence interval.

Samples that follow each other are alike, so they are not independent draws. The interval comes from a moving block
bootstrap (Kuensch, Annals of Statistics 17(3), 1989) of the timelines' bins, blocks of about the square root of their
number. It says how much of a difference is explained by the ups and downs within the two runs, and nothing about
runs that were not made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from piolet.base import texts
from piolet.base.errors import ScoreError
from piolet.score.advice import percent
from piolet.score.report.screen import duration, energy, number
from piolet.score.summary import Summary

_RESAMPLES = 2000
_BINS_LEAST = 8


@dataclass(frozen=True)
class Comparison:
    """`difference` is B - A of the saturation; `low` and `high` its 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare(a: Summary, b: Summary) -> Comparison:
    """Compare two steps. Raises ScoreError: one has no score, or too few samples."""
    first, second = _series(a), _series(b)
    draw = np.random.default_rng(1)
    differences = _means(second, draw) - _means(first, draw)
    low, high = np.quantile(differences, [0.025, 0.975])
    return Comparison(float(second.mean() - first.mean()), float(low), float(high))


def _series(summary: Summary) -> Any:
    lines = summary.view.lines["s"]
    known = lines[:, ~np.isnan(lines).all(axis=0)] if lines.size else lines
    if summary.score.value is None or known.shape[1] < _BINS_LEAST:
        raise ScoreError(f"step {summary.name} has too few samples with a score to compare")
    return np.nanmean(known, axis=0)


def _means(series: Any, draw: np.random.Generator) -> Any:
    """Return the means of resampled series."""
    size = len(series)
    block = max(1, round(size**0.5))
    count = -(-size // block)
    starts = draw.integers(0, size - block + 1, (_RESAMPLES, count))
    places = (starts[:, :, None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, :size]
    return series[places].mean(axis=1)


def render(a: Summary, b: Summary, found: Comparison) -> str:
    """Return the comparison as text."""
    rows = [
        ("", "A", "B"),
        ("step", a.name, b.name),
        ("saturation", number(a.score), number(b.score)),
        ("compute", percent(a.score.compute), percent(b.score.compute)),
        ("memory", percent(a.score.memory), percent(b.score.memory)),
        ("communication", percent(a.score.network), percent(b.score.network)),
        ("idle", percent(a.score.idle), percent(b.score.idle)),
        ("narrow", percent(a.score.narrow), percent(b.score.narrow)),
        ("stalled", percent(a.score.stalled), percent(b.score.stalled)),
        ("utilisation", percent(a.utilisation), percent(b.utilisation)),
        ("GPUs", str(a.score.gpus), str(b.score.gpus)),
        ("time", duration(a.seconds), duration(b.seconds)),
        ("energy", energy(a.energy), energy(b.energy)),
    ]
    text = "".join(f"{line}\n" for line in texts.columns(rows, (16, 16, 16), right=(1, 2), gap=0))
    points = [f"{100 * value:+.1f}" for value in (found.difference, found.low, found.high)]
    verdict = "" if found.is_clear else "; this may be chance"
    text += f"\nB - A: {points[0]} points of saturation (95 % interval {points[1]} to {points[2]}{verdict})\n"
    marks = {summary.simulated for summary in (a, b) if summary.simulated}
    return text + (f"Simulated figures ({', '.join(sorted(marks))}).\n" if marks else "")
