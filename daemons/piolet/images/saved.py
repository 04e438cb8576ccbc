"""What a container's root has, as a tar: read from a mount of it, while programs may go on in there.

The root is walked by descriptors, following no link, and only plain files are opened. Each file is written with the
length that it had when it was opened: what is appended meanwhile is left out, and what is cut off is zeros. Extended
attributes, device nodes, FIFOs and sockets are left out, as from layers (tree.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import resource
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from piolet.base import units
from piolet.base.errors import ImageError
from piolet.images.limits import UNPACKED_MOST
from piolet.images.tarstream import BLOCK, header

FILES_MOST = 5_000_000
_PATH_MOST = 4095
_PIECE = 1 << 20
_SMALL = 1 << 17
_ZEROS = bytes(1 << 16)
_TIME_MOST = 2**32 - 1
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass
class Count:
    """What was written so far: names, and bytes of content; `specials` were left out."""

    names: int = 0
    bytes: int = 0
    specials: int = 0

    @property
    def work(self) -> int:
        """What there is to read of it, in bytes: a name is as much work as a block or two."""
        return self.bytes + 2 * BLOCK * self.names


@dataclass(frozen=True)
class Root:
    """The root to save: its open directory, and paths relative to it.

    hidden  what is left out
    points  what is left out if it is an empty file: something is mounted there
    given   files of ours in the place of what is there
    below   something is mounted in it, which is left out
    """

    directory: int
    hidden: Collection[bytes] = ()
    points: Collection[bytes] = ()
    given: Mapping[bytes, bytes] = field(default_factory=dict)
    below: bool = False


class Sink(Protocol):
    """Where a tar goes."""

    def write(self, data: bytes) -> None:
        """Write all of it."""

    def copy(self, file: int, size: int) -> int:
        """Write up to `size` bytes of an open file, and return how many there were."""

    def flush(self) -> None:
        """Have nothing left that was not written."""


class Pipe:
    """A program's standard input: large content goes there by splice(2), without being copied; small in one write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # the user may have too many pipes already; a small one works as well
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._splice = True
        self._held = bytearray()

    def write(self, data: bytes) -> None:
        """Write all of it."""
        self._held += data
        if len(self._held) >= _SMALL:
            self.flush()

    def flush(self) -> None:
        """Have nothing left that was not written."""
        data, self._held = self._held, bytearray()
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.write(self._descriptor, view[done:])

    def copy(self, file: int, size: int) -> int:
        """Write up to `size` bytes of an open file, and return how many there were."""
        left = size
        if size > _SMALL and self._splice:
            self.flush()
        while left and size > _SMALL and self._splice:
            try:
                moved = os.splice(file, self._descriptor, min(left, _PIECE))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                self._splice = False  # a file system that cannot
                break
            if not moved:
                return size - left
            left -= moved
        while left and (piece := os.read(file, min(left, _PIECE))):
            self.write(piece)
            left -= len(piece)
        return size - left


class Hashed:
    """A file, of whose content from here on the SHA-256 is known."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(os.dup(descriptor), "wb", buffering=_PIECE)
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Write all of it."""
        self._digest.update(data)
        self._file.write(data)
        self.size += len(data)

    def copy(self, file: int, size: int) -> int:
        """Write up to `size` bytes of an open file, and return how many there were."""
        left = size
        while left and (piece := os.read(file, min(left, _PIECE))):
            self.write(piece)
            left -= len(piece)
        return size - left

    def flush(self) -> None:
        """Have nothing left that was not written."""
        self._file.flush()

    def end(self) -> str:
        """Write what is left, and return the digest in hexadecimal."""
        self._file.close()
        return self._digest.hexdigest()


