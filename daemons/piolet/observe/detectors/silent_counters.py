"""Profiling counters that read 0 while the GPU is busy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class SilentCounters(Detector):
    """Engine or SM activity 0, and utilisation from another part of the driver above a half."""

    name = "silent_counters"
    text = "profiling counters that read 0 while the GPU works"
    how = "engine or SM activity is 0 while utilisation, which the driver counts apart, is above 50 %"
    needs = "utilisation and profiling counters of the same GPU"
    effect, unit = 180.0, "s"
    limits: ClassVar[Mapping[str, Limit]] = {
        "seconds": signals.guess(60, "s", "above the 2 s by which NVML's utilisation lags (score/witness.py)"),
        "samples": Limit(5, "count", "score/witness.py", "2026-11-29"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Yield a finding for each GPU."""
        engine, utilisation = step.gpu("engine"), step.gpu("utilisation")
        if not step.gpus:
            raise CannotTell("there are no figures of GPUs")
        if signals.covered(engine) == 0 or signals.covered(utilisation) == 0:
            raise CannotTell("there are no profiling counters and utilisation of one GPU to be held against each other")
        silent = step.contradicted() & ((engine < 5e-5) | (step.gpu("sm") < 5e-5))
        for row in np.flatnonzero(silent.any(axis=1)):
            found = np.flatnonzero(silent[row])
            seconds = len(found) * step.width
            if seconds < self.limit("seconds") or len(found) < self.limit("samples"):
                continue
            busy = float(signals.mean(utilisation[row : row + 1], silent[row : row + 1])[0])
            yield Finding(
                seconds,
                f"the profiling counters of {signals.called(step, row)} read 0 for {signals.minutes(seconds)} "
                f"while it was used {signals.percent(busy)} of the time",
                "do not believe the activity and the saturation of that time; the site restarts the GPU's profiling "
                "(nv-hostengine, or nvidia-smi -r), or another profiler holds the counters",
                step.time(found[0]), step.time(found[-1] + 1), step.gpus[row].node, step.gpus[row].uuid or None,
                {"seconds": seconds, "utilisation": round(busy, 3)},
            )  # fmt: skip
