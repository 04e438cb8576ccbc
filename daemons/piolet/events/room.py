"""What a spool keeps: within bounds, and of what was delivered the last days, for a central service that was restored.

Of what was not delivered only a bound removes something: the oldest of a user who has too much, then the oldest of
whoever has most. What that is, is told before it is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from piolet.base import files
from piolet.events import parts
from piolet.events.parts import Part

KEPT_S = 7 * 86400.0
_ACKNOWLEDGED_BYTES = 8 << 20
_EPOCH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Bounds:
    """Bytes of the node's stream, of each user's, and of all together; and how many files that may be."""

    node: int = 16 << 20
    user: int = 4 << 20
    total: int = 64 << 20
    files: int = 512


@dataclass(frozen=True)
class Loss:
    """Records from `first` to `last` of an epoch that are removed before they were delivered, and why."""

    uid: int | None
    epoch: str
    first: int
    last: int
    bytes: int
    why: str


@dataclass(frozen=True)
class _Kept:
    part: Part
    have: int
    last: int
    size: int
    written: int

    @property
    def delivered(self) -> bool:
        return self.have >= self.last


class Room:
    """Keeps `directory` within `bounds`; `acknowledged` is the forwarder's file of numbers.

    `tell` is given what will be lost, to write that down first.
    """

    def __init__(
        self, directory: str, acknowledged: str, bounds: Bounds, tell: Callable[[Loss], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._acknowledged = acknowledged
        self._bounds = bounds
        self._tell = tell
        self._clock = clock
        self._since: dict[Part, float] = {}

    def make(self, open_parts: set[Part]) -> None:
        """Remove what has to go; `open_parts` are those that are written to. Raises OSError."""
        kept = self._kept()
        now = self._clock()
        self._since = {one.part: self._since.get(one.part, now) for one in kept if one.delivered}
        for one in list(kept):
            old = one.delivered and now - self._since[one.part] >= KEPT_S
            if (old or one.last < one.part.first) and one.part not in open_parts:
                self._remove(kept, one, "")
        for uid in {one.part.uid for one in kept}:
            most = self._bounds.node if uid is None else self._bounds.user
            while sum(one.size for one in kept if one.part.uid == uid) > most:
                own = [one for one in kept if one.part.uid == uid]
                if len(own) == 1:
                    break
                self._remove(kept, own[0], "the bound of the node's own" if uid is None else "the bound of each user")
        while kept and (sum(one.size for one in kept) > self._bounds.total or len(kept) > self._bounds.files):
            self._remove(kept, self._first_to_go(kept), "the bound of all together")

    def _first_to_go(self, kept: list[_Kept]) -> _Kept:
        delivered = [one for one in kept if one.delivered and one.part.uid is not None]
        if delivered:
            return delivered[0]
        users = [one for one in kept if one.part.uid is not None] or kept
        sizes: dict[int | None, int] = {}
        for one in users:
            sizes[one.part.uid] = sizes.get(one.part.uid, 0) + one.size
        most = max(sizes, key=lambda uid: sizes[uid])
        return next(one for one in users if one.part.uid == most)

    def _kept(self) -> list[_Kept]:
        """Return what there is, the oldest first, and what is of one epoch in the order of its numbers."""
        have = acknowledged(self._acknowledged)
        epochs: dict[str, list[Part]] = {}
        for part in parts.parts(self._directory):
            epochs.setdefault(part.epoch, []).append(part)
        found: list[tuple[int, list[_Kept]]] = []
        for epoch, own in epochs.items():
            of_epoch = [
                _Kept(part, have.get(epoch, 0), self._last(part, after), status.st_size, status.st_mtime_ns)
                for part, after in zip(own, [*own, None][1:], strict=True)
                if (status := _status(self._directory, part)) is not None
            ]
            if of_epoch:
                found.append((of_epoch[-1].written, of_epoch))
        return [one for _, of_epoch in sorted(found, key=lambda pair: pair[0]) for one in of_epoch]

    def _last(self, part: Part, after: Part | None) -> int:
        return parts.last_number(self._directory, part) if after is None else after.first - 1

    def _remove(self, kept: list[_Kept], one: _Kept, why: str) -> None:
        kept.remove(one)
        first = max(one.part.first, one.have + 1)
        if why and first <= one.last:
            self._tell(Loss(one.part.uid, one.part.epoch, first, one.last, one.size, why))
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._directory, one.part.name))


def acknowledged(path: str) -> Mapping[str, int]:
    """Return what the forwarder says was delivered, the last number by epoch; nothing where it says nothing."""
    try:
        data, _ = files.read_small(path, _ACKNOWLEDGED_BYTES)
        said = json.loads(data)
    except (OSError, files.NotRegularError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    return {epoch: seq for epoch, seq in said.items() if _EPOCH.fullmatch(epoch) and type(seq) is int}


def _status(directory: str, part: Part) -> os.stat_result | None:
    try:
        return os.lstat(os.path.join(directory, part.name))
    except OSError:
        return None
