"""A file that comes to be whole or not at all, under a name that is nobody else's.

It has no name while it is written, where the file system can do that (O_TMPFILE), else one that begins with a dot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from piolet.base.errors import ImageError

_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_HINT = "name another file"


def refuse(path: str, *, replace: bool, hint: str = _HINT) -> None:
    """Raise ImageError where `path` is something that is not the caller's own plain file, or is there at all.

    hint  of the last
    """
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror}") from None
    if not stat.S_ISREG(there.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(there.st_mode) else "no plain file"
        raise ImageError(f"{path} is {kind}, and is not written over", _HINT)
    if there.st_uid != os.geteuid():
        raise ImageError(f"{path} belongs to another user, and is not written over", _HINT)
    if not replace:
        raise ImageError(f"{path} is there already", hint)


@contextlib.contextmanager
def opened(path: str, *, replace: bool) -> Iterator[int]:
    """Give a descriptor to write to, of what is named `path` when the block ends well; it is closed then.

    Raises ImageError: as `refuse` does, before the block and after it; the directory is not there, or closed.
    """
    refuse(path, replace=replace)
    folder, name = os.path.split(path)
    aside = f"{folder}/.{name[:200]}.{os.getpid()}.part"
    named = False
    try:
        try:
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
            descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            named = True
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror}", "see the directory's permissions") from None
    try:
        yield descriptor
        if not named and not replace:
            _name(descriptor, path)
            return
        if not named:
            _name(descriptor, aside)
            named = True
        refuse(path, replace=replace)
        if replace:
            os.rename(aside, path)
        else:
            os.link(aside, path)
            os.unlink(aside)
        named = False
    except FileExistsError:
        raise ImageError(f"{path} has come to be meanwhile, and is left as it is", _HINT) from None
    finally:
        os.close(descriptor)
        if named:
            with contextlib.suppress(OSError):
                os.unlink(aside)


def _name(descriptor: int, path: str) -> None:
    """Give a file without a name one that nothing has. Raises FileExistsError, and OSError."""
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(descriptor), path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)
