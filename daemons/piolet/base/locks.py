"""Locks on files, which the kernel gives back whatever happens to their holder; waited for, but not for ever."""

from __future__ import annotations

import fcntl
import time

_LOOK_S = 0.02


def take(descriptor: int, until: float) -> bool:
    """Take the lock on an open file, waiting for another holder to `until` (time.monotonic); return whether it is ours.

    It is free again when the last copy of the descriptor is closed. Raises OSError: not every file system has locks.
    """
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_S)
