"""Where the mounts of a container are attached, and where such a place may be made.

A missing mount point is made in the container's own file systems: its root, and each tmpfs that it has for itself. In
what comes from the host (a user's directory, the home, /tmp) nothing is made, replaced or written, as it would stay
there: unless the user says so by the flag `x-create`.
"""

from __future__ import annotations

import contextlib
import errno
import os

from piolet.base.errors import ContainerError
from piolet.container.plan import CREATE, PlannedMount


class MissingError(OSError):
    """A mount point that is not there, where none may be made."""


class NewFiles:
    """Makes mount points of files where nothing is, in directories of the container's own, which it remembers.

    `own` as for `find`, which does the same, and all else, in three times the time: a driver has forty files in one.
    """

    def __init__(self, own: set[int]) -> None:
        self._own = own
        self._folders: dict[str, str] = {}

    def make(self, path: str) -> str | None:
        """Make an empty file and return its path without links; None: it is not as simple as that."""
        folder, _, name = path.rpartition("/")
        try:
            real = self._folders.get(folder)
            if real is None:
                real = os.path.realpath(folder)
                if os.stat(real).st_dev not in self._own:
                    return None
                self._folders[folder] = real
            place = f"{real}/{name}"
            # Nothing is there, not even a link.
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        except OSError:
            return None
        return place

    def forget(self) -> None:
        """Look at directories again: something was mounted."""
        self._folders.clear()


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
