"""Clocks that heat, the hardware or a low power limit hold back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals

# nvmlClocksEventReason (NVML API reference, read in November 2026): thermal slowdown by software or hardware, hardware
# slowdown, power brake; and the power limit, which under full load is normal.
_HEAT, _BRAKE, _LIMIT, _ANY_HARDWARE = 0x20 | 0x40, 0x80, 0x4, 0x8


class Throttling(Detector):
    """What the clock loses while a reason is given that is no normal one."""

    name, version = "throttling", 2
    text = "clocks held back by heat, by the hardware's protection, or by a power limit that is far too low"
    how = (
        "the driver gives the reason, and the clock is below the GPU's highest; a power limit counts from 20 % on, and "
        "if it is lower than the GPU's own, or the GPU draws less than it may"
    )
    needs = "clocks and the reasons for them (NVML)"
    effect, unit = 0.05, "1"
    limits: ClassVar[Mapping[str, Limit]] = {
        "lost": signals.guess(0.02, "1", "of the clock cycles of the time in which it was busy"),
        "limit": signals.guess(0.2, "1", "less is not worth a word"),
        "full": signals.guess(0.85, "1", "who draws so much of its limit is well: H100 lose up to 30 % by it"),
        "lowered": signals.guess(0.95, "1", "of the limit that the GPU has if nobody sets another"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return one finding for GPUs of a node together."""
        active = signals.activity(step)
        clock = step.gpu("clock_sm")
        bits = {name: step.gpu_bits("clock_events", mask) for name, mask in (
            ("heat", _HEAT), ("brake", _BRAKE), ("hardware", _ANY_HARDWARE), ("limit", _LIMIT))}  # fmt: skip
        if signals.covered(clock) < 0.3 or signals.covered(bits["heat"]) < 0.3:
            raise CannotTell("there are no clocks, or no reasons for them")
        told = signals.told(step, "clock_sm_max")
        best = np.fmax(np.where(np.isnan(told), np.nanmax(signals.quantile(clock, 0.98)), told), 1.0)
        lost = np.clip(1 - clock / best[:, None], 0, 1)
        busy = np.nan_to_num(active) > 0.3
        shares = {name: np.nan_to_num(signals.mean(lost * values, busy)) for name, values in bits.items()}
        strange = np.fmax(shares["heat"], np.fmax(shares["brake"], shares["hardware"]))
        low = (shares["limit"] > self.limit("limit")) & self._low(step, busy & (bits["limit"] > 0.5))
        cause = np.where(strange > self.limit("lost"), 0, np.where(low, 1, 2))
        found = []
        for node in step.nodes:
            mine = [row for row, gpu in enumerate(step.gpus) if gpu.node == node and cause[row] < 2]
            if mine:
                found.append(self._finding(step, node, mine, shares, strange, busy))
        return found

    def _low(self, step: Observed, held: np.ndarray) -> np.ndarray:
        """Return which GPUs have a power limit that is not their own under full load, as far as it is known."""
        limit, usual = signals.told(step, "power_limit"), signals.told(step, "power_limit_default")
        full = signals.mean(step.gpu("power"), held) >= self.limit("full") * limit  # NaN: not so
        return np.asarray((limit < self.limit("lowered") * usual) | ~full)

    def _finding(
        self,
        step: Observed,
        node: str,
        rows: list[int],
        shares: dict[str, np.ndarray],
        strange: np.ndarray,
        busy: np.ndarray,
    ) -> Finding:
        by_limit = not max(strange[rows]) > self.limit("lost")
        values = shares["limit"] if by_limit else strange
        worst = max(rows, key=lambda row: float(values[row]))
        if by_limit:
            why, advice = "its power limit", "ask the site which power limit the node has, and why"
        elif shares["brake"][worst] >= strange[worst]:
            why, advice = "the power supply's brake", "nothing in the program causes this: show the node to the site"
        elif shares["heat"][worst] > self.limit("lost"):
            why, advice = "heat", "nothing in the program causes this: show the node to the site"
        else:
            why, advice = "its own protection", "nothing in the program causes this: show the node to the site"
        hottest = float(np.nan_to_num(signals.quantile(step.gpu("temperature")[worst : worst + 1], 1.0))[0])
        at = np.flatnonzero(busy[worst])
        many = f" (and {len(rows) - 1} more there)" if len(rows) > 1 else ""
        return Finding(
            float(values[worst]),
            f"{signals.called(step, worst)}{many} lost {signals.percent(float(values[worst]))} of its clock cycles "
            f"to {why}; it reached {hottest:.0f} degrees",
            advice, step.time(at[0]), step.time(at[-1] + 1), node, step.gpus[worst].uuid or None,
            {"gpus": [step.gpus[row].index for row in rows], "temperature": hottest,
             **{name: round(float(one[worst]), 4) for name, one in shares.items()}},
        )  # fmt: skip
