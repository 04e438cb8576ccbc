"""Memory of the host that grows until there is no more."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals

_BLOCKS = 12


class MemoryGrowth(Detector):
    """Memory that is no page cache grows steadily, and not slower in the second half."""

    name = "memory_growth"
    text = "memory of the host that grows steadily, so that the step runs out of it if it goes on"
    how = "medians of memory_anon over memory_limit in 12 parts of the step grow, and still do in the last quarter"
    needs = "memory_anon and memory_limit of a host, for 20 minutes"
    effect, unit = 0.2, "1"
    limits: ClassVar[Mapping[str, Limit]] = {
        "growth": signals.guess(0.1, "1", "of the limit, from a fifth of the step on"),
        "late": signals.guess(0.05, "1", "of the limit, in the second half"),
        "seconds": signals.guess(1200, "s", "what grows sooner is start-up"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for the node that grows most, and one where the kernel has ended processes."""
        anon, limit, ended = (step.host(name) for name in ("memory_anon", "memory_limit", "out_of_memory"))
        found = list(self._ended(step, ended))
        share = np.where(limit > 0, anon / np.where(limit > 0, limit, 1), np.nan)
        if signals.covered(share) < signals.COVERED:
            if found:
                return found
            raise CannotTell("nobody measured the memory of the step beside what it may have")
        if step.bins * step.width < self.limit("seconds") or step.bins < 2 * _BLOCKS:
            if found:
                return found
            raise CannotTell(f"the step is shorter than {signals.minutes(self.limit('seconds'))}")
        edges = np.linspace(0, step.bins, _BLOCKS + 1).astype(int)
        parts = np.stack([signals.quantile(share[:, a:b], 0.5) for a, b in itertools.pairwise(edges)], axis=1)
        grown, late = parts[:, -1] - parts[:, 2], parts[:, -1] - parts[:, _BLOCKS // 2]
        last = parts[:, -1] - parts[:, -4]
        rises = (np.diff(parts[:, 2:], axis=1) > 0).mean(axis=1)
        bad = (
            (grown > self.limit("growth")) & (late > self.limit("late")) & (rises >= 0.7) & (last > 0.25 * late)
            & (late > 0.25 * grown)
        )  # fmt: skip
        if not bad.any():
            return found
        row = int(np.argmax(np.where(bad, grown, -1)))
        hours = float(late[row] / (step.bins * step.width / 3600 * 5.5 / _BLOCKS))
        left = max(0.0, (1 - float(parts[row, -1])) / hours) if hours > 0 else float("inf")
        many = f" (and {int(bad.sum()) - 1} more nodes)" if bad.sum() > 1 else ""
        return [*found, Finding(
            float(grown[row]),
            f"memory of the step on {step.nodes[row]}{many} grew to {signals.percent(float(parts[row, -1]))} of its "
            f"limit, by {signals.percent(hours)} of the limit an hour: at that pace it is full in "
            f"{signals.minutes(3600 * left)}",
            "look for what is kept from iteration to iteration: lists of losses with their graphs, caches of loaders, "
            "workers that copy data; end and restart from a checkpoint before it is full",
            step.time(edges[2]), step.time(step.bins), step.nodes[row], None,
            {"now": round(float(parts[row, -1]), 3), "per_hour": round(hours, 4), "hours_left": round(left, 2)},
        )]  # fmt: skip

    def _ended(self, step: Observed, ended: np.ndarray) -> Iterable[Finding]:
        for row in np.flatnonzero(np.nan_to_num(ended).sum(axis=1) > 0):
            at = np.flatnonzero(np.nan_to_num(ended[row]) > 0)
            yield Finding(
                float(np.ceil(np.nansum(ended[row]))),
                f"the kernel ended processes of the step on {step.nodes[row]} for lack of memory",
                "ask for more memory (--mem), or use less: fewer workers of loaders, smaller batches on the host",
                step.time(at[0]), step.time(at[-1] + 1), step.nodes[row], None,
                {"bins": len(at)}, unit="count",
            )  # fmt: skip
