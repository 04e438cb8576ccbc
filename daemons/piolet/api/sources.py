"""The contract of sources: figures that are recorded of every step, every few seconds, beside those of collectors.

A source is one file with one class. It parses text of the kernel's, and none of a user's; what it cannot tell is
missing, with a reason, and never zero. One that hangs costs its own figures only: each is read in a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

OF_STEP, OF_NODE = "step", "node"
HOST, IO, NET = "host", "io", "net"
READ_MAX = 1 << 20
_PIECE = 1 << 13  # what is read often is shorter


@dataclass(frozen=True)
class Place:
    """Where a source looks.

    root     in front of every path: tests put recorded trees there
    groups   the step's control groups, as in Target; none for a source of the node
    held     descriptors of what only root may open, by path: of a file, or of a directory below which all may be read
    period   seconds between two readings
    ask      returns what `moved` does, by the rights of another process; None: this one's own are all there are
    """

    root: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    held: Mapping[str, int] = field(default_factory=dict)
    period: float = 10.0
    ask: Callable[[Collection[int]], Mapping[int, tuple[float, float]]] | None = None

    def moved(self, pids: Collection[int]) -> Mapping[int, tuple[float, float]]:
        """Return bytes read and written by process (rchar and wchar of /proc/PID/io), of those that may be seen."""
        if self.ask is not None:
            return self.ask(pids)
        found = {}
        for pid in pids:
            with contextlib.suppress(OSError, ValueError, KeyError):
                found[pid] = moved_in(self.text(f"/proc/{pid}/io"))
        return found

    def text(self, path: str) -> str:
        """Return what is in a file, at most READ_MAX bytes. Raises OSError."""
        return self._read(os.open(self.root + path, os.O_RDONLY | os.O_CLOEXEC))

    def held_text(self, path: str, below: str = "") -> str:
        """Return what is in a file that is held, or in one `below` a directory that is. Raises OSError."""
        if path not in self.held:
            return self.text(f"{path}/{below}" if below else path)
        if below:
            return self._read(os.open(below, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.held[path]))
        pieces, at = [], 0  # a file of the kernel's is made anew for who reads from its start
        while at < READ_MAX and (piece := os.pread(self.held[path], 1 << 16, at)):
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces).decode("utf-8", "surrogateescape")

    def held_names(self, path: str) -> list[str]:
        """Return the names in a directory that is held, or may be read. Raises OSError."""
        return sorted(os.listdir(self.held[path] if path in self.held else self.root + path))

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, none where there is no such directory."""
        with contextlib.suppress(OSError):
            return sorted(os.listdir(self.root + path))
        return []

    def number(self, path: str) -> float:
        """Return the number that a file begins with. Raises OSError; ValueError: it begins with none."""
        return float(self.text(path).split()[0].partition("@")[0])

    def word(self, path: str) -> str:
        """Return what is in a file, without the blanks around it; '' where it cannot be read."""
        with contextlib.suppress(OSError):
            return self.text(path).strip()
        return ""

    @staticmethod
    def _read(descriptor: int) -> str:
        text = b""
        try:
            # The kernel gives some files a few records at a time, however much is asked for.
            while len(text) < READ_MAX and (piece := os.read(descriptor, _PIECE)):
                text += piece
        finally:
            os.close(descriptor)
        return text.decode("utf-8", "surrogateescape")


def moved_in(text: str) -> tuple[float, float]:
    """Return bytes read and written as a /proc/PID/io says. Raises KeyError, ValueError: it does not."""
    said = dict(line.split(": ", 1) for line in text.splitlines())
    return float(said["rchar"]), float(said["wchar"])


@dataclass(frozen=True)
class Row:
    """What a source tells in one reading of one subject.

    subject   a mount point, a port; '' in the table `host`
    values    by column of the layout's table; means over the time since the last reading, of counters; a column that
              is not there is missing
    """

    subject: str
    values: Mapping[str, float | str]


class Source:
    """The base class of sources.

    name      the short name, in quality and in `piolet observe sources`
    text      what it is, one line
    table     where its figures go: HOST, IO or NET
    scope     OF_STEP: one for each step; OF_NODE: one for the node, its figures are in the data of all steps on it
    columns   columns of the table that `read` may give
    needs     paths, with patterns of glob(7), that only root may open and that the site's sampler gets a descriptor of
    blanks    what was missing since the sampler looked last: how many values, by subject and reason
    never     what this node cannot tell, and why, by column: known after `open`
    """

    name: ClassVar[str] = ""
    text: ClassVar[str] = ""
    table: ClassVar[str] = HOST
    scope: ClassVar[str] = OF_NODE
    columns: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.place = Place()
        self.blanks: dict[tuple[str, str], int] = {}
        self.never: dict[str, str] = {}

    def blank(self, reason: str, subject: str = "", values: int = 1) -> None:
        """Count missing values."""
        self.blanks[subject, reason] = self.blanks.get((subject, reason), 0) + values

    def open(self, place: Place) -> None:
        """Begin. Raises Unavailable: this node, or this step, has nothing of it."""
        self.place = place

    def read(self, now: int) -> list[Row]:
        """Return what there is; the first call only takes the counters. `now` is time.monotonic_ns()."""
        raise NotImplementedError

    def close(self) -> None:
        """End."""


class Rates:
    """Turns counters, which only grow, into what was added to them in a second, by subject."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._last: dict[str, tuple[int, Mapping[str, float]]] = {}

    def of(self, subject: str, now: int, counters: Mapping[str, float]) -> dict[str, float]:
        """Return the rates since the last call for the subject; nothing at the first. `now` in nanoseconds."""
        gains = self.gained(subject, now, counters)
        span = self.span
        return {name: gain / span for name, gain in gains.items()}

    def gained(self, subject: str, now: int, counters: Mapping[str, float]) -> dict[str, float]:
        """Return what was added since the last call for the subject; a counter that began anew is missing once."""
        before, self._last[subject] = self._last.get(subject), (now, dict(counters))
        self.span = (now - before[0]) / 1e9 if before else 0.0
        if before is None or self.span <= 0:
            return {}
        found = {}
        for name, value in counters.items():
            if name not in before[1]:
                continue
            if value < before[1][name]:
                self._source.blank("its counter began anew", subject)
            else:
                found[name] = value - before[1][name]
        return found

    def keep(self, subjects: set[str]) -> None:
        """Forget all others: what comes back begins anew."""
        self._last = {name: last for name, last in self._last.items() if name in subjects}
