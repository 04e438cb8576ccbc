"""An example of a site's own detector: tasks that wait for memory.

It goes into /etc/piolet/detectors.d, as root's file. Beside it lie data that say what is expected of it:
`piolet observe replay ./memory_pressure.py --dir steps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np
from piolet.api import CannotTell, Detector, Finding, Limit, Observed


class MemoryPressure(Detector):
    """The kernel's pressure of memory (PSI) over five minutes or more."""

    name = "memory_pressure"
    text = "tasks that wait for memory for minutes"
    how = "memory_pressure of a host is above a tenth in five minutes together"
    needs = "memory_pressure of a host"
    effect, unit = 0.2, "1"
    limits: ClassVar[Mapping[str, Limit]] = {
        "pressure": Limit(0.1, "1", "a guess of ours", "2026-11-29"),
        "seconds": Limit(300, "s", "a guess of ours", "2026-11-29"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Yield a finding for each node."""
        pressure = step.host("memory_pressure")
        if np.isnan(pressure).all():
            raise CannotTell("nobody measured the pressure of memory")
        for row, node in enumerate(step.nodes):
            high = np.flatnonzero(pressure[row] > self.limit("pressure"))
            if len(high) * step.width < self.limit("seconds"):
                continue
            mean = float(np.mean(pressure[row][high]))
            yield Finding(
                mean,
                f"tasks on {node} waited for memory {100 * mean:.0f} % of {len(high) * step.width / 60:.0f} minutes",
                "ask for more memory (--mem), or use less of it",
                step.time(high[0]),
                step.time(high[-1] + 1),
                node,
                evidence={"bins": len(high)},
            )
