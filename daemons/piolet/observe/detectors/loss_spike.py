"""A loss that jumps, or is no number any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class LossSpike(Detector):
    """A running median of the loss against the one before it; and values that are no number."""

    name = "loss_spike"
    text = "a loss that jumps and stays up for some reports, or is no number"
    how = "the median of 5 reports against the median of the 15 before them; NaN or infinite values"
    needs = "marks with 'loss' in their name, at least 12 of them"
    effect, unit = 2.0, "times"
    limits: ClassVar[Mapping[str, Limit]] = {
        "times": signals.guess(1.55, "times", "noise and a new curriculum move it by less"),
        "sigmas": signals.guess(6, "1", "robust standard deviations of what came before"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for each mark: that it is no number, or its largest spike."""
        marks = step.marks(r"(?i)(^|[^a-z])loss($|[^a-z])")
        long = {name: pair for name, pair in marks.items() if len(pair[1]) >= 12}
        if not long:
            raise CannotTell("the application reports no loss" if not marks else "it reports fewer than 12 losses")
        found = []
        for name, (at, values) in long.items():
            good = np.isfinite(values)
            if not good.all() and good.any() and (bad := np.flatnonzero(~good))[0] > 0:
                found.append(self._finding(step, name, at[bad[0]], at[bad[-1]], float(len(bad)), "count",
                                           f"{name} is no number in {len(bad)} of {len(values)} reports, from the "
                                           f"{bad[0] + 1}th on", {"first": int(bad[0]), "bad": len(bad)}))  # fmt: skip
            elif good.sum() >= 12:
                found += self._spike(step, name, at[good], values[good])
        return found

    def _spike(self, step: Observed, name: str, at: np.ndarray, values: np.ndarray) -> list[Finding]:
        few = 3 if len(values) < 24 else 5
        before = min(15, len(values) // 3)
        windows = np.lib.stride_tricks.sliding_window_view(values, few)
        now = np.median(windows, axis=1)[before:]
        past = np.lib.stride_tricks.sliding_window_view(values, before)[: len(now)]
        base = np.median(past, axis=1)
        spread = np.maximum(1.4826 * np.median(np.abs(past - base[:, None]), axis=1), 0.01 * np.abs(base))
        high = (base > 0) & (now > self.limit("times") * base) & (now - base > self.limit("sigmas") * spread)
        if not high.any():
            return []
        times = np.where(high, now / np.where(base > 0, base, 1), 0)
        worst = int(np.argmax(times))
        first = int(np.argmax(high)) + before
        return [self._finding(
            step, name, at[first], at[min(worst + before + few - 1, len(at) - 1)], float(times[worst]), "",
            f"{name} rose from {base[worst]:.3g} to {now[worst]:.3g}, {times[worst]:.1f} times as much, and stayed "
            f"there for {few} reports or more", {"from": float(base[worst]), "to": float(now[worst])},
        )]  # fmt: skip

    def _finding(
        self,
        step: Observed,
        name: str,
        first: float,
        last: float,
        effect: float,
        unit: str,
        text: str,
        evidence: dict[str, float],
    ) -> Finding:
        return Finding(
            effect, text,
            "go back to the checkpoint before it; then a lower learning rate, clipped gradients, or without the batch "
            "at that step; if it comes back on one node only, vet that node: wrong arithmetic does this",
            signals.moment(step, first), signals.moment(step, last), None, name, evidence, unit=unit,
        )  # fmt: skip
