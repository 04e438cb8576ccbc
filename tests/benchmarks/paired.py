"""Times two things in turn, so that what else the machine does hits both alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

WARMUP = 2
_RESAMPLES = 2000


@dataclass(frozen=True)
class Pairs:
    """Seconds of the baseline and of the candidate, pair by pair."""

    baseline: list[float]
    candidate: list[float]

    @property
    def baseline_ms(self) -> float:
        """Median of the baseline, in milliseconds."""
        return statistics.median(self.baseline) * 1e3

    @property
    def candidate_ms(self) -> float:
        """Median of the candidate, in milliseconds."""
        return statistics.median(self.candidate) * 1e3

    @property
    def differences_ms(self) -> list[float]:
        """Candidate minus baseline, pair by pair, in milliseconds."""
        return [(c - b) * 1e3 for b, c in zip(self.baseline, self.candidate, strict=True)]

    @property
    def added_ms(self) -> float:
        """Median of the differences, in milliseconds."""
        return statistics.median(self.differences_ms)

    @property
    def ratio(self) -> float:
        """Median of the ratios candidate / baseline."""
        return statistics.median(c / b for b, c in zip(self.baseline, self.candidate, strict=True))

    def interval_ms(self) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of the median difference, in milliseconds."""
        draw = random.Random(1)
        values = self.differences_ms
        medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
        return medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES)]


def measure(baseline: Callable[[], object], candidate: Callable[[], object], rounds: int) -> Pairs:
    """Time both `rounds` times after a warm-up, each pair in an order of its own."""
    return sampled(_timed(baseline), _timed(candidate), rounds)


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return seconds


def sampled(baseline: Callable[[], float], candidate: Callable[[], float], rounds: int) -> Pairs:
    """As `measure`, of things that tell by themselves how many seconds they took."""
    times: tuple[list[float], list[float]] = ([], [])
    order = [(0, baseline), (1, candidate)]
    for number in range(-WARMUP, rounds):
        for which, run in order if number % 2 else reversed(order):
            seconds = run()
            if number >= 0:
                times[which].append(seconds)
    return Pairs(*times)
