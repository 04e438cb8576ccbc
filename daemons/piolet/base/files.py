"""Files: written whole or not at all; read without waiting; what tells one from another; where a user's caches are.

Who starts a step waits for this module: it imports nothing that takes long (tempfile takes milliseconds).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class NotRegularError(Exception):
    """What was to be opened is a pipe, a device or a socket."""


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


def open_regular(path: str, flags: int = os.O_RDONLY, mode: int = 0o777, dir_fd: int | None = None) -> int:
    """Return a descriptor of the regular file at `path`, which may be a user's: it waits for no other end of a pipe.

    The arguments are those of os.open. Raises OSError, of a directory IsADirectoryError; NotRegularError.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind == stat.S_IFDIR:  # as open itself says to who wants to write
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if kind != stat.S_IFREG:
            raise NotRegularError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_small(path: str, most: int) -> tuple[bytes, os.stat_result]:
    """Return what is in the regular file at `path`, and its status before it was read.

    Of a file that is longer than `most` bytes it is one byte more than these. Raises OSError, NotRegularError.
    """
    with open(open_regular(path), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        data = bytearray()
        while len(data) <= most and (piece := file.read(most + 1 - len(data))):
            data += piece
    return bytes(data), status


def state_directory(variables: Mapping[str, str]) -> str | None:
    """Return where a user's results are kept, or None: as `cache_directory`, of XDG_STATE_HOME (~/.local/state)."""
    state, home = variables.get("XDG_STATE_HOME", ""), variables.get("HOME", "")
    if state.startswith("/"):
        return os.path.join(state, "piolet")
    return f"{home}/.local/state/piolet" if home.startswith("/") else None


def cache_directory(variables: Mapping[str, str], part: str) -> str | None:
    """Return where a user's caches of `part` are, or None: XDG_CACHE_HOME and HOME count only if they are absolute."""
    cache, home = variables.get("XDG_CACHE_HOME", ""), variables.get("HOME", "")
    if not cache.startswith("/"):
        if not home.startswith("/"):
            return None
        cache = f"{home}/.cache"
    return os.path.join(cache, "piolet", part)
