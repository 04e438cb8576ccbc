"""Counters that keep their last value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals

_COUNTERS = ("engine", "sm", "tensor", "dram")
_OF_WORK = ("tensor", "dram")


class StaleCounters(Detector):
    """Values that are the same to the last digit while what they depend on moves."""

    name, version = "stale_counters", 3
    text = "counters that keep their last value while the GPU or the node does other things"
    how = "all profiling counters, or the node's power, are equal in a row while the power of the GPUs moves"
    needs = "profiling counters or the node's power, and the power of the GPUs"
    effect, unit = 300.0, "s"
    limits: ClassVar[Mapping[str, Limit]] = {
        "seconds": signals.guess(120, "s", "pm_counters are refreshed 10 times a second (HPE Cray EX documentation)"),
        "samples": signals.guess(12, "count", "shares are kept to 0.0001, so that two are rarely equal"),
        "active": signals.guess(0.02, "1", "shares are kept to 0.0001: below it noise rounds to the same digits"),
        "whole": signals.guess(0.98, "1", "what is busy all the time says so to the same digits"),
        "moves": signals.guess(0.004, "1", "a GPU's power at work changes by more from sample to sample"),
    }  # fmt: skip

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for each GPU, and each node whose power stands still."""
        if not step.gpus:
            raise CannotTell("there are no figures of GPUs, which others could be held against")
        power = step.gpu("power")
        counters = [values for name in _COUNTERS if signals.covered(values := step.gpu(name)) > 0]
        of_node = step.host("node_power")
        if signals.covered(power) == 0 or (not counters and signals.covered(of_node) == 0):
            raise CannotTell("there is no pair of figures that move together: counters, or the node's power, and power")
        return [*self._of_gpus(step, counters, power), *self._of_nodes(step, of_node, power)]

    def _of_gpus(self, step: Observed, counters: list[np.ndarray], power: np.ndarray) -> Iterable[Finding]:
        if not counters:
            return
        same = np.ones((len(step.gpus), step.bins - 1), bool)
        something = np.zeros((len(step.gpus), step.bins), bool)
        for values in counters:
            same &= np.abs(np.diff(values, axis=1)) < 1e-6  # a gap is not the same
        for values in self._of_work(step) or counters:
            something |= (values > self.limit("active")) & (values < self.limit("whole"))
        same &= something[:, 1:]
        for row in np.flatnonzero(same.any(axis=1)):
            if span := self._standing(step, same[row], power[row]):
                gpu, seconds = step.gpus[row], (span[1] - span[0]) * step.width
                yield self._finding(step, span, gpu.node, gpu.uuid or None,
                                    f"the profiling counters of {signals.called(step, int(row))} did not change for "
                                    f"{signals.minutes(seconds)}, and its power did")  # fmt: skip

    def _of_work(self, step: Observed) -> list[np.ndarray]:
        """Return the counters that only work moves: what polls for others says the same all the time, and is right."""
        return [values for name in _OF_WORK if signals.covered(values := step.gpu(name)) > 0]

    def _of_nodes(self, step: Observed, of_node: np.ndarray, power: np.ndarray) -> Iterable[Finding]:
        owners = np.array([gpu.node for gpu in step.gpus])
        for row, node in enumerate(step.nodes):
            mine = owners == node
            if not mine.any() or signals.covered(of_node[row : row + 1]) == 0:
                continue
            same = np.abs(np.diff(of_node[row])) < 1e-6
            if span := self._standing(step, same, power[mine].sum(axis=0)):
                seconds = (span[1] - span[0]) * step.width
                yield self._finding(step, span, node, "node_power",
                                    f"the power of {node} did not change for {signals.minutes(seconds)}, and that of "
                                    "its GPUs did")  # fmt: skip

    def _standing(self, step: Observed, same: np.ndarray, witness: np.ndarray) -> tuple[int, int] | None:
        first, end = signals.longest(same)
        if end - first < self.limit("samples") or (end - first) * step.width < self.limit("seconds"):
            return None
        beside = witness[first : end + 1]
        level = signals.quantile(beside[None, :], 0.5)[0]
        steps = signals.quantile(np.abs(np.diff(beside))[None, :], 0.5)[0]
        if not level > 0 or not steps / level > self.limit("moves"):
            return None
        return first, end + 1

    def _finding(self, step: Observed, span: tuple[int, int], node: str, subject: str | None, text: str) -> Finding:
        seconds = (span[1] - span[0]) * step.width
        return Finding(
            seconds, text, "do not believe the figures of that time: their source had stopped; tell the site",
            step.time(span[0]), step.time(span[1]), node, subject, {"seconds": seconds},
        )  # fmt: skip
