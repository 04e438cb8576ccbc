"""A step that keeps its GPUs after it has done with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class IdleTail(Detector):
    """No GPU does anything from some time on until the end."""

    name = "idle_tail"
    text = "GPUs that are kept after the last work on them"
    how = "from some time on until the end no GPU is active"
    needs = "activity or utilisation of the GPUs, up to the end"
    effect, unit = 0.15, "1"
    limits: ClassVar[Mapping[str, Limit]] = {
        "seconds": signals.guess(480, "s", "longer than a last checkpoint"),
        "share": signals.guess(0.1, "1", "less is not worth a word"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return one finding or none."""
        active = signals.activity(step)
        known = np.asarray(~np.isnan(active).all(axis=0))
        used = np.flatnonzero(np.nan_to_num(active).max(axis=0) > signals.ACTIVE)
        if not len(used):
            return []  # they were never used, which is another thing
        first = int(used[-1]) + 1
        tail = known[first:]
        seconds = (step.bins - first) * step.width
        share = seconds / (step.bins * step.width)
        if seconds < self.limit("seconds") or share < self.limit("share"):
            return []
        if tail.mean() < signals.COVERED:
            raise CannotTell("nobody measured the end of the step")
        hours = len(step.gpus) * seconds / 3600
        cpu = signals.mean(step.host("cpu")[:, first:]).max(initial=np.nan) if len(step.nodes) else np.nan
        what = (
            f"its processors did {cpu:.1f} cores' work meanwhile"
            if np.isfinite(cpu)
            else "of its host nothing is known"
        )
        return [
            Finding(
                share,
                f"for the last {signals.minutes(seconds)}, {signals.percent(share)} of the step, none of "
                f"{len(step.gpus)} GPUs did anything ({hours:.1f} GPU-hours); {what}",
                "look for what waits at the end: a process that does not exit, post-processing that needs no GPU "
                "(a job of its own, after this one), or an allocation that is never given back",
                step.time(first), step.time(step.bins), None, None,
                {"seconds": seconds, "gpu_hours": round(hours, 2)},
            )
        ]  # fmt: skip
