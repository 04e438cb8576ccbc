"""What a step's control groups tell beyond samples/collectors/host.py: page cache, limit, kills and processes.

Linux, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst. The limit that holds is the least on the way up. Of version
1, "total_" is of the group and those below it, and oom_kill is counted in each group by itself.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import ClassVar

from piolet.api import OF_STEP, Place, Rates, Row, Source, Unavailable, why_unread

from ._processes import GROUPS_MAX, SLURMSTEPD, TooMany, is_roots, pids_of, stat_of

_NONE = 1 << 62  # what memory.limit_in_bytes says without a limit: the highest multiple of a page


class Groups(Source):
    """The source."""

    name = "groups"
    text = "page cache, memory limit, kills for lack of memory, and processes of the step"
    scope = OF_STEP
    columns: ClassVar[tuple[str, ...]] = ("memory_file", "memory_limit", "out_of_memory", "processes", "blocked")

    def __init__(self) -> None:
        super().__init__()
        self._memory: Path | None = None
        self._two = False
        self._any = Path()
        self._rates = Rates(self)

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        groups = {controller: Path(place.root + path) for controller, path in place.groups}
        groups = {controller: path for controller, path in groups.items() if path.is_dir()}
        if not groups:
            raise Unavailable("the step has no control group")
        self._two = "" in groups and (groups[""] / "memory.stat").exists()
        self._memory = groups[""] if self._two else groups.get("memory")
        # Slurm's freezer has all that it tracks; others of version 1 have what they limit.
        self._any = groups.get("freezer") or groups.get("") or next(iter(groups.values()))
        if self._memory is None:
            why = "no control group of the step has the controller memory"
            self.never = dict.fromkeys(("memory_file", "memory_limit", "out_of_memory"), why)
        elif self._limit(self._memory) is None:
            self.never["memory_limit"] = "the step has no limit"

    def read(self, now: int) -> list[Row]:
        """Return one row; see Source."""
        values: dict[str, float] = {}
        for part in (self._of_memory, self._of_processes):
            try:
                part(values, now)
            except TooMany as why:
                self.blank(str(why))
            except (OSError, ValueError, KeyError, IndexError) as error:
                self.blank(why_unread(error))
        return [Row("", values)]

    def _of_memory(self, values: dict[str, float], now: int) -> None:
        if self._memory is None:
            return
        stat = _pairs(self._memory / "memory.stat")
        values["memory_file"] = stat["file" if self._two else "total_cache"]
        if (limit := self._limit(self._memory)) is not None:
            values["memory_limit"] = limit
        gained = self._rates.gained("", now, {"kills": self._kills()})
        if "kills" in gained:
            values["out_of_memory"] = gained["kills"]

    def _kills(self) -> float:
        assert self._memory is not None
        if self._two:
            return _pairs(self._memory / "memory.events")["oom_kill"]
        tops = [top for top, _, _ in itertools.islice(os.walk(self._memory), GROUPS_MAX + 1)]
        if len(tops) > GROUPS_MAX:
            raise TooMany(f"the step has more than {GROUPS_MAX} control groups")
        files = [Path(top, "memory.oom_control") for top in tops]
        return sum(_pairs(file)["oom_kill"] for file in files if file.exists())

    def _limit(self, group: Path) -> float | None:
        """Return the least limit from the step's group up; None where there is none."""
        name = "memory.max" if self._two else "memory.limit_in_bytes"
        least: float | None = None
        while (group / name).exists():
            text = (group / name).read_text().strip()
            value = None if text == "max" or int(text) >= _NONE else float(text)
            least = value if least is None else least if value is None else min(least, value)
            group = group.parent
        return least

    def _of_processes(self, values: dict[str, float], _: int) -> None:
        pids = pids_of(self._any)
        blocked = seen = stepds = 0
        for pid in pids:
            stat = stat_of(self.place, pid)
            if stat is None:
                continue
            seen += 1
            blocked += stat.state == "D"
            stepds += stat.name == SLURMSTEPD and is_roots(self.place, pid)
        if pids and not seen:
            self.blank("/proc does not show the step's processes")
            return
        values["processes"] = float(len(pids) - stepds)
        values["blocked"] = float(blocked)


def _pairs(path: Path) -> dict[str, float]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: float(words[1]) for words in lines if len(words) == 2}
