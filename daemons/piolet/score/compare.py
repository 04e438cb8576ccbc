"""Two steps side by side: the difference of their saturation, with a confidence interval.

Samples that follow each other are alike, so they are not independent draws. The interval comes from a moving block
bootstrap (Kuensch, Annals of Statistics 17(3), 1989) of the timelines' bins, blocks of about the square root of their
number. It says how much of a difference is explained by the ups and downs within the two runs, and nothing about
runs that were not made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from piolet.base import texts
from piolet.base.errors import ScoreError
from piolet.score.advice import percent
from piolet.score.report.screen import duration, energy_of, gpus, share
from piolet.score.summary import Summary

_RESAMPLES = 2000
_BINS_LEAST = 8
LENGTHS = 1.25  # one run this many times as long as the other: start and end weigh differently in them


@dataclass(frozen=True)
class Comparison:
    """`difference` is B - A of the saturation; `low` and `high` its 95 % interval.

    unlike    what else differs between the two, one sentence each: then the interval says nothing of what was changed
    """

    difference: float
    low: float
    high: float
    unlike: tuple[str, ...] = ()

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
    return Comparison(float(second.mean() - first.mean()), float(low), float(high), tuple(_unlike(a, b)))


def _unlike(a: Summary, b: Summary) -> Iterator[str]:
    """Yield what differs besides the saturation."""
    for name, one, other in (("A", a, b), ("B", b, a)):
        if one.saturation.reason and one.saturation.reason != other.saturation.reason:
            yield f"the saturation of {name} is not confirmed: {one.saturation.reason}"
    if a.saturation.reason and a.saturation.reason == b.saturation.reason:
        yield f"neither saturation is confirmed: {a.saturation.reason}"
    if a.score.gpus != b.score.gpus:
        yield f"A has {gpus(a.size)}, B {gpus(b.size)}"
    if max(a.seconds, b.seconds) > LENGTHS * min(a.seconds, b.seconds):
        yield f"A took {duration(a.seconds)}, B {duration(b.seconds)}"
    models, others = (sorted({gpu.model for gpu in summary.view.gpus}) for summary in (a, b))
    if models != others:
        yield f"A ran on {', '.join(models)}, B on {', '.join(others)}"
    first, second = (sorted({text.split(" ")[0] for text in summary.collectors}) for summary in (a, b))
    if first != second:
        yield f"A was measured with {', '.join(first)}, B with {', '.join(second)}"
    if bool(a.simulated) != bool(b.simulated):
        yield "the figures of one of them are simulated"


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
        ("saturation", share(a.saturation), share(b.saturation)),
        ("compute", percent(a.score.compute), percent(b.score.compute)),
        ("memory", percent(a.score.memory), percent(b.score.memory)),
        ("communication", percent(a.score.network), percent(b.score.network)),
        ("idle", percent(a.score.idle), percent(b.score.idle)),
        ("narrow", percent(a.score.narrow), percent(b.score.narrow)),
        ("stalled", percent(a.score.stalled), percent(b.score.stalled)),
        ("highest clock", share(a.rated), share(b.rated)),
        ("OFU", share(a.ofu), share(b.ofu)),
        ("utilisation", share(a.utilisation), share(b.utilisation)),
        ("GPUs", gpus(a.size), gpus(b.size)),
        ("time", duration(a.seconds), duration(b.seconds)),
        ("energy", energy_of(a.energy), energy_of(b.energy)),
    ]
    text = "".join(f"{line}\n" for line in texts.columns(rows, (16, 16, 16), right=(1, 2), gap=0))
    points = [f"{100 * value:+.1f}" for value in (found.difference, found.low, found.high)]
    verdict = "" if found.is_clear else "; this may be chance"
    text += f"\nB - A: {points[0]} points of saturation (95 % interval {points[1]} to {points[2]}{verdict})\n"
    text += "".join(f"warning: {line}\n" for line in found.unlike)
    marks = {summary.simulated for summary in (a, b) if summary.simulated}
    return text + (f"Simulated figures ({', '.join(sorted(marks))}).\n" if marks else "")
