"""Files: what tells one from another, and from itself before it was changed."""

from __future__ import annotations

import os
from typing import NamedTuple


class Stamp(NamedTuple):
    """What changes when a file changes, or when another takes its place."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return the stamp in the answer of stat."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def identity_of(status: os.stat_result) -> list[int]:
    """Return a stamp as messages carry it: a list."""
    return list(Stamp.of(status))
