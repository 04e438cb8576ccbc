"""A loss that jumps, or is no number any more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals

# A scale or weight of a loss is none: mixed precision doubles its loss_scale every so often, which is well.
_LOSS = r"(?i)(^|[^a-z])loss(?![a-z])(?!.?(scale|weight|coef|factor|rate))"
_HELD_OUT = re.compile(r"(?i)(^|[^a-z])(val|valid|validation|eval|evaluation|dev|test)($|[^a-z])")
_TIMES_MOST = 1e6
_COUNTS = r"(?i)(^|[^a-z])(step|iteration|epoch)$"


class LossSpike(Detector):
    """A running median of the loss against the one before it; and values that are no number."""

    name, version = "loss_spike", 2
    text = "a loss that jumps and stays up for some reports, or is no number"
    how = (
        "the median of 5 reports against the median of the 15 before them, unless it is one of held-out data or a new "
        "training begins; NaN or infinite values"
    )
    needs = "marks with 'loss' in their name, at least 12 of them"
    effect, unit = 2.0, "times"
    limits: ClassVar[Mapping[str, Limit]] = {
        "times": signals.guess(1.55, "times", "noise and a new curriculum move it by less"),
        "sigmas": signals.guess(6, "1", "robust standard deviations of what came before"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for each mark: that it is no number, or its largest spike."""
        marks = step.marks(_LOSS)
        long = {name: pair for name, pair in marks.items() if len(pair[1]) >= 12}
        if not long:
            raise CannotTell("the application reports no loss" if not marks else "it reports fewer than 12 losses")
        found = []
        begins = self._begins(step)
        for name, (at, values) in long.items():
            good = np.isfinite(values)
            if not good.all() and good.any() and (bad := np.flatnonzero(~good))[0] > 0:
                count, evidence = f"{len(bad)} of {len(values)} reports", {"first": int(bad[0]), "bad": len(bad)}
                text = f"{signals.short(name)} is no number in {count}, from the {bad[0] + 1}th on"
                span = at[bad[0]], at[bad[-1]]
                found.append(self._finding(step, name, *span, float(len(bad)), "count", text, evidence))
            elif good.sum() >= 12 and not _HELD_OUT.search(name):  # what overfits rises there, too
                found += self._spike(step, name, at[good], values[good], begins)
        return found

    def _begins(self, step: Observed) -> np.ndarray:
        """Return when the application began to count anew: another training in the same step, whose loss is high."""
        found = [np.zeros(0)]
        for at, values in step.marks(_COUNTS).values():
            fell = values[1:] < 0.5 * values[:-1]
            found.append(at[1:][fell])
        return np.sort(np.concatenate(found))

    def _spike(
        self, step: Observed, name: str, at: np.ndarray, values: np.ndarray, begins: np.ndarray
    ) -> list[Finding]:
        few = 3 if len(values) < 24 else 5
        before = min(15, len(values) // 3)
        windows = np.lib.stride_tricks.sliding_window_view(values, few)
        now = np.median(windows, axis=1)[before:]
        past = np.lib.stride_tricks.sliding_window_view(values, before)[: len(now)]
        base = np.median(past, axis=1)
        spread = np.maximum(1.4826 * np.median(np.abs(past - base[:, None]), axis=1), 0.01 * np.abs(base))
        high = (base > 0) & (now > self.limit("times") * base) & (now - base > self.limit("sigmas") * spread)
        # A window from the reports before to those now, in which a training began, compares two trainings.
        slack = 2 * float(np.median(np.diff(at)))
        earliest, latest = at[: len(high)] - slack, at[before + few - 1 :] + slack
        high &= np.searchsorted(begins, earliest) == np.searchsorted(begins, latest)
        if not high.any():
            return []
        times = np.minimum(np.where(high, now / np.where(base > 0, base, 1), 0), _TIMES_MOST)
        worst = int(np.argmax(times))
        first = int(np.argmax(high)) + before
        return [self._finding(
            step, name, at[first], at[min(worst + before + few - 1, len(at) - 1)], float(times[worst]), "",
            f"{signals.short(name)} rose from {base[worst]:.3g} to {now[worst]:.3g}, {times[worst]:.1f} times as much, "
            f"and stayed there for {few} reports or more", {"from": float(base[worst]), "to": float(now[worst])},
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
        evidence: Mapping[str, float],
    ) -> Finding:
        return Finding(
            effect, text,
            "go back to the checkpoint before it; then a lower learning rate, clipped gradients, or without the batch "
            "at that step; if it comes back on one node only, vet that node: wrong arithmetic does this",
            signals.moment(step, first), signals.moment(step, last), None, name, evidence, unit=unit,
        )  # fmt: skip
