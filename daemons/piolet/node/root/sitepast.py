"""The node's first values for a vetting, which the server keeps: read as root, and believed in nothing.

The text is not looked into here: it goes to a process of the user's, which is why it must not be another file's. It is
refused unless it is the server's own plain file, with no other name.
"""

from __future__ import annotations

import os
import stat

FACT, FILE = "past", "past.json"
MOST = 512 * 1024


def read(path: str, owner: int, most: int = MOST) -> str | None:
    """Return the text, or None: there is none, or it is not what it should be."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != owner or status.st_nlink != 1 or status.st_size > most:
            return None
        data = b""
        while len(data) <= most and (piece := os.read(descriptor, 1 << 16)):
            data += piece
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return data.decode("ascii", "replace") if len(data) <= most else None
