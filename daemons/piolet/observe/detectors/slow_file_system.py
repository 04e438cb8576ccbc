"""A file system that takes several times as long as it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class SlowFileSystem(Detector):
    """The time that an operation takes, against the same mount's own in the rest of the step, over some minutes.

    Or over half a minute, where it is many times as long and no checkpoint: not more is written than in the rest.
    """

    name = "slow_file_system"
    version = 2
    text = "a file system whose operations take several times as long as in the rest of the step, for minutes"
    how = "a running median of an operation's mean time against the lower part of the same mount's in this step"
    needs = "how long operations of a mount take (Lustre, NFS)"
    effect, unit = 6.0, "times"
    limits: ClassVar[Mapping[str, Limit]] = {
        "times": signals.guess(3.6, "times", "large writes take two to three times as long as small reads"),
        "seconds": signals.guess(150, "s", "longer than a checkpoint"),
        "wait": signals.guess(0.002, "s", "below it nobody notices"),
        "short_seconds": signals.guess(30, "s", "a server that fails over, or a burst of others, takes less"),
        "short_times": signals.guess(12, "times", "in a burst an operation waits for several others, not for a dozen"),
        "written": signals.guess(2, "times", "who writes a checkpoint writes many times what is written else"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for each mount: the nodes together, or the one where it is slow."""
        keys, waits = step.lines("io", "wait")
        if not keys or signals.covered(waits) == 0:
            raise CannotTell("nobody measured how long operations of a file system took")
        if step.bins < 20:
            raise CannotTell("there are fewer than 20 samples, too few to know what is usual")
        writes = step.lines("io", "write")[1]
        found = []
        for mount in sorted({mount for _, mount in keys}):
            rows = [row for row, key in enumerate(keys) if key[1] == mount]
            mine = np.where(waits[rows] > 0, waits[rows], np.nan)
            with np.errstate(invalid="ignore"):
                together = np.exp(signals.mean(np.log(mine), axis=0))[None, :]
            nodes: list[str | None] = [keys[row][0] for row in rows]
            written = signals.mean(writes[rows], axis=0)[None, :]
            for kind in ("", "short_"):
                each = self._looked_at(step, mount, mine, writes[rows], nodes, kind)
                # One or two nodes alone see it, or all of them; where none does clearly, their mean may.
                if not 0 < len(each) <= len(rows) / 2:
                    each = self._looked_at(step, mount, together, written, [None], kind)
                found += each
                if each:
                    break
        return found

    def _looked_at(
        self, step: Observed, mount: str, waits: np.ndarray, writes: np.ndarray, nodes: list[str | None], kind: str
    ) -> list[Finding]:
        window = max(7, int(np.ceil(self.limit(f"{kind}seconds") / step.width)))
        lines = signals.smooth(waits, window)
        usual = signals.quantile(waits, 0.4)
        high = lines > np.maximum(self.limit(f"{kind}times") * usual, self.limit("wait"))[:, None]
        best: list[Finding] = []
        for row in np.flatnonzero(high.any(axis=1)):
            first, end = signals.longest(high[row], bridge=window // 2)
            seconds = (end - first) * step.width
            if seconds < self.limit(f"{kind}seconds") or end - first < 6:
                continue
            if kind and not self._reads(writes[row], first, end):
                continue
            wait = float(np.nanmedian(waits[row, first:end]))
            times = wait / float(usual[row])
            where = f" on {nodes[row]}" if nodes[row] else ""
            best.append(Finding(
                times,
                f"an operation of {mount}{where} took {1000 * wait:.1f} ms for {signals.minutes(seconds)}, "
                f"{times:.1f} times as long as in the rest of the step",
                "show the time and the mount to the site; until then read less often from it, or from a local copy"
                if not nodes[row] else f"only {nodes[row]} sees it: leave the node out and show it to the site",
                step.time(first), step.time(end), nodes[row], mount,
                {"wait": round(wait, 5), "usual": round(float(usual[row]), 5), "seconds": seconds},
            ))  # fmt: skip
        return sorted(best, key=lambda one: -one.effect)

    def _reads(self, written: np.ndarray, first: int, end: int) -> bool:
        """Return whether it is known that not more is written in a stretch than in the rest."""
        during = signals.mean(written[None, first:end])[0]
        rest = signals.mean(np.delete(written, np.s_[first:end])[None, :])[0]
        return bool(during <= self.limit("written") * rest)