def write(root: Root, sink: Sink, count: Count, tell: Callable[[Count], None]) -> None:
    """Write the tar of `root` to `sink`, names in order; `count` goes along, and `tell` is given it after each file.

    Raises ImageError, and OSError of `sink`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor for each level of directories
    try:
        _Walk(root, sink, count, tell).run()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class _Walk:
    def __init__(self, root: Root, sink: Sink, count: Count, tell: Callable[[Count], None]) -> None:
        self._root = root
        self._sink = sink
        self._count = count
        self._tell = tell
        self._hidden, self._points = {*root.hidden, *root.given}, frozenset(root.points)
        self._device = os.fstat(root.directory).st_dev if root.below else None
        self._first: dict[tuple[int, int], bytes] = {}  # of files with several names

    def run(self) -> None:
        above: list[tuple[int, bytes, Iterator[str]]] = []
        try:
            above.append(self._enter(".", self._root.directory, b""))
            while above:
                directory, path, names = above[-1]
                name = next(names, None)
                if name is None:
                    os.close(above.pop()[0])
                    continue
                below = path + os.fsencode(name)
                try:
                    entered = None if below in self._hidden else self._take(name, directory, below)
                except FileNotFoundError:
                    continue  # it was there just now
                except BrokenPipeError:
                    raise  # the program at the other end says why
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise ImageError(f"the image cannot be written: {error.strerror}") from None
                    shown = below.decode("utf-8", "backslashreplace")
                    raise ImageError(f"cannot save /{shown[:300]}: {error.strerror}") from None
                if entered is not None:
                    above.append(entered)
        finally:
            for directory, _, _ in above:
                os.close(directory)
        for path, content in sorted(self._root.given.items()):
            self._sink.write(header(path, "file", 0o644, 0, len(content)))
            self._sink.write(content + bytes(-len(content) % BLOCK))
        self._sink.write(bytes(2 * BLOCK))
        self._sink.flush()

    def _enter(self, name: str, parent: int, path: bytes) -> tuple[int, bytes, Iterator[str]]:
        directory = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=parent)
        try:
            return directory, path, iter(sorted(os.listdir(directory)))
        except BaseException:
            os.close(directory)
            raise

    def _take(self, name: str, directory: int, path: bytes) -> tuple[int, bytes, Iterator[str]] | None:
        """Write an entry; return what it leads to if it is a directory."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        mode, mtime = stat.S_IMODE(status.st_mode), min(max(int(status.st_mtime), 0), _TIME_MOST)
        self._count.names += 1
        if self._count.names > FILES_MOST or len(path) > _PATH_MOST:
            what = f"more than {FILES_MOST} names" if len(path) <= _PATH_MOST else "a path of more than 4095 bytes"
            raise ImageError(f"the container has {what}, which no image may have", "remove what is not needed")
        if stat.S_ISDIR(status.st_mode):
            # Directories of an overlay have its number, whatever layer they are from.
            other = self._device is not None and status.st_dev != self._device
            entered = None if other else self._enter(name, directory, path + b"/")
            self._sink.write(header(path, "dir", mode, mtime))
            return entered
        if stat.S_ISLNK(status.st_mode):
            self._sink.write(header(path, "symlink", 0o777, mtime, 0, os.fsencode(os.readlink(name, dir_fd=directory))))
        elif not stat.S_ISREG(status.st_mode):
            self._count.specials += 1
        elif status.st_nlink > 1 and (first := self._first.get((status.st_dev, status.st_ino))) is not None:
            self._sink.write(header(path, "link", mode, mtime, 0, first))
        else:
            self._file(name, directory, path)
        return None

    def _file(self, name: str, directory: int, path: bytes) -> None:
        file = os.open(name, _OPEN, dir_fd=directory)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return  # it has become something else just now
            if path in self._points and (self._root.below or not status.st_size):
                return
            size, mtime = status.st_size, min(max(int(status.st_mtime), 0), _TIME_MOST)
            self._count.bytes += size
            if self._count.bytes > UNPACKED_MOST:
                most = units.size(UNPACKED_MOST)
                raise ImageError(
                    f"the container has more than {most}, which no image may have", "remove what is not needed"
                )
            self._sink.write(header(path, "file", stat.S_IMODE(status.st_mode), mtime, size))
            missing = size - self._sink.copy(file, size)
            while missing:
                piece = _ZEROS[:missing]
                self._sink.write(piece)
                missing -= len(piece)
            self._sink.write(bytes(-size % BLOCK))
            if status.st_nlink > 1:
                self._first[status.st_dev, status.st_ino] = path
            self._tell(self._count)
        finally:
            os.close(file)
