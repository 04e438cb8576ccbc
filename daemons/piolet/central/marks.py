"""Takes the marks of a job that its user sends: to be joined with the data of that user's steps (observe/joining.py).

Whoever asks is who MUNGE or the kernel says, and a job's data that are not theirs are not there: nobody says anything
of another's job. A job's marks are one file, bounded, written anew each time; there is one only for a job of which
nodes have told, and it goes when it is joined.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from piolet.base import files
from piolet.base.errors import EventError, ObserveError
from piolet.central.doors import RefusedError
from piolet.central.store.database import StoreError
from piolet.observe import joining, marks
from piolet.observe.catalogue import OPEN, WHOLE, Catalogue
from piolet.observe.marks import Said

PACKED_MOST = 4 << 20
BURST, EACH_S, LEAST = 32 << 20, 1 << 20, 64 << 10
"""Bytes of a user's at once, and in each second after that; how many a job counts at least."""
_JOB = re.compile(r"[1-9][0-9]{0,9}")


class Shares:
    """How much each user may send; for one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[int, tuple[float, float]] = {}  # by uid, so many bytes at that time

    def take(self, uid: int, size: int) -> None:
        """Count bytes of a user's. Raises StoreError: these are too many by now."""
        now = self._clock()
        left = {who: (used - (now - when) * EACH_S, now) for who, (used, when) in self._used.items()}
        self._used = {who: one for who, one in left.items() if one[0] > 0}
        used = self._used.get(uid, (0.0, now))[0] + max(size, LEAST)
        if used > BURST:
            raise StoreError("you sent too many marks by now", "try again in a minute")
        self._used[uid] = used, now


@dataclass(frozen=True)
class Sent:
    """A user's marks of a job, checked."""

    uid: int
    job: str
    found: list[Said]

    def keep(self, catalogue: Catalogue, shares: Shares) -> dict[str, Any]:
        """Keep them, and return of which steps. Raises EventError: there is none that they could be joined with."""
        text = marks.text_of(self.found)
        shares.take(self.uid, len(text))
        path = joining.place(catalogue.root, self.job, self.uid)
        with catalogue.transaction():  # what removes these files does it in one
            rows = catalogue.rows("job = ? and uid = ?", self.job, self.uid)
            fit = [row for row in rows if row.state == OPEN or (row.state == WHOLE and not row.packed)]
            if not fit:
                why = "they are thinned or packed by now" if rows else "no node told of it"
                raise EventError(f"there are no data of job {self.job} to join marks with: {why}")
            try:
                path.parent.mkdir(exist_ok=True)
                files.write_whole(str(path), text, f"{path}.{os.getpid()}", mode=0o600, sync=True)
            except OSError as error:
                raise StoreError(f"marks cannot be kept: {error.strerror}") from None
        return {"steps": sorted(row.name for row in fit), "marks": len(self.found)}


def sent(uid: int | None, job: str, body: bytes) -> Sent:
    """Return what a user sends. Raises RefusedError, EventError."""
    if uid is None:
        raise RefusedError(403, "marks come from users, and not from a certificate")
    if _JOB.fullmatch(job) is None:
        raise EventError("marks are of a job, by its number")
    try:
        return Sent(uid, job, marks.unpacked(body))
    except ObserveError as error:
        raise EventError(error.message) from None
