"""The directory of a user's home in which the tasks of a job meet for `[startup] per = "job"` (around.py)."""

from __future__ import annotations

import contextlib
import os
import shutil
import time

_KEPT_S = 7 * 86400
"""Of jobs that began before, nobody asks any more; and numbers of jobs come again."""


def prepare(folder: str) -> None:
    """Make the directory, and remove what is old in it. Raises OSError: it cannot be made."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        old = [one.path for one in entries if one.stat(follow_symlinks=False).st_mtime < time.time() - _KEPT_S]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
