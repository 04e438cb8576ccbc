"""The directory that the evals of one run write in, and what a killed run of the same user left of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

_PREFIX = "piolet-vet-"
_SETTLED_S = 60.0


@contextlib.contextmanager
def directory(parent: str) -> Iterator[str]:
    """Make a directory below `parent` and remove it at the end.

    A run that is killed cannot remove its directory, so the next one of that user does. The lock on it tells them
    apart: children inherit it, and it is free when the last process of a run has ended. Raises OSError.
    """
    _sweep(parent)
    path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _sweep(parent: str) -> None:
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    _remove_if_left(entry.path)


def _remove_if_left(path: str) -> None:
    """Remove it if it is this user's, not made just now (the lock comes after the directory), and nobody's lock."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(descriptor)
        private = info.st_uid == os.geteuid() and stat.S_IMODE(info.st_mode) == 0o700
        if private and info.st_ctime < time.time() - _SETTLED_S:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
