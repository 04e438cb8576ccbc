"""GPUs that wait for their input between two iterations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class DataLoaderGaps(Detector):
    """GPUs are idle a part of the time in which they are used, while tasks of the host wait for I/O or processors."""

    name = "data_loader_gaps"
    text = "GPUs idle between iterations while the host's tasks wait for I/O or processors"
    how = "in steady use GPUs are idle a part of the time, and pressure (PSI) of I/O or CPUs is high all the while"
    needs = "activity of the GPUs and pressure (PSI) of the hosts"
    effect, unit = 0.25, "1"
    limits: ClassVar[Mapping[str, Limit]] = {
        "idle": signals.guess(0.18, "1", "gaps between kernels of a small model come to less"),
        "unused": signals.guess(0.1, "1", "utilisation counts a second in which a kernel ran now and then as used"),
        "pressure": signals.guess(0.1, "1", "'some' of the kernel's PSI, of 10 s"),
        "steady": signals.guess(0.7, "1", "who uses GPUs less often than that has no loop that waits"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return one finding or none."""
        active = signals.activity(step)
        pressures = {name: step.host(f"{name}_pressure") for name in ("io", "cpu")}
        if all(signals.covered(values) < signals.COVERED for values in pressures.values()):
            raise CannotTell("there is no pressure (PSI) of the hosts, which says why GPUs are idle")
        together = signals.mean(active, axis=0)
        used = together > signals.ACTIVE
        inside = signals.running(active) & ~np.isnan(together)
        if not inside.any() or used[inside].mean() < self.limit("steady"):
            return []
        idle = 1 - float(np.median(together[used]))
        which, pressure = max(
            ((name, self._usual(values, used)) for name, values in pressures.items()), key=lambda one: one[1]
        )
        profiled = signals.covered(step.gpu("engine")) >= signals.COVERED
        if idle < self.limit("idle" if profiled else "unused") or pressure < max(self.limit("pressure"), 0.3 * idle):
            return []
        what = "I/O" if which == "io" else "a processor"
        advice = {
            "io": "read ahead: more workers and prefetching, larger files, data on local disks or in memory",
            "cpu": "give the loader more processors (--cpus-per-task), or let it do less: decode once",
        }[which]
        at = np.flatnonzero(used)
        return [
            Finding(
                idle,
                f"while the step trained its GPUs were idle {signals.percent(idle)} of the time, and on the hosts "
                f"tasks waited for {what} {signals.percent(pressure)} of it",
                advice, step.time(at[0]), step.time(at[-1] + 1), None, None,
                {"idle": round(idle, 3), "pressure": round(pressure, 3), "of": which},
            )
        ]  # fmt: skip

    def _usual(self, values: np.ndarray, used: np.ndarray) -> float:
        if not used.any():
            return 0.0
        each = signals.quantile(values[:, used], 0.5)
        return float(np.nan_to_num(signals.quantile(each[None, :], 0.5))[0])
