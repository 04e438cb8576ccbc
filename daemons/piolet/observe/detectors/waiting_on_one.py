"""All ranks wait while one works, again and again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class WaitingOnOne(Detector):
    """In a large part of the time one GPU works, or is idle for its host works, and no other does anything."""

    name, version = "waiting_on_one", 2
    text = "all GPUs wait, again and again, for what one rank does alone"
    how = "in a part of the time one GPU, always the same, works alone, or is idle alone while the others poll"
    needs = "activity of at least 4 GPUs, and SM activity or power"
    effect, unit = 0.2, "1"
    limits: ClassVar[Mapping[str, Limit]] = {
        "share": signals.guess(0.15, "1", "a first rank that writes checkpoints keeps the others for less"),
        "same": signals.guess(0.8, "1", "of these times it is the same GPU"),
        "part": signals.guess(0.05, "1", "of the time: who works less takes no part, and so waits for nobody"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return one finding or none."""
        active = signals.activity(step, least=4)
        work = signals.effort(step)
        profiled = signals.covered(step.gpu("sm")) >= signals.COVERED
        inside = signals.running(active) & ~np.isnan(work).all(axis=0)
        if not inside.any():
            return []
        known = ~np.isnan(work)
        works = np.nan_to_num(work) > (0.45 if profiled else 0.6)
        rests = ~known | (np.nan_to_num(work) < (0.3 if profiled else 0.52))
        alone = inside & (works.sum(axis=0) == 1) & (rests.sum(axis=0) == len(work) - 1)
        idle = known & (np.nan_to_num(active) < signals.ACTIVE)
        polls = np.nan_to_num(active) > 0.7
        absent = (
            inside
            & ~works.any(axis=0)
            & (idle.sum(axis=0) == 1)
            & (polls.sum(axis=0) >= len(work) - 1 - idle.sum(axis=0))
        )
        found = []
        for when, who, what in ((alone, works, "worked alone"), (absent, idle, "did nothing, its host perhaps")):
            share = float(when.sum() / inside.sum())
            if share < self.limit("share"):
                continue
            each = (who & when).sum(axis=1)
            row = int(np.argmax(each))
            if each[row] < self.limit("same") * when.sum() or each[row] < 4:
                continue
            part = np.delete(works, row, axis=0)[:, inside].mean(axis=1) >= self.limit("part")
            if part.mean() < 0.5:
                continue
            at, gpu = np.flatnonzero(when), step.gpus[row]
            times = len(signals.stretches(when, bridge=1))
            found.append(Finding(
                share,
                f"in {signals.percent(share)} of the time {signals.called(step, row)} {what}, and {len(step.gpus) - 1} "
                f"others waited, {times} times",
                "let other ranks take part in what this one does alone (evaluation, saving, preprocessing), or do it "
                "beside the training: asynchronously, less often, or in a job of its own",
                step.time(at[0]), step.time(at[-1] + 1), gpu.node, gpu.uuid or None,
                {"share": round(share, 3), "times": times, "gpu": gpu.index},
            ))  # fmt: skip
        return found[:1]
