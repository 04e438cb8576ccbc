"""Files: what tells one from another, and from itself before it was changed; where a user's caches are."""

from __future__ import annotations

import os
from collections.abc import Mapping
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


def cache_directory(variables: Mapping[str, str], part: str) -> str | None:
    """Return where a user's caches of `part` are, or None: XDG_CACHE_HOME and HOME count only if they are absolute."""
    cache, home = variables.get("XDG_CACHE_HOME", ""), variables.get("HOME", "")
    if not cache.startswith("/"):
        if not home.startswith("/"):
            return None
        cache = f"{home}/.cache"
    return os.path.join(cache, "piolet", part)
