"""A throughput that falls slowly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals

_BLOCKS = 12
_NAMES = (
    r"(?i)(tokens|samples|images|sequences|iterations|iters|steps|items|examples)_?(/|_?per_?)_?s(ec(ond)?)?($|[^a-z])"
    r"|throughput"
)


class ThroughputDrift(Detector):
    """Medians of what the application reports, in parts of the step, fall steadily."""

    name, version = "throughput_drift", 2
    text = "a throughput that falls little by little"
    how = "medians of the reported throughput in 12 parts of the step fall; their Theil-Sen slope says by how much"
    needs = "marks of a throughput (tokens_per_second, samples/s), at least 36 of them"
    effect, unit = 0.15, "1"
    limits: ClassVar[Mapping[str, Limit]] = {
        "fall": signals.guess(0.1, "1", "another length of sequences moves it by less"),
        "order": signals.guess(0.6, "1", "Kendall's tau of the medians with time"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for each throughput."""
        marks = step.marks(_NAMES)
        long = {name: pair for name, pair in marks.items() if np.isfinite(pair[1]).sum() >= 3 * _BLOCKS}
        if not long:
            raise CannotTell("the application reports no throughput" if not marks else "it reports it too rarely")
        found = []
        for name, (at, values) in long.items():
            good = np.isfinite(values) & (values > 0)
            at, values = at[good], values[good]
            start = len(at) // 20  # warm-up
            parts = np.array([np.median(part) for part in np.array_split(values[start:], _BLOCKS)])
            where = np.array([np.median(part) for part in np.array_split(at[start:], _BLOCKS)])
            later, earlier = np.triu_indices(_BLOCKS, 1)[::-1]
            differences = parts[later] - parts[earlier]
            tau = float(-np.sign(differences).mean())
            best = float(np.median(np.sort(parts)[-4:]))
            fall = 1 - float(parts[-2:].mean()) / best
            largest = float(np.max(-np.diff(parts))) / best
            if not (fall >= self.limit("fall") and tau >= self.limit("order")):  # they may be no numbers
                continue
            gradual = largest < 0.6 * fall
            how = "little by little" if gradual else "at once"
            found.append(Finding(
                fall,
                f"{signals.short(name)} fell by {signals.percent(fall)}, from {best:.4g} to {parts[-1]:.4g}, {how}",
                "look at what grows meanwhile: memory that fragments, a data set that is read further out, logs, a GPU "
                "that gets hot; a restart from a checkpoint shows whether it is the process or the node",
                signals.moment(step, where[0]), signals.moment(step, where[-1]), None, name,
                {"from": best, "to": float(parts[-1]), "tau": round(tau, 2)},
            ))  # fmt: skip
        return found
