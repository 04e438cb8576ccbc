"""What the step's processes read from files and wrote to them, whatever the file system: /proc/PID/io.

Linux, filesystems/proc.rst, "/proc/<pid>/io": rchar and wchar are bytes of read(2), write(2) and the like, whether they
came from the page cache or not, pipes and terminals included; what is mapped is not counted. A process's numbers have
those of its children that it has waited for. So what one moved between the last look and its end is known where its
parent is of the step as well and waited for it; otherwise it is missing, and the sum is low, never too high.

The file is the user's, who may read it where the process may be traced (ptrace(2), PTRACE_MODE_READ_FSCREDS):
`Place.moved` asks a process that is the user. slurmstepd, root's, is left out: it moves the tasks' output and input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from piolet.api import OF_STEP, Place, Row, Source, Unavailable

from ._processes import SLURMSTEPD, TooMany, is_roots, pids_of, stat_of

_COLUMNS = ("file_read", "file_write")


@dataclass(frozen=True)
class Moved:
    """A process's parent, and bytes read and written."""

    parent: int
    read: float
    write: float


class Files(Source):
    """The source."""

    name = "files"
    text = "bytes that the step's processes read and wrote, on any file system"
    scope = OF_STEP
    columns: ClassVar[tuple[str, ...]] = _COLUMNS

    def __init__(self) -> None:
        super().__init__()
        self._group = Path()
        self._last: dict[tuple[int, int], Moved] | None = None
        self._taken = 0

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        groups = {controller: Path(place.root + path) for controller, path in place.groups}
        group = groups.get("freezer") or groups.get("") or next(iter(groups.values()), None)
        if group is None or not group.is_dir():
            raise Unavailable("the step has no control group")
        self._group = group

    def read(self, now: int) -> list[Row]:
        """Return one row; see Source."""
        try:
            pids = pids_of(self._group)
        except TooMany as why:
            self._last = None
            self.blank(str(why), values=2)
            return []
        told = self._look(pids)
        span, self._taken = (now - self._taken) / 1e9 if self._taken else 0.0, now
        last, self._last = self._last, told
        if told is None or last is None or span <= 0:
            return []
        return [Row("", dict(zip(_COLUMNS, (gain / span for gain in gained(last, told)), strict=True)))]

    def _look(self, pids: set[int]) -> dict[tuple[int, int], Moved] | None:
        stats = {pid: stat for pid in pids if (stat := stat_of(self.place, pid)) is not None}
        own = [p for p, stat in stats.items() if stat.name != SLURMSTEPD or not is_roots(self.place, p)]
        moved = self.place.moved(own)
        if any(pid not in moved and stat_of(self.place, pid) is not None for pid in own):
            some = "some of the" if moved else "the"
            self.blank(f"{some} processes' io may not be read by their user, or is not told", values=2)
            if not moved:
                return None
        return {(pid, stats[pid].began): Moved(stats[pid].parent, *bytes_) for pid, bytes_ in moved.items()}


def gained(last: Mapping[tuple[int, int], Moved], now: Mapping[tuple[int, int], Moved]) -> tuple[float, float]:
    """Return what the processes read and wrote between two looks at them."""
    alive = {pid for pid, _ in now}
    parents = {pid: moved.parent for (pid, _), moved in last.items()}
    # What was counted of those who have ended is in the numbers of who waited for them.
    counted: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for key, moved in last.items():
        if key in now:
            continue
        parent, seen = moved.parent, set()
        while parent not in alive and parent in parents and parent not in seen:
            seen.add(parent)
            parent = parents[parent]
        counted[parent][0] += moved.read
        counted[parent][1] += moved.write
    none = Moved(0, 0.0, 0.0)
    read = write = 0.0
    for key, moved in now.items():
        before, less = last.get(key, none), counted[key[0]]
        read += max(0.0, moved.read - before.read - less[0])
        write += max(0.0, moved.write - before.write - less[1])
    return read, write
