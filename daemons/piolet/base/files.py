"""Files: written whole or not at all; what tells one from another, and from itself before; where a user's caches are.

Who starts a step waits for this module: it imports nothing that takes long (tempfile takes milliseconds).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
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


def write_whole(
    path: str, data: bytes, aside: str, *, mode: int | None = None, exclusive: bool = False, sync: bool = False
) -> None:
    """Put a file of `data` in the place of what is at `path`: a reader sees the old file or all of the new one.

    aside      where it is written first, on the same file system; nothing stays there
    mode       of the file; None: 0666 without what the umask takes
    exclusive  a file that is at `aside` already is an error, not one that a process left when it was killed
    sync       have the content on the disk before the name

    Raises OSError; what is at `path` is then as it was.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if exclusive else os.O_TRUNC)
    descriptor = os.open(aside, flags, 0o666 if mode is None else mode)
    with replacing(path, aside), open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if mode is not None and os.fstat(descriptor).st_mode & 0o7777 != mode:
            os.fchmod(descriptor, mode)
        if sync:
            os.fsync(descriptor)


@contextlib.contextmanager
def replacing(path: str, aside: str) -> Iterator[None]:
    """Put the file that the block writes to `aside` in the place of what is at `path`; remove it if the block fails.

    Raises OSError: it could not be renamed, and what is at `path` is as it was.
    """
    try:
        yield
        os.rename(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


def cache_directory(variables: Mapping[str, str], part: str) -> str | None:
    """Return where a user's caches of `part` are, or None: XDG_CACHE_HOME and HOME count only if they are absolute."""
    cache, home = variables.get("XDG_CACHE_HOME", ""), variables.get("HOME", "")
    if not cache.startswith("/"):
        if not home.startswith("/"):
            return None
        cache = f"{home}/.cache"
    return os.path.join(cache, "piolet", part)
