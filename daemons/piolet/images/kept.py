"""Blobs of a pull that broke off, for the next pull of the same image by the same user.

Each is a folder `kept/UID-HEX` of the store, HEX from the image's digest and its repository: nobody gets what another
has fetched with other credentials. Only whole blobs are kept (skopeo gives a file the name of its digest when it is
done), and the next pull checks each again before it relies on it. Four for a user, for a day, and no more than the
user's quota has room for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator

from piolet.images.lease import remove_tree

BLOBS = "blobs/sha256"
"""Where a job's blobs are in its scratch directory."""
_EACH = 4
_KEPT_S = 86400.0
_BLOB = re.compile(r"[0-9a-f]{64}")


class Kept:
    """What is kept in the store at `root`."""

    def __init__(self, root: str) -> None:
        self._folder = os.path.join(root, "kept")

    @contextlib.contextmanager
    def resumed(self, scratch: str, uid: int, what: str, room: int | None) -> Iterator[None]:
        """Have in `scratch` what was kept for `uid` of `what`; where the block fails, keep what has come by then.

        `room` is how many bytes may be kept for the user in all; None: as many as there are.
        """
        place = os.path.join(self._folder, f"{uid}-{hashlib.sha256(what.encode()).hexdigest()[:32]}")
        blobs = os.path.join(scratch, BLOBS)
        os.mkdir(os.path.dirname(blobs), 0o700)
        with contextlib.suppress(FileNotFoundError):
            os.rename(place, blobs)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                self._keep(scratch, place, uid, room)
            raise

    def _keep(self, scratch: str, place: str, uid: int, room: int | None) -> None:
        """Move the whole blobs in `scratch` to `place`. Raises OSError, also for what no job of ours leaves there.

        Who wrote there is not trusted: a link in the place of a folder leads nowhere.
        """
        size, flags = 0, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        top = os.open(os.path.join(scratch, os.path.dirname(BLOBS)), flags)
        try:
            folder = os.open(os.path.basename(BLOBS), flags, dir_fd=top)
            try:
                for name in os.listdir(folder):
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if _BLOB.fullmatch(name) and stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                        size += found.st_size
                    elif stat.S_ISDIR(found.st_mode):
                        os.rmdir(name, dir_fd=folder)
                    else:
                        os.unlink(name, dir_fd=folder)
                os.fchmod(folder, 0o700)
            finally:
                os.close(folder)
            if not size or (room is not None and size > room):
                return
            others = sorted(self._of(uid), key=_age)
            while others and (len(others) >= _EACH or (room is not None and size + sum(map(_size, others)) > room)):
                remove_tree(others.pop())
            remove_tree(place)
            os.rename(os.path.basename(BLOBS), place, src_dir_fd=top)
        finally:
            os.close(top)
        os.utime(place, follow_symlinks=False)

    def _of(self, uid: int) -> list[str]:
        return [entry.path for entry in os.scandir(self._folder) if entry.name.startswith(f"{uid}-")]

    def sweep(self) -> None:
        """Remove what was kept for long enough (writes)."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self._folder)):
                # In a group's store what another keeps is theirs to remove.
                if _age(entry.path) > _KEPT_S and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    remove_tree(entry.path)


def _age(path: str) -> float:
    try:
        return time.time() - os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _size(path: str) -> int:
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    return 0
