"""A file system that takes several times as long as it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class SlowFileSystem(Detector):
    """The time that an operation takes, against the same mount's own in the rest of the step, over some minutes.

    Or over half a minute, where it is many times as long and it is known that no more is moved.
    """

    name, version = "slow_file_system", 3
    text = "a file system whose operations take several times as long as in the rest of the step, for minutes"
    how = (
        "a running median of an operation's mean time against the lower part of the same mount's in this step, while "
        "no more is moved than otherwise"
    )
    needs = "how long operations of a mount take (Lustre, NFS, disks)"
    effect, unit = 6.0, "times"
    limits: ClassVar[Mapping[str, Limit]] = {
        "times": signals.guess(3.6, "times", "large writes take two to three times as long as small reads"),
        "seconds": signals.guess(150, "s", "longer than a checkpoint"),
        "wait": signals.guess(0.002, "s", "below it nobody notices"),
        "short_seconds": signals.guess(30, "s", "a server that fails over, or a burst of others, takes less"),
        "short_times": signals.guess(12, "times", "in a burst an operation waits for several others, not for a dozen"),
        "moved": signals.guess(4, "times", "who moves so much more waits for its own operations"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for each mount: the nodes together, or the one where it is slow."""
        keys, waits = step.lines("io", "wait")
        if not keys or signals.covered(waits) == 0:
            raise CannotTell("nobody measured how long operations of a file system took")
        if step.bins < 20:
            raise CannotTell("there are fewer than 20 samples, too few to know what is usual")
        moved = _moved(step)
        found = []
        for mount in sorted({mount for _, mount in keys}):
            rows = [row for row, key in enumerate(keys) if key[1] == mount]
            mine = np.where(waits[rows] > 0, waits[rows], np.nan)
            with np.errstate(invalid="ignore"):
                together = np.exp(signals.mean(np.log(mine), axis=0))[None, :]
            nodes: list[str | None] = [keys[row][0] for row in rows]
            all_moved = signals.mean(moved[rows], axis=0)[None, :]
            for kind in ("", "short_"):
                each = self._looked_at(step, mount, mine, moved[rows], nodes, kind)
                # One or two nodes alone see it, or all of them; where none does clearly, their mean may.
                if not 0 < len(each) <= len(rows) / 2:
                    each = self._looked_at(step, mount, together, all_moved, [None], kind)
                found += each
                if each:
                    break
        return found

    def _looked_at(
        self, step: Observed, mount: str, waits: np.ndarray, moved: np.ndarray, nodes: list[str | None], kind: str
    ) -> list[Finding]:
        window = max(7, int(np.ceil(self.limit(f"{kind}seconds") / step.width)))
        usual = signals.quantile(waits, 0.4)
        above = waits > np.maximum(self.limit(f"{kind}times") * usual, self.limit("wait"))[:, None]
        high = signals.mostly(above, ~np.isnan(waits), window)
        best: list[Finding] = []
        for row in np.flatnonzero(high.any(axis=1)):
            first, end = signals.longest(high[row], bridge=window // 2)
            seconds = (end - first) * step.width
            if seconds < self.limit(f"{kind}seconds") or end - first < 6:
                continue
            more = self._moves_more(waits[row], moved[row], first, end, float(usual[row]))
            if more or (kind and more is None):
                continue
            wait = float(np.nanmedian(waits[row, first:end]))
            times = wait / float(usual[row])
            where = f" on {nodes[row]}" if nodes[row] else ""
            best.append(Finding(
                times,
                f"an operation of {signals.short(mount)}{where} took {1000 * wait:.1f} ms for "
                f"{signals.minutes(seconds)}, {times:.1f} times as long as in the rest of the step",
                "show the time and the mount to the site; until then read less often from it, or from a local copy"
                if not nodes[row] else f"only {nodes[row]} sees it: leave the node out and show it to the site",
                step.time(first), step.time(end), nodes[row], mount,
                {"wait": round(wait, 5), "usual": round(float(usual[row]), 5), "seconds": seconds},
            ))  # fmt: skip
        return sorted(best, key=lambda one: -one.effect)

    def _moves_more(self, waits: np.ndarray, moved: np.ndarray, first: int, end: int, usual: float) -> bool | None:
        """Return whether so much more is moved then than when operations take their usual time; None: unknown."""
        other = (waits < 2 * usual) & ~np.isnan(moved)
        other[first:end] = False
        then = moved[first:end]
        if not other.any() or np.isnan(then).all():
            return None
        return bool(np.nanmedian(then) > self.limit("moved") * max(float(np.median(moved[other])), 1.0))


def _moved(step: Observed) -> np.ndarray:
    """Return bytes a second that each line of `io` read and wrote; NaN where neither is known."""
    read, write = (step.lines("io", name)[1] for name in ("read", "write"))
    return np.asarray(np.where(np.isnan(read) & np.isnan(write), np.nan, np.nan_to_num(read) + np.nan_to_num(write)))
