"""Is there enough free memory for the step?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from piolet.api import FAIL, USER, Context, Eval, Inconclusive, Verdict, at_least, parameter
from piolet.vet.evals import _files


@dataclass(frozen=True)
class MemoryAvailable(Eval):
    """Reads what the kernel says could be had, and what the step's cgroup leaves of it."""

    name = "memory_available"
    text = "memory that the step can still have"
    how = "MemAvailable, or what the step's cgroup (version 2) leaves when that is less; cached files can be dropped"
    source = "/proc/meminfo, memory.max, memory.current, and inactive_file of memory.stat"
    unit = "GB"
    better = "higher"

    min_available: float = parameter(0.0, text="the least that must be available", unit="GB", least=0)
    min_fraction: float = parameter(0.0, text="the least as a fraction of the node's memory", unit="0..1", least=0)

    def check(self, context: Context) -> Verdict:
        """Compare with the larger of the two limits."""
        table = _meminfo(context)
        available = table["MemAvailable"]
        left = _cgroup_left(context)
        of_step = left is not None and left < available
        if left is not None:
            available = min(available, left)
        limit = max(self.min_available, self.min_fraction * table["MemTotal"] / 1e9)
        total = round(table["MemTotal"] / 1e9, 3)
        verdict = at_least("available memory", available / 1e9, limit, "GB", total=total, cgroup_left=left)
        # What the job asked for is less than what its protocol wants.
        return dataclasses.replace(verdict, whose=USER) if verdict.outcome == FAIL and of_step else verdict


def _meminfo(context: Context) -> dict[str, int]:
    text = _files.text(context.path("/proc/meminfo")) or ""
    table = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            table[words[0]] = int(words[1]) * 1024
    if "MemAvailable" not in table or not table.get("MemTotal"):
        raise Inconclusive("/proc/meminfo does not tell what is available")
    return table


def _cgroup_left(context: Context) -> int | None:
    """Return the bytes that the tightest cgroup above us leaves, or None: none has a limit."""
    text = _files.text(context.path("/proc/self/cgroup")) or ""
    place = next((line[3:] for line in text.splitlines() if line[:3] == "0::"), "/")
    left: int | None = None
    while place and place != "/":
        base = context.path("/sys/fs/cgroup" + place)
        most, used = _files.number(base + "/memory.max"), _files.number(base + "/memory.current")
        if most is not None and used is not None:
            here = max(0, most - used + _cached(base))
            left = here if left is None else min(left, here)
        place = place.rpartition("/")[0]
    return left


def _cached(cgroup: str) -> int:
    """Return the bytes that count as used and hold files that nobody has touched for a while."""
    lines = (_files.text(cgroup + "/memory.stat") or "").splitlines()
    words = next((line.split() for line in lines if line.startswith("inactive_file ")), [])
    return int(words[1]) if len(words) == 2 and words[1].isdigit() else 0
