"""One rank that stands still while the others wait for it, to the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class RankHung(Detector):
    """Up to the end some GPUs do nothing and the others poll in a collective."""

    name, version = "rank_hung", 2
    text = "a rank that stands still while all others wait for it in a collective, until the step ends"
    how = "up to the end a few GPUs are idle, all others are active and do no work"
    needs = "activity of at least 2 GPUs, and SM activity or power"
    effect, unit = 300.0, "s"
    limits: ClassVar[Mapping[str, Limit]] = {
        "seconds": signals.guess(200, "s", "longer than a checkpoint by the first rank"),
        "samples": signals.guess(5, "count", "fewer may be an accident"),
        "worked": signals.guess(3, "count", "samples in which it worked before: it took part"),
        "waits": signals.guess(0.7, "1", "a GPU that polls is active all the time"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return one finding or none."""
        active = signals.activity(step, least=2)
        work = signals.effort(step)
        profiled = signals.covered(step.gpu("sm")) >= signals.COVERED
        works = work > (0.3 if profiled else 0.5)
        idle, waits = active < signals.ACTIVE, active > self.limit("waits")
        gaps = np.asarray(np.isnan(active).any(axis=0))
        stands = np.asarray(idle.any(axis=0) & waits.any(axis=0) & ~works.any(axis=0))
        found = signals.stretches(stands | (gaps & ~works.any(axis=0)), bridge=1)
        if not found or found[-1][1] < step.bins - 2:
            return []
        first, end = found[-1]
        while first < end and not stands[first]:
            first += 1
        seconds = (end - first) * step.width
        if seconds < self.limit("seconds") or stands[first:end].sum() < max(self.limit("samples"), (end - first) / 2):
            return []
        each = signals.mean(active[:, first:end])
        before = works[:, :first].sum(axis=1)  # a GPU that never did anything hangs in nothing
        hung = np.flatnonzero((each < 2 * signals.ACTIVE) & (before >= self.limit("worked")))
        polling = np.flatnonzero(each > self.limit("waits"))
        if not len(hung) or len(hung) > len(polling):
            return []
        nodes = sorted({step.gpus[row].node for row in hung})
        names = ", ".join(signals.called(step, int(row)) for row in hung[:3]) + (", …" if len(hung) > 3 else "")
        blocked = [
            node for row, node in enumerate(step.nodes)
            if node in nodes and np.nan_to_num(step.host("blocked")[row, first:end]).mean() > 0.5
        ]  # fmt: skip
        why = f"; a process of {blocked[0]} waits in the kernel (state D)" if blocked else ""
        return [
            Finding(
                seconds,
                f"for the last {signals.minutes(seconds)} {names} stood still and {len(polling)} other GPUs waited for "
                f"it in a collective{why}",
                f"look at the rank on {nodes[0]}: its last lines of output, py-spy dump or gdb on the process; a "
                "time-out for collectives (TORCH_NCCL_ASYNC_ERROR_HANDLING, NCCL_TIMEOUT) ends such a step sooner"
                + ("; state D is the file system's or a driver's: show it to the site" if blocked else ""),
                step.time(first), step.time(end), nodes[0] if len(nodes) == 1 else None,
                step.gpus[hung[0]].uuid or None if len(hung) == 1 else None,
                {"seconds": seconds, "hung": len(hung), "waiting": len(polling), "blocked": blocked},
            )
        ]  # fmt: skip
