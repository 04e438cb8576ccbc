"""What is made in an overlay's upper directory before the overlay is mounted: it takes a third of the time.

The image is not the root of this process yet, so no link of it is followed: what would need that, or what only the
overlay can tell, is left to whoever makes it later, in the container's own root.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable


class UpperLayer:
    """The directory `upper`, empty at first, of an overlay that will have the image's root `lower` below."""

    def __init__(self, lower: str, upper: str) -> None:
        self._lower = lower
        self._upper = upper
        self._known: dict[str, bool] = {"": True}
        self._who = os.geteuid(), os.getegid()

    def add(self, directory: str, files: Iterable[str], links: Iterable[tuple[str, str]]) -> bool:
        """Make empty files and links (name, target) in a directory; return whether that was possible. Raises OSError.

        They are in the place of what the image has of these names.
        """
        path = directory.rstrip("/")
        if not self._has(path):
            return False
        place = os.open(self._upper + path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in files:
                os.mknod(name, 0o644, dir_fd=place)
            for name, target in links:
                os.symlink(target, name, dir_fd=place)
        except FileExistsError:
            return False  # two of one name
        finally:
            os.close(place)
        return True

    def _has(self, path: str) -> bool:
        """Return whether there is this directory now, as the image has it or new; not where it is, or is below, a link
        of the image's, or a directory that this user does not own."""
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = self._has(path.rpartition("/")[0]) and self._make(path)
        return known

    def _make(self, path: str) -> bool:
        mode = 0o755
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(self._lower + path)
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISDIR(status.st_mode) or (status.st_uid, status.st_gid) != self._who:
                return False
        os.mkdir(self._upper + path)
        os.chmod(self._upper + path, mode)
        return True
