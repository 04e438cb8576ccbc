"""The user's cache of records, where the plugin in srun finds one the next time without starting Python.

A cache that cannot be written is no error: the next srun is slower, that is all.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Mapping

from piolet.base import files
from piolet.submission.dependencies import Dependency

ENTRIES = 256
_UNFINISHED = ".new-"

# A file that changed less than this before it was read may change again without a new time stamp.
_FRESH_NS = 50_000_000
_FRESH_COARSE_NS = 2_000_000_000


def is_settled(dependencies: Iterable[Dependency], now_ns: int) -> bool:
    """Return whether every file had been left alone for a while at `now_ns`, before any was read.

    Time stamps move in ticks, of a whole second on some file systems: a file that is written again
    within the tick in which it was read looks unchanged.
    """
    for stamp in (dependency.stamp for dependency in dependencies):
        if stamp is not None:
            coarse = stamp.mtime_ns % 1_000_000_000 == 0 and stamp.ctime_ns % 1_000_000_000 == 0
            margin = _FRESH_COARSE_NS if coarse else _FRESH_NS
            if now_ns - max(stamp.mtime_ns, stamp.ctime_ns) < margin:
                return False
    return True


def fnv1a(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash (the parameters are those of draft-eastlake-fnv)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def path_of(
    variables: Mapping[str, str], cwd: str, request: str, config: str, uid: int, verb: str = "env"
) -> str | None:
    """Return where the record of `piolet VERB submit` for `request` is kept, or None: there is no place for a cache."""
    directory = files.cache_directory(variables, verb)
    if directory is None:
        return None
    key = os.fsencode(cwd) + b"\0" + os.fsencode(request) + b"\0" + os.fsencode(config) + b"\0"
    key += str(uid).encode() + b"\0"
    return f"{directory}/{fnv1a(key):016x}.rec"


def store(path: str, record: bytes) -> bool:
    """Write `record` to `path`, whole or not at all; return whether it is there now. Never raises OSError.

    Refuses a directory that is another user's or that others may write to.
    """
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        status = os.stat(directory)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            return False
        # Unique enough for the callers of one user.
        aside = f"{directory}/{_UNFINISHED}{os.getpid()}-{time.monotonic_ns()}"
        files.write_whole(path, record, aside, mode=0o600, exclusive=True)
        _prune(directory)
    except OSError:
        return False
    return True


def _prune(directory: str) -> None:
    """Delete the oldest half of the records when there are too many; what else is there has other owners."""
    with os.scandir(directory) as entries:
        named = [entry for entry in entries if entry.name.endswith(".rec") or entry.name.startswith(_UNFINISHED)]
        ours = [entry for entry in named if entry.is_file(follow_symlinks=False)]
    if len(ours) <= ENTRIES:
        return
    aged = []
    for entry in ours:
        with contextlib.suppress(OSError):
            aged.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
    for _, path in sorted(aged)[: len(ours) - ENTRIES // 2]:
        with contextlib.suppress(OSError):
            os.unlink(path)
