"""Reads a spool's streams, while their writer writes, closes and removes files of them.

Lines are as they were written, and not decoded. What is no line of its stream, or out of order, is passed over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

from piolet.events import parts
from piolet.events.envelope import LINE_MAX, number_of
from piolet.events.parts import Part

_LOG = logging.getLogger(__name__)
_PIECE = 64 * 1024


@dataclass
class _Place:
    """Where reading of an epoch ended: after record `seq`, in `part` at `offset`."""

    seq: int
    part: Part
    offset: int


class Reader:
    """The streams in `directory`. Not for use by several threads at once."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._known: dict[Part, tuple[tuple[int, ...], int]] = {}
        self._places: dict[str, _Place] = {}
        self._refused: set[Part] = set()

    def streams(self) -> dict[str, int]:
        """Return, by epoch, the number of the last record that is whole. Raises OSError: there is no directory."""
        newest: dict[str, list[Part]] = {}
        for part in parts.parts(self._directory):
            newest.setdefault(part.epoch, []).append(part)
        found = {epoch: seq for epoch, own in newest.items() if (seq := self._last(own))}
        there = {part for own in newest.values() for part in own}
        self._refused &= there
        self._known = {part: known for part, known in self._known.items() if part in there}
        self._places = {epoch: place for epoch, place in self._places.items() if epoch in newest}
        return found

    def _last(self, own: list[Part]) -> int:
        for part in reversed(own):
            try:
                status = os.lstat(os.path.join(self._directory, part.name))
            except OSError:
                continue
            stamp = status.st_ino, status.st_size, status.st_mtime_ns
            known = self._known.get(part)
            if known is None or known[0] != stamp:
                known = self._known[part] = stamp, parts.last_number(self._directory, part)
                if known[1] < part.first:
                    self._tell(part)
            if known[1] >= part.first:
                return known[1]
        return 0

    def _tell(self, part: Part) -> None:
        """Log that a file may not be read, once: what is in it goes nowhere, and nobody misses it."""
        try:
            os.close(parts.open_part(self._directory, part))
        except PermissionError:
            if part not in self._refused:
                self._refused.add(part)
                path = os.path.join(self._directory, part.name)
                _LOG.error("%s: permission denied: its records stay here; a restart of pioletd may mend that", path)
        except OSError:
            return

    def read(self, epoch: str, after: int, records_max: int, bytes_max: int) -> list[bytes]:
        """Return lines of an epoch with numbers above `after`, in order, each with its newline.

        They are at most so many, of so many bytes together; a first line is returned however long it is. Numbers may
        begin later than at `after` + 1, where records were removed. Raises OSError: there is no directory.
        """
        found: list[bytes] = []
        size, last = 0, after
        for part, offset in self._from(epoch, after):
            for end, line in self._lines(part, offset):
                number = number_of(line)
                if number is None or number[0] != epoch or number[1] <= last:
                    continue
                if len(found) >= records_max or (found and size + len(line) > bytes_max):
                    return found
                found.append(line)
                size += len(line)
                last = number[1]
                self._places[epoch] = _Place(last, part, end)
        return found

    def _from(self, epoch: str, after: int) -> Iterator[tuple[Part, int]]:
        """Yield the files that have what comes after, and where in them that may begin."""
        own = [part for part in parts.parts(self._directory) if part.epoch == epoch]
        place = self._places.get(epoch)
        for part, following in zip(own, [*own, None][1:], strict=True):
            if following is not None and following.first <= after + 1:
                continue
            known = place is not None and place.part == part and place.seq <= after
            yield part, place.offset if known and place is not None else 0

    def _lines(self, part: Part, offset: int) -> Iterator[tuple[int, bytes]]:
        """Yield whole lines from `offset`, which is at the begin of one, each with where it ends."""
        try:
            descriptor = parts.open_part(self._directory, part)
        except OSError:
            return
        try:
            rest = b""
            while piece := _read(descriptor, offset + len(rest)):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    offset += len(line) + 1
                    yield offset, line + b"\n"
                if len(rest) > LINE_MAX:
                    return
        finally:
            os.close(descriptor)


def _read(descriptor: int, offset: int) -> bytes:
    try:
        return os.pread(descriptor, _PIECE, offset)
    except OSError:
        return b""
