"""The container's overlay as root mounts it, where a tmpfs has no user.* attributes: before Linux 6.6.

An overlay marks a directory of its own that hides one of the image. One that a user mounted keeps such marks in
user.overlay.* attributes, which a tmpfs has from Linux 6.6 on. Before, what needs a mark fails with EIO: a directory of
the image that is not empty cannot be removed or replaced, and so no package upgraded. Root's overlay keeps them in
trusted.*, which a tmpfs has always had. It is of the image and of an empty tmpfs that nobody else can reach; what a
user may do in it goes by the owners of files, as ever.
"""

from __future__ import annotations

import errno
import os

from piolet.system import linux

_FLAGS = linux.MS_NOSUID | linux.MS_NODEV


def is_needed(target: str) -> bool:
    """Return whether a tmpfs lacks user.* attributes, seen by one at the empty directory `target`."""
    try:
        linux.mount("piolet", target, "tmpfs", _FLAGS, "mode=0700,size=64k")
    except OSError:
        return False  # then there are no containers either, and a step is told why
    try:
        os.setxattr(target, "user.piolet", b"1")
    except OSError as error:
        return error.errno == errno.EOPNOTSUPP
    finally:
        linux.umount(target)
    return False


def make(image: int, owner: tuple[int, int], label: str, scratch: str, namespace: int) -> int:
    """Return a detached mount of a container's root: the image's detached mount `image`, and over it an empty tmpfs.

    owner      uid and gid of what is written
    label      the name of the mount
    scratch    an existing directory to build in
    namespace  the mount namespace that this process is in, and is in again afterwards

    Raises OSError. The process must have no other thread.
    """
    linux.unshare(linux.CLONE_NEWNS)
    try:
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("piolet", scratch, "tmpfs", _FLAGS, "mode=0700")
        for name in ("lower", "upper", "work", "root"):
            os.mkdir(f"{scratch}/{name}", 0o755)
        os.chown(f"{scratch}/upper", *owner)
        linux.attach(image, f"{scratch}/lower")
        options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
        linux.mount(label, f"{scratch}/root", "overlay", _FLAGS, options)
        return linux.clone_tree(f"{scratch}/root", recursive=False)
    finally:
        linux.setns(namespace, linux.CLONE_NEWNS)
