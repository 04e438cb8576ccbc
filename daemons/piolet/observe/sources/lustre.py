"""Lustre's clients: llite's statistics of each mount, as this node counts them; they are of all that runs on the node.

lustre/llite/lproc_llite.c: a line is `NAME COUNT samples [UNIT]`, and where something is added up `MIN MAX SUM` behind
it, with SUMSQUARES as a fifth number from 2.12 on. read_bytes and write_bytes are what programs read and wrote, counted
once; read, write and what moves no data have microseconds in newer releases, of calls that the cache answered, too.
Until 2.11 the files are in /proc/fs/lustre, since then in debugfs, which only root may enter. Which mount it is says a
parameter `uuid` or the name: FSNAME-ffff9c7f8b5e8000, the same FSNAME that the mount's source ends with.
"""

from __future__ import annotations

import re
from typing import ClassVar

from piolet.api import IO, Place, Rates, Row, Source, Unavailable

from ._mounts import mounts

_PLACES = ("/sys/kernel/debug/lustre/llite", "/proc/fs/lustre/llite")
_NAME = re.compile(r"(.+)-[0-9a-f]{8,16}")
_LINE = re.compile(r"^(\w+)\s+(\d+) samples \[(\w+)\](?:\s+\d+\s+\d+\s+(\d+))?", re.MULTILINE)
_DATA = ("read_bytes", "write_bytes", "read", "write")
_TIMES = ("usec", "usecs")
_AT_HOME = ("inode_permission", "seek", "mmap")  # which ask no server, so often that they would hide who does


class Lustre(Source):
    """The source."""

    name = "lustre"
    text = "Lustre, per mount, of the node"
    table = IO
    columns: ClassVar[tuple[str, ...]] = (
        "kind", "scope", "read", "write", "read_operations", "write_operations", "metadata_operations", "wait",
    )  # fmt: skip
    needs: ClassVar[tuple[str, ...]] = _PLACES[:1]

    def __init__(self) -> None:
        super().__init__()
        self._where = ""
        self._rates = Rates(self)

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        found = [mount for mount in mounts(place) if mount.kind == "lustre"]
        for where in _PLACES:
            try:
                if place.held_names(where):
                    self._where = where
                    return
            except PermissionError:
                raise Unavailable(f"only root may read {where}") from None
            except OSError:
                continue
        raise Unavailable("Lustre is mounted, and its statistics are not there" if found else "no Lustre is mounted")

    def read(self, now: int) -> list[Row]:
        """Return a row for each mount; see Source."""
        points = {
            mount.source.rpartition("/")[2]: mount.point for mount in mounts(self.place) if mount.kind == "lustre"
        }
        rows, seen = [], set()
        for name in self.place.held_names(self._where):
            match = _NAME.fullmatch(name)
            if match is None:
                continue
            subject = points.get(match[1], match[1])
            try:
                counters = counters_of(self.place.held_text(self._where, f"{name}/stats"))
            except OSError as error:
                self.blank(f"its statistics cannot be read: {error.strerror}", subject)
                continue
            seen.add(subject)
            gained = self._rates.gained(subject, now, counters)
            span, spent, timed = self._rates.span, gained.pop("spent", None), gained.pop("timed", 0.0)
            values: dict[str, float | str] = {name: value / span for name, value in gained.items()}
            if timed and spent is not None:
                values["wait"] = spent / timed
            if values:
                rows.append(Row(subject, {"kind": "lustre", "scope": "node", **values}))
        self._rates.keep(seen)
        return rows


def counters_of(text: str) -> dict[str, float]:
    """Return the counters in the text of a file `stats`, by column. A line that is not there was never counted.

    With `timed`, calls of which the time is told, and `spent`, their seconds.
    """
    names = ("read", "write", "read_operations", "write_operations", "metadata_operations", "timed", "spent")
    found = dict.fromkeys(names, 0.0)
    for name, count, unit, total in _LINE.findall(text):
        if name in ("read_bytes", "write_bytes"):
            way = name.partition("_")[0]
            found[way] = float(total or 0)
            found[f"{way}_operations"] = float(count)
        elif name not in _DATA and unit in ("reqs", "regs", *_TIMES):
            found["metadata_operations"] += float(count)
        if unit in _TIMES and total and name not in _AT_HOME:
            found["timed"] += float(count)
            found["spent"] += float(total) / 1e6
    return found
