"""Where the mounts of a container are attached, and where such a place may be made.

A missing mount point is made in the container's own file systems: its root, and each tmpfs that it has for itself. In
what comes from the host (a user's directory, the home, /tmp) nothing is made, replaced or written, as it would stay
there: unless the user says so by the flag `x-create`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from piolet.base.errors import ContainerError
from piolet.container.plan import CREATE, PlannedMount


class MissingError(OSError):
    """A mount point that is not there, where none may be made."""


class NewPlaces:
    """Makes mount points where nothing is, in directories of the container's own, which it remembers.

    `own` as for `find`, which does the same, and all else, in three times the time.
    """

    def __init__(self, own: set[int]) -> None:
        self._own = own
        self._folders: dict[str, str] = {}

    def make(self, path: str, directory: bool) -> str | None:
        """Make an empty file or a directory, and return its path without links; None: it is not as simple as that."""
        folder, _, name = path.rpartition("/")
        try:
            real = self._folder(folder or "/")
            if real is None:
                return None
            place = f"{real}/{name}"
            # Nothing is there, not even a link.
            if directory:
                os.mkdir(place, 0o755)
            else:
                os.mknod(place, 0o644)
        except OSError:
            return None
        return place

    def _folder(self, path: str) -> str | None:
        """Return a directory's path without links, made if there is none; None: it is not the container's own."""
        real = self._folders.get(path)
        if real is None:
            real = os.path.realpath(path)
            try:
                if os.stat(real).st_dev not in self._own:
                    return None
            except FileNotFoundError:
                above, _, name = path.rpartition("/")
                within = self._folder(above or "/")
                if within is None:
                    return None
                real = f"{within}/{name}"
                os.mkdir(real, 0o755)
            self._folders[path] = real
        return real

    def forget(self) -> None:
        """Look at directories again: something was mounted."""
        self._folders.clear()


def opened(mount: PlannedMount, directory: bool) -> int | None:
    """Return a descriptor of the place where `mount` is to be attached, if there is one that needs nothing done to it.

    Links are followed, but at the end where `find` would replace one: a single call, where `find` makes a dozen.
    """
    try:
        last = os.O_NOFOLLOW if mount.file else 0
        place = os.open(mount.destination, os.O_PATH | os.O_CLOEXEC | last)
    except OSError:
        return None
    mode = os.fstat(place).st_mode
    if stat.S_ISDIR(mode) == directory and not stat.S_ISLNK(mode):
        return place
    os.close(place)
    return None


def find(mount: PlannedMount, directory: bool, own: set[int]) -> str | None:
    """Return where `mount` is to be attached in the root that this process has, links followed.

    directory  whether its source is one
    own        the device numbers of the container's own file systems

    None: an optional one that has no place there. Raises ContainerError.
    """
    destination = mount.destination
    try:
        if mount.file and os.path.islink(destination):
            if os.stat(os.path.dirname(destination)).st_dev not in own:
                raise MissingError(errno.ENOENT, os.strerror(errno.ENOENT), destination)
            os.unlink(destination)
        # A link of the image may lead to a place that is not there yet.
        place = os.path.realpath(destination)
        _make(place, directory, own, CREATE in mount.flags)
    except OSError as error:
        if mount.optional:
            return None
        raise no_place(mount, directory, error) from None
    return place


def no_place(mount: PlannedMount, directory: bool, error: OSError) -> ContainerError:
    """Return the error of a mount that cannot be attached."""
    source = mount.source or "a tmpfs"
    what = f"cannot mount {source} at {mount.destination} in the container"
    if isinstance(error, MissingError):
        return ContainerError(
            f"{what}: it is not there, and nothing is made in what is mounted above it",
            f"make it yourself, or have it made by the flag {CREATE}: {source}:{mount.destination}:{CREATE}",
        )
    if error.errno == errno.ELOOP:
        return ContainerError(f"{what}: a symbolic link there leads to itself", "choose another destination")
    kind = "directory" if directory else "file"
    return ContainerError(
        f"{what}: {error.strerror}",
        f"the source is a {kind}; the destination must be one too, or not be there yet",
    )


def make_workdir(path: str, own: set[int]) -> None:
    """Make an image's working directory where the image lacks it, as other runtimes do; nothing in what is mounted."""
    with contextlib.suppress(OSError):
        _make(os.path.realpath(path), True, own, forced=False)


def _make(path: str, directory: bool, own: set[int], forced: bool) -> None:
    """Make the mount point `path`, which has no links, unless it is there. Raises OSError."""
    if os.path.exists(path):
        if os.path.isdir(path) != directory:
            number = errno.ENOTDIR if directory else errno.EISDIR
            raise OSError(number, os.strerror(number), path)
        return
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.islink(above):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), above)
    if not os.path.isdir(above):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), above)
    if not forced and os.stat(above).st_dev not in own:
        raise MissingError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    os.makedirs(path if directory else os.path.dirname(path), mode=0o755, exist_ok=True)
    if not directory:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
