"""Files that only root can have written: those of a site's hooks, and of devices.

A path is trusted if root owns it and nobody else may write it, and the same holds for every directory above it.
"""

from __future__ import annotations

import os
import stat


def doubt(path: str) -> str:
    """Return why `path` is not to be believed, or ''. Links are followed. Raises OSError: it is not there."""
    real = os.path.realpath(path, strict=True)
    while True:
        status = os.stat(real)
        if status.st_uid != 0:
            return f"{real} does not belong to root"
        # A sticky directory (/tmp) lets nobody replace what is root's in it.
        if status.st_mode & 0o022 and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
            return f"{real} can be written by others than root"
        if real == "/":
            return ""
        real = os.path.dirname(real)
