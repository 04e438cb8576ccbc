"""A checkpoint that takes much longer than it should."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class CheckpointStall(Detector):
    """No GPU works for minutes while the hosts write, or tasks wait for I/O; then work goes on."""

    name, version = "checkpoint_stall", 2
    text = "checkpoints for which all GPUs wait for minutes"
    how = "no GPU works for minutes, files are written or tasks wait for I/O, and afterwards work goes on"
    needs = "activity of the GPUs; what the hosts write, or their I/O pressure"
    effect, unit = 240.0, "s"
    limits: ClassVar[Mapping[str, Limit]] = {
        "seconds": signals.guess(180, "s", "above a checkpoint of a large model on a healthy file system"),
        "effort": signals.guess(0.25, "1", "waiting in a collective takes less of a GPU"),
        "last": signals.guess(290, "s", "a step that saves as it ends takes less"),
        "written": signals.guess(2e7, "B/s", "a node that only logs writes less"),
        "pressure": signals.guess(0.08, "1", "'some' of the kernel's PSI"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for all pauses together."""
        signals.activity(step)
        work = signals.effort(step)
        hosts = {name: step.host(name) for name in ("file_write", "write", "io_pressure")}
        if all(signals.covered(values) < signals.COVERED for values in hosts.values()):
            raise CannotTell("nobody measured what the hosts wrote or waited for")
        profiled = signals.covered(step.gpu("sm")) >= signals.COVERED
        most = self.limit("effort") if profiled else 0.52
        known = ~np.isnan(work).all(axis=0)
        still = known & (signals.quantile(np.where(np.isnan(work), -1, work), 0.9, axis=0) < most)
        written = np.fmax(np.nan_to_num(hosts["file_write"]), np.nan_to_num(hosts["write"])).sum(axis=0)
        pressure = np.nan_to_num(hosts["io_pressure"]).max(axis=0, initial=0)
        saving = (written > self.limit("written") * len(step.nodes)) | (pressure > self.limit("pressure"))
        worked = np.flatnonzero(known & ~still)
        if not len(worked):
            return []
        pauses = []
        for first, end in signals.stretches(still, bridge=1):
            goes_on = end <= worked[-1] or (end - first) * step.width >= self.limit("last")
            if first > worked[0] and goes_on and saving[first:end].mean() >= 0.5:
                pauses.append((first, end))
        lengths = [(end - first) * step.width for first, end in pauses]
        usual = float(np.median(lengths)) if lengths else 0.0
        long = [
            (pause, length) for pause, length in zip(pauses, lengths, strict=True) if length >= self.limit("seconds")
        ]
        if not long:
            return []
        worst, length = max(long, key=lambda one: one[1])
        lost = sum(length for _, length in long)
        rate = float(written[worst[0] : worst[1]].mean())
        others = f"; the median of {len(pauses)} is {signals.minutes(usual)}" if len(pauses) > 1 else ""
        return [
            Finding(
                length,
                f"{len(long)} of {len(pauses)} checkpoints took {signals.minutes(length)} or less, "
                f"{signals.minutes(lost)} together, in which no GPU worked{others}"
                if len(long) > 1
                else f"a checkpoint took {signals.minutes(length)}, in which no GPU worked{others}",
                "look at what the file system did then; write checkpoints asynchronously, from several ranks, "
                "or to a local disk first",
                step.time(worst[0]), step.time(worst[1]), None, None,
                {"seconds": length, "lost": lost, "pauses": len(pauses), "usual": usual, "written": round(rate)},
            )
        ]  # fmt: skip
